"""HTTP/1.1 to a replica: connections that are kept, and one request at a time on each. The bytes of an answer are
handed on as they come; nothing waits, and nothing is put together.

Invariant: a connection goes back to its pool only after a whole answer that does not ask to close it; so no answer can
be taken for another's.
"""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

import httptools

IDLE = 55.0  # seconds that a connection is kept without use
MOST_HEADERS = 128


class Receiver(Protocol):
    """Who waits for an answer."""

    def answered(self, status: int, headers: list[tuple[bytes, bytes]]) -> None: ...

    def got(self, data: bytes) -> None: ...

    def finished(self, data: bytes) -> None:
        """With this, the whole answer is there."""
        ...

    def lost(self, reason: str) -> None:
        """The connection broke before that."""
        ...


class Connection(asyncio.Protocol):
    """One connection to a replica."""

    __slots__ = (
        "_body",
        "_done",
        "_headers",
        "_keep",
        "_parser",
        "_paused",
        "_receiver",
        "_to_the_end",
        "idle_since",
        "pool",
        "stream",
        "transport",
        "used",
    )

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.stream: Any = None  # kept, as it closes the transport when nobody has it any more
        self.transport: Any = None
        self.used = 0  # requests sent
        self.idle_since = 0.0
        self._receiver: Receiver | None = None
        self._parser: Any = None
        self._headers: list[tuple[bytes, bytes]] = []
        self._body: list[bytes] = []  # what one reading has brought of it
        self._keep = False
        self._paused = False
        self._done = False
        self._to_the_end = False  # the answer is as long as the connection lasts

    # --- from the call

    def send(self, request: bytes, receiver: Receiver) -> None:
        self.used += 1
        self._receiver = receiver
        self._parser = httptools.HttpResponseParser(self)
        self._headers, self._body, self._done, self._to_the_end = [], [], False, False
        self.transport.write(request)

    def pause(self) -> None:
        """Read no more until `resume`; the next request reads again in any case."""
        if not self._paused:
            self._paused = True
            self.transport.pause_reading()

    def resume(self) -> None:
        if self._paused:
            self._paused = False
            if not self.transport.is_closing():
                self.transport.resume_reading()

    def drop(self) -> None:
        """Cut the connection: what was asked for is wanted no more."""
        self._receiver = None
        if self.transport is not None:
            self.transport.abort()

    # --- from the transport

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if self._receiver is None:  # it spoke though nobody asked
            self.transport.abort()
            return
        try:
            self._parser.feed_data(data)
            body = self._taken()
            if body and not self._done and self._receiver is not None:
                self._receiver.got(body)
        except Exception as error:  # the parser's, or the receiver's
            receiver, self._receiver = self._receiver, None
            self.transport.abort()
            if receiver is not None:
                receiver.lost(f"the replica's answer is not HTTP: {type(error).__name__}")
            return
        if self._done:
            self._finish(body)

    def _taken(self) -> bytes:
        """Chunks that came together go on together: while the gateway is busy, replicas make more than one."""
        parts, self._body = self._body, []
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self.pool.forget(self)
        receiver, self._receiver = self._receiver, None
        if receiver is None:
            return
        if self._to_the_end and error is None:
            receiver.finished(b"")
        else:
            receiver.lost("the replica closed the connection")

    def _finish(self, body: bytes) -> None:
        self._done = False
        receiver, self._receiver = self._receiver, None
        self.resume()
        if self._keep:
            self.pool.take_back(self)
        else:
            self.transport.close()
        if receiver is not None:
            receiver.finished(body)

    # --- from the parser

    def on_message_begin(self) -> None:
        if self._done:
            raise ValueError("more than was asked for")

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(self._headers) >= MOST_HEADERS:
            raise ValueError("too many headers")
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:
            return
        self._keep = self._parser.should_keep_alive()
        names = [name for name, _ in self._headers]
        self._to_the_end = not self._keep and b"content-length" not in names and b"transfer-encoding" not in names
        if self._receiver is not None:
            self._receiver.answered(status, self._headers)

    def on_body(self, data: bytes) -> None:
        self._body.append(data)

    def on_message_complete(self) -> None:
        if self._parser.get_status_code() < 200:
            self._headers = []
        else:
            self._done = True


class Pool:
    """The connections to one replica."""

    def __init__(self, clock: Any) -> None:
        self._clock = clock  # seconds, monotonic
        self._idle: list[Connection] = []
        self._all: set[Connection] = set()
        self._closed = False

    def idle(self) -> Connection | None:
        """A connection that is open and free; the one used last, so that the others can grow old."""
        while self._idle:
            connection = self._idle.pop()
            if not connection.transport.is_closing():
                return connection
        return None

    def adopt(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Connection:
        """A new connection out of a stream on which nothing was said yet."""
        connection = Connection(self)
        connection.stream = writer
        transport = writer.transport
        transport.set_protocol(connection)
        connection.connection_made(transport)
        self._all.add(connection)
        return connection

    def take_back(self, connection: Connection) -> None:
        if self._closed:
            connection.transport.close()
            return
        connection.idle_since = self._clock()
        self._idle.append(connection)

    def forget(self, connection: Connection) -> None:
        self._all.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    def sweep(self) -> None:
        """Close what was not used for long."""
        now = self._clock()
        for connection in [one for one in self._idle if now - one.idle_since > IDLE]:
            self._idle.remove(connection)
            connection.transport.close()

    def close(self) -> None:
        """No more requests; those under way end as they will."""
        self._closed = True
        for connection in self._idle:
            connection.transport.close()
        self._idle.clear()

    def abort(self) -> None:
        """Cut everything; requests under way hear of it."""
        self._closed = True
        for connection in list(self._all):
            connection.transport.abort()
