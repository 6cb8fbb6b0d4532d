"""The way to the warden: starts it where it is not running, and speaks with it over one connection.

Answers and sights come in order on that connection, so that `sights` is right at every moment for whoever got an
answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from usina.core.task import Sight
from usina.drivers.process.sights import sight
from usina.ports.driver import DriverError, HostUnreachable

_LIMIT: Final = 1 << 28  # bytes of one line of the warden's
_PATIENCE: Final = 15.0  # seconds for a warden to answer that was just started
_PAUSE: Final = 0.005
_GONE: Final = "the warden of this host went away"
_PROGRAM: Final = "import sys; sys.path.append({0!r}); from warden.serve import main; main()"


class _Lost(HostUnreachable):
    """The connection broke before the answer came."""


class Client:
    """One connection to the warden of a state folder; made anew when it breaks."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder = folder
        self.sights: dict[str, Sight] = {}
        self.changed: Callable[[str], None] = lambda handle: None
        self.facts: Mapping[str, Any] = {}
        self._settings = settings
        self._writer: asyncio.StreamWriter | None = None
        self._closing: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._next = 0
        self._opening = asyncio.Lock()

    async def call(self, verb: str, **more: Any) -> Any:
        """One request. Raises `DriverError` with the warden's words, `HostUnreachable` where there is none.

        Where the warden goes away meanwhile, the next one is asked again: every verb may be repeated."""
        try:
            return await self._call(verb, more)
        except _Lost:
            return await self._call(verb, more)

    async def _call(self, verb: str, more: Mapping[str, Any]) -> Any:
        await self._ensure()
        writer = self._writer
        if writer is None:
            raise _Lost(_GONE)
        self._next += 1
        number = self._next
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            writer.write(_line({"id": number, "verb": verb, **more}))
            return await answer
        finally:
            self._waiting.pop(number, None)

    async def handed(self, verb: str, **more: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection of its own, which the warden hands over to a process beside a run."""
        await self._ensure()
        reader, writer = await self._reach()
        try:
            writer.write(_line({"id": 0, "verb": verb, **more}))
            _checked(json.loads(await reader.readline() or b"null"))
        except BaseException:
            writer.close()
            raise
        return reader, writer

    async def taken(self, verb: str, **more: Any) -> socket.socket:
        """A connected socket, which the warden makes where a run is and hands over; not blocking, with TCP_NODELAY."""
        await self._ensure()
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
            line.setblocking(False)
            with _through(self.folder) as path:
                await loop.sock_connect(line, path)
            await loop.sock_sendall(line, _line({"id": 0, "verb": verb, **more}))
            told, found = await _received(line)
        try:
            _checked(json.loads(told or b"null"))
            if not found:
                raise DriverError("the warden of this host is from before it could hand connections over")
        except BaseException:
            for fd in found:
                os.close(fd)
            raise
        taken = socket.socket(fileno=found[0])
        taken.setblocking(False)
        taken.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return taken

    async def ensure(self) -> None:
        await self._ensure()

    async def _ensure(self) -> None:
        if self._writer is not None:
            return
        async with self._opening:
            if self._writer is None:
                await self._open()

    async def _open(self) -> None:
        reader, writer = await self._reach()
        try:
            for number, verb in ((-1, "hello"), (-2, "watch")):
                writer.write(_line({"id": number, "verb": verb}))
            self.facts = _checked(json.loads(await reader.readline() or b"null"))
            told = _checked(json.loads(await reader.readline() or b"null"))
        except (OSError, ValueError) as error:
            writer.close()
            raise HostUnreachable("the warden of this host does not answer", detail=f"{error}") from error
        self.sights = {handle: sight(seen) for handle, seen in told.items()}
        self._writer = writer
        self._reading = asyncio.create_task(self._read(reader, writer))
        self.changed("")

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                await self._take(json.loads(line), reader)
        except (OSError, ValueError, asyncio.IncompleteReadError):
            pass
        finally:
            self._lost(writer)

    async def _take(self, told: dict[str, Any], reader: asyncio.StreamReader) -> None:
        if "run" in told:
            handle = told["run"]
            if told["sight"] is None:
                self.sights.pop(handle, None)
            else:
                self.sights[handle] = sight(told["sight"])
            self.changed(handle)
            return
        found = told.get("ok")
        if isinstance(found, dict) and "size" in found:
            found["data"] = await reader.readexactly(found["size"])
        answer = self._waiting.get(told["id"])
        if answer is not None and not answer.done():
            answer.set_result(found) if "error" not in told else answer.set_exception(_error(told))

    def _lost(self, writer: asyncio.StreamWriter) -> None:
        writer.close()
        if self._writer is writer:
            self._writer, self._closing = None, writer
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(_Lost(_GONE))
        self.changed("")

    async def close(self) -> None:
        """Leave the warden, which goes on."""
        if self._reading is not None:
            self._reading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reading
        if self._writer is not None:  # it was not reading yet
            self._lost(self._writer)
        if self._closing is not None:
            with contextlib.suppress(OSError):
                await self._closing.wait_closed()

    async def shutdown(self) -> None:
        """End the warden and nothing else; for tests, and for who takes a host away. Starts none to end it."""
        await self.close()
        with contextlib.suppress(OSError, DriverError):
            reader, writer = await self._connect()
            writer.write(_line({"id": 0, "verb": "shutdown"}))
            await reader.read()  # until it is gone
            writer.close()

    # --- reaching it

    async def _reach(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect; start the warden where nobody holds its lock; wait until it answers."""
        deadline = asyncio.get_running_loop().time() + _PATIENCE
        process: subprocess.Popen[bytes] | None = None
        while True:
            with contextlib.suppress(OSError):
                return await self._connect()
            try:
                process = self._start() or process
            except OSError as error:
                raise HostUnreachable("the warden of this host cannot be started", detail=f"{error}") from error
            if (process is not None and process.poll() is not None) or asyncio.get_running_loop().time() > deadline:
                raise HostUnreachable("the warden of this host does not start", detail=self._said())
            await asyncio.sleep(_PAUSE)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        with _through(self.folder) as path:
            return await asyncio.open_unix_connection(path, limit=_LIMIT)

    def _start(self) -> subprocess.Popen[bytes] | None:
        """Start a warden in a session of its own, holding the lock. None where there is one already."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return None
        try:
            return self._spawn(lock)
        finally:
            os.close(lock)

    def _spawn(self, lock: int) -> subprocess.Popen[bytes]:
        program = _PROGRAM.format(str(Path(__file__).parent))
        with open(self.folder / "said", "ab") as said:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", program, str(self.folder)],
                stdin=subprocess.PIPE,
                stdout=said,
                stderr=said,
                pass_fds=(lock,),
                start_new_session=True,
                cwd="/",
                env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"},
            )
        with contextlib.suppress(OSError), process.stdin:  # type: ignore[union-attr]
            process.stdin.write(json.dumps(self._settings).encode())  # type: ignore[union-attr]
        return process

    def _said(self) -> str:
        with contextlib.suppress(OSError):
            return (self.folder / "said").read_text(encoding="utf-8", errors="replace")[-2000:]
        return ""


@contextlib.contextmanager
def _through(folder: Path) -> Iterator[str]:
    """The path of the warden's socket, by way of a descriptor: it must be short."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{fd}/socket"
    finally:
        os.close(fd)


async def _received(line: socket.socket) -> tuple[bytes, list[int]]:
    """A line, and the descriptors that came with it."""
    loop = asyncio.get_running_loop()
    told, found = b"", list[int]()
    while not told.endswith(b"\n"):
        ready: asyncio.Future[None] = loop.create_future()
        loop.add_reader(line, _set, ready)
        try:
            await ready
        except BaseException:
            for fd in found:
                os.close(fd)
            raise
        finally:
            loop.remove_reader(line)
        with contextlib.suppress(BlockingIOError):
            data, more, _, _ = socket.recv_fds(line, 65536, 1)
            found += more
            if not data:
                break
            told += data
    return told, found


def _set(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


def _line(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode() + b"\n"


def _checked(told: dict[str, Any] | None) -> Any:
    if told is None:
        raise _Lost(_GONE)
    if "error" in told:
        raise _error(told)
    return told["ok"]


def _error(told: Mapping[str, Any]) -> DriverError:
    return DriverError(told["error"], lasting=bool(told.get("lasting")))
