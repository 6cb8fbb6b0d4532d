"""Hand: what the reconciler needs to know about one kind of resource. It looks and does; deciding is `core`'s."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

from usina.core.capacity import Claim
from usina.core.lifecycle import Decision, Step
from usina.core.resource import AnyResource
from usina.core.units import Instant


@dataclass(frozen=True, slots=True)
class Held:
    """What a resource holds: at most one claim of capacity, and providers where it merely is present."""

    claim: Claim | None
    everywhere: tuple[Claim, ...] = ()


Report = Callable[[Any], Awaitable[None]]
"""Record a new status of the resource while a long step is under way."""


class Hand(Protocol):
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

    def status(self, resource: AnyResource, seen: Any) -> Any:
        """The status to record after a last look."""
        ...
