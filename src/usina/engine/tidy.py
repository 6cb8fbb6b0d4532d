"""Housekeeping: idempotency keys are forgotten after a day."""

from __future__ import annotations

import asyncio

import structlog

from usina.core.clock import Clock
from usina.store.store import Store

log = structlog.get_logger()

EVERY = 600.0
REQUESTS_KEPT = 24 * 3600.0


class Tidy:
    def __init__(self, store: Store, clock: Clock) -> None:
        self._store, self._clock = store, clock

    async def run(self) -> None:
        while True:
            try:
                await self._store.resources.forget_requests(self._clock.now() - REQUESTS_KEPT)
            except Exception:
                log.exception("tidying failed")
            await asyncio.sleep(EVERY)
