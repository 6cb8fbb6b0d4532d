"""Ways into a machine for tests: an SSH key, a tunnel from a local port through the WebSocket, and real `ssh`."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from usina.testing.process import FactoryProcess
from usina.testing.waiting import until

CHUNK = 64 * 1024


def ssh_key(folder: Path) -> Path:
    """A fresh key pair; the public half is beside it, as ``.pub``."""
    path = folder / "key"
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(path)]
    subprocess.run(command, check=True, capture_output=True)
    return path


def websocket(factory: FactoryProcess, path: str, token: str = "") -> ClientConnection:
    return connect(
        f"ws://127.0.0.1:{factory.port}/api/v1{path}",
        additional_headers={"Authorization": f"Bearer {token or factory.token}"},
        compression=None,
        proxy=None,
        open_timeout=30,
    )


@contextmanager
def tunnel(factory: FactoryProcess, machine: str, port: int = 22, token: str = "") -> Iterator[int]:
    """A TCP port of this machine that leads through the factory's WebSocket to a port of `machine`."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with suppress(OSError):
            while True:
                near, _ = listener.accept()
                threading.Thread(target=carry, args=(near,), daemon=True).start()

    def carry(near: socket.socket) -> None:
        with near, suppress(OSError), websocket(factory, f"/machines/{machine}/tunnel?port={port}", token) as far:
            threading.Thread(target=_outwards, args=(near, far), daemon=True).start()
            with suppress(ConnectionClosed):
                while True:
                    data = far.recv()
                    near.sendall(data if isinstance(data, bytes) else data.encode())

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        listener.close()


def _outwards(near: socket.socket, far: ClientConnection) -> None:
    with suppress(OSError, ConnectionClosed):
        while data := near.recv(CHUNK):
            far.send(data)
    far.close()


def ssh(
    port: int, key: Path, command: str, *, user: str = "root", host: str = "127.0.0.1", limit: float = 30.0
) -> subprocess.CompletedProcess[str]:
    """Run one command in a guest."""
    options = {
        "StrictHostKeyChecking": "no",
        "UserKnownHostsFile": "/dev/null",
        "LogLevel": "ERROR",
        "BatchMode": "yes",
        "IdentitiesOnly": "yes",
        "ConnectTimeout": "5",
    }
    words = [part for name, value in options.items() for part in ("-o", f"{name}={value}")]
    arguments = ["ssh", "-F", "none", *words, "-i", str(key), "-p", str(port), f"{user}@{host}", command]
    try:
        return subprocess.run(arguments, capture_output=True, text=True, timeout=limit, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(arguments, 255, "", f"no answer in {limit:g} s")


def ssh_answers(port: int, key: Path, command: str = "true", *, user: str = "root", limit: float = 90.0) -> str:
    """Try until the guest lets us in and the command succeeds; what it wrote."""
    begun = time.monotonic()
    until(lambda: banner(port, 5.0), limit=limit, pause=0.2)
    limit = max(5.0, limit - (time.monotonic() - begun))
    done = until(lambda: ssh(port, key, command, user=user), lambda done: done.returncode == 0, limit)
    return done.stdout.strip()


def banner(port: int, patience: float = 0.5) -> bytes:
    """The first bytes that a local port sends by itself; nothing if none come in time."""
    try:
        with socket.create_connection(("127.0.0.1", port), patience) as connection:
            connection.settimeout(patience)
            return connection.recv(8)
    except OSError:
        return b""


class SerialLine:
    """The serial console of a machine over its WebSocket, as a person at a keyboard uses it."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self.heard = ""

    def say(self, line: str) -> None:
        self._socket.send(f"{line}\r".encode())

    def hear(self, words: str, limit: float = 20.0) -> str:
        """All that was heard once `words` were. Raises `TimeoutError`."""
        while words not in self.heard:
            data = self._socket.recv(limit)
            self.heard += data.decode(errors="replace") if isinstance(data, bytes) else data
        return self.heard


@contextmanager
def serial_line(factory: FactoryProcess, machine: str, token: str = "") -> Iterator[SerialLine]:
    with websocket(factory, f"/machines/{machine}/console", token) as socket:
        yield SerialLine(socket)
