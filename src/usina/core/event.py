"""Event: something that happened to one object, told once, in the commit that made it so.

Kinds are ``noun.verb``. A story is the events of one object in order: orders, decisions, steps, refusals, sights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from usina.core.units import Instant


@dataclass(frozen=True, slots=True)
class Event:
    kind: str  # "machine.ordered", "machine.step", "host.unreachable" …
    subject: str  # id of the object
    at: Instant
    text: str = ""  # one sentence for people
    related: str | None = None  # another object whose story this belongs to as well
    tenant: str | None = None
    project: str | None = None
    actor: str = ""  # member id, or "engine"
    cause: str = ""  # what made it happen: "generation 3", "seen on host hst-…"
    data: Mapping[str, Any] = field(default_factory=dict)
    seq: int = 0  # given by the store: the order of commits
