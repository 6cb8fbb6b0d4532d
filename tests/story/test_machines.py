"""Machines through the native door, on a pretended host: orders, changes, refusals, and what happens outside."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import msgspec
import pytest

from usina.core.machine import Power
from usina.core.resource import Phase
from usina.drivers.fake.world import Guest, World
from usina.testing.factory import Running
from usina.testing.waiting import eventually

Json = dict[str, Any]
Order = Callable[..., Awaitable[Json]]


@contextmanager
def world(factory: Running, machine: Json) -> Iterator[World]:
    """The pretended host of a machine, from outside."""
    with closing(World(factory.factory.settings.data_dir / "hosts" / machine["host"] / "fake")) as opened:
        yield opened


def guest_of(factory: Running, machine: Json) -> Guest | None:
    """The pretended guest, as the host keeps it."""
    with world(factory, machine) as host:
        return host.load(machine["id"])


def remove_by_hand(factory: Running, machine: Json) -> None:
    with world(factory, machine) as host:
        host.remove(machine["id"])


async def test_from_order_to_nothing_left(factory: Running, order: Order) -> None:
    machine = await order()
    assert machine["phase"] == "pending"
    machine = await factory.phase(machine["id"], Phase.RUNNING)
    assert machine["observed"] == machine["generation"] == 1
    async with factory.client() as client:
        assert (await client.delete("/machines/m1")).status_code == 202
        await factory.gone(machine["id"])
        [host] = (await client.get("/hosts")).json()["items"]
        assert host["used"] == {"cores": 0, "memory": 0, "disk": 0}
        quota = (await client.get("/quotas/main")).json()
        assert not any(quota["used"].values())
        story = (await client.get(f"/stories/{machine['id']}")).json()["items"]
    kinds = [event["kind"] for event in story]
    assert kinds == [
        "machine.ordered", "machine.placed", "machine.step", "machine.step", "machine.running",
        "machine.deleting", "machine.deleting", "machine.step", "machine.deleted",
    ]  # fmt: skip
    assert [e["seq"] for e in story] == sorted(e["seq"] for e in story)
    assert guest_of(factory, machine) is None


@pytest.mark.parametrize(
    ("verb", "phase", "back", "again"),
    [("stop", Phase.STOPPED, "start", Phase.RUNNING), ("suspend", Phase.SUSPENDED, "resume", Phase.RUNNING)],
)
async def test_power(factory: Running, order: Order, verb: str, phase: Phase, back: str, again: Phase) -> None:
    machine = await order()
    await factory.phase(machine["id"], Phase.RUNNING)
    async with factory.client() as client:
        assert (await client.post(f"/machines/m1/{verb}")).status_code == 202
        await factory.phase(machine["id"], phase)
        assert (await client.post(f"/machines/m1/{back}")).status_code == 202
        await factory.phase(machine["id"], again)


async def settled(factory: Running, id: str, generation: int) -> Json:
    async with factory.client() as client:

        async def ask() -> Json:
            return dict((await client.get(f"/machines/{id}")).json())

        return await eventually(ask, lambda m: m["observed"] >= generation)


async def test_every_change_reaches_the_guest(factory: Running, order: Order) -> None:
    machine = await factory.phase((await order())["id"], Phase.RUNNING)
    async with factory.client() as client:

        async def change(method: str, path: str, body: Json | None = None) -> Json:
            answer = await client.request(method, f"/machines/m1{path}", json=body)
            assert answer.status_code in (200, 202), answer.text
            await settled(factory, machine["id"], answer.json()["generation"])
            return dict(msgspec.to_builtins(guest_of(factory, machine)))

        guest = await change("PATCH", "", {"cores": 4, "memory": 2 << 30})
        assert (guest["cores"], guest["memory"], guest["power"]) == (4, 2 << 30, "on")
        assert (await change("POST", "/snapshots", {"name": "before"}))["snapshots"] == ["before"]
        assert (await change("POST", "/snapshots/before/restore"))["marks"]["restore"] == 1
        assert "snapshots" not in await change("DELETE", "/snapshots/before")
        assert (await change("POST", "/reboot"))["marks"]["reboots"] == 1
        volume = (await client.post("/volumes", json={"name": "v1", "size": 1 << 30})).json()
        await eventually(lambda: phase_of(client, f"/volumes/{volume['id']}"), lambda phase: phase == "ready")
        assert (await change("POST", "/volumes", {"volume": "v1"}))["volumes"] == [volume["id"]]
        assert (await client.delete("/volumes/v1")).status_code == 409
        assert "volumes" not in await change("DELETE", "/volumes/v1")
        assert (await client.delete("/volumes/v1")).status_code == 202
        await client.post("/networks", json={"name": "second"})
        guest = await change("POST", "/interfaces", {"network": "second"})
        assert len(guest["macs"]) == 2
        assert (await client.delete("/networks/second")).status_code == 409
        assert len((await change("DELETE", f"/interfaces/{guest['macs'][1]}"))["macs"]) == 1
        assert (await client.delete("/networks/second")).status_code == 202
        guest = await change("POST", "/rebuild", {})
        assert guest["marks"]["rebuilds"] == 1
        assert guest["power"] == "on"
        [host] = (await client.get("/hosts")).json()["items"]
        assert host["used"]["cores"] == 4


async def phase_of(client: Any, path: str) -> str:
    return str((await client.get(path)).json().get("phase"))


async def test_a_volume_is_one_machines_at_a_time(factory: Running, order: Order) -> None:
    async with factory.client() as client:
        volume = (await client.post("/volumes", json={"name": "v1", "size": 1 << 30})).json()
        await eventually(lambda: phase_of(client, f"/volumes/{volume['id']}"), lambda phase: phase == "ready")
        first = await order("m1", volumes=["v1"])
        answer = await client.post("/machines", json={"name": "m2", "image": "ready", "volumes": ["v1"]})
        assert answer.status_code == 409
        assert answer.json()["field"] == "volumes[0]"
        await factory.phase(first["id"], Phase.RUNNING)
        await client.delete("/machines/m1")
        await factory.gone(first["id"])
        assert (
            await client.post("/machines", json={"name": "m2", "image": "ready", "volumes": ["v1"]})
        ).status_code == 201


async def test_a_guest_that_dies_outside_is_told_within_seconds(factory: Running, order: Order) -> None:
    machine = await factory.phase((await order())["id"], Phase.RUNNING)
    with world(factory, machine) as host:
        guest = host.load(machine["id"])
        assert guest is not None
        guest.power, guest.crashed = Power.OFF, True
        host.save(guest)
    machine = await factory.phase(machine["id"], Phase.FAILED, limit=10)
    assert any(c["reason"] == "guest-died" and not c["ok"] for c in machine["conditions"])
    async with factory.client() as client:
        story = (await client.get("/stories/m1")).json()["items"]
        assert "the guest died" in story[-1]["text"]
        await client.post("/machines/m1/start")
        await factory.phase(machine["id"], Phase.RUNNING)


async def test_a_guest_removed_by_hand_is_told_and_can_be_started_anew(factory: Running, order: Order) -> None:
    machine = await factory.phase((await order())["id"], Phase.RUNNING)
    remove_by_hand(factory, machine)
    machine = await factory.phase(machine["id"], Phase.FAILED, limit=10)
    assert any(c["reason"] == "removed-outside" for c in machine["conditions"])
    async with factory.client() as client:
        await client.post("/machines/m1/start")
    await factory.phase(machine["id"], Phase.RUNNING)


async def test_what_the_database_could_not_be_told_is_told_later(factory: Running, order: Order) -> None:
    machine = await factory.phase((await order())["id"], Phase.RUNNING)
    fleet, missed = factory.factory.fleet, []
    wake = fleet.wake

    async def away_once(ids: list[str]) -> None:
        if not missed:
            missed.append(ids)
            raise ConnectionError("the database is away")
        await wake(ids)

    fleet.wake = away_once
    remove_by_hand(factory, machine)
    await factory.phase(machine["id"], Phase.FAILED, limit=10)
    assert missed == [[machine["id"]]]


async def test_a_guest_made_anew_does_no_old_deed_again(factory: Running, order: Order) -> None:
    """Else a rebuild of long ago would wipe the disk once more."""
    machine = await factory.phase((await order())["id"], Phase.RUNNING)
    async with factory.client() as client:
        answer = await client.post("/machines/m1/rebuild", json={})
        await settled(factory, machine["id"], answer.json()["generation"])
        remove_by_hand(factory, machine)
        await factory.phase(machine["id"], Phase.FAILED, limit=10)
        answer = await client.post("/machines/m1/start")
        await settled(factory, machine["id"], answer.json()["generation"])
        story = (await client.get("/stories/m1")).json()["items"]
    assert [e["data"].get("step") for e in story].count("Rebuild") == 1
    guest = guest_of(factory, machine)
    assert guest is not None and guest.marks == {"rebuilds": 1}


async def test_restart_always_brings_a_guest_back(factory: Running, order: Order) -> None:
    machine = await factory.phase((await order(restart="always"))["id"], Phase.RUNNING)
    remove_by_hand(factory, machine)

    async def guest() -> Guest | None:
        return guest_of(factory, machine)

    await eventually(guest, limit=10)
    await factory.phase(machine["id"], Phase.RUNNING)


@pytest.mark.slow
async def test_a_host_that_vanishes_is_told_and_comes_back(factory: Running, order: Order) -> None:
    machine = await factory.phase((await order())["id"], Phase.RUNNING)
    down = factory.factory.settings.data_dir / "hosts" / machine["host"] / "fake/down"
    down.touch()
    await factory.phase(machine["id"], Phase.UNREACHABLE, limit=10)
    async with factory.client() as client:
        host = (await client.get("/hosts/h1")).json()
        assert not host["reachable"]
        waiting = await order("m2")
        assert waiting["phase"] == "pending"

        async def refused() -> list[Json]:
            found = (await client.get("/machines/m2")).json()["conditions"]
            return [c for c in found if c["kind"] == "Placed" and not c["ok"]]

        [condition] = await eventually(refused)
        assert condition["message"] == "1 host: 1 do not answer"
    down.unlink()
    await factory.phase(machine["id"], Phase.RUNNING, limit=15)
    await factory.phase(waiting["id"], Phase.RUNNING, limit=15)


async def test_a_gpu_is_claimed_by_address_and_refused_with_counts(factory: Running, order: Order) -> None:
    gpus = [{"kind": "gpu", "count": 2, "model": "H100"}]
    first = await factory.phase(
        (await order("g1", cores=4, pinned=True, numa_nodes=1, devices=gpus))["id"], Phase.RUNNING
    )
    second = await factory.phase((await order("g2", cores=4, devices=gpus))["id"], Phase.RUNNING)
    async with factory.client() as client:
        held = {c["resource"]: c for c in (await client.get("/hosts/h1/claims")).json()["items"]}
        one, two = held[first["id"]], held[second["id"]]
        assert not set(one["devices"]) & set(two["devices"])
        assert len(one["cpus"]) == 4
        await order("g3", devices=gpus)

        async def message() -> str:
            conditions = (await client.get("/machines/g3")).json()["conditions"]
            return next((c["message"] for c in conditions if c["kind"] == "Placed"), "")

        assert await eventually(message) == "1 host: 1 lack 2 free H100; the nearest: 0 of 2 H100 free"
        answer = await client.post("/machines", json={"name": "g4", "image": "ready", "devices": [{"model": "B200"}]})
        assert answer.status_code == 409
        assert answer.json()["code"] == "refused"
        assert "have no B200" in answer.json()["detail"]
        await client.delete("/machines/g1")
        await factory.phase((await client.get("/machines/g3")).json()["id"], Phase.RUNNING, limit=40)


async def test_a_cordoned_device_and_a_drained_host(factory: Running, order: Order) -> None:
    async with factory.client() as client:
        devices = (await client.get("/hosts/h1")).json()["devices"]
        for device in devices[:3]:
            assert (await client.post(f"/hosts/h1/devices/{device['address']}/cordon")).status_code == 200
        machine = await factory.phase((await order(devices=[{"kind": "gpu"}]))["id"], Phase.RUNNING)
        [claim] = [c for c in (await client.get("/hosts/h1/claims")).json()["items"] if c["devices"]]
        assert claim["devices"] == [devices[3]["address"]]
        assert (await client.post("/hosts/h1/drain")).json()["state"] == "draining"
        await factory.phase(machine["id"], Phase.STOPPED)
        assert (await client.delete("/hosts/h1")).status_code == 409
        await client.delete("/machines/m1")
        await factory.gone(machine["id"])
        assert (await client.delete("/hosts/h1")).status_code == 204


async def test_200_parallel_orders_against_a_quota_of_50_give_exactly_50(factory: Running) -> None:
    async with factory.client() as client:
        await client.put("/quotas/main", json={"machines": 50})
        body = {"image": "ready", "memory": 64 << 20, "disk": 16 << 20}
        orders = [client.post("/machines", json={"name": f"m{n}"} | body) for n in range(200)]
        answers = await asyncio.gather(*orders)
        statuses = [a.status_code for a in answers]
        assert statuses.count(201) == 50
        refused = [a.json() for a in answers if a.status_code != 201]
        assert {(r["status"], r["code"]) for r in refused} == {(409, "quota-exceeded")}
        assert "machines: 1 more than 0 left of 50" in refused[-1]["detail"]
        assert len((await client.get("/machines?limit=1000")).json()["items"]) == 50
        quota = (await client.get("/quotas/main")).json()
        assert quota["used"]["machines"] == 50


async def test_an_idempotency_key_makes_one_machine(factory: Running) -> None:
    async with factory.client() as client:
        body = {"name": "m1", "image": "ready"}
        headers = {"Idempotency-Key": "once"}
        answers = await asyncio.gather(*(client.post("/machines", json=body, headers=headers) for _ in range(5)))
        assert {a.status_code for a in answers} == {201}
        assert len({a.json()["id"] for a in answers}) == 1
        other = await client.post("/machines", json=body | {"cores": 2}, headers=headers)
        assert (other.status_code, other.json()["field"]) == (409, "Idempotency-Key")


async def test_a_change_on_an_old_sight_is_refused(factory: Running, order: Order) -> None:
    machine = await factory.phase((await order())["id"], Phase.RUNNING)
    async with factory.client() as client:
        etag = (await client.get("/machines/m1")).headers["etag"]
        assert (await client.post("/machines/m1/stop", headers={"If-Match": etag})).status_code == 202
        late = await client.post("/machines/m1/start", headers={"If-Match": etag})
        assert (late.status_code, late.json()["code"]) == (409, "stale")
    await factory.phase(machine["id"], Phase.STOPPED)


async def test_deleting_a_machine_takes_its_forwards_along(factory: Running, order: Order) -> None:
    machine = await factory.phase((await order())["id"], Phase.RUNNING)
    async with factory.client() as client:
        forward = (await client.post("/forwards", json={"machine": "m1", "port": 22})).json()
        assert 20000 <= forward["spec"]["listen"] <= 29999
        await eventually(lambda: phase_of(client, f"/forwards/{forward['id']}"), lambda phase: phase == "ready")
        await client.delete("/machines/m1")
        await factory.gone(machine["id"])
        await factory.gone(forward["id"], "forwards")
        assert (await client.get("/quotas/main")).json()["used"]["addresses"] == 0


async def test_an_image_in_use_stays(factory: Running, order: Order) -> None:
    machine = await factory.phase((await order())["id"], Phase.RUNNING)
    async with factory.client() as client:
        refused = await client.delete("/images/ready")
        assert (refused.status_code, refused.json()["code"]) == (409, "in-use")
        await client.delete("/machines/m1")
        await factory.gone(machine["id"])
        image = (await client.get("/images/ready")).json()
        assert (await client.delete("/images/ready")).status_code == 202
        await factory.gone(image["id"], "images")


async def test_several_in_one_order_are_all_or_none(factory: Running) -> None:
    async with factory.client() as client:
        body = {"name": "web", "image": "ready", "count": 5}
        headers = {"Idempotency-Key": "five"}
        first = await client.post("/machines/batch", json=body, headers=headers)
        again = await client.post("/machines/batch", json=body, headers=headers)
        assert first.status_code == again.status_code == 201
        made = first.json()["items"]
        assert [m["name"] for m in made] == [f"web-{n}" for n in range(1, 6)]
        assert [m["id"] for m in again.json()["items"]] == [m["id"] for m in made]
        for machine in made:
            await factory.phase(machine["id"], Phase.RUNNING)
        await client.put("/quotas/main", json={"machines": 9})
        refused = await client.post("/machines/batch", json=body | {"name": "more"})
        assert (refused.status_code, refused.json()["code"]) == (409, "quota-exceeded")
        taken = await client.post("/machines/batch", json=body | {"count": 1})
        assert (taken.status_code, taken.json()["field"]) == (409, "name")
        assert len((await client.get("/machines")).json()["items"]) == 5
        assert (await client.get("/quotas/main")).json()["used"]["machines"] == 5


async def test_images_are_seen_as_far_as_they_are_shared(factory: Running) -> None:
    async with factory.client() as client:
        await client.post("/projects", json={"name": "other", "tenant": "main"})
        other = next(p for p in (await client.get("/projects")).json()["items"] if p["name"] == "other")
        image = await factory.ready_image("secret", other["id"])
        await client.patch(f"/images/{image}", json={"visibility": "project"})
        order = {"name": "m1", "image": image, "project": "main"}
        assert (await client.post("/machines", json=order)).status_code == 404
        await client.patch(f"/images/{image}", json={"visibility": "tenant"})
        assert (await client.post("/machines", json=order)).status_code == 201
