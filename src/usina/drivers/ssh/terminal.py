"""A command beside a run: a channel of SSH, with a terminal of its own or without."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, suppress

import asyncssh

from usina.drivers.ssh.link import Process
from usina.ports.driver import HostUnreachable

_PIECE = 65536


class SshTerminal:
    """Holds the session that it is in, until it is closed."""

    def __init__(self, process: Process, session: AsyncExitStack, terminal: bool) -> None:
        self._process, self._session, self._terminal = process, session, terminal
        self._ended = False
        self._heard: asyncio.Queue[bytes] = asyncio.Queue(16)
        self._errors = asyncio.create_task(self._pass_on())
        self._reading = asyncio.create_task(self._hear())

    async def read(self) -> bytes:
        if self._ended:
            return b""
        data = await self._heard.get()
        self._ended = not data
        return data

    async def _hear(self) -> None:
        with suppress(asyncssh.Error, OSError):
            while data := await self._process.stdout.read(_PIECE):
                await self._heard.put(data)
        await self._errors
        await self._heard.put(b"")

    async def _pass_on(self) -> None:
        with suppress(asyncssh.Error, OSError):
            while data := await self._process.stderr.read(_PIECE):
                await self._heard.put(data)

    async def write(self, data: bytes) -> None:
        with suppress(asyncssh.Error, OSError):
            if data or self._terminal:
                self._process.stdin.write(data or b"\x04")  # end of file, as a person types it
                await self._process.stdin.drain()
            else:
                self._process.stdin.write_eof()

    async def resize(self, rows: int, columns: int) -> None:
        with suppress(asyncssh.Error, OSError):
            self._process.change_terminal_size(columns, rows)

    async def wait(self) -> int:
        try:
            await self._process.wait_closed()
        except (asyncssh.Error, OSError) as error:
            raise HostUnreachable("SSH in the machine broke off") from error
        if self._process.exit_status is None:
            raise HostUnreachable("SSH in the machine broke off")
        return self._process.exit_status if self._process.exit_status >= 0 else 255

    async def close(self) -> None:
        for task in (self._reading, self._errors):
            task.cancel()
        await asyncio.gather(self._reading, self._errors, return_exceptions=True)
        with suppress(asyncssh.Error, OSError):
            await self._session.aclose()
