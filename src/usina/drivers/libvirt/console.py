"""A guest's serial line through libvirt: a stream read by one thread, which the host end closes to wake it."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import libvirt

from usina.drivers.libvirt.faults import as_driver_error

_CHUNK = 16 * 1024


class StreamConsole:
    """Reads and writes have a thread each, as a read lasts until the guest says something."""

    def __init__(self, stream: libvirt.virStream) -> None:
        self._stream = stream
        self._readers = ThreadPoolExecutor(1, thread_name_prefix="console-read")
        self._writers = ThreadPoolExecutor(1, thread_name_prefix="console-write")
        self._open = True

    async def read(self) -> bytes:
        if not self._open:
            return b""
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._receive)

    async def write(self, data: bytes) -> None:
        await asyncio.get_running_loop().run_in_executor(self._writers, self._send, data)

    async def close(self) -> None:
        if self._open:
            self._open = False
            await asyncio.to_thread(self._abort)
            self._readers.shutdown(wait=False)
            self._writers.shutdown(wait=False)

    def _receive(self) -> bytes:
        try:
            data = self._stream.recv(_CHUNK)
        except libvirt.libvirtError:
            return b""  # closed by either end
        return data if isinstance(data, bytes) else b""

    def _send(self, data: bytes) -> None:
        try:
            while data:
                data = data[self._stream.send(data) :]
        except libvirt.libvirtError as error:
            raise as_driver_error(error, "reach the guest's console") from error

    def _abort(self) -> None:
        with suppress(libvirt.libvirtError):
            self._stream.abort()


def open_console(conn: libvirt.virConnect, domain: libvirt.virDomain) -> StreamConsole:
    """Take the line over from whoever has it: a broken browser must not lock its owner out."""
    stream = conn.newStream(0)
    domain.openConsole(None, stream, libvirt.VIR_DOMAIN_CONSOLE_FORCE)
    return StreamConsole(stream)
