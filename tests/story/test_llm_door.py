"""The door of models as the whole server has it: beside the other doors on one port, and through ASGI."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NoReturn

import httpx2
import pytest

from usina.server.web import make_app
from usina.server.workers import Workers
from usina.services.llm.shared import Table
from usina.testing.factory import Running
from usina.testing.process import FactoryProcess, Refused, factory_process


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FactoryProcess]:
    with factory_process(tmp_path_factory.mktemp("door") / "data", local_host=False) as found:
        yield found


def test_one_connection_reaches_every_door_in_turn(process: FactoryProcess) -> None:
    line = http.client.HTTPConnection("127.0.0.1", process.port, timeout=10)
    bearer = {"Authorization": f"Bearer {process.token}"}
    got = []
    for path in ("/v1/models", "/v1/nothing", "/healthz", "/v1/models", "/api/v1/whoami", "/v1/models/none"):
        line.request("GET", path, headers=bearer)
        answer = line.getresponse()
        got.append((path, answer.status))
        answer.read()
    line.close()
    assert got == [
        ("/v1/models", 200),
        ("/v1/nothing", 404),
        ("/healthz", 200),
        ("/v1/models", 200),
        ("/api/v1/whoami", 200),
        ("/v1/models/none", 404),
    ]


def test_requests_sent_ahead_wait_for_their_turn(process: FactoryProcess) -> None:
    one = f"GET /v1/models HTTP/1.1\r\nAuthorization: Bearer {process.token}\r\n"
    with socket.create_connection(("127.0.0.1", process.port), timeout=10) as line:
        line.sendall((one + "\r\n").encode() * 8 + (one + "Connection: close\r\n\r\n").encode())
        data = b""
        while more := line.recv(1 << 16):
            data += more
    assert data.count(b"HTTP/1.1 200") == 9


async def test_the_factory_is_well_once_every_gateway_worker_has_served(factory: Running) -> None:
    def never(*_: object) -> NoReturn:
        raise AssertionError

    table = Table.made(2)
    workers = Workers(replace(factory.factory.settings, gateway_workers=2), table, [], never, never)
    app = make_app(factory.factory.house, (), "http://factory", workers)
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://factory") as client:
        answer = await client.get("/healthz")
        assert (answer.status_code, answer.json()) == (503, {"status": "gateway workers are starting"})
        workers.all_ready.set()
        assert (await client.get("/healthz")).status_code == 200
    table.close()


def test_metrics_are_for_who_has_a_role_on_the_site(process: FactoryProcess) -> None:
    """They name projects and models."""

    def status(token: str) -> int:
        line = http.client.HTTPConnection("127.0.0.1", process.port, timeout=10)
        line.request("GET", "/metrics", headers={"Authorization": f"Bearer {token}"} if token else {})
        found = line.getresponse()
        found.read()
        line.close()
        return found.status

    narrow = process.call("POST", "/keys", {"name": "narrow", "project": "main"})["token"]
    assert [status(token) for token in (process.token, "", "usk-x-y", narrow)] == [200, 401, 401, 404]


@pytest.mark.parametrize("every", ["59", "1e308", "inf", "nan", "-60", "40000000"])
def test_steps_of_time_that_make_no_sense_are_refused(process: FactoryProcess, every: str) -> None:
    with pytest.raises(Refused) as refused:
        process.call("GET", "/usage", every=every)
    assert refused.value.status == 422


async def test_through_asgi_it_is_the_same(factory: Running) -> None:
    async with factory.client() as client:
        base = str(client.base_url).replace("/api/v1", "/v1")
        assert (await client.get(f"{base}models")).json() == {"object": "list", "data": []}
        refused = await client.post(f"{base}chat/completions", json={"model": "chat", "messages": []})
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")
        assert refused.headers["x-request-id"]
        client.headers["authorization"] = "Bearer usk-x-y"
        assert (await client.post(f"{base}chat/completions", content=b"x")).status_code == 401
        assert (await client.post(f"{base}chat/completions", content=b"x" * 100_000)).status_code == 413


async def _no_standing_look() -> None:
    """From now on nobody tells the gateway of what has changed."""
    (standing,) = [task for task in asyncio.all_tasks() if task.get_name() == "directory"]
    standing.cancel()
    await asyncio.gather(standing, return_exceptions=True)


async def test_what_was_just_made_is_there_at_once(factory: Running) -> None:
    await _no_standing_look()
    async with factory.client() as client:
        made = await client.post("/keys", json={"name": "fresh", "project": "main"})
        client.headers["authorization"] = f"Bearer {made.raise_for_status().json()['token']}"
        base = str(client.base_url).replace("/api/v1", "/v1")
        assert (await client.get(f"{base}models")).json() == {"object": "list", "data": []}
        spec = {"runtime": "external", "model": "gpt", "url": "https://1.1.1.1/v1", "context": 1024}
        (await client.post("/endpoints", json={"name": "far", "project": "main"} | spec)).raise_for_status()
        looked = await client.post(f"{base}chat/completions", json={"model": "far", "messages": [], "max_tokens": 9999})
        assert (looked.status_code, looked.json()["error"]["param"]) == (400, "max_tokens")
        assert [model["id"] for model in (await client.get(f"{base}models")).json()["data"]] == ["far"]


async def test_all_who_wait_share_one_look(factory: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """But none that was begun before they came: it may have read already."""
    feed, store = factory.factory.feed, factory.factory.store
    await _no_standing_look()
    reads, touched = 0, store.events.touched
    reading, go_on = asyncio.Event(), asyncio.Event()

    async def counted(*args: Any) -> tuple[int, bool]:
        nonlocal reads
        reads += 1
        reading.set()
        await go_on.wait()
        return await touched(*args)

    monkeypatch.setattr(store.events, "touched", counted)
    first = asyncio.create_task(feed.look())
    await reading.wait()
    others = [asyncio.create_task(feed.look()) for _ in range(50)]
    await asyncio.sleep(0)  # all of them wait
    go_on.set()
    await asyncio.gather(first, *others)
    assert reads == 2


async def test_a_look_that_failed_is_nobodys_look(factory: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has waited for it looks again."""
    feed, store = factory.factory.feed, factory.factory.store
    await _no_standing_look()
    reads, touched = 0, store.events.touched

    async def fails_at_first(*args: Any) -> tuple[int, bool]:
        nonlocal reads
        reads += 1
        if reads < 3:
            await asyncio.sleep(0)
            raise OSError("the database is away")
        return await touched(*args)

    monkeypatch.setattr(store.events, "touched", fails_at_first)
    ends = await asyncio.gather(*(feed.look() for _ in range(5)), return_exceptions=True)
    assert [type(end) for end in ends] == [OSError, OSError, type(None), type(None), type(None)]
    assert reads == 3


def test_what_is_not_json_is_told_in_json(process: FactoryProcess) -> None:
    line = http.client.HTTPConnection("127.0.0.1", process.port, timeout=10)
    line.request("POST", "/v1/chat/completions", body=b"{", headers={"Authorization": f"Bearer {process.token}"})
    answer = line.getresponse()
    told = json.loads(answer.read())
    line.close()
    assert (answer.status, told["error"]["type"]) == (400, "invalid_request_error")
