"""Many clients of a factory at once, each a process of its own, so that they do not share our interpreter."""

from __future__ import annotations

import http.client
import json
import multiprocessing
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
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.connect()
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    ready.wait()
    go.wait()
    for body in bodies:
        connection.request("POST", f"/api/v1{path}", json.dumps(body), headers)
        answer = connection.getresponse()
        text = answer.read()
        if answer.status != 201:
            print(text.decode())
            raise SystemExit(1)
