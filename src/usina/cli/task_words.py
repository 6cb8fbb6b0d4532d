"""Short ways of writing what a task wishes for, read once, here. Each raises `Invalid` naming the option."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from usina.cli import short_forms
from usina.core.errors import Invalid

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_CLOCK = re.compile(r"(?:(\d+)-)?(\d+):(\d\d)(?::(\d\d))?\Z")
_SPAN = re.compile(r"(\d+(?:\.\d+)?)([smhd])")
_ARRAY = re.compile(r"[0-9,:-]+\Z")
MOST = 2000


def seconds(text: str, option: str = "time") -> float:
    """``90`` and ``90s``, ``30m``, ``1h30m``, ``2d``; as Slurm writes it, ``01:30:00`` and ``1-12:00``."""
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    clock = _CLOCK.match(text)
    if clock:
        days, first, second, third = clock.groups()
        if third is None and days is None:
            return int(first) * 60 + int(second)
        return int(days or 0) * 86400 + int(first) * 3600 + int(second) * 60 + int(third or 0)
    spans = _SPAN.findall(text)
    if not spans or "".join(number + unit for number, unit in spans) != text:
        raise Invalid(f"{option}: {text!r} is not a time such as 90s, 1h30m or 01:30:00", field=option)
    return sum(float(number) * _UNITS[unit] for number, unit in spans)


def array(text: str) -> tuple[list[int], int]:
    """``0-99``, ``1,3,7``, ``0-20:5``, each with ``%10`` for so many at once: (indices, at once)."""
    spans, percent, most = text.partition("%")
    if not _ARRAY.match(spans) or (percent and not most.isdecimal()):
        raise Invalid(f"array: {text!r} is not like 0-99, 1,3,7 or 0-99:2%10", field="array")
    found: list[int] = []
    for span in spans.split(","):
        bounds, _, step = span.partition(":")
        first, dash, last = bounds.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or (step and not step.isdecimal()):
            raise Invalid(f"array: {span!r} is not like 5, 0-99 or 0-99:2", field="array")
        found += range(int(first), int(last or first) + 1, int(step or 1) or 1)
        if len(found) > MOST:
            raise Invalid(f"array: at most {MOST} parts", field="array")
    return sorted(set(found)), int(most or 0)


def devices(texts: Iterable[str]) -> list[dict[str, Any]]:
    """As GPUs of machines are written (``1``, ``h100:2,linked``), and ``share=500`` or ``profile=1g.10gb``."""
    found = []
    for text in texts:
        first, *more = text.split(",")
        mine = [one for one in more if one.partition("=")[0] in ("share", "profile")]
        wish = short_forms.gpu(",".join([first, *(one for one in more if one not in mine)]))
        body = {"kind": wish.kind, "count": wish.count, "model": wish.model, "memory": wish.memory}
        body |= {"linked": wish.linked, "traits": list(wish.traits)}
        for one in mine:
            name, _, value = one.partition("=")
            if name == "share" and not value.isdecimal():
                raise Invalid(f"gpus: {text!r}: share is thousandths of one, such as share=500", field="gpus")
            body[name] = int(value) if name == "share" else value
        found.append({name: value for name, value in body.items() if value not in (None, "", [])})
    return found


def variables(texts: Iterable[str], option: str = "env") -> dict[str, str]:
    """``NAME=VALUE``, or ``NAME`` for what it is here."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            if name not in os.environ:
                raise Invalid(f"{option}: {name} is not set here; give NAME=VALUE", field=option)
            value = os.environ[name]
        found[name] = value
    return found


def volumes(texts: Iterable[str]) -> list[dict[str, Any]]:
    """``NAME:PATH``, with ``:ro`` where nothing is to be written."""
    found = []
    for text in texts:
        name, _, path = text.partition(":")
        read_only = path.endswith(":ro")
        if read_only or path.endswith(":rw"):
            path = path[:-3]
        if not name or not path:
            raise Invalid(f"volume: {text!r} is not like data:/data or data:/data:ro", field="volume")
        found.append({"volume": name, "path": path, "read_only": read_only})
    return found


def secrets(texts: Iterable[str]) -> dict[str, str]:
    """``NAME`` for what it is here, or ``NAME=@FILE``; a value itself would show in the list of processes."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            found |= variables([name], "secret")
        elif value.startswith("@"):
            try:
                found[name] = Path(value[1:]).expanduser().read_text().rstrip("\n")
            except OSError as error:
                raise Invalid(f"secret: {value[1:]}: {error.strerror}", field="secret") from None
        else:
            raise Invalid(f"secret: give {name} alone (from the environment), or {name}=@FILE", field="secret")
    return found


def after(texts: Iterable[str]) -> list[dict[str, str]]:
    """``TASK`` for its success, ``TASK:end`` for its end, whatever comes of it."""
    found = []
    for text in texts:
        task, _, on = text.partition(":")
        if on not in ("", "success", "end"):
            raise Invalid(f"after: {text!r}: give TASK, TASK:success or TASK:end", field="after")
        found.append({"task": task, "on": on or "success"})
    return found


def dialect(texts: Iterable[str], **known: str | None) -> dict[str, str]:
    """``KEY=VALUE`` for one stack alone, and options that have a name of their own."""
    found = {name: value for name, value in known.items() if value is not None}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise Invalid(f"set: {text!r}: give KEY=VALUE", field="set")
        found[name] = value
    return found
