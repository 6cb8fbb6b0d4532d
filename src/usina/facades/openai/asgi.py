"""The same door as an ASGI application, for connections that are shared with other doors."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from usina.app.context import House
from usina.facades.openai.lane import STRANGERS
from usina.ports.llm import Request

HIGH = 1 << 20  # bytes that wait for a slow client, before the replica is read no more


def serve(house: House) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        sink = _Sink(send)
        headers = dict(scope["headers"])
        limit = house.gateway.body_limit if house.gateway.knows(headers) else STRANGERS
        body = await _body(receive, limit)
        if body is None:
            sink.refuse_body(limit)
            await sink.pump()
            return
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        request = Request(scope["method"].encode(), path, headers, body)
        call = house.gateway.begin(request, sink)
        sink.call = call
        gone = asyncio.create_task(_gone(receive, call))
        try:
            await sink.pump()
        finally:
            gone.cancel()
            call.left()

    return app


async def _body(receive: Receive, limit: int) -> bytes | None:
    """The whole body; None where it is too large."""
    parts, size = [], 0
    while True:
        message = await receive()
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            return None
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


async def _gone(receive: Receive, call: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    call.left()


class _Sink:
    """Takes an answer in callbacks, and gives it out by `pump`."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._messages: list[dict[str, Any]] = []
        self._something = asyncio.Event()
        self._size = 0
        self.call: Any = None

    @property
    def full(self) -> bool:
        return self._size > HIGH

    def start(self, status: int, headers: Sequence[tuple[bytes, bytes]], length: int | None) -> None:
        told = list(headers) + ([(b"content-length", b"%d" % length)] if length is not None else [])
        self._put({"type": "http.response.start", "status": status, "headers": told})

    def write(self, data: bytes) -> None:
        self._size += len(data)
        self._put({"type": "http.response.body", "body": data, "more_body": True})

    def end(self) -> None:
        self._put({"type": "http.response.body", "body": b"", "more_body": False})

    def abort(self) -> None:
        self._put({})

    def refuse_body(self, limit: int) -> None:
        body = b'{"error":{"message":"the body is larger than %d bytes","type":"invalid_request_error"}}' % limit
        self.start(413, [(b"content-type", b"application/json")], len(body))
        self.write(body)
        self.end()

    def _put(self, message: dict[str, Any]) -> None:
        self._messages.append(message)
        self._something.set()

    async def pump(self) -> None:
        """Until the answer has ended. Raises where it was broken off, so that the server cuts the connection."""
        while True:
            await self._something.wait()
            self._something.clear()
            messages, self._messages = self._messages, []
            for message in messages:
                if not message:
                    raise ConnectionAbortedError("the replica broke off")
                await self._send(message)
                if message["type"] == "http.response.body" and not message["more_body"]:
                    return
            if self._size > HIGH and self.call is not None:
                self.call.drained()
            self._size = 0
