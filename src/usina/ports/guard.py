"""Guard: what looks at the texts of requests and answers, and allows, denies or changes them.

Contract: `look` keeps nothing of what it sees, and says nothing of it in a reason or an error. What it finds in a text
depends on no more than `WINDOW` characters around: streams are looked at through a window of so many.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

WINDOW = 256
"""Characters of a stream that are held back, so that what is cut by the borders of its events is found."""


class Side(StrEnum):
    REQUEST = "request"
    ANSWER = "answer"


@dataclass(frozen=True, slots=True)
class Change:
    """`text` in place of the characters from `start` to `end`."""

    start: int
    end: int
    text: str


@dataclass(frozen=True, slots=True)
class Found:
    denied: str = ""  # why not, without a word of the text; "": it may pass
    denied_at: tuple[int, int] | None = None  # where that is in the only text; None: not told
    changes: tuple[tuple[Change, ...], ...] = ()  # of each text, in order and apart from each other; (): none at all


ALLOWED = Found()


class Guard(Protocol):
    waits: bool  # whether `look` is to be awaited
    answers: bool  # whether it looks at answers, besides requests

    def look(self, texts: Sequence[str], side: Side, behind: int = 0) -> Found | Awaitable[Found]:
        """The first `behind` characters of each text went out before: they are told for what they mean to those after
        them. Raises anything where it cannot tell."""
        ...

    async def close(self) -> None:
        """It is asked no more. What it has open is closed."""
        ...


class Outside(Protocol):
    """Where the site may go."""

    async def of_url(self, url: str) -> str:
        """The checked address behind a URL. Raises `Invalid`."""
        ...


@dataclass(frozen=True, slots=True)
class GuardPlugin:
    """What a guard's folder exports as `PLUGIN`. `make` raises `Invalid`, its field the setting at fault."""

    name: str
    summary: str
    settings: Mapping[str, str]  # the operator's -> one sentence
    make: Callable[[Mapping[str, Any], Outside], Guard]


@dataclass(frozen=True, slots=True)
class Placed:
    """A guard as the operator has set it up."""

    name: str
    guard: Guard
    everywhere: bool = False  # for all endpoints, whatever they wish
    fails_open: bool = False  # of one that is everywhere: what it cannot tell passes
    timeout: float = 5.0  # seconds


def changed(text: str, changes: Sequence[Change]) -> str:
    parts, at = [], 0
    for one in changes:
        parts += [text[at : one.start], one.text]
        at = one.end
    return "".join([*parts, text[at:]])
