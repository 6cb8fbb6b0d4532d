"""Xorbs that have come, until files have been made of them; and of what has become a file, where each chunk is now.

A member has a folder of its own: names of xorbs are the client's to choose, so nobody is given what another has sent.
Clients remember for weeks which chunks they have sent to a hub and do not send them again; xorbs are kept for a day,
and from then on the files that were made of them have the bytes.

    <root>/<member>/<name>          a xorb
    <root>/<member>/<name>.places   sizes of its chunks, and which of them lie in which file from where on
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile

import msgspec
from lz4.frame import LZ4FrameDecompressor

from usina.core.errors import Invalid, TooLarge
from usina.core.units import MiB, show_size
from usina.core.xet import CHUNK_HEADER, ChunkHeader, Packing, Term, XetFile, read_chunk_header, ungrouped

LARGEST = 66 * MiB  # bytes of a xorb: 64 MiB of chunks, and notes
KEPT = 24 * 3600.0  # seconds that a xorb is
REMEMBERED = 60 * 24 * 3600.0  # and where its chunks are
_NAME = re.compile(r"[0-9a-f]{64}\Z")
_PIECE = 4 * MiB


class _Places(msgspec.Struct):
    """`runs`: (first chunk, chunk after the last, digest of a file, where in it)."""

    sizes: list[int]
    runs: list[tuple[int, int, str, int]] = []


class XorbFolder:
    def __init__(self, root: Path) -> None:
        self._root = root

    async def receive(self, member: str, name: str, chunks: AsyncIterator[bytes]) -> bool:
        """Keep a xorb; whether it is new. Raises `Invalid` and `TooLarge`."""
        place = self._place(member, name)
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=place.parent, prefix="coming-", delete=False) as file:
            try:
                size = 0
                async for chunk in chunks:
                    size += len(chunk)
                    if size > LARGEST:
                        raise TooLarge(f"xorb: at most {show_size(LARGEST)}", field="xorb")
                    await asyncio.to_thread(file.write, chunk)
                file.flush()
                new = not place.exists()
                os.replace(file.name, place)
            except BaseException:
                os.unlink(file.name)
                raise
        return new

    async def content(self, member: str, file: XetFile, blob: Callable[[str], Path]) -> AsyncIterator[bytes]:
        """The bytes of a file that a shard tells of. `blob`: where the content of a digest lies. Raises `Invalid`."""
        for term in file.terms:
            pieces, left = self._term(member, term, blob), term.size
            while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
                left -= len(piece)
                if left < 0:
                    break
                yield piece
            if left:
                raise Invalid("shard: a term has another size than it says", field="shard")

    def _term(self, member: str, term: Term, blob: Callable[[str], Path]) -> Iterator[bytes]:
        place = self._place(member, term.xorb)
        try:
            yield from _gathered(_unpacked(place, term)) if place.exists() else self._from_files(member, term, blob)
        except (OSError, EOFError):
            raise _gone() from None

    def _from_files(self, member: str, term: Term, blob: Callable[[str], Path]) -> Iterator[bytes]:
        known = self._places(member, term.xorb)
        at = term.begin
        while at < term.end:
            run = next((run for run in known.runs if run[0] <= at < run[1]), None)
            if run is None:
                raise _gone()
            begin, end, digest, offset = run
            last = min(end, term.end)
            yield from _read(blob(digest), offset + sum(known.sizes[begin:at]), sum(known.sizes[at:last]))
            at = last

    async def remember(self, member: str, file: XetFile) -> None:
        """The file is kept: its chunks are in there from now on."""
        await asyncio.to_thread(self._remember, member, file)

    def _remember(self, member: str, file: XetFile) -> None:
        at = 0
        for term in file.terms:
            place = self._place(member, term.xorb)
            known = self._places(member, term.xorb)
            if not known.sizes and place.exists():
                known.sizes = [header.size for _, header in _headers(place)]
            run = (term.begin, term.end, file.digest, at)
            if known.sizes and run not in known.runs:
                known.runs.append(run)
                scratch = place.with_suffix(".new")
                scratch.write_bytes(msgspec.json.encode(known))
                os.replace(scratch, place.with_suffix(".places"))
            at += term.size

    def _places(self, member: str, name: str) -> _Places:
        with suppress(FileNotFoundError, msgspec.MsgspecError):
            return msgspec.json.decode(self._place(member, name).with_suffix(".places").read_bytes(), type=_Places)
        return _Places([])

    async def sweep(self) -> None:
        """Forget what is old."""
        await asyncio.to_thread(self._sweep)

    def _sweep(self) -> None:
        now = time.time()
        for path in self._root.glob("*/*"):
            with suppress(FileNotFoundError):
                limit = REMEMBERED if path.suffix == ".places" else KEPT
                if path.stat().st_mtime < now - limit:
                    path.unlink()

    def _place(self, member: str, name: str) -> Path:
        if not _NAME.match(name):
            raise Invalid("xorb: its name must be 64 hexadecimal digits", field="xorb")
        return self._root / member / name


def _gone() -> Invalid:
    return Invalid(
        "shard: a part was sent long ago and is not here any more; remove ~/.cache/huggingface/xet and send it again",
        field="shard",
    )


def _headers(place: Path) -> Iterator[tuple[int, ChunkHeader]]:
    """Where each chunk's bytes begin, and its header."""
    with place.open("rb") as file:
        while (header := read_chunk_header(file.read(CHUNK_HEADER))) is not None:
            at = file.tell()
            yield at, header
            file.seek(at + header.packed)


def _unpacked(place: Path, term: Term) -> Iterator[bytes]:
    """The chunks of a term. Raises `EOFError` where there are not so many."""
    count = 0
    with place.open("rb") as file:
        for number, (at, header) in enumerate(_headers(place)):
            if number >= term.end:
                break
            if number >= term.begin:
                file.seek(at)
                count += 1
                yield _unpack(header, file.read(header.packed))
    if count < term.end - term.begin:
        raise EOFError


def _unpack(header: ChunkHeader, data: bytes) -> bytes:
    if header.packing is not Packing.NONE:
        data = _decompressed(data, header.size)
        if header.packing is Packing.GROUPED_LZ4:
            data = ungrouped(data)
    if len(data) != header.size:
        raise Invalid("xorb: a chunk has another size than it says", field="xorb")
    return data


def _decompressed(data: bytes, size: int) -> bytes:
    try:
        return bytes(LZ4FrameDecompressor().decompress(data, max_length=size + 1))
    except (RuntimeError, EOFError):
        raise Invalid("xorb: a chunk cannot be unpacked", field="xorb") from None


def _gathered(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """In pieces that are worth a thread's while."""
    held: list[bytes] = []
    size = 0
    for chunk in chunks:
        held.append(chunk)
        size += len(chunk)
        if size >= _PIECE:
            yield b"".join(held)
            held, size = [], 0
    if held:
        yield b"".join(held)


def _read(place: Path, offset: int, size: int) -> Iterator[bytes]:
    with place.open("rb") as file:
        file.seek(offset)
        while size:
            piece = file.read(min(size, _PIECE))
            if not piece:
                raise EOFError
            size -= len(piece)
            yield piece
