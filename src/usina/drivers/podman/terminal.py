"""A command beside a running container: Podman's exec, with its stream taken over raw."""

from __future__ import annotations

import asyncio
import struct
from contextlib import suppress

from usina.drivers.podman.api import Api
from usina.ports.driver import DriverError


class ExecTerminal:
    """See `ports.tasks.Terminal`."""

    def __init__(
        self, api: Api, id: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, framed: bool
    ) -> None:
        self._api, self._id = api, id
        self._reader, self._writer, self._framed = reader, writer, framed

    async def read(self) -> bytes:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            if not self._framed:
                return await self._reader.read(65536)
            while True:  # without a terminal, frames: stream, three zeros, length (big endian), bytes
                head = await self._reader.readexactly(8)
                data = await self._reader.readexactly(struct.unpack(">I", head[4:])[0])
                if data:
                    return data
        return b""

    async def write(self, data: bytes) -> None:
        with suppress(ConnectionError, OSError):
            if data:
                self._writer.write(data)
                await self._writer.drain()
            elif self._writer.can_write_eof():
                self._writer.write_eof()

    async def resize(self, rows: int, columns: int) -> None:
        with suppress(DriverError):
            await self._api.call("POST", f"/exec/{self._id}/resize", {"h": rows, "w": columns})

    async def wait(self) -> int:
        while True:
            found = await self._api.call("GET", f"/exec/{self._id}/json")
            if not found["Running"]:
                return int(found["ExitCode"])
            await asyncio.sleep(0.02)

    async def close(self) -> None:
        self._writer.close()
        with suppress(Exception):
            await self._writer.wait_closed()
