"""Images: from a recipe, an address or a file; the file goes up in parts and may be resumed after a break."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from usina.client.errors import ApiError, CannotConnect
from usina.client.models import Resource, given
from usina.client.resources import Collection
from usina.client.wire import segment
from usina.core.units import MiB

PART = 8 * MiB
TRIES = 5  # breaks in a row, without a byte arriving between them

Sent = Callable[[int, int], None]
"""Called with the bytes that have arrived and the bytes in all."""


class _Offset(msgspec.Struct):
    offset: int


class Images(Collection):
    path = "/images"

    def create(
        self,
        name: str,
        *,
        recipe: str | None = None,
        url: str | None = None,
        upload: bool = False,
        sha256: str | None = None,
        visibility: str = "project",
        user: str | None = None,
        labels: Mapping[str, str] | None = None,
        project: str | None = None,
    ) -> Resource:
        """Order an image: give exactly one of `recipe`, `url` and `upload` (then call `send`)."""
        body = given(name=name, recipe=recipe, url=url, sha256=sha256, visibility=visibility, user=user, labels=labels)
        return self._create(body | ({"upload": True} if upload else {}), project)

    def share(self, ref: str, visibility: str, project: str | None = None, if_match: int | None = None) -> Resource:
        """Who may use it: ``project``, ``tenant`` or ``public``."""
        return self._one("PATCH", ref, project, body={"visibility": visibility}, if_match=if_match)

    def send(self, image: Resource, file: Path, sent: Sent = lambda done, size: None) -> Resource:
        """Upload a file into an image that waits for it, from where an earlier try broke off; then complete it.

        Raises `ApiError`, and `CannotConnect` when the site stays away; then calling it again goes on from there.
        """
        size = file.stat().st_size
        content = f"{self.path}/{segment(image.id)}/content"
        offset = self._arrived(content)
        breaks = 0
        with file.open("rb") as source:
            while offset < size:
                sent(offset, size)
                source.seek(offset)
                try:
                    offset, breaks = self._put(content, offset, source.read(PART)), 0
                except CannotConnect:
                    breaks += 1
                    if breaks == TRIES:
                        raise
                    time.sleep(breaks)
                    offset = self._arrived(content)
        sent(size, size)
        return self._one("POST", image.id, None, "/complete", body={"sha256": _digest(file)})

    def _arrived(self, content: str) -> int:
        return self._wire.one(_Offset, "GET", content).offset

    def _put(self, content: str, offset: int, part: bytes) -> int:
        """Send one part; the new offset. A part that had arrived before its answer broke off is not sent twice."""
        headers = {"Upload-Offset": str(offset), "Content-Type": "application/octet-stream"}
        try:
            return self._wire.one(_Offset, "PUT", content, content=part, headers=headers).offset
        except ApiError as error:
            if error.status != 409:
                raise
            arrived = self._arrived(content)
            if arrived == offset:
                raise
            return arrived


def _digest(file: Path) -> str:
    with file.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()
