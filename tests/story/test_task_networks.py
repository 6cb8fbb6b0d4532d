"""Tasks on networks of their project, on a pretended host: addresses, groups, gangs, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_tasks import Json, look, order, over, phase

from usina.core.resource import Phase
from usina.drivers.fake.tasks import FakeTasks
from usina.testing.factory import Running
from usina.testing.waiting import eventually


async def make(factory: Running, path: str, status: int = 201, **body: Any) -> Json:
    async with factory.client() as client:
        answer = await client.post(path, json=body)
        assert answer.status_code == status, answer.text
        return dict(answer.json())


async def delete(factory: Running, path: str, status: int = 202) -> None:
    async with factory.client() as client:
        answer = await client.delete(path, params={"project": "main"})
        assert answer.status_code == status, answer.text


def cards(factory: Running) -> dict[str, int]:
    """What is plugged in on the pretended host: handle and MAC, and how many rules its filter has."""
    [folder] = factory.factory.settings.data_dir.glob("hosts/*/fake/cards")
    return {path.name: int(path.read_text()) for path in Path(folder).iterdir()}


async def test_it_has_an_address_of_its_own_until_it_is_over(factory: Running) -> None:
    network = await make(factory, "/networks", name="train", project="main", cidr="10.90.0.0/29")
    tasks = [await order(factory, "sleep", "600", network="train", name=f"t{n}") for n in range(5)]
    assert {task["spec"]["network"] for task in tasks} == {"project"}
    assert sorted(task["spec"]["interface"]["address"] for task in tasks) == [f"10.90.0.{n}" for n in range(2, 7)]
    for task in tasks:
        await phase(factory, task, Phase.RUNNING)
    first = tasks[0]
    mac = first["spec"]["interface"]["mac"]
    assert f"{first['id']}.1-{mac}" in cards(factory)
    full = await order(factory, "true", network="train", status=409)
    assert full["code"] == "network-full" and full["field"] == "network"
    await delete(factory, "/networks/train", 409)

    async with factory.client() as client:
        await client.post(f"/tasks/{first['id']}/stop")
        await over(factory, first)
        heir = await order(factory, "sleep", "600", network="train", name="heir")
        assert heir["spec"]["interface"] == first["spec"]["interface"], "what was free is used again"
        assert (await client.post(f"/tasks/{first['id']}/rerun")).json()["code"] == "network-full"
        await client.post(f"/tasks/{tasks[1]['id']}/stop")
        await over(factory, tasks[1])
        assert (await client.post(f"/tasks/{first['id']}/rerun")).status_code == 202
    again = await phase(factory, first, Phase.RUNNING)
    assert again["spec"]["interface"] == tasks[1]["spec"]["interface"]
    assert f"{first['id']}.2-{again['spec']['interface']['mac']}" in cards(factory)

    for task in [*tasks, heir]:
        await delete(factory, f"/tasks/{task['id']}")
        await factory.gone(task["id"], "tasks")
    assert cards(factory) == {}
    await delete(factory, f"/networks/{network['id']}")
    await factory.gone(network["id"], "networks")


async def test_one_that_never_began_keeps_its_address(factory: Running) -> None:
    before = await order(factory, "sleep", "600")
    waiting = await order(factory, "true", network="default", after=[{"task": before["id"], "on": "end"}])
    async with factory.client() as client:
        for path in (waiting["id"], before["id"]):
            await client.post(f"/tasks/{path}/stop")
        await over(factory, waiting)
        await over(factory, before)
        again = (await client.post(f"/tasks/{waiting['id']}/rerun")).raise_for_status().json()
    assert again["spec"]["interface"] == waiting["spec"]["interface"]
    assert (await over(factory, again))["phase"] == "succeeded"


async def test_ranks_know_their_peers(factory: Running) -> None:
    gang = await order(
        factory, "echo", "$USINA_ADDRESS", "$USINA_PEERS", "$RANK", "$WORLD_SIZE", "$MASTER_ADDR", "$MASTER_PORT",
        network="default", replicas=3, environment={"MASTER_PORT": "1234"}, secrets={"RANK": "of mine"}, name="gang",
    )  # fmt: skip
    assert (gang["spec"]["interface"]["address"], gang["spec"]["interface"]["mac"]) == ("", "")
    assert "USINA_PEERS" not in gang["spec"]["environment"]
    await over(factory, gang)
    parts = (await look(factory, f"/tasks/{gang['id']}/parts"))["items"]
    peers = [part["spec"]["interface"]["address"] for part in parts]
    assert len(set(peers)) == 3
    async with factory.client() as client:
        for part, address in zip(parts, peers, strict=True):
            said = (await client.get(f"/tasks/{part['id']}/logs")).text.split(" ", 2)[2]
            assert said.split() == [address, ",".join(peers), "***", "3", peers[0], "1234"], json.dumps(part)


async def test_a_gang_stays_on_one_host_because_its_network_does(factory: Running) -> None:
    await make(factory, "/hosts", name="h2", driver="fake", options={"cores": 64})
    wide: Json = {"replicas": 3, "cores": 30, "memory": 1 << 23}
    apart = await order(factory, "true", **wide)
    assert (await over(factory, apart))["phase"] == "succeeded"
    together = await order(factory, "true", network="default", **wide)

    async def story() -> list[str]:
        return [event["kind"] for event in (await look(factory, f"/stories/{together['id']}"))["items"]]

    await eventually(story, lambda kinds: "task.refused" in kinds)
    await make(factory, "/hosts", name="h3", driver="fake", options={"cores": 96})
    await over(factory, together)
    parts = (await look(factory, f"/tasks/{together['id']}/parts"))["items"]
    assert {part["host"] for part in parts} == {parts[0]["host"]}


async def test_parts_of_an_array_have_an_address_each(factory: Running) -> None:
    array = await order(factory, "echo", "$USINA_ADDRESS", "$USINA_PEERS", network="default", indices=[0, 1])
    await over(factory, array)
    parts = (await look(factory, f"/tasks/{array['id']}/parts"))["items"]
    assert len({part["spec"]["interface"]["address"] for part in parts}) == 2
    assert "USINA_PEERS" not in parts[0]["spec"]["environment"]


async def test_rules_that_change_reach_what_is_plugged_in(factory: Running) -> None:
    group = await make(factory, "/security-groups", name="mesh", project="main")
    task = await order(factory, "sleep", "600", network="default", security_groups=["mesh"])
    await phase(factory, task, Phase.RUNNING)
    name = f"{task['id']}.1-{task['spec']['interface']['mac']}"
    assert cards(factory)[name] == 0
    await delete(factory, "/security-groups/mesh", 409)
    async with factory.client() as client:
        rules = [{"direction": "out", "protocol": "all"}, {"direction": "in", "protocol": "icmp"}]
        changed = await client.put(f"/security-groups/{group['id']}/rules", json={"rules": rules})
        assert changed.status_code == 200, changed.text

    async def rules_of() -> int:
        return cards(factory)[name]

    await eventually(rules_of, lambda count: count == 2)
    await delete(factory, f"/tasks/{task['id']}")
    await factory.gone(task["id"], "tasks")
    await delete(factory, "/security-groups/mesh")


async def test_what_a_start_left_that_was_cut_short_is_removed(
    factory: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice seen, and of no task: a run that is being started is its task's."""
    task = await order(factory, "sleep", "600")
    await phase(factory, task, Phase.RUNNING)
    left, removed = {"tsk-gone.1", f"{task['id']}.1"}, []

    async def leftovers(self: FakeTasks) -> list[str]:
        return sorted(left)

    async def remove(self: FakeTasks, handle: str) -> None:
        removed.append(handle)
        left.discard(handle)

    with monkeypatch.context() as patched:
        patched.setattr(FakeTasks, "leftovers", leftovers)
        patched.setattr(FakeTasks, "remove", remove)
        await factory.factory.orphans.sweep()
        assert removed == []
        await factory.factory.orphans.sweep()
    assert removed == ["tsk-gone.1"]


@pytest.mark.parametrize(
    ("wish", "status", "field"),
    [
        ({"network": "nowhere"}, 404, "network"),
        ({"network": "Bad Name"}, 422, "network"),
        ({"network": "default", "security_groups": ["nowhere"]}, 404, "security_groups[0]"),
        ({"network": "outbound", "security_groups": ["default"]}, 422, "security_groups"),
        ({"network": "default", "on": "slurm"}, 422, "network"),
        ({"network": "default", "name": "m1"}, 409, "name"),
    ],
)
async def test_what_is_refused_changes_nothing(
    factory: Running, order: Any, wish: Json, status: int, field: str
) -> None:
    await order("m1")  # a machine, whose name the network knows
    async with factory.client() as client:
        answer = await client.post("/tasks", json={"on": "fake", "command": ["true"], "project": "main"} | wish)
        assert (answer.status_code, answer.json().get("field")) == (status, field), answer.text
        assert (await client.get("/tasks")).json()["items"] == []


async def test_a_network_of_another_project_is_not_there(factory: Running) -> None:
    tenant = (await look(factory, "/tenants"))["items"][0]["id"]
    await make(factory, "/projects", name="other", tenant=tenant)
    network = await make(factory, "/networks", name="theirs", project="other")
    for ref in ("theirs", network["id"]):
        problem = await order(factory, "true", network=ref, status=404, project="main")
        assert problem["field"] == "network"


async def test_a_host_that_cannot_is_not_taken(factory: Running) -> None:
    async with factory.client() as client:
        answer = await client.post(
            "/tasks", json={"on": "local", "command": ["true"], "project": "main", "network": "default"}
        )
    assert answer.status_code == 409, answer.text
    assert "no host can ever hold this" in answer.json()["detail"]
