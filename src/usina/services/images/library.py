"""The images of this factory on the control plane's disk: one folder per image id.

Invariant: a folder with a manifest is complete and never changes; a folder without one is a draft that the
same call, repeated, finishes. Every method is idempotent and survives being killed at any instant.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from usina.core.errors import Conflict, Invalid, NotFound, TooLarge
from usina.core.ids import is_id
from usina.core.machine import ImageFiles
from usina.core.units import show_size
from usina.services.images import manifest
from usina.services.images.cache import built
from usina.services.images.catalogue import recipe_named
from usina.services.images.fetch import Download
from usina.services.images.inspect import MAX_VIRTUAL, inspect
from usina.services.images.workshop import Progress, silent
from usina.services.reach import Reach

_DRAFT = "content.part"
_DISK = "disk"


@dataclass(slots=True)
class ImageLibrary:
    """Keeps images under `root`; built ones are shared with `cache`.

    Sizes in bytes, digests are sha256 in hex.
    """

    root: Path
    cache: Path
    reach: Reach = field(default_factory=Reach)
    max_virtual: int = MAX_VIRTUAL
    _busy: set[str] = field(default_factory=set)

    async def build(self, image_id: str, recipe: str, progress: Progress = silent) -> ImageFiles:
        """Build by the recipe of that name, or take it from the cache.

        Raises `Invalid` (field "recipe"), or `Unavailable` when tools, rights or the mirror are missing.
        """
        with self._alone(image_id) as folder:
            if files := manifest.read(folder):
                return files
            source = await built(recipe_named(recipe), self.cache, progress)
            return await asyncio.to_thread(_take, source, folder)

    async def fetch(
        self, image_id: str, url: str, sha256: str | None = None, progress: Progress = silent, *, limit: int
    ) -> ImageFiles:
        """Download over HTTP(S); asked again after a failure, goes on where it stopped.

        Raises `Invalid` (field "url", "sha256" or "content"), `TooLarge`, or `Unavailable`.
        """
        with self._alone(image_id) as folder:
            if files := manifest.read(folder):
                return files
            if not (folder / _DISK).exists():
                await Download(url, folder / _DRAFT, limit, self.reach, progress).run()
            progress(1.0, "checking")
            return await self._settle(folder, sha256)

    async def upload_offset(self, image_id: str) -> int:
        """How many bytes of an upload are here."""
        folder = self._folder(image_id)
        for name in (_DRAFT, _DISK):
            with contextlib.suppress(FileNotFoundError):
                return (folder / name).stat().st_size
        return 0

    async def append(self, image_id: str, offset: int, chunks: AsyncIterator[bytes], *, limit: int) -> int:
        """Add `chunks` at `offset` and return the new offset. What came before a broken connection is kept.

        Raises `Conflict` with ``data["offset"]`` when `offset` is not where the upload stands, or while
        another part is coming in; `TooLarge` past `limit`.
        """
        with self._alone(image_id) as folder:
            here = await self.upload_offset(image_id)
            if manifest.read(folder) or (folder / _DISK).exists() or offset != here:
                raise Conflict(f"this upload stands at byte {here}", code="wrong-offset", data={"offset": here})
            with (folder / _DRAFT).open("ab") as stream:
                try:
                    async for chunk in chunks:
                        here += len(chunk)
                        if here > limit:
                            raise TooLarge(f"the image is larger than {show_size(limit)}", field="content")
                        await asyncio.to_thread(stream.write, chunk)
                finally:
                    stream.flush()
                    os.fsync(stream.fileno())
            return here

    async def finish(self, image_id: str, sha256: str | None = None) -> ImageFiles:
        """Check an upload and make it an image. Refused content is removed, so that it can be sent anew.

        Raises `NotFound` when nothing was sent, `Invalid` (field "content" or "sha256") when it is refused.
        """
        with self._alone(image_id) as folder:
            if files := manifest.read(folder):
                _compare(files.digest, sha256)
                return files
            return await self._settle(folder, sha256)

    async def from_file(
        self, image_id: str, path: Path, sha256: str | None = None, progress: Progress = silent
    ) -> ImageFiles:
        """Take a copy of a disk on this machine. Raises `Invalid` (field "content" or "sha256")."""
        with self._alone(image_id) as folder:
            if files := manifest.read(folder):
                return files
            await inspect(path, self.max_virtual)
            progress(0.1, "copying")
            await asyncio.to_thread(shutil.copyfile, path, folder / _DRAFT)
            progress(0.9, "checking")
            return await self._settle(folder, sha256)

    def files(self, image_id: str) -> ImageFiles | None:
        """The files of a complete image, with absolute paths."""
        return manifest.read(self._folder(image_id))

    async def remove(self, image_id: str) -> None:
        """Remove the image, complete or not. Removing what is not there succeeds."""
        folder = self._folder(image_id)
        (folder / manifest.NAME).unlink(missing_ok=True)
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    async def _settle(self, folder: Path, sha256: str | None) -> ImageFiles:
        """Draft → checked → renamed → manifest. A crash after the rename is healed by coming here again."""
        disk = folder / _DISK
        draft = folder / _DRAFT if (folder / _DRAFT).exists() else disk
        if not draft.exists():
            raise NotFound("nothing was sent for this image yet")
        try:
            info = await inspect(draft, self.max_virtual)
            digest = await asyncio.to_thread(manifest.digest, [draft])
            _compare(digest, sha256)
        except Invalid:
            draft.unlink(missing_ok=True)
            raise
        draft.replace(disk)
        disk.chmod(0o644)
        found = ImageFiles(digest=digest, disk=_DISK, format=info.format, virtual_size=info.virtual_size)
        return manifest.write(folder, found)

    @contextlib.contextmanager
    def _alone(self, image_id: str) -> Iterator[Path]:
        """The image's folder, made, with nobody else of this process writing to it."""
        folder = self._folder(image_id)
        if image_id in self._busy:
            raise Conflict("this image is being worked on", code="busy")
        self._busy.add(image_id)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            yield folder
        finally:
            self._busy.discard(image_id)

    def _folder(self, image_id: str) -> Path:
        if not is_id(image_id, "image"):
            raise Invalid("image: this is not an image id", field="image")
        return self.root / image_id


def _take(source: ImageFiles, folder: Path) -> ImageFiles:
    """Hard-link the files of `source` into `folder`, or copy them where a link cannot be made."""
    for path in filter(None, (source.disk, source.kernel, source.initrd)):
        target = folder / Path(path).name
        target.unlink(missing_ok=True)
        try:
            os.link(path, target)
        except OSError:
            shutil.copyfile(path, target)
    return manifest.write(folder, manifest.placed(Path(), source))


def _compare(digest: str, wanted: str | None) -> None:
    if wanted is not None and digest != wanted.strip().lower().removeprefix("sha256:"):
        raise Invalid(f"sha256: the content has {digest}", field="sha256")
