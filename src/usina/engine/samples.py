"""What running tasks use, sampled now and then, so that it can be drawn afterwards."""

from __future__ import annotations

import asyncio

import structlog

from usina.core.clock import Clock
from usina.core.task import Running, handle_of, task_of
from usina.engine.fleet import Fleet
from usina.ports.driver import DriverError
from usina.ports.tasks import TaskDriver
from usina.store import tasks as writers
from usina.store.store import Store

log = structlog.get_logger()

EVERY = 5.0
OLD = 3600.0  # seconds after which a run is sampled once a minute
BUSY = 200  # runs of one stack that are sampled in one round at most


class Samples:
    def __init__(self, store: Store, fleet: Fleet, clock: Clock, every: float = EVERY) -> None:
        self._store, self._fleet, self._clock, self._every = store, fleet, clock, every
        self._round = 0

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self._every)
            self._round += 1
            for _, _, driver in self._fleet.task_drivers():
                try:
                    await self._sample(driver)
                except DriverError as error:
                    log.info("not sampled", reason=error.public)
                except Exception:
                    log.exception("sampling failed")

    async def _sample(self, driver: TaskDriver) -> None:
        now = self._clock.now()
        running = {h: sight for h, sight in (await driver.survey()).items() if isinstance(sight, Running)}
        due = [h for h, sight in running.items() if now - sight.since < OLD or self._round % 12 == 0][:BUSY]
        work = self._store.work()
        for handle in due:
            usage = await driver.usage(handle)
            if usage is not None:
                run = int(handle.rpartition(".")[2])
                assert handle == handle_of(task_of(handle), run)
                writers.keep_sample(work, task_of(handle), run, usage)
        if work.writes:
            await work.commit()
