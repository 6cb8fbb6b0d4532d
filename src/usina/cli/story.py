"""Stories and events: everything that ever happened to one object, and what happens now."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Annotated

import msgspec
import typer
from rich.table import Table
from rich.text import Text

from usina.cli import door, options, screen
from usina.cli.options import Out, Project
from usina.cli.screen import Cell, Output
from usina.client import Event

Follow = Annotated[bool, typer.Option("--follow", "-f", help="Go on showing what happens; Ctrl-C ends it.")]

_BAD = ("failed", "refused", "unreachable")
_NAMED = options.completing(lambda site: site.machines.list())


def _kind(event: Event) -> Cell:
    """The verb of a kind: ``machine.step`` → ``step``."""
    verb = event.kind.rpartition(".")[2]
    return Text(
        screen.clean(verb), style="red" if verb in _BAD else "green" if verb in ("running", "ready") else "cyan"
    )


def _took(event: Event) -> str:
    seconds = event.data.get("seconds")
    return f"{seconds:.1f}s" if isinstance(seconds, int | float) else ""


_STORY: screen.Columns[Event] = [
    ("time", lambda e: f"{e.at:%Y-%m-%d %H:%M:%S}.{e.at.microsecond // 1000:03d}"),
    ("what", _kind),
    ("", lambda e: e.text),
    ("took", _took),
    ("because of", lambda e: e.cause or e.actor),
]


def story_table(events: Iterable[Event]) -> Table:
    return screen.table([title for title, _ in _STORY], ([draw(event) for _, draw in _STORY] for event in events))


def story(
    name: Annotated[
        str,
        typer.Argument(
            help="Id of anything, or name of a resource in the project.", metavar="NAME", autocompletion=_NAMED
        ),
    ],
    follow: Follow = False,
    project: Project = None,
    output: Out = Output.TABLE,
) -> None:
    """Show everything that ever happened to one object: orders, steps, refusals and their causes.

    Examples:
      usina story hello
      usina story hello --follow
      usina story mch-0123456789abcdefghjk -o json
    """
    with door.client(project) as site:
        events = list(site.story(name))
        if output is Output.TABLE:
            screen.out().print(story_table(events))
        elif output is Output.JSON and not follow:
            screen.print_json(events)
        else:
            _stream(events, output)
        if follow and events:
            last = events[-1]
            _stream(site.events(after=last.seq, subject=last.subject), output)


def events(
    follow: Follow = False,
    project: Project = None,
    kind: Annotated[str | None, typer.Option(help="Only this kind, such as machine.running.")] = None,
    subject: Annotated[str | None, typer.Option(help="Only those of one object, by id.", metavar="ID")] = None,
    after: Annotated[int | None, typer.Option(help="Only those past this number.", min=0, metavar="SEQ")] = None,
    output: Out = Output.TABLE,
) -> None:
    """Show events, of all that the key may see. With --follow: as they happen, JSON as one object a line.

    Examples:
      usina events --follow
      usina events --follow --project research --kind machine.failed
      usina events --after 1200 -o json
    """
    with door.client() as site:
        if follow:
            _stream(site.events(after=after, project=project, subject=subject, kind=kind), output)
            return
        found = site.past_events(after=after or 0, project=project, subject=subject, kind=kind)
        if output is Output.JSON:
            screen.print_json(list(found))
        else:
            _stream(found, output)


def _stream(events: Iterable[Event], output: Output) -> None:
    """Line by line, each at once."""
    for event in events:
        if output is Output.JSON:
            sys.stdout.write(msgspec.json.encode(event).decode() + "\n")
        elif output is Output.NAME:
            sys.stdout.write(screen.clean(event.subject) + "\n")
        else:
            when = Text(f"{event.at:%H:%M:%S} ", style="dim")
            subject = Text(screen.clean(event.subject) + " ", style="dim")
            text = screen.clean(event.text)
            screen.out().print(Text.assemble(when, subject, _kind(event), " ", text), soft_wrap=True)
        sys.stdout.flush()
