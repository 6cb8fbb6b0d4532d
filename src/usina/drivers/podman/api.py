"""Podman's REST API (libpod, version 4.0.0 and later) over its Unix socket: requests, errors, and streams.

Reference: the service's own swagger document; see `podman-system-service(1)`.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx2

from usina.ports.driver import DriverError, HostUnreachable

VERSION = "/v4.0.0/libpod"
PATIENT = httpx2.Timeout(600.0, connect=5.0)

Json = Any


class Missing(DriverError):
    """There is no such container, image or volume."""


class ProcessGone(DriverError):
    """A process of the container ended while Podman read of it. Before 4.4 it did not take that for an end (its pull
    request 16504); who asks again is told of it."""


class Api:
    """One service behind one socket."""

    def __init__(self, socket: str) -> None:
        self.socket = socket
        self._http = httpx2.AsyncClient(
            transport=httpx2.AsyncHTTPTransport(uds=socket), base_url="http://podman" + VERSION, timeout=PATIENT
        )

    async def call(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any] | None = None,
        *,
        body: Json = None,
        content: AsyncIterator[bytes] | bytes | None = None,
        fine: tuple[int, ...] = (),
    ) -> Json:
        """The decoded answer, None where there is none. Raises `Missing`, `ProcessGone`, `DriverError`,
        `HostUnreachable`; statuses that are `fine` are none of these."""
        headers = {}
        if body is not None:
            content, headers["Content-Type"] = json.dumps(body).encode(), "application/json"
        elif content is not None:
            headers["Content-Type"] = "application/x-tar"
        try:
            answer = await self._http.request(method, path, params=_params(query), content=content, headers=headers)
        except (httpx2.TransportError, OSError) as error:
            raise HostUnreachable("Podman does not answer", detail=str(error)) from error
        if answer.is_success or answer.status_code in fine:
            return answer.json() if "json" in answer.headers.get("content-type", "") and answer.content else None
        raise _failure(answer.status_code, answer.content)

    async def look(self, path: str) -> Json:
        """What there is at a path, also of a container that ends just now. Raises what `call` does."""
        for pause in (0.0, 0.05, 0.2):
            try:
                return await self.call("GET", path)
            except ProcessGone:
                await asyncio.sleep(pause)
        return await self.call("GET", path)

    @asynccontextmanager
    async def stream(
        self, method: str, path: str, query: Mapping[str, Any] | None = None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """An answer that is read as it comes, for as long as it takes."""
        patience = httpx2.Timeout(None, connect=5.0)
        try:
            async with self._http.stream(method, path, params=_params(query), timeout=patience) as answer:
                if not answer.is_success:
                    raise _failure(answer.status_code, await answer.aread())
                yield answer.aiter_bytes()
        except (httpx2.TransportError, OSError) as error:
            raise HostUnreachable("Podman does not answer", detail=str(error)) from error

    async def hijack(self, path: str, body: Json) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A POST that becomes a raw stream, both ways."""
        try:
            reader, writer = await asyncio.open_unix_connection(self.socket)
        except OSError as error:
            raise HostUnreachable("Podman does not answer", detail=str(error)) from error
        content = json.dumps(body).encode()
        writer.write(
            f"POST {VERSION}{path} HTTP/1.1\r\nHost: podman\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n".encode()
            + content
        )
        status = (await reader.readline()).split()
        headers = [line async for line in _until_blank(reader)]
        if len(status) < 2 or status[1] not in (b"101", b"200"):
            writer.close()
            text = await reader.read(4096)
            raise _failure(int(status[1]) if len(status) > 1 else 500, text, detail=repr(headers))
        return reader, writer

    async def close(self) -> None:
        await self._http.aclose()


async def _until_blank(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while (line := await reader.readline()).strip():
        yield line


def _params(query: Mapping[str, Any] | None) -> dict[str, str]:
    """Values as the API reads them: words, and JSON for what has parts."""
    found = {}
    for name, value in (query or {}).items():
        plain = str(value).lower() if isinstance(value, bool) else str(value)
        found[name] = json.dumps(value) if isinstance(value, dict | list) else plain
    return found


def _failure(status: int, content: bytes, detail: str = "") -> DriverError:
    try:
        said = json.loads(content)
        message = str(said.get("message") or said.get("cause") or said)
    except (ValueError, AttributeError):
        message = content.decode(errors="replace")[:500]
    if status == 404:
        return Missing(message[:500], detail=detail)
    if re.search(r"/proc/\d+/\w+: no such process", message):
        return ProcessGone(f"Podman: {message[:500]}", detail=detail)
    return DriverError(
        f"Podman: {message[:500]}", lasting=400 <= status < 500 and status not in (409, 429), detail=detail
    )
