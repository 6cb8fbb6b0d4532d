"""What calls itself an image and is not one, or is a trap, is refused with a reason."""

from __future__ import annotations

import contextlib
import gzip
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from usina.core.errors import Invalid
from usina.core.units import MiB, TiB
from usina.services.images import inspect


def qcow2(path: Path, *options: str, size: str = "8M") -> Path:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *options, path, size], check=True)
    return path


def patched(path: Path, offset: int, data: bytes) -> Path:
    with path.open("r+b") as stream:
        stream.seek(offset)
        stream.write(data)
    return path


def raw(path: Path, sign_at: int = 510, sign: bytes = b"\x55\xaa", size: int = MiB) -> Path:
    path.write_bytes(b"\0" * size)
    return patched(path, sign_at, sign)


async def refusal(path: Path, limit: int = TiB) -> str:
    with pytest.raises(Invalid) as caught:
        await inspect(path, limit)
    assert caught.value.field == "content"
    return caught.value.message


async def test_qcow2_is_taken(tmp_path: Path) -> None:
    info = await inspect(qcow2(tmp_path / "disk"))
    assert (info.format, info.virtual_size) == ("qcow2", 8 * MiB)
    assert info.actual_size < MiB


@pytest.mark.parametrize(
    ("at", "sign"),
    [(510, b"\x55\xaa"), (512, b"EFI PART"), (1080, b"\x53\xef"), (0, b"XFSB"), (32_769, b"CD001")],
)
async def test_raw_disks_are_taken(tmp_path: Path, at: int, sign: bytes) -> None:
    info = await inspect(raw(tmp_path / "disk", at, sign))
    assert (info.format, info.virtual_size) == ("raw", MiB)


async def test_backing_file_is_refused(tmp_path: Path) -> None:
    secret = raw(tmp_path / "secret")
    assert "backing file" in await refusal(qcow2(tmp_path / "disk", "-b", str(secret), "-F", "raw"))


async def test_backing_file_hidden_behind_a_patched_header_is_refused(tmp_path: Path) -> None:
    disk = qcow2(tmp_path / "disk")
    patched(disk, 1024, b"/etc/passwd")
    assert "backing file" in await refusal(patched(disk, 8, struct.pack(">QI", 1024, 11)))


async def test_external_data_file_is_refused(tmp_path: Path) -> None:
    data = tmp_path / "data.raw"
    assert "another file" in await refusal(qcow2(tmp_path / "disk", "-o", f"data_file={data}"))


async def test_encrypted_is_refused(tmp_path: Path) -> None:
    assert "encrypted" in await refusal(patched(qcow2(tmp_path / "disk"), 32, struct.pack(">I", 2)))


@pytest.mark.parametrize("size", ["0", "1100G"])
async def test_absurd_size_is_refused(tmp_path: Path, size: str) -> None:
    assert "disk of" in await refusal(qcow2(tmp_path / "disk", size=size), TiB)


async def test_damaged_qcow2_is_refused(tmp_path: Path) -> None:
    disk = qcow2(tmp_path / "disk")
    await refusal(patched(disk, 40, struct.pack(">Q", 0xFFFF_FFFF_FFFF_F000)))
    disk.write_bytes(disk.read_bytes()[:80])
    assert "cut short" in await refusal(disk)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "neither"),
        (b"hello\n" * 1000, "neither"),
        (b"<!DOCTYPE html><html>" * 100, "web page"),
        (b"\n <html>not found</html>", "web page"),
        (gzip.compress(b"\0" * 4096, mtime=0), "gzip"),
        (b"PK\x03\x04" + b"\0" * 4096, "zip"),
        (b"\xfd7zXZ\0" + b"\0" * 4096, "xz"),
        (b"KDMV" + b"\0" * 4096, "VMDK"),
        (b"\x7fELF" + b"\0" * 4096, "program"),
        (b"QFI\xfb" + b"\xff" * 200, "version"),
    ],
)
async def test_other_things_are_refused_by_name(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "disk"
    path.write_bytes(content)
    assert reason in await refusal(path)


async def test_raw_that_ends_within_a_sector_is_refused(tmp_path: Path) -> None:
    assert "whole sectors" in await refusal(raw(tmp_path / "disk", size=MiB + 7))


async def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    await refusal(tmp_path / "nothing")


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=1200))
async def test_noise_never_crashes(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "noise"
    path.write_bytes(content)
    with contextlib.suppress(Invalid):
        assert (await inspect(path)).format == "raw"


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(4, 111), value=st.binary(min_size=1, max_size=16))
async def test_a_tampered_header_is_taken_whole_or_refused(tmp_path: Path, at: int, value: bytes) -> None:
    disk = tmp_path / "disk"
    disk.unlink(missing_ok=True)
    patched(qcow2(disk), at, value)
    with contextlib.suppress(Invalid):
        assert 0 < (await inspect(disk, TiB)).virtual_size <= TiB
