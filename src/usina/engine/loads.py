"""Watching what gateways measure: an endpoint is looked at when its load has changed, and otherwise left alone."""

from __future__ import annotations

import asyncio

import structlog

from usina.core.clock import Clock
from usina.core.endpoint import Load
from usina.engine.fleet import Wake
from usina.store.store import Store

log = structlog.get_logger()

EVERY = 0.5  # seconds between two looks, one query each for all endpoints


class Loads:
    """`wake` makes endpoints due."""

    def __init__(self, store: Store, clock: Clock, wake: Wake) -> None:
        self._store, self._clock, self._wake = store, clock, wake
        self._known: dict[str, object] = {}

    async def run(self) -> None:
        while True:
            try:
                await self.look()
            except Exception:
                log.exception("the loads of endpoints could not be read")
            await asyncio.sleep(EVERY)

    async def look(self) -> None:
        """Wake those whose load is another than it was."""
        found = {id: _matters(load) for id, load in (await self._store.llm.loads(self._clock.now())).items()}
        changed = [id for id in found.keys() | self._known.keys() if found.get(id) != self._known.get(id)]
        if changed:
            await self._wake(changed)
        self._known = found


def _matters(load: Load) -> object:
    """What of it a decision reads; not the clock in it."""
    return load.in_flight, load.waiting, load.oldest > 0, round(load.tokens), dict(load.by_replica)
