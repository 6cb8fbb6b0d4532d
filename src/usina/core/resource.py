"""Resource: anything a project owns. Wanted (`spec`), seen (`status`), and how far apart they are (`phase`).

Invariants: `generation` grows by one with every change of the wish; `observed` is the generation that the last
settled observation answered, so ``observed == generation`` means "nothing left to do for this wish".
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Generic, TypeVar

from usina.core.units import Instant


class Kind(StrEnum):
    MACHINE = "machine"
    VOLUME = "volume"
    NETWORK = "network"
    IMAGE = "image"
    SECURITY_GROUP = "security_group"
    FORWARD = "forward"
    TASK = "task"
    ENDPOINT = "endpoint"


class Phase(StrEnum):
    PENDING = "pending"  # ordered, holds no capacity yet
    QUEUED = "queued"  # its stack has it, and has not begun
    BUILDING = "building"  # capacity held; being made
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"
    SUSPENDED = "suspended"
    SUCCEEDED = "succeeded"  # a task that did what it was for
    READY = "ready"  # settled, for what has no power switch
    UNREACHABLE = "unreachable"  # its host does not answer
    FAILED = "failed"  # gave up; the conditions say why, a new wish tries again
    DELETING = "deleting"
    DELETED = "deleted"


@dataclass(frozen=True, slots=True)
class Condition:
    """One answered question about a resource, for example ``Placed`` or ``Reachable``."""

    kind: str
    ok: bool
    reason: str
    message: str = ""
    since: Instant = 0.0


Spec = TypeVar("Spec")
Status = TypeVar("Status")


@dataclass(frozen=True, slots=True)
class Resource(Generic[Spec, Status]):
    id: str
    kind: Kind
    tenant: str
    project: str
    name: str
    spec: Spec
    status: Status
    created_at: Instant
    updated_at: Instant
    generation: int = 1
    observed: int = 0
    phase: Phase = Phase.PENDING
    conditions: tuple[Condition, ...] = ()
    provider: str | None = None
    deleting: bool = False
    attempts: int = 0  # failed tries since the last success; sets the pause before the next
    labels: dict[str, str] = field(default_factory=dict)
    parent: str | None = None  # the resource that this one is a part of

    def wishing(self, spec: Spec, at: Instant) -> Resource[Spec, Status]:
        """The same resource with a new wish: one generation on, tries counted anew."""
        return replace(self, spec=spec, generation=self.generation + 1, attempts=0, updated_at=at)

    def leaving(self, at: Instant) -> Resource[Spec, Status]:
        """The same resource, asked to go."""
        return replace(self, deleting=True, generation=self.generation + 1, attempts=0, updated_at=at)


AnyResource = Resource[Any, Any]


def with_condition(
    conditions: tuple[Condition, ...], kind: str, ok: bool, reason: str, message: str, now: Instant
) -> tuple[Condition, ...]:
    """`conditions` with the answer for `kind` replaced; ``since`` moves only when the answer changes."""
    old = next((c for c in conditions if c.kind == kind), None)
    since = old.since if old is not None and (old.ok, old.reason) == (ok, reason) else now
    fresh = Condition(kind, ok, reason, message, since)
    return (*(c for c in conditions if c.kind != kind), fresh)
