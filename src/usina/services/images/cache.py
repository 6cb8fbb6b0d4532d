"""Built images, kept by recipe and month, so that a second order costs a hard link.

Invariant: a folder under its final name is complete. Builders of one recipe wait for each other, across
processes; the lock is the kernel's, so that a builder that dies frees it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

from usina.core.machine import ImageFiles
from usina.services.images import manifest
from usina.services.images.recipe import Recipe
from usina.services.images.workshop import Progress, Workshop, require, silent

_LOCK_POLL = 0.2  # seconds


def default_cache() -> Path:
    """``USINA_IMAGE_CACHE``, else ``/var/cache/usina/images``, or ``~/.cache/usina/images`` for non-root."""
    if named := os.environ.get("USINA_IMAGE_CACHE"):
        return Path(named)
    return Path("/var/cache") / "usina/images" if os.geteuid() == 0 else Path.home() / ".cache/usina/images"


async def built(recipe: Recipe, cache: Path, progress: Progress = silent) -> ImageFiles:
    """The files of `recipe` in `cache`, built now if they are not there.

    Raises `Unavailable` when a tool, the package mirror or the needed rights are missing (the message says
    what to do). Cancelled, it leaves nothing behind.
    """
    edition = f"{recipe.name}-{recipe.digest(_month())[:16]}"
    target = cache / edition
    if files := manifest.read(target):
        return files
    cache.mkdir(parents=True, exist_ok=True)
    async with _alone(cache / f"{recipe.name}.lock", progress):
        if files := manifest.read(target):
            return files
        recipe.check()
        require(recipe.tools)
        files = await _build(recipe, target, progress)
        _prune(cache, recipe.name, keep=edition)
        return files


async def _build(recipe: Recipe, target: Path, progress: Progress) -> ImageFiles:
    place = Path(tempfile.mkdtemp(prefix=f".{recipe.name}.", dir=target.parent))
    shop = Workshop(place, progress)
    try:
        draft = place / "result"
        draft.mkdir()
        files = await recipe.cook(draft, shop)
        manifest.write(draft, files)
        shutil.rmtree(target, ignore_errors=True)
        draft.rename(target)
    finally:
        shop.clean()
    progress(1.0, "built")
    return manifest.placed(target, files)


@contextlib.asynccontextmanager
async def _alone(path: Path, progress: Progress) -> AsyncIterator[None]:
    """Hold the file lock at `path`; others may be building for minutes, so waiting can be cancelled."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                progress(0.0, "waiting for another build of this image")
                await asyncio.sleep(_LOCK_POLL)
        yield
    finally:
        os.close(handle)


def _prune(cache: Path, name: str, keep: str) -> None:
    """Drop older editions of recipe `name` and scratch folders that a killed builder left. Under its lock."""
    for path in cache.iterdir():
        edition, _, digest = path.name.rpartition("-")
        old = edition == name and len(digest) == 16 and path.name != keep
        if old:
            shutil.rmtree(path, ignore_errors=True)
        elif path.name.startswith(f".{name}."):
            Workshop(path).clean()


def _month() -> str:
    return datetime.now(UTC).strftime("%Y-%m")
