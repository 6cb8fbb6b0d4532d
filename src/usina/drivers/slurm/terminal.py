"""A command beside a running job: ``srun --overlap`` as the member, by pipes or by a terminal of its own.

The command's outputs become one on the node; srun's own words are only shown where nothing else was heard. With a
terminal, srun gets the far end of one that we hold, as its controlling terminal (``setsid --ctty``), so that its
size and its interrupts arrive; srun carries them to the node.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import struct
import termios
from collections.abc import Mapping, Sequence

from usina.ports.driver import DriverError

_PIECE = 65536


class PipeTerminal:
    """Standard input and output by pipes."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        assert process.stdin and process.stdout and process.stderr
        self._stdin, self._stdout = process.stdin, process.stdout
        self._words = asyncio.ensure_future(process.stderr.read(_PIECE))
        self._silent = True

    async def read(self) -> bytes:
        data = await self._stdout.read(_PIECE)
        if not data and self._silent:
            data = await self._words
        self._silent = False
        return data

    async def write(self, data: bytes) -> None:
        with contextlib.suppress(ConnectionError):
            if data:
                self._stdin.write(data)
                await self._stdin.drain()
            else:
                self._stdin.close()

    async def resize(self, rows: int, columns: int) -> None:
        """Pipes have no size."""

    async def wait(self) -> int:
        return _code(await self._process.wait())

    async def close(self) -> None:
        await _end(self._process)
        self._words.cancel()


class RealTerminal:
    """A pseudo terminal."""

    def __init__(self, process: asyncio.subprocess.Process, near: int) -> None:
        self._process = process
        self._near = near
        self._heard: asyncio.Queue[bytes] = asyncio.Queue()
        os.set_blocking(near, False)
        asyncio.get_running_loop().add_reader(near, self._hear)

    async def read(self) -> bytes:
        return await self._heard.get() if self._near >= 0 or not self._heard.empty() else b""

    async def write(self, data: bytes) -> None:
        data = data or b"\x04"  # end of file, as a person types it
        while data and self._near >= 0:
            try:
                data = data[os.write(self._near, data) :]
            except BlockingIOError:
                await asyncio.sleep(0.01)
            except OSError:
                return

    async def resize(self, rows: int, columns: int) -> None:
        if self._near >= 0:
            fcntl.ioctl(self._near, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    async def wait(self) -> int:
        return _code(await self._process.wait())

    async def close(self) -> None:
        self._shut()
        await _end(self._process)

    def _hear(self) -> None:
        try:
            data = os.read(self._near, _PIECE)
        except BlockingIOError:
            return
        except OSError:  # nobody holds the other end any more
            data = b""
        self._heard.put_nowait(data)
        if not data:
            self._shut()

    def _shut(self) -> None:
        if self._near >= 0:
            asyncio.get_running_loop().remove_reader(self._near)
            os.close(self._near)
            self._near = -1
            self._heard.put_nowait(b"")


async def open_pipes(words: Sequence[str], environment: Mapping[str, str]) -> PipeTerminal:
    try:
        process = await asyncio.create_subprocess_exec(
            *words, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            env=dict(environment), cwd="/", start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        raise DriverError(f"srun cannot be run here: {error.strerror}") from error
    return PipeTerminal(process)


async def open_terminal(words: Sequence[str], environment: Mapping[str, str], uid: int) -> RealTerminal:
    near, far = os.openpty()
    try:
        os.fchown(far, uid, -1)
        fcntl.ioctl(far, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        process = await asyncio.create_subprocess_exec(
            "setsid", "--ctty", *words, stdin=far, stdout=far, stderr=far, env=dict(environment), cwd="/"
        )
    except OSError as error:
        os.close(near)
        raise DriverError(f"srun cannot be run here: {error.strerror}") from error
    finally:
        os.close(far)
    return RealTerminal(process, near)


async def _end(process: asyncio.subprocess.Process) -> None:
    """srun passes a first signal to its task and goes at the second; what still stays is killed."""
    for way in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
        if process.returncode is not None:
            return
        with contextlib.suppress(OSError):
            process.send_signal(way)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2):
                await process.wait()


def _code(code: int) -> int:
    return 128 - code if code < 0 else code
