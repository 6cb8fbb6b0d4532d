"""A trivial upstream for gateways: answers any chat at once, in one piece or as a stream of 17 chunks, and what routers
ask of a runtime before they use it. Run as a process; prints its port."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import httptools
import uvloop

CHUNKS = 17
_ID = {"id": "chatcmpl-1", "created": 1, "model": "parrot"}
_USAGE = {"prompt_tokens": 12, "completion_tokens": CHUNKS, "total_tokens": 12 + CHUNKS}
_ANSWER = json.dumps(
    _ID
    | {
        "object": "chat.completion",
        "choices": [
            {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "word " * CHUNKS}}
        ],
        "usage": _USAGE,
    }
).encode()


_ASKED = {  # by routers, before they send anything
    b"/v1/models": {"object": "list", "data": [{"id": "parrot", "object": "model", "owned_by": "vllm"}]},
    b"/get_model_info": {"model_path": "parrot", "tokenizer_path": "parrot", "is_generation": True},
    b"/model_info": {"model_path": "parrot", "tokenizer_path": "parrot", "is_generation": True},
    b"/version": {"version": "0.11.0"},
}


def _event(content: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(_ID | {"object": "chat.completion.chunk"} | content).encode() + b"\n\n"


def _piece(n: int) -> bytes:
    delta = {"role": "assistant", "content": "word "} if n == 0 else {"content": "word "}
    return _event({"choices": [{"index": 0, "delta": delta, "finish_reason": "stop" if n == CHUNKS - 1 else None}]})


_PIECES = [_piece(n) for n in range(CHUNKS)]
_END = _event({"choices": [], "usage": _USAGE})
_PLAIN = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(_ANSWER) + _ANSWER
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class Upstream(asyncio.Protocol):
    """Each chunk of a stream is a write of its own, in a turn of the loop of its own, as a model makes them."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.parser = httptools.HttpRequestParser(self)
        self.body = b""
        self.loop = asyncio.get_running_loop()

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self.path = url

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        if self.parser.get_method() == b"GET":
            self._tell()
            return
        asked, self.body = json.loads(self.body or b"{}"), b""
        if not asked.get("stream"):
            self.transport.write(_PLAIN)
            return
        last = [_END] if (asked.get("stream_options") or {}).get("include_usage") else []
        self.transport.write(_HEAD)
        self._next([*map(_chunk, [*_PIECES, *last]), _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"], 0)

    def _tell(self) -> None:
        body = json.dumps(_ASKED.get(self.path, {})).encode()
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
        self.transport.write(head + body)

    def _next(self, pieces: list[bytes], n: int) -> None:
        self.transport.write(pieces[n])
        if n + 1 < len(pieces) and not self.transport.is_closing():
            self.loop.call_soon(self._next, pieces, n + 1)


async def main() -> None:
    server = await asyncio.get_running_loop().create_server(
        Upstream, "127.0.0.1", int(sys.argv[1]) if sys.argv[1:] else 0
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
