"""The first look at a connection: requests for a facade with a lane of its own go there, all others to uvicorn.

A client that keeps to one door, as they all do, has its connection served by one of them to the end. One that turns
from a lane to another door is handed over between two requests; from then on every door is reached by way of uvicorn.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import uvicorn
from uvicorn.config import HTTP_PROTOCOLS
from uvicorn.importer import import_from_string

LONGEST = 64  # bytes of a first line within which the mount must show
Lanes = Mapping[bytes, Callable[[], asyncio.Protocol]]
"""Mount → what serves a connection for it. Such a protocol tells by `busy` whether it is within a request."""


class Front(asyncio.Protocol):
    """One connection; made by uvicorn in place of its own protocol."""

    __slots__ = ("_first", "_general", "_lane", "_lanes", "_state", "_transport", "_uvicorn")

    def __init__(self, lanes: Lanes, make: Callable[[], Any], state: Any) -> None:
        self._lanes, self._uvicorn, self._state = lanes, make, state
        self._transport: Any = None
        self._lane: Any = None
        self._general: Any = None
        self._first = b""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._state.connections.add(self)

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
        self._state.connections.discard(self)
        if self._lane is not None:
            self._lane.connection_lost(None)
            self._lane = None
        general = self._uvicorn()
        self._transport.set_protocol(general)
        general.connection_made(self._transport)
        general.data_received(data)

    def connection_lost(self, error: Exception | None) -> None:
        self._state.connections.discard(self)
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

    def make(config: uvicorn.Config, server_state: Any, app_state: Any, _loop: Any = None) -> asyncio.Protocol:
        def of_uvicorn() -> Any:
            return general(config=config, server_state=server_state, app_state=app_state, _loop=_loop)

        return Front(lanes, of_uvicorn, server_state)

    return make
