"""The hand for images: built, fetched or uploaded into the library; taken off hosts when deleted."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

from usina.core.errors import UsinaError
from usina.core.goods import Image, ImageStatus, Source
from usina.core.machine import ImageFiles
from usina.engine.fleet import Fleet
from usina.engine.goods import GoodsHand
from usina.engine.hand import Held, Report
from usina.engine.plans import Plans
from usina.ports.driver import DriverError
from usina.ports.library import Library
from usina.store.store import Store

REPORT_EVERY = 1.0


class ImageHand(GoodsHand):
    def __init__(self, store: Store, fleet: Fleet, plans: Plans, library: Library, limit: int) -> None:
        super().__init__(store, fleet, plans)
        self._library = library
        self._limit = limit  # bytes of a download

    async def apply(self, image: Image, held: Held, report: Report) -> None:
        if image.status.files is not None:
            return
        progress = _Progress(image.status, report)
        try:
            files = await self._make(image, progress)
        except UsinaError as error:
            raise DriverError(error.message, lasting=True) from error
        await progress.settle()
        await report(ImageStatus(files, 1.0, "ready"))
        self._plans.forget(image.id)

    async def _make(self, image: Image, progress: _Progress) -> ImageFiles:
        spec = image.spec
        match spec.source:
            case Source.RECIPE:
                return await self._library.build(image.id, spec.recipe, progress)
            case Source.URL:
                return await self._library.fetch(image.id, spec.url, spec.sha256 or None, progress, limit=self._limit)
            case Source.UPLOAD:
                return await self._library.finish(image.id, spec.sha256 or None)

    async def remove(self, image: Image, held: Held) -> None:
        if image.status.files is not None:
            for claim in held.everywhere:
                if not await self._shared(image, claim.provider):
                    driver = await self._fleet.driver(claim.provider)
                    await driver.remove_image(image.status.files.digest)
        await self._library.remove(image.id)

    async def _shared(self, image: Image, provider: str) -> bool:
        """Whether another image with the same bytes is on that host: hosts keep one copy per digest."""
        assert image.status.files is not None
        there = await self._store.hosts.claims_on(provider)
        others = await self._store.resources.get_many([id for id in there if id != image.id and id.startswith("img-")])
        return any(o.status.files and o.status.files.digest == image.status.files.digest for o in others.values())


class _Progress:
    """Passes progress on to the status, at most once a second."""

    def __init__(self, status: ImageStatus, report: Report) -> None:
        self._status, self._report = status, report
        self._last = 0.0
        self._pending: set[asyncio.Future[None]] = set()

    def __call__(self, fraction: float, message: str) -> None:
        if time.monotonic() - self._last < REPORT_EVERY:
            return
        self._last = time.monotonic()
        status = replace(self._status, progress=fraction, message=message)
        task = asyncio.ensure_future(self._report(status))
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)

    async def settle(self) -> None:
        if self._pending:
            await asyncio.wait(self._pending)
