"""Blobs: content by its digest, on the control plane's disk. Who has it is in the store. Implemented by
`services.blobs`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol


class Blobs(Protocol):
    def path(self, digest: str) -> Path:
        """Where the content lies. Raises `NotFound` if it does not."""
        ...

    async def receive(self, chunks: AsyncIterator[bytes], *, limit: int, digest: str | None = None) -> tuple[str, int]:
        """Keep content; its sha256 in hex, and its size. Raises `TooLarge` past `limit` bytes, and `Invalid` where it
        is not what `digest` says; then nothing is kept."""
        ...

    async def sweep(self) -> None:
        """Drop what began to come and never did."""
        ...

    async def drop(self, digest: str) -> None:
        """Forget content that nobody has any more; what came within the last hour stays, for somebody may be about to
        say that it is theirs."""
        ...
