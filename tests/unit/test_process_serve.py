"""How the warden serves a connection on which much is asked at once."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from usina.drivers.process.warden.loop import Loop
from usina.drivers.process.warden.serve import _TURN, Client


@pytest.fixture
def served() -> Iterator[tuple[Loop, Client, socket.socket]]:
    """A client that nobody but us is connected to, and the other end."""
    far, near = socket.socketpair()
    near.setblocking(False)
    loop = Loop()
    door: Any = SimpleNamespace(loop=loop, clients=set(), house=SimpleNamespace(runs={}))
    client = Client(door, near)
    with far:
        yield loop, client, far
        client.close()


def turn(loop: Loop) -> None:
    """What is due now, once."""
    loop.later(0, lambda: setattr(loop, "stopped", True))
    loop.stopped = False
    loop.run()


def asked(count: int) -> bytes:
    lines = [json.dumps({"id": n, "verb": "usage", "handle": "tsk-1.1"}) for n in range(count)]
    return "".join(f"{line}\n" for line in lines).encode()


def answered(far: socket.socket) -> list[int]:
    far.setblocking(False)
    try:
        return [json.loads(line)["id"] for line in far.recv(1 << 20).splitlines()]
    except BlockingIOError:
        return []


def test_a_burst_is_served_whole_and_in_order(served: tuple[Loop, Client, socket.socket]) -> None:
    loop, _, far = served
    far.sendall(asked(3 * _TURN))
    found: list[int] = []
    for _ in range(8):
        turn(loop)
        found += answered(far)
    assert found == list(range(3 * _TURN))


def test_what_cannot_be_read_keeps_nothing_from_being_served(
    served: tuple[Loop, Client, socket.socket], capsys: pytest.CaptureFixture[str]
) -> None:
    loop, _, far = served
    far.sendall(b'nonsense\n{"id": 7}\n' + asked(2 * _TURN))
    found: list[int] = []
    for _ in range(8):
        turn(loop)
        found += answered(far)
    assert found == list(range(2 * _TURN))
    assert "JSONDecodeError" in capsys.readouterr().err


def test_nothing_is_left_to_do_for_who_has_gone(served: tuple[Loop, Client, socket.socket]) -> None:
    loop, client, far = served
    far.sendall(asked(4 * _TURN))
    turn(loop)
    client.close()
    for _ in range(4):
        turn(loop)
    assert not loop._timers
