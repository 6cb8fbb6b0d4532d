"""Requests of all doors as spans, by the convention for HTTP
(https://opentelemetry.io/docs/specs/semconv/http/http-spans/). Paths are told as their route, without names and ids."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.types import ASGIApp, Message, Receive, Send
from starlette.types import Scope as Connection

from usina.ports.traces import Traces


class Traced:
    def __init__(self, app: ASGIApp, traces: Traces, untraced: Sequence[str]) -> None:
        self._app, self._traces = app, traces
        self._untraced = tuple(f"{mount}/" for mount in untraced)

    async def __call__(self, scope: Connection, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(self._untraced) or scope["path"] == "/healthz":
            await self._app(scope, receive, send)
            return
        method: str = scope["method"]
        span = self._traces.begin(method, dict(scope["headers"]))
        if span is None:
            await self._app(scope, receive, send)
            return
        status = 500

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, sending)
        finally:
            route = _route(scope)
            span.end(
                {"http.request.method": method, "http.response.status_code": status, "http.route": route},
                str(status) if status >= 500 else "",
                f"{method} {route}",
            )


def _route(scope: Connection) -> str:
    """A route knows its path below the prefixes that its routers were given; those are what comes before it."""
    own: str = getattr(scope.get("route"), "path", "")
    if not own or ":path}" in own:
        return str(scope.get("root_path", "")) + own
    path: str = scope["path"]
    return "/".join(path.split("/")[: path.count("/") - own.count("/") + 1]) + own
