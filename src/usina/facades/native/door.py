"""The door itself: who is calling, common parameters, errors as problem+json, limits on bodies."""

from __future__ import annotations

import base64
import binascii
import secrets
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import structlog
from fastapi import Depends, Header, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from usina.app.context import Context, House
from usina.core import errors
from usina.core.tenancy import Actor
from usina.facades.native.models import REF
from usina.facades.native.views import encode

log = structlog.get_logger()

BODY_LIMIT = 2 * 1024 * 1024
"""Bytes of a request body, but for uploads."""
HOUSE = "usina.house"
"""Where a request's ASGI scope has the house that it came for."""
_STATUS: list[tuple[type[errors.UsinaError], int, str]] = [
    (errors.Invalid, 422, "Invalid request"),
    (errors.Unauthenticated, 401, "Not authenticated"),
    (errors.NotFound, 404, "Not found"),
    (errors.Forbidden, 403, "Not allowed"),
    (errors.Stale, 409, "Changed meanwhile"),
    (errors.QuotaExceeded, 409, "Quota exceeded"),
    (errors.Refused, 409, "Refused"),
    (errors.Conflict, 409, "Conflict"),
    (errors.TooLarge, 413, "Too large"),
    (errors.Unavailable, 503, "Unavailable"),
]
_TOO_LARGE = errors.TooLarge("body: larger than is read here", field="body")


REQUEST_KEY = r"[!-~]{1,200}"
"""What an Idempotency-Key looks like."""


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The responses every route may give, for the OpenAPI document."""
    schema = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {status: {"description": "A problem (RFC 9457)", "content": schema} for status in statuses}


# --- who calls


def house_of(connection: HTTPConnection) -> House:
    """The house that a request came for."""
    house: House = connection.scope[HOUSE]
    return house


async def authenticate(house: House, connection: HTTPConnection) -> Actor:
    """Bearer token, or Basic with key id and secret. Raises `Unauthenticated`."""
    scheme, _, value = connection.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return await house.doors.bearer(value.strip())
    if scheme.lower() == "basic":
        try:
            id, _, secret = base64.b64decode(value, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            raise errors.Unauthenticated("the Authorization header is not valid") from None
        return await house.doors.pair(id, secret)
    raise errors.Unauthenticated("send your key: Authorization: Bearer usk-…")


async def _caller(
    request: Request,
    idempotency_key: Annotated[
        str | None,
        Header(
            description="Repeat an order safely: the same key gives the same resource.",
            max_length=200,
            pattern=f"^{REQUEST_KEY}$",
        ),
    ] = None,
) -> Context:
    house = house_of(request)
    return Context(house, await authenticate(house, request), idempotency_key)


async def _reader(request: Request) -> Context:
    house = house_of(request)
    return Context(house, await authenticate(house, request))


Caller = Annotated[Context, Depends(_caller)]
"""For routes that make something: reads ``Idempotency-Key``."""

Reader = Annotated[Context, Depends(_reader)]

RefPath = Annotated[str, Path(pattern=REF, max_length=64, description="Id, or name within the project.")]
ProjectQuery = Annotated[
    str | None,
    Query(pattern=REF, max_length=64, description="Project, by id or name; where names are looked up."),
]
Cursor = Annotated[str, Query(pattern=r"^[a-z0-9-]*$", max_length=64, description="`next` of the page before.")]
Limit = Annotated[int, Query(ge=1, le=1000)]


def _match(
    if_match: Annotated[str | None, Header(description="The ETag last seen; 409 if it has changed since.")] = None,
) -> int | None:
    if if_match is None or if_match.strip() == "*":
        return None
    text = if_match.strip().strip('"')
    if not text.isdecimal() or len(text) > 12:
        raise errors.Invalid("If-Match: must be an ETag as it was given", field="If-Match")
    return int(text)


IfMatch = Annotated[int | None, Depends(_match)]


# --- errors


def problem(error: errors.UsinaError) -> Response:
    status, title = next((s, t) for kind, s, t in _STATUS if isinstance(error, kind))
    if error.detail:
        log.info("refused", code=error.code, message=error.message, detail=error.detail)
    extra = {"data": error.data} if error.data else {}
    return _problem(status, title, error.message, error.code, error.field, **extra)


def _problem(status: int, title: str, detail: str, code: str, field: str | None = None, **more: Any) -> Response:
    body = {
        "type": f"urn:usina:problem:{code}",
        "title": title,
        "status": status,
        "detail": detail,
        "code": code,
        "field": field,
        "errors": [],
        "data": {},
        "request_id": None,
    } | more
    headers = {}
    if status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="usina"'
    if status == 503:
        headers["Retry-After"] = "5"
    return Response(encode(body), status, headers, "application/problem+json")


async def on_usina_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, errors.UsinaError)
    return problem(error)


async def on_validation(request: Request, error: Exception) -> Response:
    """Every wrong field at once, in our own dialect."""
    assert isinstance(error, RequestValidationError)
    found = [{"field": _field(e["loc"]), "message": str(e["msg"])} for e in error.errors()]
    first = found[0] if found else {"field": "body", "message": "invalid"}
    detail = f"{first['field']}: {first['message']}"
    return _problem(422, "Invalid request", detail, "invalid", first["field"], errors=found[:50])


def _field(location: tuple[Any, ...]) -> str:
    """``("body", "interfaces", 0, "network")`` → ``interfaces[0].network``."""
    parts = [p for p in location if p not in ("body", "query", "path", "header")]
    text = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in parts).lstrip(".")
    return text[:200] or "body"


async def on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 400:  # FastAPI's word for bytes that are not JSON at all
        return _problem(422, "Invalid request", "body: not valid JSON", "invalid", "body")
    if error.status_code == 413:
        return problem(_TOO_LARGE)
    codes = {404: "not-found", 405: "method-not-allowed"}
    response = _problem(error.status_code, "Not possible", str(error.detail), codes.get(error.status_code, "http"))
    for name, value in (error.headers or {}).items():
        response.headers[name] = value
    return response


class LargeBodies:
    """ASGI: a problem in place of the framework's own words for a body whose length is told and too much, which pass
    no error handler."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        replaced = False

        async def tell(message: Message) -> None:
            nonlocal replaced
            if message["type"] == "http.response.start" and message["status"] == 413:
                kind = Headers(raw=message["headers"]).get("content-type", "")
                replaced = kind.startswith("text/plain")
                if replaced:
                    await problem(_TOO_LARGE)(scope, receive, send)
            if not replaced:
                await send(message)

        await self._app(scope, receive, tell)


async def on_crash(request: Request, error: Exception) -> Response:
    """Nothing of the inside goes out; the id ties the answer to the operator's log."""
    id = secrets.token_hex(8)
    log.error("request failed", request_id=id, path=request.url.path, exc_info=error)
    return _problem(
        500,
        "Internal error",
        "something went wrong inside; tell your operator the id",
        "internal",
        request_id=id,
    )


HANDLERS: dict[type[Exception], Callable[[Request, Exception], Awaitable[Response]]] = {
    errors.UsinaError: on_usina_error,
    RequestValidationError: on_validation,
    HTTPException: on_http,
    Exception: on_crash,
}
"""Who answers for which error; the first that fits."""


async def answer_to(request: Request, error: Exception) -> Response:
    """The answer to `error`, where no framework looks it up."""
    handler = next(handler for kind, handler in HANDLERS.items() if isinstance(error, kind))
    return await handler(request, error)
