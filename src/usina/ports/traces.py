"""Traces: what a request did and how long each part took, told to the operator's collector. Implemented by
`services.traces`. Nothing of a prompt, and no key, is ever told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

Told = Mapping[str, str | int | float]
"""Attributes, by the names of OpenTelemetry's conventions."""


class Span(Protocol):
    """One part of a trace, under way since it was made."""

    def child(self, name: str) -> Span:
        """A call that goes out from here, under way from now on."""
        ...

    def headers(self) -> Sequence[tuple[bytes, bytes]]:
        """By which whoever is called goes on with the trace (https://www.w3.org/TR/trace-context/)."""
        ...

    def end(self, told: Told, error: str = "", name: str = "") -> None:
        """It is over; `error`: why it went wrong; `name`: a better one, known by now."""
        ...


class Traces(Protocol):
    def begin(self, name: str, headers: Mapping[bytes, bytes]) -> Span | None:
        """What comes in with these headers (names in lower case); None where it is not among those that are told."""
        ...
