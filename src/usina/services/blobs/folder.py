"""Blobs as files, each called by its sha256. A file with such a name is complete: it is renamed there when it is."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

from usina.core.errors import Invalid, NotFound, TooLarge
from usina.core.units import show_size

YOUNG = 3600.0  # seconds
ABANDONED = 24 * 3600.0
_DIGEST = re.compile(r"[0-9a-f]{64}\Z")


class BlobFolder:
    """See `ports.blobs.Blobs`. Control planes of one site share the folder."""

    def __init__(self, root: Path) -> None:
        self._root = root
        root.mkdir(mode=0o700, parents=True, exist_ok=True)

    def path(self, digest: str) -> Path:
        path = self._place(digest)
        if not path.exists():
            raise NotFound("this content is not here any more")
        return path

    async def receive(self, chunks: AsyncIterator[bytes], *, limit: int, digest: str | None = None) -> tuple[str, int]:
        fd, name = tempfile.mkstemp(prefix="coming-", dir=self._root)
        scratch = Path(name)
        try:
            with os.fdopen(fd, "wb") as file:
                found, size = await self._write(file.fileno(), chunks, limit)
            if digest is not None and digest != found:
                raise Invalid("digest: the content has another sha256", field="digest")
            place = self._place(found)
            place.parent.mkdir(mode=0o700, exist_ok=True)
            os.replace(scratch, place)
            return found, size
        finally:
            with suppress(FileNotFoundError):
                scratch.unlink()

    async def _write(self, fd: int, chunks: AsyncIterator[bytes], limit: int) -> tuple[str, int]:
        digest, size = hashlib.sha256(), 0
        async for chunk in chunks:
            size += len(chunk)
            if size > limit:
                raise TooLarge(f"content: at most {show_size(limit)}", field="content")
            digest.update(chunk)
            await asyncio.to_thread(_write_all, fd, chunk)
        if size:
            await asyncio.to_thread(os.fsync, fd)
        return digest.hexdigest(), size

    async def sweep(self) -> None:
        for scratch in self._root.glob("coming-*"):
            with suppress(FileNotFoundError):
                if scratch.stat().st_mtime < time.time() - ABANDONED:
                    scratch.unlink()

    async def drop(self, digest: str) -> None:
        with suppress(FileNotFoundError):
            place = self._place(digest)
            if place.stat().st_mtime < time.time() - YOUNG:
                place.unlink()

    def _place(self, digest: str) -> Path:
        if not _DIGEST.match(digest):
            raise NotFound("blob not found")
        return self._root / digest[:2] / digest


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
