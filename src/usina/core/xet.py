"""Xet as far as uploads need it: what a shard says of files, and how a xorb is laid out. Pure.

A client cuts files into chunks, packs new chunks into xorbs and sends those; then a shard, which says of each file
which chunks of which xorbs it is made of, one after the other, and its sha256. Formats as in
https://huggingface.co/docs/xet (pages "shard", "xorb" and "api"). Hashes of chunks, xorbs and files are not worked out
here: they name things for the client that sent them, and for nobody else; what counts is the sha256 of the whole.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

from usina.core.errors import Invalid

MOST_TERMS = 4_000_000  # of one shard

_TAG = b"HFRepoMetaData" + bytes(1) + bytes.fromhex("556967456a7b815783a5bdd95ccdd14aa9")
_HEADER = struct.Struct("<32sQQ")
_FILE = struct.Struct("<32sII8x")
_TERM = struct.Struct("<32sIIII")
_ENTRY = 48  # bytes of whatever a shard is made of
_END = b"\xff" * 32
_VERIFIED, _TOLD = 1 << 31, 1 << 30  # flags of a file: hashes of its terms follow, and its sha256
_CHUNK = struct.Struct("<B3sB3s")
CHUNK_HEADER = _CHUNK.size
LARGEST_CHUNK = 128 * 1024


@dataclass(frozen=True, slots=True)
class Term:
    """Chunks `begin` to before `end` of a xorb; `size` bytes in all, once unpacked."""

    xorb: str
    begin: int
    end: int
    size: int


@dataclass(frozen=True, slots=True)
class XetFile:
    digest: str  # sha256
    terms: tuple[Term, ...]

    @property
    def size(self) -> int:
        return sum(term.size for term in self.terms)


class Packing(IntEnum):
    """How a chunk is compressed."""

    NONE = 0
    LZ4 = 1
    GROUPED_LZ4 = 2


@dataclass(frozen=True, slots=True)
class ChunkHeader:
    packed: int  # bytes that follow
    packing: Packing
    size: int  # bytes, once unpacked


def name_of(raw: bytes) -> str:
    """A hash as it is written: four numbers of 64 bits, each the wrong way round."""
    return b"".join(raw[n : n + 8][::-1] for n in range(0, 32, 8)).hex()


def read_shard(data: bytes) -> list[XetFile]:
    """The files of a shard. Raises `Invalid` (field "shard")."""
    try:
        return _files(data)
    except struct.error:
        raise _wrong("it ends too soon") from None


def _wrong(why: str) -> Invalid:
    return Invalid(f"shard: {why}", field="shard")


def _files(data: bytes) -> list[XetFile]:
    tag, version, _ = _HEADER.unpack_from(data)
    if tag != _TAG or version != 2:
        raise _wrong("it is none, or of a version that is not known here")
    found: list[XetFile] = []
    at, terms = _HEADER.size, 0
    while True:
        name, flags, count = _FILE.unpack_from(data, at)
        at += _ENTRY
        if name == _END:
            return found
        terms += count
        if terms > MOST_TERMS or at + count * _ENTRY > len(data):
            raise _wrong("it ends too soon")
        parts = tuple(_term(data, at + n * _ENTRY) for n in range(count))
        at += count * _ENTRY * (2 if flags & _VERIFIED else 1)
        if not flags & _TOLD:
            raise _wrong("it does not tell the sha256 of a file")
        if at + _ENTRY > len(data):
            raise _wrong("it ends too soon")
        found.append(XetFile(name_of(data[at : at + 32]), parts))
        at += _ENTRY


def _term(data: bytes, at: int) -> Term:
    xorb, _, size, begin, end = _TERM.unpack_from(data, at)
    if begin >= end:
        raise _wrong("a term has no chunks")
    return Term(name_of(xorb), begin, end, size)


def read_chunk_header(data: bytes) -> ChunkHeader | None:
    """The header of a chunk; None where no more chunks come: at the end of a xorb, or where its own notes begin.
    Raises `Invalid` (field "xorb")."""
    if len(data) < CHUNK_HEADER:
        return None
    version, packed, packing, size = _CHUNK.unpack(data[:CHUNK_HEADER])
    if version != 0:
        return None
    header = int.from_bytes(packed, "little"), int.from_bytes(size, "little")
    if packing > Packing.GROUPED_LZ4 or max(header) > LARGEST_CHUNK:
        raise Invalid("xorb: a chunk is packed in a way, or of a size, that is not known here", field="xorb")
    return ChunkHeader(header[0], Packing(packing), header[1])


def ungrouped(data: bytes) -> bytes:
    """Bytes that were put together by their place in every four, back in their places."""
    whole = bytearray(len(data))
    at = 0
    for place in range(4):
        count = (len(data) - place + 3) // 4
        whole[place::4] = data[at : at + count]
        at += count
    return bytes(whole)
