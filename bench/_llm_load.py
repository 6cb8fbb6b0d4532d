"""Sends chats to a gateway as fast as it answers, over connections that are kept; what they took."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from typing import Any

import httptools
import uvloop

BODY = {
    "model": "parrot",
    "messages": [
        {"role": "system", "content": "You answer in one word. " * 8},
        {"role": "user", "content": "What is the word of the day? " * 4},
    ],
    "max_tokens": 64,
}


@dataclass(frozen=True)
class Timing:
    """Seconds. `first`: until the first byte of an answer's body, sorted as `whole` is."""

    count: int
    failed: int
    wall: float
    whole: list[float]
    first: list[float]

    def at(self, share: float, *, first: bool = False) -> float:
        found = self.first if first else self.whole
        return found[min(len(found) - 1, int(share * len(found)))] if found else 0.0


class _Client(asyncio.Protocol):
    def __init__(self, run: _Run) -> None:
        self.run = run

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self._ask()

    def _ask(self) -> None:
        if not self.run.more():
            self.transport.close()
            return
        self.parser = httptools.HttpResponseParser(self)
        self.began, self.first = time.perf_counter(), 0.0
        self.transport.write(self.run.request)

    def data_received(self, data: bytes) -> None:
        self.done = False
        self.parser.feed_data(data)
        if self.done:
            self._ask()

    def on_body(self, data: bytes) -> None:
        if not self.first:
            self.first = time.perf_counter()

    def on_message_complete(self) -> None:
        now = time.perf_counter()
        self.run.took(now - self.began, (self.first or now) - self.began, self.parser.get_status_code())
        self.done = True

    def connection_lost(self, error: Exception | None) -> None:
        self.run.lost()


class _Run:
    def __init__(self, request: bytes, count: int, clients: int) -> None:
        self.request, self.left, self.clients = request, count, clients
        self.whole: list[float] = []
        self.first: list[float] = []
        self.failed = 0
        self.over = asyncio.get_running_loop().create_future()

    def more(self) -> bool:
        self.left -= 1
        return self.left >= 0

    def took(self, whole: float, first: float, status: int) -> None:
        self.whole.append(whole)
        self.first.append(first)
        self.failed += status != 200

    def lost(self) -> None:
        self.clients -= 1
        if not self.clients and not self.over.done():
            self.over.set_result(None)


def request_for(host: str, port: int, token: str, path: str, body: dict[str, Any]) -> bytes:
    data = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nhost: {host}:{port}\r\nauthorization: Bearer {token}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


def load(
    port: int, token: str, *, count: int, clients: int, stream: bool, path: str = "/v1/chat/completions"
) -> Timing:
    """`count` chats by so many clients at a time."""
    request = request_for("127.0.0.1", port, token, path, BODY | ({"stream": True} if stream else {}))

    async def main() -> Timing:
        run = _Run(request, count, clients)
        began = time.perf_counter()
        loop = asyncio.get_running_loop()
        for _ in range(clients):
            await loop.create_connection(lambda: _Client(run), "127.0.0.1", port)
        await run.over
        wall = time.perf_counter() - began
        return Timing(len(run.whole), run.failed, wall, sorted(run.whole), sorted(run.first))

    return uvloop.run(main())
