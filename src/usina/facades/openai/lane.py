"""HTTP/1.1 for the gateway, straight on the socket: a request is gathered, handed over, and its answer written, in the
callbacks of the event loop.

Invariants: one answer at a time on a connection, in the order of the requests; what a client may send before it is let
in is bounded in headers, body, time, and requests sent ahead.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any

import httptools

from usina.ports.llm import Call, Gateway, Request

MOUNT = b"/v1"
IDLE = 75.0  # seconds without a byte, and without a request under way
HEADERS = 64 * 1024  # bytes
STRANGERS = 64 * 1024  # bytes of a body that are taken before its key is looked at
AHEAD = 16  # requests sent before the one under way is answered
_STATUS = {status.value: b"HTTP/1.1 %d %b\r\n" % (status, status.phrase.encode()) for status in HTTPStatus}


def lane(gateway: Gateway) -> Callable[[], asyncio.Protocol]:
    return lambda: Lane(gateway)


class Lane(asyncio.Protocol):
    """One connection of a client. `busy`: it is in the middle of a request or an answer."""

    __slots__ = (
        "_ahead", "_body", "_exchange", "_gateway", "_headers", "_known", "_loop", "_parser", "_parsing", "_size",
        "_timer", "_touched", "_url", "full", "transport",
    )  # fmt: skip

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._loop = asyncio.get_running_loop()
        self._parser: Any = httptools.HttpRequestParser(self)
        self.transport: Any = None
        self.full = False
        self._exchange: _Exchange | None = None
        self._ahead: deque[tuple[Request, bool, bool]] = deque()
        self._parsing = False
        self._url, self._headers, self._body, self._size = b"", {}, [], 0  # type: ignore[var-annotated]
        self._known = False
        self._touched = 0.0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def busy(self) -> bool:
        return self._parsing or self._exchange is not None

    # --- from the transport

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self._touched = self._loop.time()
        self._timer = self._loop.call_later(IDLE, self._look)

    def data_received(self, data: bytes) -> None:
        self._touched = self._loop.time()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refuse(400, "this door speaks HTTP only")
        except _Refused as refused:
            self._refuse(refused.status, refused.message)
        except httptools.HttpParserError as error:
            cause = error.__context__
            if isinstance(cause, _Refused):
                self._refuse(cause.status, cause.message)
            else:
                self._refuse(400, "this is not HTTP")

    def connection_lost(self, error: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._ahead.clear()
        exchange, self._exchange = self._exchange, None
        if exchange is not None and exchange.call is not None:
            exchange.call.left()

    def pause_writing(self) -> None:
        self.full = True

    def resume_writing(self) -> None:
        self.full = False
        if self._exchange is not None and self._exchange.call is not None:
            self._exchange.call.drained()

    def eof_received(self) -> bool:
        return False

    def shutdown(self) -> None:
        """The server goes: close as soon as the answer under way is over."""
        if self._exchange is None:
            self.transport.close()
        else:
            self._exchange.keep = False

    def _look(self) -> None:
        """Close what has stood still."""
        still = self._loop.time() - self._touched
        if self._exchange is None and still >= IDLE:
            self.transport.close()
            return
        self._timer = self._loop.call_later(max(1.0, IDLE - still) if self._exchange is None else IDLE, self._look)

    # --- from the parser

    def on_message_begin(self) -> None:
        self._parsing = True
        self._url, self._headers, self._body, self._size, self._known = b"", {}, [], 0, False

    def on_url(self, url: bytes) -> None:
        self._url += url
        if len(self._url) > 8192:
            raise _Refused(414, "the address is too long")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._size += len(name) + len(value) + 4
        if self._size > HEADERS:
            raise _Refused(431, "the headers are too large")
        self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        self._size = 0
        length = self._headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._gateway.body_limit:
            raise _Refused(413, f"the body is larger than {self._gateway.body_limit} bytes")
        if self._headers.get(b"expect", b"").lower() == b"100-continue" and self._exchange is None:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > STRANGERS and not self._known:
            self._known = self._gateway.knows(self._headers)
            if not self._known:
                raise _Refused(401, "the key is unknown, expired or revoked")
        if self._size > self._gateway.body_limit:
            raise _Refused(413, f"the body is larger than {self._gateway.body_limit} bytes")
        self._body.append(data)

    def on_message_complete(self) -> None:
        self._parsing = False
        parser, body = self._parser, self._body
        path = self._url.partition(b"?")[0]
        request = Request(
            parser.get_method(),
            path[len(MOUNT) :].decode("latin-1"),
            self._headers,
            body[0] if len(body) == 1 else b"".join(body),
        )
        chunked = parser.get_http_version() != "1.0"
        self._body = []
        if self._exchange is None:
            self._begin(request, parser.should_keep_alive(), chunked)
        elif len(self._ahead) < AHEAD:
            if not self._ahead:
                self.transport.pause_reading()  # what comes after waits with the client
            self._ahead.append((request, parser.should_keep_alive(), chunked))
        else:
            raise _Refused(429, "too many requests on one connection at a time")

    # --- exchanges

    def _begin(self, request: Request, keep: bool, chunked: bool) -> None:
        exchange = self._exchange = _Exchange(self, keep, chunked, request.method == b"HEAD")
        call = self._gateway.begin(request, exchange)
        if self._exchange is exchange:  # it may be over already
            exchange.call = call

    def over(self, keep: bool) -> None:
        """The answer under way has been written. It and its call let go of each other, so that both die at once."""
        if self._exchange is not None:
            self._exchange.call = None
        self._exchange = None
        self._touched = self._loop.time()
        if not keep:
            self._ahead.clear()
            self.transport.close()
        elif self._ahead:
            self._loop.call_soon(self._next)

    def _next(self) -> None:
        if self._exchange is None and self._ahead:
            following = self._ahead.popleft()
            if not self._ahead:
                self.transport.resume_reading()
            self._begin(*following)

    def _refuse(self, status: int, message: str) -> None:
        """What cannot be read as a request ends the connection."""
        exchange, self._exchange = self._exchange, None
        self._ahead.clear()
        if exchange is None:
            kind = b'{"error":{"message":"%b","type":"invalid_request_error","param":null,"code":null}}'
            body = kind % message.encode()
            head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
            self.transport.write(_STATUS[status] + head + body)
        elif exchange.call is not None:
            exchange.call.left()
        self.transport.close()


class _Exchange:
    """The answer to one request: a `Sink`."""

    __slots__ = ("_bodiless", "_chunked", "_head", "_lane", "call", "keep")

    def __init__(self, lane: Lane, keep: bool, chunked: bool, bodiless: bool) -> None:
        self._lane, self.keep, self._chunked, self._bodiless = lane, keep, chunked, bodiless
        self._head = b""
        self.call: Call | None = None

    @property
    def full(self) -> bool:
        return self._lane.full

    def start(self, status: int, headers: Sequence[tuple[bytes, bytes]], length: int | None) -> None:
        lines = [_STATUS.get(status) or b"HTTP/1.1 %d \r\n" % status]
        lines += [b"%b: %b\r\n" % header for header in headers]
        if length is not None:
            lines.append(b"content-length: %d\r\n" % length)
            self._chunked = False
        elif self._chunked:
            lines.append(b"transfer-encoding: chunked\r\n")
        else:
            self.keep = False  # its end is told by closing
        if not self.keep:
            lines.append(b"connection: close\r\n")
        lines.append(b"\r\n")
        self._head = b"".join(lines)
        if length is None:
            self._lane.transport.write(self._head)
            self._head = b""

    def write(self, data: bytes) -> None:
        if self._bodiless:
            return
        if self._chunked:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        if self._head:
            data, self._head = self._head + data, b""
        self._lane.transport.write(data)

    def end(self) -> None:
        if self._head:
            self._lane.transport.write(self._head)
        elif self._chunked and not self._bodiless:
            self._lane.transport.write(b"0\r\n\r\n")
        if self._lane._exchange is self:
            self._lane.over(self.keep)

    def abort(self) -> None:
        self._lane.transport.abort()


class _Refused(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message
