"""Runs on a stack that no task knows of: left over from a crash, or from a task that is over. Seen twice, they go.

The other direction, a task whose run is gone from its stack, needs no search: the survey sees it missing.
"""

from __future__ import annotations

import asyncio

import structlog

from usina.core.resource import AnyResource
from usina.core.task import handle_of, task_of
from usina.core.task_decide import OVER
from usina.engine.fleet import Fleet
from usina.ports.driver import DriverError
from usina.ports.tasks import TaskDriver
from usina.store.store import Store

log = structlog.get_logger()

EVERY = 20.0
SOON = 5.0  # seconds after a start, which a crash may have come before; and until what is suspect is looked at again


class Orphans:
    def __init__(self, store: Store, fleet: Fleet, every: float = EVERY) -> None:
        self._store, self._fleet, self._every = store, fleet, every
        self._suspects: set[tuple[str, str, str]] = set()
        self._looked = False

    async def run(self) -> None:
        while True:
            await asyncio.sleep(min(SOON, self._every) if self._suspects or not self._looked else self._every)
            self._looked = True
            try:
                await self.sweep()
            except Exception:
                log.exception("the search for orphans failed")

    async def sweep(self) -> None:
        """One look at every stack; what was suspect at the last one already is removed."""
        found: set[tuple[str, str, str]] = set()
        for host, stack, driver in self._fleet.task_drivers():
            try:
                orphans = await self._on(driver)
                for handle in orphans:
                    if (host, stack, handle) in self._suspects:
                        log.warning("orphan removed", host=host, stack=stack, handle=handle)
                        await driver.remove(handle)
                    else:
                        found.add((host, stack, handle))
            except DriverError as error:
                log.info("no search for orphans", host=host, stack=stack, reason=error.public)
        self._suspects = found

    async def _on(self, driver: TaskDriver) -> list[str]:
        handles = {*await driver.survey(), *await driver.leftovers()}
        tasks = await self._store.resources.get_many({task_of(handle) for handle in handles})
        return [handle for handle in handles if _is_orphan(handle, tasks.get(task_of(handle)))]


def _is_orphan(handle: str, task: AnyResource | None) -> bool:
    if task is None or handle != handle_of(task.id, task.status.run):
        return True
    return task.phase in OVER and task.observed == task.generation
