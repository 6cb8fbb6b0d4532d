"""Xet as far as uploads need it: shards, xorbs, and files made of them."""

from __future__ import annotations

import hashlib
import os
import struct
import time
from collections.abc import AsyncIterator
from pathlib import Path

import lz4.frame
import pytest
from hypothesis import given
from hypothesis import strategies as st

from usina.core.errors import Invalid, TooLarge
from usina.core.xet import _TAG, Term, XetFile, name_of, read_chunk_header, read_shard, ungrouped
from usina.services.models import XorbFolder

END = b"\xff" * 32 + bytes(16)
MEMBER = "mbr-1"
ONE, TWO = "1" * 64, "2" * 64


def raw(name: str) -> bytes:
    return b"".join(bytes.fromhex(name[n : n + 16])[::-1] for n in range(0, 64, 16))


def shard(*files: XetFile, flags: int = 3 << 30) -> bytes:
    parts = [struct.pack("<32sQQ", _TAG, 2, 0)]
    for file in files:
        parts.append(struct.pack("<32sII8x", b"f" * 32, flags, len(file.terms)))
        parts += [struct.pack("<32sIIII", raw(t.xorb), 0, t.size, t.begin, t.end) for t in file.terms]
        parts += [b"v" * 32 + bytes(16)] * len(file.terms) if flags & 1 << 31 else []
        parts += [raw(file.digest) + bytes(16)] if flags & 1 << 30 else []
    return b"".join([*parts, END, END])


def chunk(data: bytes, packing: int = 0) -> bytes:
    packed = data
    if packing == 2:
        packed = b"".join(data[n::4] for n in range(4))
    if packing:
        packed = lz4.frame.compress(packed)
    return (
        struct.pack("<B3sB3s", 0, len(packed).to_bytes(3, "little"), packing, len(data).to_bytes(3, "little")) + packed
    )


async def of(data: bytes) -> AsyncIterator[bytes]:
    yield data


def file_of(content: bytes, *terms: Term) -> XetFile:
    return XetFile(hashlib.sha256(content).hexdigest(), terms)


async def content(folder: XorbFolder, file: XetFile, blobs: Path, member: str = MEMBER) -> bytes:
    return b"".join([piece async for piece in folder.content(member, file, lambda digest: blobs / digest)])


def test_a_hash_is_written_as_four_numbers() -> None:
    assert name_of(bytes(range(32))) == "07060504030201000f0e0d0c0b0a090817161514131211101f1e1d1c1b1a1918"


@given(st.binary(max_size=70))
def test_grouped_bytes_find_their_places(data: bytes) -> None:
    assert ungrouped(b"".join(data[n::4] for n in range(4))) == data


def test_a_shard_tells_files() -> None:
    files = [
        XetFile("a" * 64, (Term(ONE, 0, 3, 30), Term(TWO, 5, 6, 10))),
        XetFile("b" * 64, (Term(TWO, 0, 1, 7),)),
        XetFile("c" * 64, ()),
    ]
    assert read_shard(shard(*files)) == files
    assert read_shard(shard(*files, flags=1 << 30)) == files
    assert [file.size for file in files] == [40, 7, 0]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"x" * 500,
        shard()[:60],
        shard(XetFile("a" * 64, (Term(ONE, 0, 3, 30),)))[:120],
        shard(XetFile("a" * 64, (Term(ONE, 3, 3, 30),))),
        shard(XetFile("a" * 64, (Term(ONE, 0, 3, 30),)), flags=1 << 31),
        struct.pack("<32sQQ32sII8x", _TAG, 2, 0, b"f" * 32, 0, 0xFFFFFFFF),
    ],
)
def test_what_is_no_shard_is_refused(data: bytes) -> None:
    with pytest.raises(Invalid) as refused:
        read_shard(data)
    assert refused.value.field == "shard"


@given(st.binary(max_size=200), st.integers(0, 400))
def test_a_damaged_shard_is_read_or_refused(noise: bytes, at: int) -> None:
    good = shard(XetFile("a" * 64, (Term(ONE, 0, 3, 30), Term(TWO, 5, 6, 10))))
    try:
        read_shard(good[:at] + noise + good[at + len(noise) :])
    except Invalid as refusal:
        assert refusal.field == "shard"


@pytest.mark.parametrize("header", [struct.pack("<B3sB3s", 0, b"\1\0\0", 3, b"\1\0\0"), b"\0\1\0\0\0\xff\xff\xff"])
def test_chunks_packed_in_unknown_ways_or_too_large_are_refused(header: bytes) -> None:
    with pytest.raises(Invalid):
        read_chunk_header(header)


async def test_files_are_made_of_chunks_however_they_are_packed(tmp_path: Path) -> None:
    folder = XorbFolder(tmp_path / "xet")
    pieces = [b"plain", b"pack" * 100, b"float" * 33, b"last"]
    xorb = (
        b"".join(chunk(piece, packing) for piece, packing in zip(pieces, (0, 1, 2, 0), strict=True)) + b"XETBLOB notes"
    )
    assert await folder.receive(MEMBER, ONE, of(xorb))
    assert not await folder.receive(MEMBER, ONE, of(xorb))
    whole = b"".join(pieces[1:]) + pieces[0]
    file = file_of(whole, Term(ONE, 1, 4, len(whole) - 5), Term(ONE, 0, 1, 5))
    assert await content(folder, file, tmp_path) == whole
    with pytest.raises(Invalid):  # nobody else has it
        await content(folder, file, tmp_path, "mbr-2")
    with pytest.raises(Invalid):  # nor has it so many chunks
        await content(folder, file_of(b"", Term(ONE, 3, 5, 4)), tmp_path)


@pytest.mark.parametrize("size", [0, 3, 5, 1 << 31])
async def test_a_term_has_the_size_it_says(tmp_path: Path, size: int) -> None:
    """What a file may have is counted by what terms say; and places are remembered by it."""
    folder = XorbFolder(tmp_path / "xet")
    await folder.receive(MEMBER, ONE, of(chunk(b"four")))
    with pytest.raises(Invalid, match="another size"):
        await content(folder, file_of(b"four", Term(ONE, 0, 1, size)), tmp_path)


async def test_what_became_a_file_need_not_be_sent_again(tmp_path: Path) -> None:
    folder = XorbFolder(tmp_path / "xet")
    pieces = [os.urandom(10 + n) for n in range(8)]
    await folder.receive(MEMBER, ONE, of(b"".join(chunk(piece) for piece in pieces)))

    async def keep(begin: int, end: int) -> None:
        whole = b"".join(pieces[begin:end])
        made = file_of(whole, Term(ONE, begin, end, len(whole)))
        (tmp_path / made.digest).write_bytes(whole)
        await folder.remember(MEMBER, made)

    await keep(1, 4)
    await keep(3, 7)
    old = time.time() - 2 * 24 * 3600
    for path in (tmp_path / "xet" / MEMBER).iterdir():
        os.utime(path, (old, old))
    await folder.sweep()
    assert [path.name for path in (tmp_path / "xet" / MEMBER).iterdir()] == [f"{ONE}.places"]
    whole = b"".join(pieces[2:6])
    assert await content(folder, file_of(whole, Term(ONE, 2, 6, len(whole))), tmp_path) == whole
    with pytest.raises(Invalid, match="sent long ago"):  # no file has the first chunk
        await content(folder, file_of(b"", Term(ONE, 0, 2, 0)), tmp_path)


@pytest.mark.parametrize(
    "packed",
    [
        struct.pack("<B3sB3s", 0, b"\4\0\0", 1, b"\4\0\0") + b"junk",
        chunk(b"a" * 100_000, 1)[:5] + b"\x10\0\0" + chunk(b"a" * 100_000, 1)[8:],  # larger than it says
        chunk(b"abcd")[:-2],
    ],
)
async def test_chunks_that_are_not_what_they_say_are_refused(tmp_path: Path, packed: bytes) -> None:
    folder = XorbFolder(tmp_path / "xet")
    await folder.receive(MEMBER, ONE, of(packed))
    with pytest.raises(Invalid):
        await content(folder, file_of(b"", Term(ONE, 0, 1, 4)), tmp_path)


async def test_names_and_sizes_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("usina.services.models.xorbs.LARGEST", 10)
    folder = XorbFolder(tmp_path / "xet")
    for name in ("../" + "1" * 61, "1" * 63, "A" * 64, ""):
        with pytest.raises(Invalid):
            await folder.receive(MEMBER, name, of(b""))
    with pytest.raises(TooLarge):
        await folder.receive(MEMBER, ONE, of(b"x" * 11))
    assert [path for path in tmp_path.glob("xet/*/*")] == []
