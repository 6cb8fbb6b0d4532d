"""Why a machine is where it is, or nowhere; the hosts on paper; and orders that stay near or apart, for real."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from usina.core.resource import Phase
from usina.core.units import GiB
from usina.placement.simulate import Experiment, hosts_of, requests_of
from usina.testing.factory import Running

Json = dict[str, Any]
Order = Callable[..., Awaitable[Json]]


async def told(factory: Running, machine: str, token: str | None = None) -> Json:
    async with factory.client(token) if token else factory.client() as client:
        answer = await client.get(f"/machines/{machine}/placement")
        assert answer.status_code == 200, answer.text
        found: Json = answer.json()
        assert found["fits"] + sum(found["reasons"].values()) == found["hosts"]
        return found


async def more_hosts(factory: Running, count: int, **options: Any) -> None:
    async with factory.client() as client:
        for number in range(count):
            body = {"name": f"extra-{number}", "driver": "fake", "options": options}
            assert (await client.post("/hosts", json=body)).status_code == 201


async def test_a_placed_machine_is_told_where_and_at_what_cost(factory: Running, order: Order) -> None:
    await more_hosts(factory, 2, cores=4)
    machine = await order("m1", cores=3)
    await factory.phase(machine["id"], Phase.RUNNING)
    found = await told(factory, machine["id"])
    assert found["placed"] and found["best"][0]["name"]
    placed = await factory.factory.store.resources.get(machine["id"])
    assert placed is not None and found["best"][0]["host"] == placed.provider
    for score in found["best"]:
        assert abs(sum(score["parts"].values()) - score["cost"]) < 1e-9


async def test_a_refused_machine_is_told_what_is_nearest_and_what_would_fit(factory: Running, order: Order) -> None:
    await more_hosts(factory, 1, cores=4, gpus=2, gpu_model="B200")
    devices = [{"kind": "gpu", "model": "B200", "count": 2}]
    first = await order("m1", devices=[{"kind": "gpu", "model": "B200", "count": 1}])
    await factory.phase(first["id"], Phase.RUNNING)
    machine = await order("m2", cores=2, memory=2 * GiB, devices=devices)
    await asyncio.sleep(0)
    found = await told(factory, machine["id"])
    assert not found["placed"] and found["nearest_host"] == "extra-0"
    assert found["nearest"] == "1 of 2 B200 free"
    assert found["largest"] == "1 core, 1.8GiB and 1 B200 would fit"
    assert found["victims"] == []
    urgent = await order("m3", cores=2, devices=devices, priority=5)
    [victim] = (await told(factory, urgent["id"]))["victims"]
    assert victim["resource"] == first["id"] and "priority 0 is below 5" in victim["why"]


async def test_the_hosts_on_paper_are_those_that_run(factory: Running, order: Order) -> None:
    await more_hosts(factory, 2, cores=8, gpus=4)
    machine = await order("m1", cores=2, devices=[{"kind": "gpu", "count": 1}])
    await factory.phase(machine["id"], Phase.RUNNING)
    async with factory.client() as client:
        text = (await client.get("/placement/hosts")).text
    hosts = hosts_of(text)
    assert hosts == [host.provider for host in await factory.factory.store.hosts.all()]
    wanted = '{"requests": [{"cores": 1, "memory": 1048576, "devices": [{"kind": "gpu"}], "copies": 9}]}'
    *_, result = Experiment(hosts, requests_of(wanted)).run(0, None)
    assert (result.placed, result.decisions) == (9, 9)
    assert result.idle["whole"] == pytest.approx(100 * 2 / 12)  # of 12 GPUs, one is held by the machine


async def test_a_group_is_spread_over_hosts_and_a_neighbour_stays_near(factory: Running, order: Order) -> None:
    await more_hosts(factory, 3, cores=8)
    members = [await order(f"g{n}", group="web", spread_over="host") for n in range(4)]
    near = await order("n1", near=["g2"])
    machines = [await factory.phase(one["id"], Phase.RUNNING) for one in (*members, near)]
    homes = [machine["host"] for machine in machines]
    assert len(set(homes[:4])) == 4
    assert homes[4] == homes[2]
    async with factory.client() as client:
        answer = await client.post(
            "/machines", json={"name": "g9", "image": "ready", "group": "web", "spread_over": "host"}
        )
    fifth = answer.json()
    found = await told(factory, fifth["id"])
    assert not found["placed"] and sum(found["reasons"].values()) == 4
    assert all("share a host with" in reason for reason in found["reasons"])


async def test_whole_physical_cores_are_claimed_and_the_guest_gets_what_it_asked_for(
    factory: Running, order: Order
) -> None:
    await more_hosts(factory, 1, cores=8, threads=2)
    machine = await order("m1", cores=3, whole_cores=True, host="extra-0")
    settled = await factory.phase(machine["id"], Phase.RUNNING)
    assert settled["observed"] == settled["generation"]
    async with factory.client() as client:
        held = next(c for c in (await client.get("/hosts/extra-0/claims")).json()["items"] if c["cores"])
    assert held["cores"] == 4 and len(held["cpus"]) == 4
    assert {cpu // 2 for cpu in held["cpus"]} == {cpu // 2 for cpu in held["cpus"][:3]}


async def test_what_could_not_be_written_is_not_taken(factory: Running, order: Order) -> None:
    """Else a database that was away for a moment would cost the host its room, until something else changed it."""
    await more_hosts(factory, 1, cores=4)
    placer, broken = factory.factory.placer, []
    attempt = placer._try

    async def away_once(*batch: Any) -> None:
        await attempt(*batch)
        if not broken:
            broken.append(batch)
            raise ConnectionError("the database is away")

    placer._try = away_once  # type: ignore[method-assign]
    machine = await order("m1", cores=4, host="extra-0")
    await factory.phase(machine["id"], Phase.RUNNING)
    assert broken
    assert not placer._fleet.holdings  # who holds what is kept only while somebody asks
