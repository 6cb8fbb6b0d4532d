"""The ASGI application of a process: health, metrics, and every facade at its mount."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as Connection

from usina import __version__
from usina.app.context import House
from usina.core.errors import Unauthenticated
from usina.core.tenancy import Scope
from usina.ports.facade import FacadePlugin
from usina.server.workers import Workers

_FRONT = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Usina</title>
<meta name="viewport" content="width=device-width,initial-scale=1">
<style>body{{font:16px/1.6 system-ui,sans-serif;max-width:42rem;margin:12vh auto;padding:0 1rem;color:#1c2430}}
h1{{font-size:2.2rem;margin:0}}code,pre{{background:#f2f4f7;border-radius:6px;padding:.15rem .4rem}}
pre{{padding:1rem;overflow:auto}}a{{color:#0b5fff}}small{{color:#667}}</style>
<h1>Usina</h1><p>This is a factory. It answers at <code>{endpoint}</code>.</p>
<pre>usina login {endpoint} --token usk-…
usina image create debian-12 --recipe debian-12
usina machine create hello --image debian-12
usina ssh hello</pre>
<p><a href="/api/docs">API</a> · <a href="/api/openapi.json">OpenAPI 3.1</a> · <a href="/healthz">Health</a></p>
<small>version {version}</small></html>"""


def make_app(house: House, facades: Iterable[FacadePlugin], endpoint: str, workers: Workers | None = None) -> ASGIApp:
    """All doors of one process on one port; `workers`: those that share it."""

    async def front(request: Request) -> Response:
        return HTMLResponse(_FRONT.format(endpoint=escape(endpoint), version=escape(__version__)))

    async def health(request: Request) -> Response:
        try:
            await house.store.ping()
        except Exception:
            return JSONResponse({"status": "database does not answer"}, 503)
        if workers is not None and not workers.all_ready.is_set():
            return JSONResponse({"status": "gateway workers are starting"}, 503)
        return JSONResponse({"status": "ok", "version": __version__})

    async def metrics(request: Request) -> Response:
        """They name projects and models of everybody: for who has a role on the site itself."""
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        try:
            actor = await house.doors.bearer(token.strip() if scheme.lower() == "bearer" else "")
        except Unauthenticated as error:
            return JSONResponse({"error": error.message}, 401, {"WWW-Authenticate": "Bearer"})
        if actor.role_in(Scope()) is None:
            return JSONResponse({"error": "not found"}, 404)
        found = generate_latest() if workers is None else await workers.figures()
        return Response(found, media_type=CONTENT_TYPE_LATEST)

    own = Starlette(routes=[Route("/", front), Route("/healthz", health), Route("/metrics", metrics)])
    return _Doors({facade.mount: facade.app(house) for facade in facades}, own)


class _Doors:
    """Sends a request to the facade at its prefix, with ``root_path`` set as ASGI wants it; the rest is our own."""

    def __init__(self, mounts: Mapping[str, ASGIApp], own: ASGIApp) -> None:
        self._mounts, self._own = list(mounts.items()), own

    async def __call__(self, scope: Connection, receive: Receive, send: Send) -> None:
        path: str = scope.get("path", "")
        for mount, app in self._mounts:
            if path.startswith(mount + "/"):
                scope["root_path"] = scope.get("root_path", "") + mount
                await app(scope, receive, send)
                return
        await self._own(scope, receive, send)
