"""The first look at a connection: requests for a facade with a lane of its own go there, all others to who takes over:
uvicorn, or in a worker the main process.

A client that keeps to one door, as they all do, has its connection served by one of them to the end. One that turns
from a lane to another door is handed over between two requests; from then on every door is reached by way of uvicorn.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from typing import Any

import uvicorn
from uvicorn.config import HTTP_PROTOCOLS
from uvicorn.importer import import_from_string

LONGEST = 64  # bytes of a first line within which the mount must show
Lanes = Mapping[bytes, Callable[[], asyncio.Protocol]]
"""Mount → what serves a connection for it. Such a protocol tells by `busy` whether it is within a request."""
TakeOver = Callable[[Any, bytes], None]
"""Goes on with a transport on which these bytes have come."""


class Front(asyncio.Protocol):
    """One connection; made by uvicorn in place of its own protocol."""

    __slots__ = ("_connections", "_first", "_lane", "_lanes", "_take_over", "_transport")

    def __init__(self, lanes: Lanes, take_over: TakeOver, connections: set[Any], first: bytes = b"") -> None:
        """`connections`: all that there are. `first`: what has come already."""
        self._lanes, self._take_over, self._connections = lanes, take_over, connections
        self._transport: Any = None
        self._lane: Any = None
        self._first = first

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._connections.add(self)
        if self._first:
            asyncio.get_running_loop().call_soon(self._begin)

    def _begin(self) -> None:
        if self._first:  # more may have come, and been added to it
            self.data_received(b"")

    def data_received(self, data: bytes) -> None:
        lane = self._lane
        if lane is not None and lane.busy:
            lane.data_received(data)
            return
        data = self._first + data
        wanted = self._wanted(data)
        if wanted is None:
            self._first = data
            return
        self._first = b""
        if not wanted:
            self._hand_over(data)
        elif lane is not None:
            lane.data_received(data)
        else:
            self._lane = lane = self._lanes[wanted]()
            lane.connection_made(self._transport)
            lane.data_received(data)

    def _wanted(self, data: bytes) -> bytes | None:
        """The mount of a lane, b"" for everything else, None where more must come to tell."""
        start = data.find(b" ", 0, LONGEST)
        for mount in self._lanes:
            if start >= 0 and data.startswith(mount + b"/", start + 1):
                return mount
        whole = start >= 0 and len(data) > start + 1 + max(map(len, self._lanes), default=0)
        return b"" if whole or len(data) >= LONGEST or b"\n" in data else None

    def _hand_over(self, data: bytes) -> None:
        self._connections.discard(self)
        if self._lane is not None:
            self._lane.connection_lost(None)
            self._lane = None
        self._take_over(self._transport, data)

    def connection_lost(self, error: Exception | None) -> None:
        self._connections.discard(self)
        if self._lane is not None:
            self._lane.connection_lost(error)

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        if self._lane is not None:
            self._lane.pause_writing()

    def resume_writing(self) -> None:
        if self._lane is not None:
            self._lane.resume_writing()

    def shutdown(self) -> None:
        """Called by uvicorn when it stops."""
        if self._lane is not None:
            self._lane.shutdown()
        else:
            self._transport.close()


def protocol(lanes: Lanes) -> Any:
    """What uvicorn is given as its HTTP protocol."""
    general = import_from_string(HTTP_PROTOCOLS["auto"])

    def make(
        config: uvicorn.Config, server_state: Any, app_state: Any, _loop: Any = None, first: bytes = b""
    ) -> asyncio.Protocol:
        def by_uvicorn(transport: Any, data: bytes) -> None:
            one = general(config=config, server_state=server_state, app_state=app_state, _loop=_loop)
            transport.set_protocol(one)
            one.connection_made(transport)
            one.data_received(data)

        return Front(lanes, by_uvicorn, server_state.connections, first)

    return make


class Leaving(asyncio.Protocol):
    """A connection that another process goes on with, once what was written on it is out. `go` is called with a
    descriptor of it, which it must close, and with what has come."""

    def __init__(self, transport: Any, data: bytes, go: Callable[[int, bytes], None]) -> None:
        self._transport, self._data, self._go = transport, data, go
        transport.pause_reading()
        transport.set_protocol(self)
        if transport.get_write_buffer_size():
            transport.set_write_buffer_limits(0)  # so that `resume_writing` tells when all is out
        else:
            self.resume_writing()

    def data_received(self, data: bytes) -> None:
        self._data += data

    def resume_writing(self) -> None:
        if not self._transport.is_closing():
            self._go(os.dup(self._transport.get_extra_info("socket").fileno()), self._data)
            self._transport.abort()  # it goes on in the copy
