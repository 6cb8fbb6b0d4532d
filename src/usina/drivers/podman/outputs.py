"""Files into a container's working directory, and out of it, as tars. Nothing here touches the container's file system:
Podman does, from within."""

from __future__ import annotations

import asyncio
import io
import os
import queue
import tarfile
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import PurePosixPath

from usina.core.task import FilePlan

CHUNK = 256 * 1024


def single(file: FilePlan) -> Iterator[bytes]:
    """A tar with one file, at its path relative to the working directory (or to the root, if that is absolute)."""
    entry = tarfile.TarInfo(file.path.lstrip("/"))
    entry.size, entry.mode = os.stat(file.source).st_size, file.mode
    yield entry.tobuf(tarfile.PAX_FORMAT)
    with open(file.source, "rb") as source:
        while chunk := source.read(CHUNK):
            yield chunk
    yield b"\0" * (-entry.size % 512) + b"\0" * 1024


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether a path in the working directory is meant by one of the patterns, itself or by a folder above it."""
    path = PurePosixPath(name)
    return any(one.match(pattern) for pattern in patterns for one in (path, *path.parents) if str(one) != ".")


async def chosen(chunks: AsyncIterator[bytes], patterns: tuple[str, ...]) -> AsyncIterator[bytes]:
    """Of a tar of the working directory, the plain files that match, as a tar."""
    pipe = _Pipe()
    out: queue.Queue[bytes | BaseException | None] = queue.Queue(16)
    worker = threading.Thread(target=_filter, args=(pipe, patterns, out), daemon=True)
    worker.start()

    async def feed() -> None:
        try:
            async for chunk in chunks:
                await asyncio.to_thread(pipe.give, chunk)
        finally:
            await asyncio.to_thread(pipe.give, b"")

    feeding = asyncio.create_task(feed())
    try:
        while (found := await asyncio.to_thread(out.get)) is not None:
            if isinstance(found, BaseException):
                raise found
            yield found
        await feeding
    finally:
        feeding.cancel()
        pipe.left = True
        await asyncio.gather(feeding, return_exceptions=True)


def one(path: str, text: str) -> bytes:
    """A tar of one small file that everybody may read."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        entry = tarfile.TarInfo(path)
        entry.size, entry.mode = len(text.encode()), 0o644
        archive.addfile(entry, io.BytesIO(text.encode()))
    return buffer.getvalue()


class _Pipe(io.RawIOBase):
    """Chunks given on one side, read as a file on the other."""

    def __init__(self) -> None:
        self._chunks: queue.Queue[bytes] = queue.Queue(16)
        self._rest = b""
        self.left = False  # nobody reads any more

    def give(self, chunk: bytes) -> None:
        while not self.left:
            try:
                self._chunks.put(chunk, timeout=1)
                return
            except queue.Full:
                continue

    def read(self, size: int = -1) -> bytes:
        if not self._rest:
            self._rest = self._chunks.get()
        data, self._rest = (self._rest[:size], self._rest[size:]) if size >= 0 else (self._rest, b"")
        return data

    def readable(self) -> bool:
        return True


class _Out(io.RawIOBase):
    def __init__(self, out: queue.Queue[bytes | BaseException | None]) -> None:
        self._out = out

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self._out.put(bytes(data))
        return len(data)

    def writable(self) -> bool:
        return True


def _filter(source: _Pipe, patterns: tuple[str, ...], out: queue.Queue[bytes | BaseException | None]) -> None:
    try:
        with (
            tarfile.open(fileobj=source, mode="r|") as incoming,
            tarfile.open(fileobj=_Out(out), mode="w|", format=tarfile.PAX_FORMAT) as outgoing,
        ):
            for entry in incoming:
                name = entry.name.partition("/")[2]  # Podman puts the folder's own name first
                if entry.isreg() and name and matches(name, patterns):
                    entry.name = name
                    entry.uid = entry.gid = 0
                    entry.uname = entry.gname = ""
                    outgoing.addfile(entry, incoming.extractfile(entry))
        out.put(None)
    except BaseException as error:
        out.put(error)
