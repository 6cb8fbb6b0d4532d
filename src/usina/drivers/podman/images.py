"""Images: there already, loaded from an archive, or pulled, with progress."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from usina.core.task import TaskPlan
from usina.drivers.podman import archives
from usina.drivers.podman.api import Api, Missing
from usina.drivers.podman.settings import Settings
from usina.ports.driver import DriverError
from usina.ports.tasks import Progress

CHUNK = 1 << 20
ARCHIVES = "localhost/usina-archive"
"""What images are called that came in archives; the tag is the archive's digest."""


async def ensure(api: Api, plan: TaskPlan, settings: Settings, progress: Progress) -> str:
    """The image of a plan, by id. Raises `DriverError`, lasting where there is no such image."""
    if plan.archive:
        return await _loaded(api, Path(plan.archive), progress)
    if not plan.image:
        raise DriverError("a container needs an image; say --image", lasting=True)
    known = await _known(api, plan.image)
    if known is None:
        _check_registry(plan.image, settings)
        known = await _known(api, await _pulled(api, plan.image, progress))
    if known is None or _is_private(known):  # named by a part of its id, say
        raise DriverError(f"there is no image {plan.image}", lasting=True)
    return str(known["Id"])


async def _known(api: Api, reference: str) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = await api.call("GET", f"/images/{quote(reference, safe='')}/json")
    except Missing:
        return None
    return found


def _is_private(image: dict[str, Any]) -> bool:
    """Whether it came in an archive only: it belongs to who has the archive."""
    names = image.get("RepoTags") or []
    return bool(names) and all(name.startswith(f"{ARCHIVES}:") for name in names)


def _check_registry(reference: str, settings: Settings) -> None:
    if settings.registries is None:
        return
    if not any(reference.startswith((f"{one}/", f"{one}:")) or reference == one for one in settings.registries):
        allowed = ", ".join(settings.registries) or "none"
        raise DriverError(f"images may come from {allowed}; {reference} does not", lasting=True)


async def _pulled(api: Api, reference: str, progress: Progress) -> str:
    await progress(0.0, f"pulling {reference}")
    last, layers = "", 0
    async with api.stream("POST", "/images/pull", {"reference": reference, "policy": "missing"}) as chunks:
        async for word in _words(chunks):
            if word.get("error"):
                raise _refused(reference, str(word["error"]))
            if word.get("stream"):
                layers += "Copying blob" in word["stream"]
                await progress(min(0.9, 0.1 * layers), f"pulling {reference}: {str(word['stream']).strip()[:80]}")
            last = str(word.get("id") or last)
    if not last:
        raise DriverError(f"{reference} was not pulled")
    return last


def _refused(reference: str, error: str) -> DriverError:
    gone = any(
        text in error for text in ("manifest unknown", "not found", "denied", "unauthorized", "invalid reference")
    )
    return DriverError(f"{reference} cannot be pulled: {error[-300:]}", lasting=gone)


async def _words(chunks: AsyncIterator[bytes]) -> AsyncIterator[dict[str, Any]]:
    rest = b""
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.strip():
                yield json.loads(line)
    if rest.strip():
        yield json.loads(rest)


async def _loaded(api: Api, archive: Path, progress: Progress) -> str:
    """The image in an archive (OCI or Docker), called by the archive's digest, which is the name of its file."""
    name = f"{ARCHIVES}:{archive.name}"
    known = await _known(api, name)
    if known is None:
        await progress(0.0, "loading the image")
        found = await api.call("POST", "/images/load", content=_chunks(archives.renamed(archive, name)))
        if found.get("Names") != [name]:
            raise DriverError("the archive has no image", lasting=True)
        known = await _known(api, name)
    if known is None:
        raise DriverError("the image went away while it was loaded")
    return str(known["Id"])


async def _chunks(source: Iterator[bytes]) -> AsyncIterator[bytes]:
    """Read by threads, what is small together."""
    while chunk := await asyncio.to_thread(_some, source):
        yield chunk


def _some(source: Iterator[bytes]) -> bytes:
    found = bytearray()
    for chunk in source:
        found += chunk
        if len(found) >= CHUNK:
            break
    return bytes(found)


async def content(path: Path) -> AsyncIterator[bytes]:
    """A file as a body, its content if it is squeezed."""
    with path.open("rb") as raw:
        squeezed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        file = gzip.GzipFile(fileobj=raw) if squeezed else raw
        while chunk := await asyncio.to_thread(file.read, CHUNK):
            yield chunk
