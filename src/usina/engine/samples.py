"""What running tasks use, sampled now and then, so that it can be drawn afterwards."""

from __future__ import annotations

import asyncio

import structlog

from usina.core.clock import Clock
from usina.core.task import Running, run_of, task_of
from usina.engine.fleet import Fleet
from usina.ports.driver import DriverError
from usina.ports.tasks import TaskDriver
from usina.store import tasks as writers
from usina.store.store import Store

log = structlog.get_logger()

EVERY = 5.0
OLD = 3600.0  # seconds after which a run is sampled once a minute
BUSY = 200  # runs of one stack that are sampled in one round at most
AT_ONCE = 8  # questions to one driver


class Samples:
    def __init__(self, store: Store, fleet: Fleet, clock: Clock, every: float = EVERY) -> None:
        self._store, self._fleet, self._clock, self._every = store, fleet, clock, every
        self._round = 0

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self._every)
            self._round += 1
            await asyncio.gather(*(self._try(driver) for _, _, driver in self._fleet.task_drivers()))

    async def _try(self, driver: TaskDriver) -> None:
        """One that fails keeps no other from being sampled."""
        try:
            await self._sample(driver)
        except DriverError as error:
            log.info("not sampled", reason=error.public)
        except Exception:
            log.exception("sampling failed")

    async def _sample(self, driver: TaskDriver) -> None:
        now = self._clock.now()
        running = {h: sight for h, sight in (await driver.survey()).items() if isinstance(sight, Running)}
        due = self._turn([h for h, sight in running.items() if now - sight.since < OLD or self._round % 12 == 0])
        work = self._store.work()
        for some in (due[at : at + AT_ONCE] for at in range(0, len(due), AT_ONCE)):
            for handle, usage in zip(some, await asyncio.gather(*map(driver.usage, some)), strict=True):
                if usage is not None:
                    writers.keep_sample(work, task_of(handle), run_of(handle), usage)
        if work.writes:
            await work.commit()

    def _turn(self, due: list[str]) -> list[str]:
        """Those whose turn it is, where there are too many for one round."""
        turns = max(1, -(-len(due) // BUSY))
        return due[self._round % turns :: turns]
