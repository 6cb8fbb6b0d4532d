"""What Podman answers, and what it means: told by a service that says what we give it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from usina.drivers.podman.api import Api, Missing, ProcessGone
from usina.ports.driver import DriverError

GONE = (500, {"cause": "no such process", "message": "read /proc/21249/cgroup: no such process", "response": 500})
ENDED = (200, {"State": {"Status": "exited"}})


@asynccontextmanager
async def service(folder: Path, *answers: tuple[int, object]) -> AsyncIterator[tuple[Api, list[str]]]:
    """One that gives these answers, one after the other, and what it was asked."""
    asked: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        status, content = answers[len(asked)]
        asked.append(head.split()[1].decode())
        body = json.dumps(content).encode()
        said = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        writer.write(said.encode() + b"Connection: close\r\n\r\n" + body)
        await writer.drain()
        writer.close()

    path = str(folder / "s")
    async with await asyncio.start_unix_server(serve, path):
        api = Api(path)
        yield api, asked
        await api.close()


@pytest.mark.parametrize("times", [0, 1, 3])
async def test_a_container_that_ends_while_it_is_looked_at_is_looked_at_again(tmp_path: Path, times: int) -> None:
    async with service(tmp_path, *[GONE] * times, ENDED) as (api, asked):
        assert await api.look("/containers/a/json") == ENDED[1]
    assert len(asked) == times + 1


async def test_one_that_never_can_be_seen_is_an_error(tmp_path: Path) -> None:
    async with service(tmp_path, *[GONE] * 9) as (api, asked):
        with pytest.raises(ProcessGone, match="/proc/21249/cgroup"):
            await api.look("/containers/a/json")
    assert 1 < len(asked) < 9


@pytest.mark.parametrize(
    ("status", "message", "kind"),
    [(404, "no such container", Missing), (500, "no such process", DriverError), (500, "broken", DriverError)],
)
async def test_other_failures_are_told_at_once(tmp_path: Path, status: int, message: str, kind: type) -> None:
    async with service(tmp_path, (status, {"message": message}), ENDED) as (api, asked):
        with pytest.raises(DriverError) as failure:
            await api.look("/containers/a/json")
    assert type(failure.value) is kind
    assert len(asked) == 1
