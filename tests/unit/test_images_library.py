"""The library: uploads that resume, images complete or not there, ids that cannot leave their folder."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from usina.core.errors import Conflict, Invalid, NotFound, TooLarge, Unavailable
from usina.core.ids import Ids
from usina.core.machine import ImageFiles
from usina.core.units import MiB
from usina.services.images import RECIPES, ImageLibrary, Recipe
from usina.services.images import cache as caching
from usina.services.images.debian import sources
from usina.services.images.workshop import Workshop, require

DISK = b"\0" * 510 + b"\x55\xaa" + bytes(range(256)) * 64
DIGEST = hashlib.sha256(DISK).hexdigest()
ids = Ids(lambda: 1.0)


@pytest.fixture
def images(tmp_path: Path) -> ImageLibrary:
    return ImageLibrary(tmp_path / "images", tmp_path / "cache")


async def parts(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def test_an_upload_in_parts(images: ImageLibrary) -> None:
    image = ids.new("image")
    assert await images.upload_offset(image) == 0
    assert await images.append(image, 0, parts(DISK[:100], DISK[100:300]), limit=MiB) == 300
    assert await images.upload_offset(image) == 300
    assert await images.append(image, 300, parts(DISK[300:]), limit=MiB) == len(DISK)
    assert images.files(image) is None
    files = await images.finish(image, f"sha256:{DIGEST.upper()}")
    assert files == images.files(image) == await images.finish(image)
    assert Path(files.disk).read_bytes() == DISK
    with pytest.raises(Conflict):
        await images.append(image, len(DISK), parts(b"more"), limit=MiB)


async def test_a_wrong_offset_says_the_right_one(images: ImageLibrary) -> None:
    image = ids.new("image")
    await images.append(image, 0, parts(DISK[:100]), limit=MiB)
    for offset in (0, 99, 101):
        with pytest.raises(Conflict) as caught:
            await images.append(image, offset, parts(b"x"), limit=MiB)
        assert caught.value.data == {"offset": 100}


async def test_a_broken_connection_keeps_what_came(images: ImageLibrary) -> None:
    async def breaking() -> AsyncIterator[bytes]:
        yield DISK[:200]
        raise ConnectionResetError

    image = ids.new("image")
    with pytest.raises(ConnectionResetError):
        await images.append(image, 0, breaking(), limit=MiB)
    assert await images.upload_offset(image) == 200
    await images.append(image, 200, parts(DISK[200:]), limit=MiB)
    assert (await images.finish(image)).digest == DIGEST


async def test_too_large(images: ImageLibrary) -> None:
    image = ids.new("image")
    with pytest.raises(TooLarge):
        await images.append(image, 0, parts(b"x" * 60, b"x" * 60), limit=100)
    assert await images.upload_offset(image) <= 100


async def test_two_writers_do_not_mix(images: ImageLibrary) -> None:
    gate = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield DISK[:10]
        await gate.wait()

    image = ids.new("image")
    first = asyncio.create_task(images.append(image, 0, slow(), limit=MiB))
    await asyncio.sleep(0.05)
    with pytest.raises(Conflict):
        await images.append(image, 0, parts(b"x"), limit=MiB)
    gate.set()
    assert await first == 10


async def test_refused_content_can_be_sent_anew(images: ImageLibrary) -> None:
    image = ids.new("image")
    with pytest.raises(NotFound):
        await images.finish(image)
    await images.append(image, 0, parts(b"<html>"), limit=MiB)
    with pytest.raises(Invalid) as caught:
        await images.finish(image)
    assert caught.value.field == "content"
    await images.append(image, 0, parts(DISK), limit=MiB)
    with pytest.raises(Invalid) as caught:
        await images.finish(image, "ab" * 32)
    assert caught.value.field == "sha256"
    assert await images.upload_offset(image) == 0


async def test_a_crash_between_rename_and_manifest_heals(images: ImageLibrary) -> None:
    image = ids.new("image")
    await images.append(image, 0, parts(DISK), limit=MiB)
    files = await images.finish(image)
    Path(files.disk).with_name("image.json").unlink()
    assert images.files(image) is None
    assert await images.finish(image) == files


async def test_a_torn_manifest_is_no_manifest(images: ImageLibrary) -> None:
    image = ids.new("image")
    await images.append(image, 0, parts(DISK), limit=MiB)
    files = await images.finish(image)
    Path(files.disk).with_name("image.json").write_text('{"digest": "x"')
    assert images.files(image) is None


async def test_from_file_copies(images: ImageLibrary, tmp_path: Path) -> None:
    image, path = ids.new("image"), tmp_path / "mine.img"
    path.write_bytes(DISK)
    files = await images.from_file(image, path, DIGEST)
    path.write_bytes(b"changed")
    assert Path(files.disk).read_bytes() == DISK
    assert files.virtual_size == len(DISK)


async def test_remove_twice(images: ImageLibrary) -> None:
    image = ids.new("image")
    await images.append(image, 0, parts(DISK), limit=MiB)
    await images.remove(image)
    await images.remove(image)
    assert await images.upload_offset(image) == 0
    assert not (images.root / image).exists()


@pytest.mark.parametrize("image", ["..", "../../etc", "img-../x", "", "img-", "mch-00000000z88t9jbmp1ct1p1sjs"])
async def test_ids_stay_in_their_folder(images: ImageLibrary, image: str) -> None:
    for call in (images.upload_offset(image), images.remove(image), images.finish(image)):
        with pytest.raises(Invalid):
            await call
    with pytest.raises(Invalid):
        images.files(image)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, len(DISK)), max_size=6))
async def test_any_way_of_cutting_gives_the_same_image(images: ImageLibrary, cuts: list[int]) -> None:
    image, bounds = ids.new("image"), [0, *sorted(cuts), len(DISK)]
    for start, end in pairwise(bounds):
        assert await images.append(image, start, parts(DISK[start:end]), limit=MiB) == end
    assert (await images.finish(image, DIGEST)).digest == DIGEST


# --- building


def fake(cook: object, **changes: object) -> Recipe:
    return replace(RECIPES["tiny"], name="fake", tools={}, cook=cook, **changes)  # type: ignore[arg-type]


async def cooked(folder: Path, shop: Workshop) -> ImageFiles:
    (folder / "kernel").write_bytes(b"kernel")
    return ImageFiles(digest="d" * 64, disk="", kernel="kernel")


@pytest.fixture
def shelf(monkeypatch: pytest.MonkeyPatch) -> dict[str, Recipe]:
    shelf: dict[str, Recipe] = {}
    monkeypatch.setattr("usina.services.images.catalogue.RECIPES", shelf)
    return shelf


async def test_a_build_is_shared_by_link(images: ImageLibrary, shelf: dict[str, Recipe]) -> None:
    made = 0

    async def counted(folder: Path, shop: Workshop) -> ImageFiles:
        nonlocal made
        made += 1
        return await cooked(folder, shop)

    shelf["fake"] = fake(counted)
    one, two = ids.new("image"), ids.new("image")
    first, second = await asyncio.gather(images.build(one, "fake"), images.build(two, "fake"))
    assert made == 1
    assert first.kernel != second.kernel
    assert os.stat(first.kernel).st_ino == os.stat(second.kernel).st_ino
    await images.remove(one)
    assert Path(second.kernel).read_bytes() == b"kernel"


async def test_a_cancelled_build_leaves_nothing(images: ImageLibrary, shelf: dict[str, Recipe]) -> None:
    started: asyncio.Queue[int] = asyncio.Queue()

    async def endless(folder: Path, shop: Workshop) -> ImageFiles:
        script = 'touch "$1/dirt"; sleep 1000 & echo $!; wait'
        await shop.run("sh", "-c", script, "sh", shop.place, on_line=lambda line: started.put_nowait(int(line)))
        raise AssertionError

    shelf["fake"] = fake(endless)
    task = asyncio.create_task(images.build(ids.new("image"), "fake"))
    async with asyncio.timeout(5):
        child = await started.get()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [path.name for path in images.cache.iterdir()] == ["fake.lock"]
    stat = Path(f"/proc/{child}/stat")
    assert not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


async def test_a_failed_tool_says_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="E: no such mirror"):
        await Workshop(tmp_path).run("sh", "-c", "echo one; echo 'E: no such mirror'; echo two; exit 3")


def test_missing_tools_are_named_with_the_command() -> None:
    with pytest.raises(Unavailable, match="apt-get install --no-install-recommends no-package") as caught:
        require({"sh": "dash", "no-such-tool": "no-package"})
    assert caught.value.data["tools"] == ["no-such-tool"]


async def test_an_unknown_recipe_names_those_there_are(images: ImageLibrary) -> None:
    with pytest.raises(Invalid, match="tiny, debian-12"):
        await images.build(ids.new("image"), "windows")


def test_a_recipe_that_needs_root_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(Unavailable, match="needs root"):
        RECIPES["debian-12"].check()


def test_the_month_and_the_text_name_an_edition() -> None:
    tiny = RECIPES["tiny"]
    assert tiny.digest("2026-01") == tiny.digest("2026-01")
    assert len({tiny.digest("2026-01"), tiny.digest("2026-02"), RECIPES["debian-12"].digest("2026-01")}) == 3


def test_the_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USINA_IMAGE_CACHE", "/srv/images")
    assert caching.default_cache() == Path("/srv/images")
    monkeypatch.delenv("USINA_IMAGE_CACHE")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert caching.default_cache() == Path("/var/cache/usina/images")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("sources.list", "deb [arch=amd64] http://mirror/debian bookworm main contrib\n# deb x y z\n"),
        (
            "sources.list.d/debian.sources",
            "Types: deb\nURIs: http://mirror/debian\nSuites: bookworm\nComponents: main\n",
        ),
    ],
)
def test_the_hosts_own_mirror_is_used(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    assert [line.split("] ")[1] for line in sources(tmp_path)] == ["http://mirror/debian bookworm main"]


def test_another_distribution_gets_debians_mirror(tmp_path: Path) -> None:
    (tmp_path / "sources.list").write_text("deb http://mirror/ubuntu noble main\n")
    lines = sources(tmp_path)
    assert len(lines) == 3
    assert all("signed-by=/usr/share/keyrings/debian-archive-keyring.gpg" in line for line in lines)


def test_the_manifest_is_readable_by_people(tmp_path: Path) -> None:
    from usina.services.images import manifest

    manifest.write(tmp_path, ImageFiles(digest="d", disk="disk"))
    assert json.loads((tmp_path / "image.json").read_text())["disk"] == "disk"
    assert [path.name for path in tmp_path.iterdir()] == ["image.json"]
