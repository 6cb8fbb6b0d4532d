"""Volumes of tasks through the native door, on pretended hosts: where they lie, who holds them, what is refused."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from test_tasks import Json, log, look, order, over, phase

from usina.core.machine import VolumePlan
from usina.core.resource import Phase
from usina.drivers.fake.tasks import FakeTasks
from usina.ports.driver import HostUnreachable
from usina.testing.factory import Running
from usina.testing.waiting import eventually

GiB = 1 << 30


async def send(factory: Running, method: str, path: str, status: int, **body: Any) -> Json:
    async with factory.client() as client:
        answer = await client.request(method, path, json=body or None, params={"project": "main"})
        assert answer.status_code == status, answer.text
        return dict(answer.json())


async def volume(factory: Running, name: str = "data", *, ready: bool = True, **more: Any) -> Json:
    body = {"name": name, "size": GiB, "form": "folder", "project": "main"} | more
    made = await send(factory, "POST", "/volumes", 201, **body)
    return await settled(factory, made["id"]) if ready else made


async def settled(factory: Running, id: str) -> Json:
    def good(found: Json) -> bool:
        return found["phase"] == "ready" and found["observed"] == found["generation"]

    return await eventually(lambda: look(factory, f"/volumes/{id}"), good)


def at(path: str, name: str = "data", **more: Any) -> Json:
    return {"volume": name, "path": path} | more


async def test_it_is_held_until_the_task_is_over(factory: Running) -> None:
    made = await volume(factory)
    assert (made["spec"]["form"], made["spec"]["size"]) == ("folder", GiB)
    task = await order(factory, "sleep", "600", volumes=[at("/data"), at("sub", read_only=True)], name="holder")
    assert task["spec"]["volumes"] == [
        {"volume": made["id"], "path": "/data", "read_only": False},
        {"volume": made["id"], "path": "/work/sub", "read_only": True},
    ]
    placed = await phase(factory, task, Phase.RUNNING)
    assert placed["host"] == made["host"]
    for method, path, body in (("DELETE", "/volumes/data", {}), ("PATCH", "/volumes/data", {"size": 2 * GiB})):
        refused = await send(factory, method, path, 409, **body)
        assert refused["code"] == "in-use" and "task holder uses it" in refused["detail"]
    await send(factory, "POST", f"/tasks/{task['id']}/stop", 202)
    await over(factory, task)
    await send(factory, "PATCH", "/volumes/data", 200, size=2 * GiB)
    assert (await settled(factory, made["id"]))["spec"]["size"] == 2 * GiB

    await send(factory, "POST", f"/tasks/{task['id']}/rerun", 202)  # it holds it again
    await phase(factory, task, Phase.RUNNING)
    await send(factory, "DELETE", "/volumes/data", 409)
    await send(factory, "POST", f"/tasks/{task['id']}/stop", 202)
    await over(factory, task)
    await send(factory, "DELETE", "/volumes/data", 202)
    await factory.gone(made["id"], "volumes")
    gone = await send(factory, "POST", f"/tasks/{task['id']}/rerun", 409)
    assert gone["code"] == "volume-gone" and "its volume at /data" in gone["detail"]
    host = await look(factory, "/hosts/h1")
    assert host["used"] == {"cores": 0, "memory": 0, "disk": 0}


async def test_one_that_never_began_lets_go_of_it(factory: Running) -> None:
    await volume(factory)
    before = await order(factory, "sleep", "600")
    waiting = await order(factory, "true", volumes=[at("/data")], after=[{"task": before["id"], "on": "success"}])
    await send(factory, "DELETE", "/volumes/data", 409)
    await send(factory, "POST", f"/tasks/{waiting['id']}/stop", 202)
    await over(factory, waiting)
    hopeless = await order(factory, "true", volumes=[at("/data")], after=[{"task": before["id"], "on": "success"}])
    await send(factory, "POST", f"/tasks/{before['id']}/stop", 202)
    assert (await over(factory, hopeless))["phase"] == "failed"
    await send(factory, "DELETE", "/volumes/data", 202)


@pytest.mark.parametrize("many", [{"indices": [0, 1, 2], "at_once": 1}, {"replicas": 3}])
async def test_every_part_has_it_and_the_whole_holds_it(factory: Running, many: Json) -> None:
    await send(factory, "POST", "/hosts", 201, name="h2", driver="fake", options={"cores": 64})
    made = await volume(factory, ready=False)
    whole = await order(factory, "sleep", "0.2", volumes=[at("/data")], **many)
    await send(factory, "DELETE", "/volumes/data", 409)
    assert (await over(factory, whole))["phase"] == "succeeded"
    home = (await look(factory, f"/volumes/{made['id']}"))["host"]
    for part in (await look(factory, f"/tasks/{whole['id']}/parts"))["items"]:
        assert part["spec"]["volumes"][0]["volume"] == made["id"]
        story = (await look(factory, f"/stories/{part['id']}"))["items"]
        assert {e["related"] for e in story if e["kind"] == "task.succeeded"} == {home}
    await send(factory, "DELETE", "/volumes/data", 202)
    await factory.gone(made["id"], "volumes")


async def test_a_task_waits_for_its_volume(factory: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    may, plain = asyncio.Event(), FakeTasks.ensure_volume

    async def slowly(self: FakeTasks, plan: VolumePlan) -> None:
        await may.wait()
        await plain(self, plan)

    monkeypatch.setattr(FakeTasks, "ensure_volume", slowly)
    await volume(factory, ready=False)
    task = await order(factory, "echo", "here", volumes=[at("/data")])

    async def told() -> str:
        found = await look(factory, f"/tasks/{task['id']}")
        return " ".join(condition["message"] for condition in found["conditions"])

    assert "waits for volume data" in await eventually(told)
    may.set()
    assert (await over(factory, task))["phase"] == "succeeded"
    assert await log(factory, task) == ["here"]


async def test_one_in_use_on_its_host_goes_later(factory: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    made = await volume(factory)
    tries, plain = [0], FakeTasks.remove_volume

    async def busy(self: FakeTasks, handle: str) -> None:
        tries[0] += 1
        if tries[0] < 3:
            raise HostUnreachable("busy") if tries[0] == 1 else OSError("busy")
        await plain(self, handle)

    monkeypatch.setattr(FakeTasks, "remove_volume", busy)
    monkeypatch.setattr("usina.engine.reconcile.LOOK_AGAIN", 0.1)
    await send(factory, "DELETE", "/volumes/data", 202)
    await factory.gone(made["id"], "volumes")
    assert tries == [3]


async def test_it_lies_on_one_host_and_tasks_go_there(factory: Running) -> None:
    hosts = {}
    for name in ("h2", "h3"):
        hosts[name] = (await send(factory, "POST", "/hosts", 201, name=name, driver="fake", options={"cores": 4}))["id"]
        await volume(factory, f"on-{name}", host=name)
    for name, id in hosts.items():
        task = await order(factory, "sleep", "600", volumes=[at("/data", f"on-{name}")])
        assert (await phase(factory, task, Phase.RUNNING))["host"] == id
        await send(factory, "DELETE", f"/tasks/{task['id']}", 202)
    apart = await order(factory, "true", volumes=[at("/a", "on-h2"), at("/b", "on-h3")], status=409)
    assert (apart["code"], apart["field"]) == ("apart", "volumes[1].volume")
    elsewhere = await order(factory, "true", volumes=[at("/a", "on-h2")], host="h3", status=409)
    assert (elsewhere["code"], elsewhere["field"]) == ("apart", "host")
    big = await order(factory, "true", volumes=[at("/a", "on-h2")], cores=60, status=409)
    assert "no host can ever hold this" in big["detail"]
    assert (await over(factory, await order(factory, "true", volumes=[at("/a", "on-h2")], host="h2")))["phase"]


async def test_what_lies_apart_is_told_where_it_was_not_known_yet(
    factory: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    may, plain = asyncio.Event(), FakeTasks.ensure_volume

    async def slowly(self: FakeTasks, plan: VolumePlan) -> None:
        await may.wait()
        await plain(self, plan)

    monkeypatch.setattr(FakeTasks, "ensure_volume", slowly)
    await send(factory, "POST", "/hosts", 201, name="h2", driver="fake", options={"cores": 4})
    first = await volume(factory, "one", ready=False, host="h1")
    task = await order(factory, "true", volumes=[at("/a", "one")], host="h2", status=201)
    may.set()
    await settled(factory, first["id"])
    done = await over(factory, task)
    assert done["phase"] == "failed"
    assert any("lie on host h1" in condition["message"] for condition in done["conditions"])


async def test_what_makes_no_sense_is_refused_by_name(factory: Running) -> None:
    await volume(factory)
    await volume(factory, "disk", form="disk")
    wishes: list[tuple[Json, str]] = [
        ({"volumes": [at("../x")]}, "volumes[0].path"),
        ({"volumes": [at("/usr/lib/x")]}, "volumes[0].path"),
        ({"volumes": [at(".")]}, "volumes[0].path"),
        ({"volumes": [at("/data"), at("/data/in")]}, "volumes[1].path"),
        ({"volumes": [at("/data", "none")]}, "volumes[0].volume"),
        ({"volumes": [at("/data", "disk")]}, "volumes[0].volume"),
        ({"volumes": [at(f"/data{n}") for n in range(17)]}, "volumes"),
        ({"volumes": [at("/data")], "on": "slurm"}, "volumes"),
        ({"volumes": [at("/data")], "on": "local"}, "on"),
    ]
    async with factory.client() as client:
        for wish, field in wishes:
            answer = await client.post("/tasks", json={"on": "fake", "command": ["true"]} | wish)
            assert answer.status_code in (404, 409, 422), answer.text
            assert answer.json()["field"] == field, answer.text
    await send(factory, "DELETE", "/volumes/data", 202)  # nothing of it was kept


async def test_a_folder_is_no_disk(factory: Running) -> None:
    await volume(factory)
    machine = {"name": "m1", "image": "ready", "project": "main"}
    refused = await send(factory, "POST", "/machines", 422, **machine, volumes=["data"])
    assert (refused["field"], "folder" in refused["detail"]) == ("volumes[0]", True)
    made = await send(factory, "POST", "/machines", 201, **machine)
    await factory.phase(made["id"], Phase.RUNNING)
    assert (await send(factory, "POST", "/machines/m1/volumes", 422, volume="data"))["field"] == "volume"
    small = await send(factory, "POST", "/volumes", 422, name="small", size=1 << 20, form="folder", project="main")
    assert small["field"] == "size"
    await send(factory, "POST", "/volumes", 422, name="odd", size=GiB, form="block", project="main")


async def test_another_projects_volume_is_not_there(factory: Running) -> None:
    made = await volume(factory)
    async with factory.client() as client:
        tenant = (await client.get("/tenants")).json()["items"][0]["name"]
        (await client.post("/projects", json={"name": "other", "tenant": tenant})).raise_for_status()
    for ref in ("data", made["id"]):
        refused = await order(factory, "true", volumes=[at("/data", ref)], project="other", status=404)
        assert refused["field"] == "volumes[0].volume"


async def test_it_counts_against_the_quota(factory: Running) -> None:
    before = (await look(factory, "/quotas/main"))["used"]
    await volume(factory)
    after = (await look(factory, "/quotas/main"))["used"]
    assert after["disk"] - before["disk"] == GiB
