"""The health of devices: what drivers find is told, and a device that cannot be trusted any more is cordoned, it alone.

A finding is told once, when it comes to light: a device that an operator takes back into service stays in service until
something new happens to it (or this process starts again, and looks anew).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog

from usina.core.capacity import Finding
from usina.core.clock import Clock
from usina.core.event import Event
from usina.engine.fleet import Fleet
from usina.ports.driver import DriverError
from usina.store import hosts as writers
from usina.store.store import Store

log = structlog.get_logger()

EVERY = 30.0


class Ailments:
    def __init__(self, store: Store, fleet: Fleet, clock: Clock) -> None:
        self._store, self._fleet, self._clock = store, fleet, clock

    async def run(self) -> None:
        while True:
            await asyncio.sleep(EVERY)
            await self.round()

    async def round(self) -> None:
        """Ask every driver once."""
        for host, stack, driver in self._fleet.task_drivers():
            try:
                found = await driver.health()
                if found:
                    await self._told(host, found)
            except DriverError as error:
                log.info("health is not known", host=host, stack=stack, reason=error.public)
            except Exception:
                log.exception("looking after devices failed")

    async def _told(self, id: str, found: Sequence[Finding]) -> None:
        host = await self._store.hosts.get(id)
        if host is None:
            return
        now = self._clock.now()
        work = self._store.work()
        before = host.provider.cordoned_devices
        cordoned = before | {one.address for one in found if one.cordon}
        if cordoned != before:
            writers.cordon_found(work, id, cordoned)
        for one in found:
            verb, word = ("device-cordoned", "cordoned") if one.cordon else ("device-warned", "warns")
            text = f"device {one.address} of {host.name} {word}: {one.reason}"
            work.emit(Event(f"host.{verb}", id, now, text, actor="engine"))
        await work.commit()
