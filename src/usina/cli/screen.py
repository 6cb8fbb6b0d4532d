"""What people and programs see. Results go to stdout, all else to stderr: ``-o json`` is JSON and nothing more."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, TypeVar

import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from usina.core.units import show_size

T = TypeVar("T")
Cell = str | Text
Columns = Sequence[tuple[str, Callable[[T], Cell]]]

WIDE = 220  # columns where no terminal says how many there are: nothing is cut off in a pipe

_COLOURS = {
    "running": "green",
    "ready": "green",
    "succeeded": "green",
    "queued": "yellow",
    "enabled": "green",
    "pending": "yellow",
    "building": "yellow",
    "starting": "yellow",
    "stopping": "yellow",
    "deleting": "yellow",
    "cordoned": "yellow",
    "draining": "yellow",
    "failed": "bold red",
    "unreachable": "red",
    "stopped": "dim",
    "suspended": "dim",
}
_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b.")
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Output(StrEnum):
    TABLE = "table"
    JSON = "json"
    NAME = "name"


def out() -> Console:
    return _console(stderr=False)


def err() -> Console:
    return _console(stderr=True)


def _console(*, stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else WIDE
    return Console(stderr=stderr, width=width, highlight=False, markup=False, emoji=False, soft_wrap=False)


def clean(text: str) -> str:
    """Text from elsewhere, without the sequences that would command a terminal; lines and tabs stay."""
    return _CONTROLS.sub("", _ESCAPES.sub("", text.replace("\r\n", "\n")))


def say(text: Cell) -> None:
    """A remark for people, on stderr."""
    err().print(text, soft_wrap=True)


def phase(word: str) -> Text:
    return Text(clean(word), style=_COLOURS.get(word, ""))


def age(at: datetime | None, now: datetime | None = None) -> str:
    """How long ago, in one unit: ``42s``, ``5m``, ``3h``, ``12d``."""
    if at is None:
        return "–"
    seconds = max(0, int(((now or datetime.now(UTC)) - at).total_seconds()))
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"


def size(value: int | None) -> str:
    return "–" if value is None else show_size(value)


def show_list(items: Iterable[T], columns: Columns[T], output: Output, *, name: str = "name") -> None:
    """A table with a row for each item, a JSON array, or names line by line."""
    found = list(items)
    if output is Output.JSON:
        print_json(found)
    elif output is Output.NAME:
        for item in found:
            print(clean(str(getattr(item, name))))
    elif not found:
        say(Text("there are none", style="dim"))
    else:
        out().print(table([title for title, _ in columns], ([draw(item) for _, draw in columns] for item in found)))


def show_one(item: Any, rows: Sequence[tuple[str, Cell]], output: Output, *, name: str = "name") -> None:
    """One thing: its facts line by line, a JSON object, or its name."""
    if output is Output.JSON:
        print_json(item)
    elif output is Output.NAME:
        print(clean(str(getattr(item, name))))
    else:
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="dim", no_wrap=True)
        grid.add_column(overflow="fold")
        for title, value in rows:
            grid.add_row(title, _cell(value))
        out().print(grid)


def table(titles: Sequence[str], rows: Iterable[Sequence[Cell]]) -> Table:
    made = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    for title in titles:
        made.add_column(title, overflow="fold")
    for row in rows:
        made.add_row(*(_cell(value) for value in row))
    return made


def _cell(value: Cell) -> Text:
    return value if isinstance(value, Text) else Text(clean(value))


def print_json(value: Any) -> None:
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")
    sys.stdout.flush()


def done(text: str) -> None:
    """Something was done, for people: a green tick on stderr."""
    say(Text.assemble(("✔ ", "green"), clean(text)))


def warn(text: str) -> None:
    say(Text.assemble(("! ", "yellow"), clean(text)))


def fail(message: str, field: str | None = None, hint: str = "") -> None:
    """The one red line of an error, and what to do about it."""
    said = message.startswith(field) if field else True
    where = "" if said else f"{field}: "
    say(Text.assemble(("error: ", "bold red"), clean(where + message)))
    if hint:
        say(Text.assemble(("hint:  ", "cyan"), clean(hint)))
