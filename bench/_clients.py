"""Many clients of a factory at once, each a process of its own, so that they do not share our interpreter."""

from __future__ import annotations

import json
import multiprocessing
import socket
import time
from typing import Any

Json = dict[str, Any]


def order(port: int, token: str, path: str, bodies: list[Json], clients: int) -> float:
    """Send every body, spread over `clients` processes with one connection each; seconds until all are answered."""
    shares = [bodies[n::clients] for n in range(clients)]
    context = multiprocessing.get_context("fork")
    ready, go = context.Barrier(clients + 1), context.Event()
    workers = [context.Process(target=_send, args=(port, token, path, share, ready, go)) for share in shares]
    for worker in workers:
        worker.start()
    ready.wait()
    begun = time.monotonic()
    go.set()
    for worker in workers:
        worker.join()
        if worker.exitcode:
            raise RuntimeError("an order was refused")
    return time.monotonic() - begun


def _send(port: int, token: str, path: str, bodies: list[Json], ready: Any, go: Any) -> None:
    """What is sent is put together beforehand, and little is read of the answers: a client costs next to nothing."""
    head = (
        f"POST /api/v1{path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {token}\r\n"
        "Content-Type: application/json\r\nContent-Length: "
    )
    requests = [f"{head}{len(body)}\r\n\r\n{body}".encode() for body in map(json.dumps, bodies)]
    with socket.create_connection(("127.0.0.1", port)) as line:
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        ready.wait()
        go.wait()
        for request in requests:
            line.sendall(request)
            answer = _answer(line)
            if not answer.startswith(b"HTTP/1.1 201 "):
                print(answer.decode())
                raise SystemExit(1)


def _answer(line: socket.socket) -> bytes:
    """One whole answer, head and body."""
    data = b""
    size = -1
    while size < 0 or len(data) < size:
        more = line.recv(1 << 16)
        if not more:
            raise SystemExit("the factory hung up")
        data += more
        head, found, _ = data.partition(b"\r\n\r\n")
        if size < 0 and found:
            size = len(head) + 4 + int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
    return data
