"""A counted refusal: why nothing fits, what comes nearest, and what would fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Refusal:
    """`reasons` counts hosts by the first reason against each, so that the counts add up to the number of hosts."""

    reasons: Mapping[str, int]
    nearest: str = ""  # what the host lacks that comes nearest
    largest: str = ""  # the largest request of this form that would fit now

    @property
    def message(self) -> str:
        """For people: ``12 hosts: 9 lack memory, 3 are cordoned; 4 cores and 8 GiB would fit``."""
        total = sum(self.reasons.values())
        if not total:
            return "there are no hosts yet"
        parts = ", ".join(f"{count} {reason}" for reason, count in sorted(self.reasons.items(), key=lambda r: -r[1]))
        more = "".join(f"; {text}" for text in (self.nearest, self.largest) if text)
        return f"{total} host{'' if total == 1 else 's'}: {parts}{more}"
