"""The upstream hub: what it has of a model, and its files' bytes. It is reached as images' servers are: only where
`Reach` lets, at the address that was checked, redirects followed by hand, the token shown to the hub itself alone.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote, urljoin

import httpx2
import msgspec

from usina.core.errors import Forbidden, Invalid, NotFound, Unavailable
from usina.core.repository import MOST_FILES, check_digest, check_path, is_commit
from usina.core.units import MiB
from usina.ports.models import RemoteFile, RemoteModel
from usina.services.reach import Reach, bad_url

_TIMEOUT = httpx2.Timeout(60.0, connect=10.0)
_MOVED = {301, 302, 303, 307, 308}
_REDIRECTS = 5
_PAGES = 1000
_ATTEMPTS = 5
_LARGEST_ANSWER = 64 * MiB
_CHUNK = MiB
_OID = re.compile(r"[0-9a-f]{40}\Z")
_NEXT = re.compile(r'<([^<>]+)>;\s*rel="next"')


class _Lfs(msgspec.Struct):
    oid: str
    size: int


class _Node(msgspec.Struct):
    type: str
    path: str
    oid: str
    size: int = 0
    lfs: _Lfs | None = None


class _Info(msgspec.Struct):
    id: str
    sha: str
    gated: bool | str = False
    cardData: dict[str, Any] | None = None


class Hub:
    """See `ports.models.Upstream`."""

    def __init__(self, address: str, reach: Reach, token: str = "") -> None:
        self._address, self._reach, self._token = address.rstrip("/"), reach, token
        self._origin = _origin(httpx2.URL(self._address))

    @property
    def address(self) -> str:
        return self._address

    async def describe(self, name: str, revision: str) -> RemoteModel:
        base = f"{self._address}/api/models/{quote(name)}"
        info = _decoded(await self._read(f"{base}/revision/{quote(revision, safe='')}"), _Info)
        if not is_commit(info.sha) or info.id.lower() != name.lower():
            raise Unavailable("the upstream hub does not name the model and its commit")
        files: list[RemoteFile] = []
        url: str | None = f"{base}/tree/{info.sha}?recursive=true&expand=false"
        for _ in range(_PAGES):
            if url is None:
                break
            async with self._opened(url) as answer:
                files += [_file(node) for node in _decoded(await _whole(answer), list[_Node]) if node.type == "file"]
                following = _NEXT.search(answer.headers.get("link", ""))
            url = urljoin(url, following[1]) if following else None
            if len(files) > MOST_FILES:
                raise Invalid(f"model: it has more than {MOST_FILES:,} files", field="model")
        card = info.cardData or {}
        said = str(card.get("license_name") or "") if card.get("license") == "other" else ""
        licence = (said or str(card.get("license") or ""))[:128]
        return RemoteModel(info.id, info.sha, licence if licence.isprintable() else "", bool(info.gated), tuple(files))

    async def content(self, model: RemoteModel, file: RemoteFile) -> AsyncIterator[bytes]:
        url = f"{self._address}/{quote(model.name)}/resolve/{model.commit}/{quote(file.path)}"
        done, pause = 0, 0.5
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                async with self._opened(url, {"Range": f"bytes={done}-"} if done else {}) as answer:
                    if done and answer.headers.get("content-range", "").partition("-")[0] != f"bytes {done}":
                        raise Unavailable("the upstream hub does not go on where it broke off")
                    async for chunk in answer.aiter_raw(_CHUNK):
                        done += len(chunk)
                        if done > file.size:
                            raise Unavailable(f"{file.path}: the upstream hub sends more than it said")
                        yield chunk
                if done == file.size:
                    return
            except httpx2.TransportError as error:
                if attempt == _ATTEMPTS:
                    raise Unavailable("the upstream hub does not answer well", detail=repr(error)) from error
            await asyncio.sleep(pause)
            pause *= 2
        raise Unavailable(f"{file.path}: the upstream hub sends less than it said")

    async def _read(self, url: str) -> bytes:
        async with self._opened(url) as answer:
            return await _whole(answer)

    @asynccontextmanager
    async def _opened(self, address: str, more: dict[str, str] | None = None) -> AsyncIterator[httpx2.Response]:
        """A good answer. Raises `NotFound`, `Forbidden`, `Unavailable`, and `Invalid` for where we may not go."""
        url = httpx2.URL(address)
        async with httpx2.AsyncClient(trust_env=False, timeout=_TIMEOUT, verify=ssl.create_default_context()) as web:
            for _ in range(_REDIRECTS + 1):
                headers = {"Accept-Encoding": "identity", "User-Agent": "usina", **(more or {})}
                if self._token and _origin(url) == self._origin:
                    headers["Authorization"] = f"Bearer {self._token}"
                place = await self._reach.address(url)
                request = web.build_request(
                    "GET",
                    url.copy_with(host=place),
                    headers={**headers, "Host": url.netloc.decode()},
                    extensions={"sni_hostname": url.host},
                )
                answer = await web.send(request, stream=True, follow_redirects=False)
                try:
                    if answer.status_code not in _MOVED:
                        _judge(answer)
                        yield answer
                        return
                    url = _next(url, answer)
                finally:
                    await answer.aclose()
        raise bad_url(f"it leads on more than {_REDIRECTS} times")


def _origin(url: httpx2.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def _next(url: httpx2.URL, answer: httpx2.Response) -> httpx2.URL:
    try:
        target = httpx2.URL(urljoin(str(url), answer.headers.get("location", "")))
    except (httpx2.InvalidURL, ValueError):
        raise bad_url("it leads to what is not a URL") from None
    if url.scheme == "https" and target.scheme == "http":
        raise bad_url("it leads from https to http")
    return target


def _judge(answer: httpx2.Response) -> None:
    status, code = answer.status_code, answer.headers.get("x-error-code", "")
    if status in (200, 206):
        return
    if code == "RevisionNotFound":
        raise NotFound("model: the upstream hub has no such revision", field="revision", code="revision-not-found")
    if code == "GatedRepo":
        raise Forbidden("model: the upstream hub wants its licence accepted there, by whom its token belongs to")
    if status in (401, 403, 404):
        raise NotFound("model: the upstream hub has none of that name for us", field="model")
    raise Unavailable(f"the upstream hub answers {status}")


async def _whole(answer: httpx2.Response) -> bytes:
    gathered = bytearray()
    async for chunk in answer.aiter_raw(_CHUNK):
        gathered += chunk
        if len(gathered) > _LARGEST_ANSWER:
            raise Unavailable("the upstream hub says too much")
    return bytes(gathered)


def _decoded(content: bytes, kind: Any) -> Any:
    try:
        return msgspec.json.decode(content, type=kind)
    except msgspec.MsgspecError as error:
        raise Unavailable("the upstream hub does not speak as a hub", detail=str(error)) from None


def _file(node: _Node) -> RemoteFile:
    check_path(node.path, "model")
    if node.lfs is not None:
        return RemoteFile(node.path, node.lfs.size, node.oid, check_digest(node.lfs.oid, "model"))
    if not _OID.match(node.oid):
        raise Unavailable(f"{node.path}: the upstream hub does not say its checksum")
    return RemoteFile(node.path, node.size, node.oid)
