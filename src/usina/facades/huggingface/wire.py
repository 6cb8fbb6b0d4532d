"""Reading and writing small things of the hub's protocol: addresses that lead back here, bodies, JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar
from urllib.parse import urlencode

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from usina.core.errors import Invalid, TooLarge
from usina.core.units import MiB

T = TypeVar("T")
LARGEST = 32 * MiB
"""Bytes of a request body that is read whole."""


def reply(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(content), status, headers, "application/json")


def here(request: Request) -> str:
    """This door as the caller addresses it; where a proxy speaks TLS for us, it says so."""
    scheme = request.url.scheme
    if request.headers.get("x-forwarded-proto", "").lower() == "https":
        scheme = "https"
    return f"{scheme}://{request.url.netloc}{request.scope.get('root_path', '')}"


def page(request: Request, name: str) -> str:
    """The address of a repository, from which clients read its name. Those before 1.0 take what is before the namespace
    for its type, and would know none that is called as our mount is."""
    return f"{here(request)}/models/{name}"


def next_page(request: Request, path: str, cursor: Mapping[str, str]) -> dict[str, str]:
    """The header that leads to the following page: the same question with another `cursor`. `path` is quoted."""
    asked = [(name, value) for name, value in request.query_params.multi_items() if name not in cursor]
    return {"Link": f'<{here(request)}{path}?{urlencode([*asked, *cursor.items()])}>; rel="next"'}


def own_path(request: Request) -> str:
    """The raw path below the mount, as it was quoted."""
    raw = bytes(request.scope.get("raw_path") or request.scope["path"].encode()).decode("ascii")
    return raw.removeprefix(str(request.scope.get("root_path", "")))


async def body(request: Request, kind: type[T]) -> T:
    """The request's body as a `kind`. Raises `Invalid`, `TooLarge`, `msgspec.MsgspecError`."""
    gathered = bytearray()
    async for chunk in request.stream():
        gathered += chunk
        if len(gathered) > LARGEST:
            raise TooLarge("the request is too large", field="body")
    return msgspec.json.decode(bytes(gathered) or b"{}", type=kind)


def number(request: Request, name: str, default: int, most: int) -> int:
    """A whole number of the query, made no more than `most`."""
    text = request.query_params.get(name)
    if text is None:
        return default
    if not text.isascii() or not text.isdecimal() or len(text) > 18:
        raise Invalid(f"{name}: must be a whole number", field=name)
    return min(most, int(text))


def flag(text: str | None) -> bool:
    return (text or "").lower() in ("1", "true")
