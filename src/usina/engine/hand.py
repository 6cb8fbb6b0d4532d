"""Hand: what the reconciler needs to know about one kind of resource. It looks and does; deciding is `core`'s."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from usina.core.capacity import Claim
from usina.core.grant import Lease
from usina.core.lifecycle import Decision, Step
from usina.core.resource import AnyResource
from usina.core.units import Instant
from usina.store.work import Work


@dataclass(frozen=True, slots=True)
class Held:
    """What a resource holds: at most one claim of capacity, and providers where it merely is present."""

    claim: Claim | None
    everywhere: tuple[Claim, ...] = ()
    whole: AnyResource | None = None  # what it is a part of, as it was when this was leased


class Report(Protocol):
    """Record a new status of the resource while a step is under way, and what belongs into the same commit."""

    async def __call__(self, status: Any, more: Callable[[Work, Lease], None] | None = None) -> None: ...


class Hand(Protocol):
    gives_up: bool
    """Whether a wish that fails again and again is called failed. One that holds a place until its end must not."""

    async def look(self, resource: AnyResource, held: Held) -> Any:
        """What is really there."""
        ...

    def decide(self, resource: AnyResource, held: Held, seen: Any, now: Instant) -> Decision: ...

    async def do(self, step: Step, resource: AnyResource, held: Held, report: Report) -> None:
        """One idempotent deed. Raises `DriverError`."""
        ...

    def presences(self, resource: AnyResource) -> tuple[str, ...]:
        """Other resources that come to be on the provider together with this one."""
        ...

    def placing(self, resource: AnyResource) -> Any:
        """The status to record when it is given its place."""
        ...

    def status(self, resource: AnyResource, seen: Any) -> Any:
        """The status to record after a last look."""
        ...

    def settled(self, resource: AnyResource, work: Work, lease: Lease) -> None:
        """What else belongs into the commit that records that it is as it was wished."""
        ...

    def changed(self, before: AnyResource, resource: AnyResource, work: Work, lease: Lease) -> bool:
        """What else belongs into the commit that records how it looks now, where it looked like `before` when it was
        leased; whether that wakes others."""
        ...

    def leave(self, resource: AnyResource, work: Work, lease: Lease) -> None:
        """What else is forgotten, or told, in the commit that forgets the resource."""
        ...


class Finisher(Protocol):
    """What a hand can do besides, whose resources come to an end and stay to be looked at."""

    async def finish(self, resource: AnyResource, held: Held, seen: Any, work: Work, lease: Lease) -> Any:
        """Gather what it leaves into `work`, which is committed with the release of its claim; the last status."""
        ...

    def cleared(self, resource: AnyResource, held: Held) -> None:
        """The end is recorded: take what is left off the provider, soon."""
        ...
