"""Looks at what a stranger calls an image, and refuses what would read other files, fill a host or never
boot.

The header is read here first, byte by byte, so that `qemu-img` only ever opens a plain file without
references. It then runs under a time limit and resource limits. Sources: qemu docs/interop/qcow2.rst; magic
numbers by each format.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path

from usina.core.errors import Invalid, Unavailable
from usina.core.units import GiB, TiB, show_size
from usina.services.images.workshop import Workshop, require

MAX_VIRTUAL = 4 * TiB
_TIME_LIMIT = 30.0  # seconds
_LIMITS = (f"--as={GiB}", "--cpu=20", "--nofile=64", "--fsize=0", "--core=0")
_HEAD = 70_000  # bytes; the farthest magic, btrfs, is at 65,600
_SECTOR = 512

_QCOW2 = b"QFI\xfb"
_OTHERS = {
    b"\x1f\x8b": "a gzip file; unpack it first",
    b"PK\x03\x04": "a zip file; unpack it first",
    b"\xfd7zXZ\0": "an xz file; unpack it first",
    b"(\xb5/\xfd": "a zstd file; unpack it first",
    b"BZh": "a bzip2 file; unpack it first",
    b"KDMV": "a VMDK image; convert it to qcow2",
    b"# Disk DescriptorFile": "a VMDK description; convert the disk to qcow2",
    b"<<< ": "a VirtualBox image; convert it to qcow2",
    b"conectix": "a VHD image; convert it to qcow2",
    b"vhdxfile": "a VHDX image; convert it to qcow2",
    b"QED\0": "a QED image; convert it to qcow2",
    b"LUKS\xba\xbe": "encrypted (LUKS)",
    b"\x7fELF": "a program",
}
_RAW_SIGNS = (
    (510, b"\x55\xaa"),  # boot sector or partition table
    (512, b"EFI PART"),  # GPT
    (1080, b"\x53\xef"),  # ext2, ext3, ext4
    (0, b"XFSB"),
    (32_769, b"CD001"),  # ISO 9660
    (65_600, b"_BHRfS_M"),  # btrfs
)
_DATA_FILE, _CORRUPT, _COMPRESSION, _DIRTY, _EXTENDED = 1 << 2, 1 << 1, 1 << 3, 1 << 0, 1 << 4


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What an image is. Sizes in bytes: as the guest sees it, and on this disk."""

    format: str  # "qcow2" | "raw"
    virtual_size: int
    actual_size: int


async def inspect(path: Path, max_virtual: int = MAX_VIRTUAL) -> ImageInfo:
    """Raises `Invalid` with field "content" and a reason; `Unavailable` when ``qemu-img`` is missing here."""
    try:
        with path.open("rb") as stream:
            head = stream.read(_HEAD)
            state = os.fstat(stream.fileno())
    except OSError as error:
        raise Invalid(f"content: {error.strerror}", field="content") from None
    if head.startswith(_QCOW2):
        virtual = _qcow2_size(head)
        _bounded(virtual, max_virtual)
        await _qemu_agrees(path, virtual)
        return ImageInfo("qcow2", virtual, state.st_blocks * _SECTOR)
    _must_be_raw(head, state.st_size)
    _bounded(state.st_size, max_virtual)
    return ImageInfo("raw", state.st_size, state.st_blocks * _SECTOR)


def _qcow2_size(head: bytes) -> int:
    """Virtual size by the header, when it stands alone."""
    if len(head) < 72:
        raise _refused("a qcow2 header that is cut short")
    version, backing_at, backing_length, cluster_bits, size, crypt = struct.unpack_from(">IQIIQI", head, 4)
    if version not in (2, 3):
        raise _refused(f"qcow2 version {version}; versions 2 and 3 are known")
    if backing_at or backing_length:
        raise _refused("a qcow2 file that builds on another file (backing file); flatten it with qemu-img convert")
    if crypt:
        raise _refused("an encrypted qcow2 file")
    if not 9 <= cluster_bits <= 21:
        raise _refused("a qcow2 file with an impossible cluster size")
    if version == 3:
        _features(head)
    return int(size)


def _features(head: bytes) -> None:
    if len(head) < 104:
        raise _refused("a qcow2 header that is cut short")
    (features,) = struct.unpack_from(">Q", head, 72)
    if features & _DATA_FILE:
        raise _refused("a qcow2 file that keeps its data in another file")
    if features & _CORRUPT:
        raise _refused("a qcow2 file marked as corrupt")
    if features & ~(_DATA_FILE | _CORRUPT | _COMPRESSION | _DIRTY | _EXTENDED):
        raise _refused("a qcow2 file with features that are not known")


def _must_be_raw(head: bytes, size: int) -> None:
    for magic, what in _OTHERS.items():
        if head.startswith(magic):
            raise _refused(what)
    if not any(head[at : at + len(sign)] == sign for at, sign in _RAW_SIGNS):
        if head.lstrip()[:1] == b"<":
            raise _refused("a web page")
        raise _refused("neither a qcow2 file nor a disk: no boot sector, partition table or file system was found")
    if size % _SECTOR:
        raise _refused(f"{size} bytes, not whole sectors of {_SECTOR}; the end may be missing")


def _bounded(virtual: int, limit: int) -> None:
    if virtual <= 0:
        raise _refused("a disk of no size")
    if virtual > limit:
        raise _refused(f"a disk of {show_size(virtual)}; at most {show_size(limit)} is taken")


async def _qemu_agrees(path: Path, virtual: int) -> None:
    """`qemu-img` can open it and sees what the header said."""
    require({"qemu-img": "qemu-utils", "prlimit": "util-linux"})
    place = Path(tempfile.mkdtemp(prefix="usina-inspect-"))
    said: list[str] = []
    try:
        async with asyncio.timeout(_TIME_LIMIT):
            await Workshop(place).run(
                "prlimit", *_LIMITS,
                "qemu-img", "info", "-U", "-f", "qcow2", "--output=json", path.absolute(),
                on_line=said.append,
            )  # fmt: skip
        info = json.loads("\n".join(said))
    except TimeoutError:
        raise _refused("a qcow2 file that takes too long to read") from None
    except (Unavailable, ValueError) as error:
        raise Invalid("content: this qcow2 file is damaged", field="content", detail=str(error)) from None
    finally:
        shutil.rmtree(place, ignore_errors=True)
    special = info.get("format-specific", {}).get("data", {})
    referring = any(info.get(key) for key in ("backing-filename", "full-backing-filename", "encrypted"))
    if referring or special.get("data-file") or special.get("corrupt") or info.get("virtual-size") != virtual:
        raise _refused("a qcow2 file that is not what its header says")


def _refused(what: str) -> Invalid:
    return Invalid(f"content: this is {what}", field="content")
