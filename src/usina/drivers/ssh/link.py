"""The way into one machine: SSH over a stream that the machines' driver of its host dials. Knows connections, no runs.

Who answers is remembered at the first time (`Pins`), and anybody else is refused. sshd lets a connection have few
sessions (MaxSessions, ten by default), so more connections are made where that many are in use.
"""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import asyncssh

from usina.core.task import Inside
from usina.ports.driver import DriverError, HostUnreachable

SSH = 22
SESSIONS = 8  # of one connection
CONNECT = 20.0  # seconds; an emulated machine takes some for the exchange of keys
ALIVE = 5.0  # seconds between signs of life, of which three may be missed
_PIECE = 1 << 16
_MOST = 64 << 20  # bytes of one answer

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Dial = Callable[[str, str, int], Awaitable[Streams]]
Process = asyncssh.SSHClientProcess[bytes]


class NotLetIn(DriverError):
    """The machine answers, and does not know the key."""


class Stranger(DriverError):
    """Another host key than at the first time."""


@dataclass(frozen=True, slots=True)
class Done:
    code: int
    out: bytes
    err: str


class Pins:
    """The host key of each machine, since it was made or rebuilt."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def accepts(self, inside: Inside, key: str) -> bool:
        """Whether it is the machine's; the first one is."""
        path = self._folder / f"{inside.machine}.{inside.rebuilds}"
        try:
            with path.open("x") as file:
                file.write(key)
            return True
        except FileExistsError:
            return path.read_text() in (key, "")

    def machines(self) -> set[str]:
        return {path.name.rpartition(".")[0] for path in self._folder.iterdir()}

    def forget(self, machine: str) -> None:
        for path in self._folder.glob(f"{machine}.*"):
            path.unlink(missing_ok=True)


class _Client(asyncssh.SSHClient):
    def __init__(self, pins: Pins, inside: Inside) -> None:
        self._pins, self._inside = pins, inside
        self.stranger = False

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        good = self._pins.accepts(self._inside, key.export_public_key("openssh").decode().strip())
        self.stranger = not good
        return good


@dataclass(slots=True, eq=False)
class _Connection:
    ssh: asyncssh.SSHClientConnection
    bridge: Bridge
    sessions: int = 0


@dataclass(slots=True)
class Link:
    """Connections to one machine, made when they are needed."""

    inside: Inside
    key: str
    dial: Dial
    pins: Pins
    _connections: list[_Connection] = field(default_factory=list)
    _opening: asyncio.Lock = field(default_factory=asyncio.Lock)
    _carrying: set[asyncio.Task[None]] = field(default_factory=set)  # to ports

    @asynccontextmanager
    async def process(self, script: str, *words: str, root: bool = True, terminal: str = "") -> AsyncIterator[Process]:
        """A shell that runs `script` with `words`, as root or as the login user. Raises `HostUnreachable`."""
        async with self._session() as connection:
            try:
                made = await connection.ssh.create_process(
                    self._command(script, words, root=root), encoding=None, term_type=terminal or None
                )
            except (asyncssh.Error, OSError) as error:
                raise HostUnreachable("SSH in the machine broke off", detail=str(error)) from error
            try:
                yield made
            finally:
                made.close()

    def _command(self, script: str, words: tuple[str, ...], *, root: bool) -> str:
        rise = ("sudo", "-n", "--") if root and self.inside.user != "root" else ()
        return shlex.join((*rise, "/bin/sh", "-c", script, "usina", *words))

    async def run(self, script: str, *words: str, root: bool = True, stdin: bytes = b"", limit: float = 60.0) -> Done:
        """Run it to its end."""
        try:
            async with asyncio.timeout(limit), self.process(script, *words, root=root) as made:
                sending = asyncio.create_task(_send(made, stdin))
                try:
                    out, err = await asyncio.gather(_heard(made.stdout), _heard(made.stderr))
                    await made.wait_closed()
                finally:
                    sending.cancel()
                code = _code(made)
        except TimeoutError:
            raise HostUnreachable(f"the machine did not answer within {limit:g} s") from None
        except (asyncssh.Error, OSError) as error:
            raise HostUnreachable("SSH in the machine broke off", detail=str(error)) from error
        if code is None:
            raise HostUnreachable("SSH in the machine broke off")
        return Done(code, out, err.decode(errors="replace").strip())

    async def reach(self, port: int) -> Streams:
        """A port of the machine's loopback, by way of its sshd. Raises `DriverError`."""
        connection = await self._connection()
        try:
            reader, writer = await connection.ssh.open_connection("127.0.0.1", port, encoding=None)
        except (asyncssh.Error, OSError) as error:
            raise DriverError(f"port {port} of the task does not answer", detail=str(error)) from error
        near, far = socket.socketpair()
        bridge = Bridge(await asyncio.open_connection(sock=far), (reader, writer))
        self._carrying.add(bridge.start())
        self._carrying = {task for task in self._carrying if not task.done()}
        return await asyncio.open_connection(sock=near)

    async def close(self) -> None:
        for task in self._carrying:
            task.cancel()
        connections, self._connections = self._connections, []
        for connection in connections:
            connection.ssh.abort()
            await connection.bridge.close()

    @asynccontextmanager
    async def _session(self) -> AsyncIterator[_Connection]:
        connection = await self._connection()
        connection.sessions += 1
        try:
            yield connection
        finally:
            connection.sessions -= 1

    async def _connection(self) -> _Connection:
        async with self._opening:
            for broken in [one for one in self._connections if one.ssh.is_closed()]:
                self._connections.remove(broken)
                await broken.bridge.close()
            free = [one for one in self._connections if one.sessions < SESSIONS]
            if not free:
                free = [await self._open()]
                self._connections += free
            return free[0]

    async def _open(self) -> _Connection:
        near, far = socket.socketpair()
        bridge = None
        client = _Client(self.pins, self.inside)
        try:
            async with asyncio.timeout(CONNECT):
                there = await self.dial(self.inside.machine, self.inside.address, SSH)
                bridge = Bridge(await asyncio.open_connection(sock=far), there)
                bridge.start()
                ssh = await asyncssh.connect(
                    self.inside.machine,
                    sock=near, username=self.inside.user, client_factory=lambda: client, known_hosts=([], [], []),
                    client_keys=[asyncssh.import_private_key(self.key)], agent_path=None, config=None,
                    preferred_auth="publickey", keepalive_interval=ALIVE, keepalive_count_max=3,
                )  # fmt: skip
        except BaseException as error:
            near.close()
            far.close() if bridge is None else await bridge.close()
            raise self._told(error, client) from error
        return _Connection(ssh, bridge)

    def _told(self, error: BaseException, client: _Client) -> BaseException:
        match error:
            case _ if client.stranger:
                return Stranger(
                    "the machine has another SSH host key than it had, so it may be another one; it is left alone",
                    lasting=True,
                )
            case asyncssh.PermissionDenied():
                return NotLetIn(
                    f"the machine does not let Usina in as {self.inside.user}: it was made without its key, or it was "
                    "taken away; rebuild the machine",
                    detail=str(error),
                )
            case HostUnreachable():
                return error
            case DriverError():
                return HostUnreachable("SSH in the machine does not answer", detail=error.public)
            case TimeoutError() | asyncssh.Error() | OSError():
                return HostUnreachable("SSH in the machine does not answer", detail=str(error))
            case _:
                return error


class Bridge:
    """Carries bytes between two streams until both have ended."""

    def __init__(self, one: tuple[Reader, Writer], other: tuple[Reader, Writer]) -> None:
        self._one, self._other = one, other
        self._carrying: asyncio.Task[None] | None = None

    def start(self) -> asyncio.Task[None]:
        self._carrying = asyncio.create_task(self._carry())
        return self._carrying

    async def _carry(self) -> None:
        try:
            await asyncio.gather(_carry(self._one[0], self._other[1]), _carry(self._other[0], self._one[1]))
        finally:
            for _, writer in (self._one, self._other):
                writer.close()

    async def close(self) -> None:
        if self._carrying is not None:
            self._carrying.cancel()
            await asyncio.gather(self._carrying, return_exceptions=True)


async def _carry(reader: Reader, writer: Writer) -> None:
    with contextlib.suppress(OSError, asyncssh.Error):
        while data := await reader.read(_PIECE):
            writer.write(data)
            await writer.drain()
    with contextlib.suppress(OSError, asyncssh.Error, RuntimeError):
        writer.write_eof()


async def _send(made: Process, data: bytes) -> None:
    with contextlib.suppress(OSError, asyncssh.Error):
        made.stdin.write(data)
        await made.stdin.drain()
        made.stdin.write_eof()


async def _heard(reader: asyncssh.SSHReader[bytes]) -> bytes:
    """All that it says. Raises `DriverError` where that is more than anybody asked for."""
    said = bytearray()
    while data := await reader.read(_PIECE):
        said += data
        if len(said) > _MOST:
            raise DriverError("the machine says more than it was asked for", lasting=True)
    return bytes(said)


def _code(made: Process) -> int | None:
    """None: nobody knows, because the connection broke."""
    if made.exit_status is not None and made.exit_status >= 0:
        return made.exit_status
    return 255 if made.exit_signal else None


Reader = asyncio.StreamReader | asyncssh.SSHReader[bytes]
Writer = asyncio.StreamWriter | asyncssh.SSHWriter[bytes]
