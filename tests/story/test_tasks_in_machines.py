"""Ordering tasks into machines: who may, which machines, and what they wait for. The hosts are pretended, the driver of
tasks is the real one and never gets as far as SSH."""

from __future__ import annotations

from typing import Any

import pytest

from usina.core.resource import Phase
from usina.testing.factory import Running
from usina.testing.waiting import eventually

Json = dict[str, Any]


async def call(
    factory: Running, method: str, path: str, body: Json | None = None, status: int = 0, token: str | None = None
) -> Json:
    async with factory.client(token) as client:
        answer = await client.request(method, path, json=body)
    assert answer.status_code == status if status else answer.is_success, answer.text
    return dict(answer.json()) if answer.content else {}


async def run_in(factory: Running, ref: str, status: int = 201, token: str | None = None, **more: Any) -> Json:
    wish = {"on": "machine", "machine": ref, "command": ["true"]} | more
    return await call(factory, "POST", "/tasks", wish, status, token)


async def inside(factory: Running) -> None:
    """The host can run tasks in its machines."""
    await call(factory, "PATCH", "/hosts/h1", {"also": {"ssh": {}}})


async def machine(factory: Running, **more: Any) -> Json:
    return await call(factory, "POST", "/machines", {"name": "box", "image": "ready"} | more, 201)


@pytest.mark.slow
async def test_a_task_waits_for_its_machine_and_claims_nothing(factory: Running) -> None:
    await inside(factory)
    made = await machine(factory)
    await factory.phase(made["id"], Phase.RUNNING)
    before = (await call(factory, "GET", "/hosts/h1"))["used"]
    await call(factory, "POST", f"/machines/{made['id']}/stop", {})
    await factory.phase(made["id"], Phase.STOPPED)
    task = await run_in(factory, "box", cores=1000, memory=1 << 40)
    assert task["spec"]["machine"] == made["id"]

    async def trouble() -> str:
        found = await call(factory, "GET", f"/tasks/{task['id']}")
        return next((c["message"] for c in found["conditions"] if c["kind"] == "Started"), "")

    await eventually(trouble, lambda text: "waits for machine box, which is stopped" in text)
    await call(factory, "POST", f"/machines/{made['id']}/start", {})

    async def placed() -> bool:
        found = await call(factory, "GET", f"/tasks/{task['id']}")
        return found["host"] is not None

    await eventually(placed)
    assert (await call(factory, "GET", "/hosts/h1"))["used"] == before, "its machine has claimed all that it uses"
    await call(factory, "DELETE", f"/machines/{made['id']}")

    async def ended() -> Json:
        return await call(factory, "GET", f"/tasks/{task['id']}")

    found = await eventually(ended, lambda t: t["phase"] == "failed", 30)
    assert "machine" in str(found["conditions"]) + str(found["status"])


async def test_a_machine_that_goes_first_is_told(factory: Running) -> None:
    await inside(factory)
    made = await machine(factory)
    await factory.phase(made["id"], Phase.RUNNING)
    await call(factory, "POST", f"/machines/{made['id']}/stop", {})
    await factory.phase(made["id"], Phase.STOPPED)
    task = await run_in(factory, "box")
    await call(factory, "DELETE", f"/machines/{made['id']}")
    found = await eventually(lambda: call(factory, "GET", f"/tasks/{task['id']}"), lambda t: t["phase"] == "failed", 30)
    assert "its machine is gone" in str(found["conditions"])


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"machine": ""}, "machine"), ({"image": "debian:12"}, "image"), ({"disk": 1 << 30}, "disk"),
        ({"devices": [{"kind": "gpu"}]}, "devices"), ({"replicas": 2}, "replicas"), ({"host": "h1"}, "host"),
        ({"on": "fake"}, "machine"),
    ],
)  # fmt: skip
async def test_what_makes_no_sense_in_a_machine_is_refused(factory: Running, more: Json, field: str) -> None:
    await inside(factory)
    await machine(factory)
    refused = await run_in(factory, "box", 422, **more)
    assert refused["field"] == field, refused


async def test_a_machine_that_is_not_there_or_runs_no_tasks_is_refused(factory: Running) -> None:
    await inside(factory)
    assert (await run_in(factory, "nowhere", 404))["field"] == "machine"
    await machine(factory, name="shut", tasks=False)
    assert (await run_in(factory, "shut", 409))["code"] == "no-tasks"
    await machine(factory, name="mute", interfaces=[])
    assert (await run_in(factory, "mute", 409))["code"] == "no-network"


async def test_a_host_without_the_driver_says_so(factory: Running) -> None:
    made = await machine(factory)
    await factory.phase(made["id"], Phase.RUNNING)
    refused = await run_in(factory, "box", 409)
    assert refused["code"] == "no-such-stack" and "host h1" in refused["detail"]


async def test_nobody_reaches_into_another_projects_machine(factory: Running) -> None:
    await inside(factory)
    made = await machine(factory)
    tenant = (await call(factory, "POST", "/tenants", {"name": "other"}))["id"]
    project = (await call(factory, "POST", "/projects", {"tenant": tenant, "name": "theirs"}))["id"]
    member = {"name": "eve", "tenant": tenant, "roles": {project: "member"}}
    eve = (await call(factory, "POST", "/members", member))["id"]
    token = (await call(factory, "POST", "/keys", {"name": "k", "member": eve}))["token"]
    for ref in ("box", made["id"]):
        await run_in(factory, ref, 404, token)
        await run_in(factory, ref, 404, None, project=project)


async def test_the_driver_needs_one_that_makes_machines_beside_it(factory: Running) -> None:
    refused = await call(factory, "POST", "/hosts", {"name": "h2", "driver": "ssh", "options": {}}, 422)
    assert "no driver of this host makes any" in refused["detail"]
