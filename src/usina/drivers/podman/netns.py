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

_CLONE_NEWNET = 0x40000000
LIMIT = 5.0


def connect(pid: int, port: int) -> socket.socket:
    """A socket connected to 127.0.0.1:`port` where process `pid` is. Raises `OSError`."""
    answer: queue.Queue[socket.socket | OSError] = queue.Queue()
    threading.Thread(target=_connect, args=(pid, port, answer), daemon=True).start()
    found = answer.get()
    if isinstance(found, OSError):
        raise found
    return found


def _connect(pid: int, port: int, answer: queue.Queue[socket.socket | OSError]) -> None:
    try:
        fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(fd, _CLONE_NEWNET) != 0:
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number))
        finally:
            os.close(fd)
        answer.put(socket.create_connection(("127.0.0.1", port), LIMIT))
    except OSError as error:
        answer.put(error)
