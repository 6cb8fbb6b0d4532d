"""The hands for volumes, networks, security groups and forwards."""

from __future__ import annotations

from typing import Any

from usina.core import goods
from usina.core.grant import Lease
from usina.core.lifecycle import Apply, Decision, Remove, Step
from usina.core.machine import Interface, VolumePlan
from usina.core.resource import AnyResource, Kind
from usina.core.task import handle_of
from usina.core.task_decide import OVER
from usina.core.units import Instant
from usina.engine.fleet import Fleet
from usina.engine.hand import Held, Report
from usina.engine.plans import Plans
from usina.ports.driver import Driver
from usina.ports.tasks import TaskDriver
from usina.store.store import Store
from usina.store.work import Work


class GoodsHand:
    """What the kinds without a power switch share: nothing to look at, one rule to decide by."""

    gives_up = True

    def __init__(self, store: Store, fleet: Fleet, plans: Plans) -> None:
        self._store, self._fleet, self._plans = store, fleet, plans

    async def look(self, resource: AnyResource, held: Held) -> None:
        return None

    def decide(self, resource: AnyResource, held: Held, seen: None, now: Instant) -> Decision:
        return goods.decide(resource, held.claim, now)

    def presences(self, resource: AnyResource) -> tuple[str, ...]:
        return ()

    def placing(self, resource: AnyResource) -> Any:
        return resource.status

    def settled(self, resource: AnyResource, work: Work, lease: Lease) -> None:
        """They give nothing up by it."""

    def changed(self, before: AnyResource, resource: AnyResource, work: Work, lease: Lease) -> bool:
        return False  # nobody waits for it

    def leave(self, resource: AnyResource, work: Work, lease: Lease) -> None:
        """They keep nothing besides their rows."""

    def status(self, resource: AnyResource, seen: None) -> Any:
        return resource.status

    async def do(self, step: Step, resource: AnyResource, held: Held, report: Report) -> None:
        if isinstance(step, Apply):
            await self.apply(resource, held, report)
        elif isinstance(step, Remove):
            self._plans.forget(resource.id)
            await self.remove(resource, held)

    async def apply(self, resource: AnyResource, held: Held, report: Report) -> None:
        """Bring it to its wish; by default a wish needs no deed until something uses it."""

    async def remove(self, resource: AnyResource, held: Held) -> None:
        """Take it off every provider it is on; by default it is on none."""


class VolumeHand(GoodsHand):
    async def apply(self, volume: goods.Volume, held: Held, report: Report) -> None:
        if held.claim:
            driver = await self._keeper(volume, held.claim.provider)
            await driver.ensure_volume(VolumePlan(volume.id, volume.spec.size))

    async def remove(self, volume: goods.Volume, held: Held) -> None:
        if held.claim:
            driver = await self._keeper(volume, held.claim.provider)
            await driver.remove_volume(volume.id)

    async def _keeper(self, volume: goods.Volume, host: str) -> Driver | TaskDriver:
        """Disks are with the driver that makes machines, folders with one that runs tasks."""
        folder = volume.spec.form is goods.Form.FOLDER
        return await self._fleet.shelf(host) if folder else await self._fleet.driver(host)


class NetworkHand(GoodsHand):
    """A network comes to a host with the first machine that needs it there, and leaves all hosts when deleted."""

    async def remove(self, network: goods.Network, held: Held) -> None:
        for claim in held.everywhere:
            driver = await self._fleet.driver(claim.provider)
            await driver.remove_network(network.id)


class SecurityGroupHand(GoodsHand):
    """A changed group is applied to every interface that uses it, of machines and tasks."""

    async def apply(self, group: goods.SecurityGroup, held: Held, report: Report) -> None:
        self._plans.forget(group.id)
        users = set((await self._store.resources.users_of(group.id)).values())
        for user in (await self._store.resources.get_many(users)).values():
            if user.provider and not user.deleting and not (user.kind is Kind.TASK and user.phase in OVER):
                await self._apply_to(user, group.id)

    async def _apply_to(self, user: AnyResource, group: str) -> None:
        driver = await self._fleet.driver(user.provider or "")
        handle, cards = _plugged(user)
        for card in cards:
            if group in card.security_groups:
                await driver.set_rules(handle, card.mac, await self._plans.rules(card.security_groups))


def _plugged(user: AnyResource) -> tuple[str, tuple[Interface, ...]]:
    """The handle and the interfaces of a machine, or of a task's run."""
    if user.kind is Kind.TASK:
        return handle_of(user.id, user.status.run), (user.spec.interface,) if user.spec.interface else ()
    return user.id, user.spec.interfaces
