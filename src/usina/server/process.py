"""What every process of a factory begins with: plain logs, tuning, sockets to listen on, and a folder of its own."""

from __future__ import annotations

import asyncio
import fcntl
import gc
import logging
import os
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import structlog

from usina.core.errors import Unavailable
from usina.server.settings import Settings

GRACE = 5  # seconds that open requests have to end
SWITCH = 0.0005  # seconds a thread may hold the interpreter while a database thread waits for it
BACKLOG = 2048
_PATIENCE = 10.0  # seconds for a process that was killed to be gone


def prepare() -> None:
    """Once, before anything else."""
    _log_plainly()
    sys.setswitchinterval(SWITCH)
    # Nearly everything here dies young, by reference count; frequent full collections would only walk what lives on.
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def listeners(settings: Settings) -> list[socket.socket]:
    """Sockets on the port that other processes of this factory listen on as well. Raises `Unavailable`."""
    try:
        found = socket.getaddrinfo(settings.bind, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        return [_listener(family, address, share=True) for family, _, _, _, address in found]
    except OSError as error:
        raise Unavailable(f"port {settings.port} cannot be used: {error.strerror}") from None


def check_port(settings: Settings) -> None:
    """Nobody listens there, not even one who would share the port. Raises `Unavailable`."""
    try:
        found = socket.getaddrinfo(settings.bind, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, _, _, _, address in found:
            _listener(family, address, share=False).close()
    except OSError as error:
        raise Unavailable(f"port {settings.port} cannot be used: {error.strerror}") from None


def _listener(family: int, address: object, *, share: bool) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if share:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    try:
        made.bind(address)  # type: ignore[arg-type]
    except OSError:
        made.close()
        raise
    made.setblocking(False)
    return made


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """One process for each folder. Raises `Unavailable` where another has it."""
    fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise Unavailable(f"another factory runs on {folder}") from None
    try:
        yield
    finally:
        os.close(fd)


@asynccontextmanager
async def soon_alone(folder: Path) -> AsyncIterator[None]:
    """The same, made where it is not there, and once a process that is about to end has ended."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    deadline = asyncio.get_running_loop().time() + _PATIENCE
    while True:
        try:
            lock = alone(folder)
            lock.__enter__()
            break
        except Unavailable:
            if asyncio.get_running_loop().time() > deadline:
                raise
        await asyncio.sleep(0.05)
    try:
        yield
    finally:
        lock.__exit__(None, None, None)


def _log_plainly() -> None:
    """Structured lines on standard error; colours only for people."""
    renderer = structlog.dev.ConsoleRenderer(
        colors=sys.stderr.isatty(),
        exception_formatter=structlog.dev.plain_traceback,  # never the values of local variables
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
