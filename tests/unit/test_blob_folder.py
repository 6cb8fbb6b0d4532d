"""Content by its digest, in a folder."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from usina.core.errors import Invalid, NotFound, TooLarge
from usina.services.blobs import BlobFolder
from usina.services.blobs.folder import ABANDONED, YOUNG

SAID = b"some content"
DIGEST = hashlib.sha256(SAID).hexdigest()


async def pieces(*data: bytes) -> AsyncIterator[bytes]:
    for piece in data:
        yield piece


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def make_older(path: Path, seconds: float) -> None:
    then = time.time() - seconds - 10
    os.utime(path, (then, then))


async def test_what_came_is_found_by_its_digest(tmp_path: Path) -> None:
    blobs = BlobFolder(tmp_path)
    assert await blobs.receive(pieces(SAID[:5], SAID[5:]), limit=100) == (DIGEST, len(SAID))
    assert blobs.path(DIGEST).read_bytes() == SAID
    assert blobs.path(DIGEST).stat().st_mode & 0o077 == 0


async def test_what_is_refused_leaves_nothing(tmp_path: Path) -> None:
    blobs = BlobFolder(tmp_path)
    with pytest.raises(TooLarge):
        await blobs.receive(pieces(SAID), limit=len(SAID) - 1)
    with pytest.raises(Invalid) as failure:
        await blobs.receive(pieces(SAID), limit=100, digest="0" * 64)
    assert failure.value.field == "digest"
    assert not files(tmp_path)


@pytest.mark.parametrize("digest", ["", "../../etc/passwd", "A" * 64, "0" * 63, f"{'0' * 64}\n", "0" * 64])
def test_no_other_name_leads_anywhere(tmp_path: Path, digest: str) -> None:
    with pytest.raises(NotFound):
        BlobFolder(tmp_path).path(digest)


async def test_content_is_dropped_when_it_has_lain_for_a_while(tmp_path: Path) -> None:
    blobs = BlobFolder(tmp_path)
    await blobs.receive(pieces(SAID), limit=100)
    await blobs.drop(DIGEST)
    assert blobs.path(DIGEST).exists(), "somebody may be about to say that it is theirs"
    make_older(blobs.path(DIGEST), YOUNG)
    await blobs.drop(DIGEST)
    await blobs.drop(DIGEST)
    assert not files(tmp_path)


async def test_what_never_came_whole_is_swept_away(tmp_path: Path) -> None:
    blobs = BlobFolder(tmp_path)
    await blobs.receive(pieces(SAID), limit=100)
    for name, age in (("coming-old", ABANDONED), ("coming-now", 0)):
        (tmp_path / name).write_bytes(b"half")
        make_older(tmp_path / name, age)
    make_older(blobs.path(DIGEST), 2 * ABANDONED)
    await blobs.sweep()
    assert {path.name for path in files(tmp_path)} == {"coming-now", DIGEST}
