"""Library: where images lie on the control plane, and how they get there. Implemented by `services.images`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Protocol

from usina.core.machine import ImageFiles

Progress = Callable[[float, str], None]
"""Called now and then with a fraction from 0 to 1 and a short sentence."""


class Library(Protocol):
    """Every call is idempotent on the image's id; errors are `core.errors`."""

    async def build(self, image_id: str, recipe: str, progress: Progress) -> ImageFiles: ...

    async def fetch(
        self, image_id: str, url: str, sha256: str | None, progress: Progress, *, limit: int
    ) -> ImageFiles: ...

    async def upload_offset(self, image_id: str) -> int:
        """Bytes already received."""
        ...

    async def append(self, image_id: str, offset: int, chunks: AsyncIterator[bytes], *, limit: int) -> int:
        """Add bytes at `offset`; the new offset. Raises `Conflict` with ``data["offset"]`` if it is not there."""
        ...

    async def finish(self, image_id: str, sha256: str | None) -> ImageFiles:
        """Check what was uploaded and make it an image."""
        ...

    async def remove(self, image_id: str) -> None: ...
