"""What a member wishes of the place its machine gets: it reaches the engine, and is its own project's affair."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from usina.core.capacity import Affinity, DeviceRequest, Needs, Numa
from usina.core.machine_decide import needs_of
from usina.core.resource import Phase
from usina.testing.factory import Running

Json = dict[str, Any]
Order = Callable[..., Awaitable[Json]]


async def needs(factory: Running, machine: Json) -> Needs:
    """As the engine will put them to placement, from what is stored."""
    found = await factory.factory.store.resources.get(machine["id"])
    assert found is not None
    return needs_of(found)


async def test_every_wish_reaches_the_engine(factory: Running, order: Order) -> None:
    first = await order("m1", group="web")
    wishes: Json = {
        "numa": "preferred", "whole_cores": True, "near": ["m1"], "group": "db", "spread_over": "host",
        "priority": 7, "preemptible": True,
    }  # fmt: skip
    device = {"kind": "gpu", "model": "A100|H100", "memory": 1 << 30}
    machine = await order("m2", **wishes, devices=[device])
    assert {name: machine["spec"][name] for name in wishes} == wishes | {"near": [first["id"]]}
    found, project = await needs(factory, machine), machine["project"]
    assert (found.numa, found.whole_cores, found.pinned) == (Numa.PREFERRED, True, True)
    assert (found.tenant, found.priority, found.preemptible) == (machine["tenant"], 7, True)
    assert found.groups == {f"{project}/db"}
    assert found.affinities == (Affinity(first["id"]), Affinity(f"{project}/db", apart=True, level="host"))
    assert found.devices == (DeviceRequest(found.devices[0].kind, 1, "A100|H100", memory=1 << 30),)
    third = await order("m3", apart=["web", machine["id"], "m2"])
    assert (await needs(factory, third)).affinities == (
        Affinity(f"{project}/web", apart=True),
        Affinity(machine["id"], apart=True),
    )


async def test_what_is_held_says_whose_it_is(factory: Running, order: Order) -> None:
    machine = await order("m1", group="web", priority=-3, preemptible=True, cores=2)
    await factory.phase(machine["id"], Phase.RUNNING)
    [held] = await factory.factory.store.hosts.holdings()  # networks and images are present there, and hold nothing
    assert (held.resource, held.claim.cores, held.claim.provider) == (machine["id"], 2, held.claim.provider)
    assert held.groups == {f"{machine['project']}/web"}
    assert (held.tenant, held.priority, held.preemptible) == (machine["tenant"], -3, True)


async def test_a_group_is_there_while_a_machine_is_in_it(factory: Running, order: Order) -> None:
    async with factory.client() as client:

        async def status(name: str, **wish: Any) -> int:
            answer = await client.post("/machines", json={"name": name, "image": "ready"} | wish)
            return answer.status_code

        assert await status("m0", near=["web"]) == 404
        batch = {"name": "web", "image": "ready", "count": 3, "group": "web", "near": ["web"]}
        made = (await client.post("/machines/batch", json=batch)).json()["items"]
        assert await status("m1", near=["web"]) == 201
        await client.post("/projects", json={"name": "other", "tenant": "main"})
        home = made[0]["project"]
        for ref in ("web", "web-1", made[0]["id"]):  # of another project: as if it were not there
            assert await status("m1", project="other", near=[ref]) == 404
        await factory.ready_image("theirs", "other")
        assert await status("m2", project="other", group="web", near=["web"], image="theirs") == 201
        for machine in made:
            await factory.phase(machine["id"], Phase.RUNNING)
            await client.delete(f"/machines/{machine['id']}")
        for machine in made:
            await factory.gone(machine["id"])
        assert await status("m3", near=["web"], project=home) == 404


async def test_only_operators_put_a_machine_before_others(factory: Running, order: Order) -> None:
    async with factory.client() as client:
        await client.post("/members", json={"name": "ada", "tenant": "main", "roles": {"main": "admin"}})
        token = (await client.post("/keys", json={"name": "k", "member": "ada"})).json()["token"]
    async with factory.client(token) as client:
        answer = await client.post("/machines", json={"name": "m1", "image": "ready", "priority": 1})
        assert (answer.status_code, answer.json()["field"]) == (403, "priority")
        assert (await client.get("/machines")).json()["items"] == []
    assert (await order("m1", token, priority=-1))["spec"]["priority"] == -1
    assert (await order("m2", priority=100))["spec"]["priority"] == 100
