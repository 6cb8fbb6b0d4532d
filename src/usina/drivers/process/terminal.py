"""A command beside a run: the client's end of the frames that `warden.beside` speaks."""

from __future__ import annotations

import asyncio
import contextlib
import struct

from usina.ports.driver import HostUnreachable


class ProcessTerminal:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._output: asyncio.Queue[bytes] = asyncio.Queue(64)
        self._code: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._over = False
        self._hearing = asyncio.create_task(self._hear())

    async def _hear(self) -> None:
        try:
            while True:
                kind, size = struct.unpack(">cI", await self._reader.readexactly(5))
                data = await self._reader.readexactly(size)
                if kind == b"o":
                    await self._output.put(data)
                elif kind == b"x":
                    self._code.set_result(struct.unpack(">i", data)[0])
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            if not self._code.done():
                self._code.set_exception(HostUnreachable("the command's line broke"))
                self._code.exception()  # looked at: nobody has to wait for it
            self._closing = asyncio.ensure_future(self._output.put(b""))

    async def read(self) -> bytes:
        if self._over:
            return b""
        data = await self._output.get()
        self._over = not data
        return data

    async def write(self, data: bytes) -> None:
        await self._send(b"i" if data else b"e", data)

    async def resize(self, rows: int, columns: int) -> None:
        await self._send(b"r", struct.pack(">HH", rows, columns))

    async def _send(self, kind: bytes, data: bytes) -> None:
        try:
            self._writer.write(kind + struct.pack(">I", len(data)) + data)
            await self._writer.drain()
        except OSError:
            pass  # it has ended, and `read` and `wait` say so

    async def wait(self) -> int:
        return await asyncio.shield(self._code)

    async def close(self) -> None:
        self._hearing.cancel()
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()
