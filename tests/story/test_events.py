"""Events: a stream that can be resumed without a gap, and shows each reader only what is theirs."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
import uvicorn

from usina.core.resource import Phase
from usina.testing.factory import Running
from usina.testing.postgres import free_port
from usina.testing.waiting import eventually

Json = dict[str, Any]


@pytest.fixture
async def address(factory: Running) -> AsyncIterator[str]:
    """The factory on a real socket: streams need one."""
    import asyncio

    port = free_port()
    server = uvicorn.Server(uvicorn.Config(factory.app, port=port, log_config=None, lifespan="off"))
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    task = asyncio.create_task(server._serve())
    await eventually(lambda: _started(server))
    yield f"http://127.0.0.1:{port}/api/v1"
    server.should_exit = True
    server.force_exit = True
    await task


async def _started(server: uvicorn.Server) -> bool:
    return server.started


async def read(client: httpx2.AsyncClient, url: str, count: int, **headers: str) -> list[Json]:
    """The first `count` events of a stream."""
    found: list[Json] = []
    async with client.stream("GET", url, headers=headers) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        async for line in answer.aiter_lines():
            if line.startswith("data: "):
                found.append(json.loads(line.removeprefix("data: ")))
            if len(found) == count:
                return found
    raise AssertionError("the stream ended early")


async def test_a_stream_resumes_where_it_was_cut(factory: Running, address: str) -> None:
    headers = {"Authorization": f"Bearer {factory.token}"}
    async with httpx2.AsyncClient(headers=headers, timeout=20) as client:
        order = {"name": "m1", "image": "ready"}
        machine = (await client.post(f"{address}/machines", json=order)).json()
        await factory.phase(machine["id"], Phase.RUNNING)
        stream = f"{address}/events/stream?subject={machine['id']}&after=0"
        first = await read(client, stream, 2)
        rest = await read(client, stream, 3, **{"Last-Event-ID": str(first[-1]["seq"])})
        story = (await client.get(f"{address}/stories/m1")).json()["items"]
        assert [e["seq"] for e in first + rest] == [e["seq"] for e in story]


async def test_a_stream_waits_for_what_comes(factory: Running, address: str) -> None:
    import asyncio

    headers = {"Authorization": f"Bearer {factory.token}"}
    async with httpx2.AsyncClient(headers=headers, timeout=20) as client:
        reading = asyncio.create_task(read(client, f"{address}/events/stream?kind=volume.ordered", 1))
        for number in range(50):
            await client.post(f"{address}/volumes", json={"name": f"v{number}", "size": 1 << 20})
            done, _ = await asyncio.wait([reading], timeout=0.05)
            if done:
                break
        [event] = await reading
        assert event["kind"] == "volume.ordered"


async def test_a_stream_ends_when_its_key_is_revoked(factory: Running, address: str) -> None:
    headers = {"Authorization": f"Bearer {factory.token}"}
    async with httpx2.AsyncClient(headers=headers, timeout=20) as client:
        key = (await client.post(f"{address}/keys", json={"name": "k"})).json()
        mine = {"Authorization": f"Bearer {key['token']}"}
        async with client.stream("GET", f"{address}/events/stream", headers=mine) as answer:
            lines = answer.aiter_lines()
            assert await anext(lines) == "retry: 2000"
            await client.delete(f"{address}/keys/{key['id']}")
            async for _ in lines:
                continue
