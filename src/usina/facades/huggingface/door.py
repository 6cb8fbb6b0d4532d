"""The door: who calls, which handler answers, and errors in the hub's words (``X-Error-Code``, ``X-Error-Message``).

The hub's clients tell a missing repository, revision or file apart by those headers alone.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Awaitable, Callable

import msgspec
import structlog
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from usina.app.context import Context, House
from usina.core import errors
from usina.core.tenancy import Actor
from usina.facades.huggingface import address, files, lfs, reading, writing, xet
from usina.facades.huggingface.address import Address

log = structlog.get_logger()

Handler = Callable[[Request, Context, Address], Awaitable[Response]]

HANDLERS: dict[tuple[str, str], Handler] = {
    ("GET", "models"): reading.models_page,
    ("GET", "info"): reading.info,
    ("GET", "revision"): reading.info,
    ("GET", "tree"): reading.tree,
    ("POST", "paths-info"): reading.paths_info,
    ("GET", "refs"): reading.refs,
    ("GET", "commits"): reading.commits,
    ("GET", "auth-check"): reading.auth_check,
    ("GET", "whoami-v2"): reading.whoami,
    ("GET", "resolve"): files.resolve,
    ("HEAD", "resolve"): files.resolve,
    ("POST", "validate-yaml"): writing.validate_yaml,
    ("POST", "repos/create"): writing.create,
    ("DELETE", "repos/delete"): writing.delete,
    ("PUT", "settings"): writing.settings,
    ("POST", "preupload"): writing.preupload,
    ("POST", "commit"): writing.commit,
    ("POST", "branch"): writing.add_branch,
    ("DELETE", "branch"): writing.drop_branch,
    ("POST", "tag"): writing.add_tag,
    ("DELETE", "tag"): writing.drop_tag,
    ("GET", "xet-write-token"): xet.write_token,
    ("POST", "lfs-batch"): lfs.batch,
    ("POST", "lfs-verify"): lfs.verify,
}
_STATUS: list[tuple[type[errors.UsinaError], int]] = [
    (errors.Invalid, 400),
    (errors.Unauthenticated, 401),
    (errors.NotFound, 404),
    (errors.Forbidden, 403),
    (errors.Stale, 412),
    (errors.TooLarge, 413),
    (errors.Unavailable, 503),
    (errors.UsinaError, 409),
]
_UNSAID = re.compile(r"[^ -~]+")
WRONG_TOKEN = "Invalid credentials in Authorization header"  # noqa: S105 - the clients know it by these words


def serve(house: House) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        response = await _answer(house, request)
        await response(scope, receive, send)

    return app


async def _answer(house: House, request: Request) -> Response:
    try:
        mount = str(request.scope.get("root_path", "")).encode()
        raw = bytes(request.scope.get("raw_path") or request.scope["path"].encode())
        at = address.read(raw.removeprefix(mount))
        if at.verb == "lfs-object" and request.method == "PUT":
            return await lfs.receive(house, request, at)  # whoever has its address was let in when it was given
        if at.verb.startswith("xet/"):
            return await xet.serve(house, request, at)  # with a token of its own
        context = Context(house, await _caller(house, request))
        handler = HANDLERS.get((request.method, at.verb))
        if handler is None:
            raise errors.NotFound("this hub does not offer that", code="not-offered")
        return await handler(request, context, at)
    except errors.UsinaError as error:
        return refusal(error)
    except msgspec.MsgspecError as error:
        return refusal(errors.Invalid(f"body: {error}", field="body"))
    except Exception:
        id = secrets.token_hex(8)
        log.exception("request failed", request_id=id, path=request.url.path)
        return _error(500, f"something went wrong inside; tell your operator {id}", "")


async def _caller(house: House, request: Request) -> Actor:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise errors.Unauthenticated("log in with a key of this site: hf auth login --token usk-…", code="anonymous")
    return await house.doors.bearer(token.strip())


def refusal(error: errors.UsinaError) -> Response:
    """An error in the hub's words."""
    status = next(status for kind, status in _STATUS if isinstance(error, kind))
    if error.detail:
        log.info("refused", code=error.code, message=error.message, detail=error.detail)
    code, message = "", error.message
    if isinstance(error, errors.NotFound):
        if error.field == "files":
            status = 400
        else:
            code = {
                "revision-not-found": "RevisionNotFound",
                "entry-not-found": "EntryNotFound",
                "not-offered": "",
            }.get(error.code, "RepoNotFound")
    elif error.code == "gated":
        code = "GatedRepo"
    elif error.code == "anonymous":
        code = "RepoNotFound"  # with 401, as the hub says it to those it does not know
    elif status == 401 and error.code != "anonymous":
        message = WRONG_TOKEN
    return _error(status, message, code, error.data)


def _error(status: int, message: str, code: str, more: dict[str, object] | None = None) -> Response:
    headers = {"X-Error-Message": _UNSAID.sub("?", message)[:500]} | ({"X-Error-Code": code} if code else {})
    body = dict(more or {})
    if "commit" in body:
        headers["X-Repo-Commit"] = str(body.pop("commit"))
    if status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="usina"'
    if status == 503:
        headers["Retry-After"] = "5"
    return Response(msgspec.json.encode({"error": message} | body), status, headers, "application/json")
