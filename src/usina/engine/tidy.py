"""Housekeeping: idempotency keys are forgotten after a day, and so is content that nothing uses."""

from __future__ import annotations

import asyncio

import structlog

from usina.core.clock import Clock
from usina.ports.blobs import Blobs
from usina.ports.llm import Prompts
from usina.ports.models import Xorbs
from usina.store import tasks as writers
from usina.store.store import Store

log = structlog.get_logger()

EVERY = 600.0
KEPT = 24 * 3600.0


class Tidy:
    def __init__(self, store: Store, clock: Clock, blobs: Blobs, xorbs: Xorbs, prompts: Prompts) -> None:
        self._store, self._clock, self._blobs, self._xorbs, self._prompts = store, clock, blobs, xorbs, prompts

    async def run(self) -> None:
        while True:
            try:
                await self._store.resources.forget_requests(self._clock.now() - KEPT)
                await self._drop_blobs()
                await self._blobs.sweep()
                await self._xorbs.sweep()
                await self._drop_prompts()
            except Exception:
                log.exception("tidying failed")
            await asyncio.sleep(EVERY)

    async def _drop_prompts(self) -> None:
        _, _, projects = await self._store.identity.everybody()
        await self._prompts.sweep({project.id: project.keep_prompts for project in projects}, self._clock.now())

    async def _drop_blobs(self) -> None:
        before = self._clock.now() - KEPT
        stale = await self._store.tasks.stale_blobs(before)
        if not stale:
            return
        work = self._store.work()
        for project, digest in stale:
            writers.drop_blob(work, project, digest, before)
        await work.commit()
        for _, digest in stale:
            if not await self._store.tasks.blob_is_owned(digest):
                await self._blobs.drop(digest)
