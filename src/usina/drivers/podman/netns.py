"""A TCP connection from within another process's network namespace.

`setns(2)` moves one thread only: a thread of our own joins the namespace, connects, hands the socket over and ends, so
the rest of this process never leaves its own network. Needs root.
"""

from __future__ import annotations

import ctypes
import os
import queue
import socket
import threading
from contextlib import suppress

_CLONE_NEWNET = 0x40000000
LIMIT = 5.0


def connect(pid: int, port: int, address: str = "") -> socket.socket:
    """A socket connected to `port` of `address`, or else of 127.0.0.1, where process `pid` is. Raises `OSError`."""
    answer: queue.Queue[socket.socket | OSError] = queue.Queue()
    threading.Thread(target=_connect, args=(pid, port, address, answer), daemon=True).start()
    found = answer.get()
    if isinstance(found, OSError):
        raise found
    return found


def _connect(pid: int, port: int, address: str, answer: queue.Queue[socket.socket | OSError]) -> None:
    try:
        fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(fd, _CLONE_NEWNET) != 0:
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number))
        finally:
            os.close(fd)
        answer.put(_reach(port, address))
    except OSError as error:
        answer.put(error)


def _reach(port: int, address: str) -> socket.socket:
    if address:
        with suppress(ConnectionRefusedError):
            return socket.create_connection((address, port), LIMIT)
    return socket.create_connection(("127.0.0.1", port), LIMIT)
