"""One site over HTTP: authentication, retries, errors and pages. Knows no nouns.

A request is repeated after a broken connection only when that is safe: reads, deletions, replacements, and orders,
which carry a fresh Idempotency-Key each, so that the site makes one thing however often it hears of it.
"""

from __future__ import annotations

import ipaddress
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from urllib.parse import quote, urlsplit

import httpx2
import msgspec

from usina.client.errors import CannotConnect, read_problem
from usina.core.errors import Invalid

T = TypeVar("T")

API = "/api/v1"
PAUSES = (0.1, 0.4, 1.0)  # seconds before each repetition
PAGE = 500
CHUNK = 1 << 20
_REPEATABLE = frozenset({"GET", "PUT", "DELETE"})

Query = Mapping[str, str | int | Sequence[str] | None]


class Wire:
    def __init__(self, endpoint: str, token: str, timeout: float) -> None:
        parts = urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise Invalid(f"endpoint: {endpoint!r} is not an address such as http://127.0.0.1:8470", field="endpoint")
        self.endpoint = endpoint.rstrip("/")
        self.token = token
        self.local = _is_loopback(parts.hostname)
        self.http = httpx2.Client(
            base_url=self.endpoint + API,
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=httpx2.Timeout(timeout, connect=min(timeout, 5.0)),
            trust_env=not self.local,  # a proxy cannot reach this machine's own loopback
        )

    def call(
        self,
        method: str,
        path: str,
        *,
        query: Query | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        content: bytes | None = None,
        order: bool = False,
    ) -> httpx2.Response:
        """One request, answered with success. Raises `ApiError`, `CannotConnect`."""
        sent = dict(headers or {})
        if order:
            sent["Idempotency-Key"] = str(uuid.uuid4())
        if body is not None:
            content = msgspec.json.encode(body)
            sent["Content-Type"] = "application/json"
        request = self.http.build_request(method, path, params=_params(query), headers=sent, content=content)
        answer = self._send(request, repeatable=order or (method in _REPEATABLE))
        if not answer.is_success:
            raise read_problem(answer.status_code, answer.content)
        return answer

    @contextmanager
    def stream(self, method: str, path: str, *, query: Query | None = None) -> Iterator[httpx2.Response]:
        """One request whose answer is read as it comes. Raises `CannotConnect`."""
        patient = httpx2.Timeout(None, connect=5.0)
        try:
            with self.http.stream(method, path, params=_params(query), timeout=patient) as answer:
                yield answer
        except httpx2.TransportError as error:
            raise self.unanswered(error) from error

    def send_file(
        self, method: str, path: str, file: Path, *, query: Query | None = None, told: Callable[[int], None]
    ) -> None:
        """Send a file as the body. Raises `ApiError`, `CannotConnect`."""
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(file.stat().st_size)}
        with file.open("rb") as source:
            try:
                answer = self.http.request(
                    method, path, params=_params(query), headers=headers, content=_chunks(source, told), timeout=None
                )
            except httpx2.TransportError as error:
                raise self.unanswered(error) from error
        if not answer.is_success:
            raise read_problem(answer.status_code, answer.content)

    def _send(self, request: httpx2.Request, *, repeatable: bool) -> httpx2.Response:
        for pause in (*PAUSES, None):
            try:
                return self.http.send(request)
            except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:  # nothing was sent yet
                failure: httpx2.TransportError = error
            except httpx2.TransportError as error:
                failure = error
                if not repeatable or isinstance(error, httpx2.ReadTimeout):
                    break
            if pause is not None:
                time.sleep(pause)
        raise self.unanswered(failure) from failure

    def unanswered(self, failure: Exception) -> CannotConnect:
        reason = str(failure) or type(failure).__name__
        return CannotConnect(f"{self.endpoint} does not answer: {reason}")

    def one(self, kind: type[T], method: str, path: str, **how: Any) -> T:
        """One request whose answer is a `kind`."""
        return msgspec.json.decode(self.call(method, path, **how).content, type=kind)

    def pages(self, kind: type[T], path: str, query: Query | None = None, page: int = PAGE) -> Iterator[T]:
        """Every item of a list, page by page, by cursor."""
        cursor: str | None = None
        while True:
            asked = {**(query or {}), "limit": page, "cursor": cursor}
            found = self.one(_Page, "GET", path, query=asked)
            yield from msgspec.convert(found.items, list[kind])  # type: ignore[valid-type]
            cursor = found.next
            if cursor is None:
                return

    def close(self) -> None:
        self.http.close()


def _chunks(source: BinaryIO, told: Callable[[int], None]) -> Iterator[bytes]:
    while chunk := source.read(CHUNK):
        yield chunk
        told(len(chunk))


class _Page(msgspec.Struct):
    items: list[Any]
    next: str | None = None


def segment(text: str) -> str:
    """A name or id as one safe segment of a path. Raises `Invalid` for what can be none."""
    if text in ("", ".", ".."):
        raise Invalid(f"name: {text!r} is not a name", field="name")
    return quote(text, safe="")


def _params(query: Query | None) -> dict[str, Any]:
    return {name: value for name, value in (query or {}).items() if value is not None}


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
