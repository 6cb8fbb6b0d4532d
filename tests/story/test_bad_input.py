"""Bad input gets a clear error that names the field, and changes nothing: one factory serves all of these tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from usina.testing.factory import Running, furnished
from usina.testing.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")

Json = dict[str, Any]

BAD_MACHINES: list[tuple[Json, int, str]] = [
    ({"name": "../../etc/passwd"}, 422, "name"),
    ({"name": "UPPER"}, 422, "name"),
    ({"name": "a\x00b"}, 422, "name"),
    ({"name": ""}, 422, "name"),
    ({"name": "x" * 64}, 422, "name"),
    ({"name": 7}, 422, "name"),
    ({"cores": 0}, 422, "cores"),
    ({"cores": -4}, 422, "cores"),
    ({"cores": "2"}, 422, "cores"),
    ({"cores": 1.5}, 422, "cores"),
    ({"memory": -1}, 422, "memory"),
    ({"memory": 1}, 422, "memory"),
    ({"memory": (1 << 30) + 1}, 422, "memory"),
    ({"memory": 1 << 70}, 422, "memory"),
    ({"disk": 0}, 422, "disk"),
    ({"disk": (1 << 30) + 1}, 422, "disk"),
    ({"image": "nothing"}, 404, "image"),
    ({"image": "img-00000000000000000000000000"}, 404, "image"),
    ({"image": "../ready"}, 422, "image"),
    ({"project": "nowhere"}, 404, "project"),
    ({"interfaces": [{"network": "nowhere"}]}, 404, "interfaces[0].network"),
    ({"interfaces": [{"address": "10.0.0.300"}]}, 422, "interfaces[0].address"),
    ({"interfaces": [{"address": "8.8.8.8"}]}, 422, "interfaces[0].address"),
    ({"interfaces": [{"mac": "52:54:00:00:00:01"}]}, 422, "interfaces[0].mac"),
    ({"interfaces": [{}] * 9}, 422, "interfaces"),
    ({"interfaces": [{"security_groups": ["nope"]}]}, 404, "interfaces[0].security_groups[0]"),
    ({"volumes": ["nope"]}, 404, "volumes[0]"),
    ({"ssh_keys": ["rm -rf /"]}, 422, "ssh_keys[0]"),
    ({"ssh_keys": ["ssh-ed25519 AAAA\nssh-rsa BBBB"]}, 422, "ssh_keys[0]"),
    ({"user_data": "x" * (64 * 1024 + 1)}, 413, "user_data"),
    ({"hugepage": 12345}, 422, "hugepage"),
    ({"queues": 3}, 422, "queues"),
    ({"numa_nodes": 3}, 422, "numa_nodes"),
    ({"firmware": "coreboot"}, 422, "firmware"),
    ({"devices": [{"kind": "mdev"}]}, 422, "devices[0].mdev_type"),
    ({"devices": [{"count": 0}]}, 422, "devices[0].count"),
    ({"surprise": True}, 422, "surprise"),
    ({"labels": {"a": "b" * 300}}, 422, "labels.a"),
    ({"host": "nowhere"}, 404, "host"),
    ({"numa": "both"}, 422, "numa"),
    ({"numa": "strict", "numa_nodes": 1}, 422, "numa"),
    ({"whole_cores": "yes"}, 422, "whole_cores"),
    ({"near": ["nobody"]}, 404, "near[0]"),
    ({"near": ["mch-00000000000000000000000000"]}, 404, "near[0]"),
    ({"near": ["../x"]}, 422, "near[0]"),
    ({"apart": ["g", "nobody"], "group": "g"}, 404, "apart[1]"),
    ({"near": ["g"], "apart": ["g"], "group": "g"}, 422, "apart[0]"),
    ({"apart": ["g"] * 17, "group": "g"}, 422, "apart"),
    ({"group": "a/b"}, 422, "group"),
    ({"group": "mch-00000000000000000000000000"}, 422, "group"),
    ({"spread_over": "rack"}, 422, "spread_over"),
    ({"spread_over": "floor", "group": "g"}, 422, "spread_over"),
    ({"priority": 101}, 422, "priority"),
    ({"priority": 0.5}, 422, "priority"),
    ({"preemptible": 1}, 422, "preemptible"),
    ({"devices": [{"model": "H100|"}]}, 422, "devices[0].model"),
    ({"devices": [{"memory": -1}]}, 422, "devices[0].memory"),
    ({"devices": [{"memory": 1 << 50}]}, 422, "devices[0].memory"),
    ({"devices": [{"linked": "all"}]}, 422, "devices[0].linked"),
    ({"devices": [{"traits": ["a b"]}]}, 422, "devices[0].traits[0]"),
]
WINDOW = {"begins": "2026-12-01T08:00:00Z", "ends": "2026-12-01T12:00:00Z"}
BAD_TERMS: list[tuple[Json, int, str]] = [
    ({"topology": {"floor": "f1"}}, 422, "topology.floor"),
    ({"topology": {"host": "h1"}}, 422, "topology.host"),
    ({"topology": {"rack": "r 1"}}, 422, "topology.rack"),
    ({"group": "a/b"}, 422, "group"),
    ({"cpu_ratio": 0}, 422, "cpu_ratio"),
    ({"cpu_ratio": 65}, 422, "cpu_ratio"),
    ({"memory_ratio": 0.05}, 422, "memory_ratio"),
    ({"memory_ratio": 10.5}, 422, "memory_ratio"),
    ({"memory_ratio": "1"}, 422, "memory_ratio"),
    ({"tenants": ["nobody"]}, 404, "tenants[0]"),
    ({"tenants": ["main", "tnt-00000000000000000000000000"]}, 404, "tenants[1]"),
    ({"maintenance": [{**WINDOW, "begins": "tomorrow"}]}, 422, "maintenance[0].begins"),
    ({"maintenance": [{**WINDOW, "begins": "2026-12-01T08:00:00"}]}, 422, "maintenance[0].begins"),
    ({"maintenance": [WINDOW, {**WINDOW, "ends": WINDOW["begins"]}]}, 422, "maintenance[1].ends"),
    ({"maintenance": [WINDOW] * 33}, 422, "maintenance"),
    ({"maintenance": [{"begins": WINDOW["begins"]}]}, 422, "maintenance[0].ends"),
    ({"price": -1}, 422, "price"),
    ({"price": 1.5}, 422, "price"),
    ({"inventory": {}}, 422, "inventory"),
]


async def count(client: Any) -> int:
    """Everything that could have changed, as one number: events tell of every change."""
    return len((await client.get("/events?limit=1000")).json()["items"])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def factory(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    async with furnished(tmp_path_factory.mktemp("factory") / "data") as factory:
        yield factory


@pytest_asyncio.fixture(loop_scope="module")
async def quiet(factory: Running) -> AsyncIterator[Any]:
    """A client, once the factory has come to rest."""
    async with factory.client() as client:

        async def rest() -> bool:
            before = await count(client)
            images = (await client.get("/networks")).json()["items"]
            return all(one["phase"] == "ready" for one in images) and before == await count(client)

        await eventually(rest)
        yield client


async def test_bad_machine_orders(factory: Running, quiet: Any) -> None:
    before = await count(quiet)
    for change, status, field in BAD_MACHINES:
        answer = await quiet.post("/machines", json={"name": "m", "image": "ready"} | change)
        assert answer.status_code == status, (change, answer.text)
        assert answer.headers["content-type"] == "application/problem+json"
        problem = answer.json()
        assert problem["field"] == field, (change, problem)
        assert problem["status"] == status
        assert problem["detail"]
    assert (await quiet.get("/machines")).json()["items"] == []
    assert not any((await quiet.get("/quotas/main")).json()["used"].values())
    assert await count(quiet) == before


async def test_bad_terms_of_a_host(quiet: Any) -> None:
    before, host = await count(quiet), (await quiet.get("/hosts/h1")).json()
    good = {"group": "gpu", "price": 7}
    for change, status, field in BAD_TERMS:
        answer = await quiet.patch("/hosts/h1", json={**good, **change})
        assert (answer.status_code, answer.json()["field"]) == (status, field), (change, answer.text)
    assert (await quiet.patch("/hosts/nowhere", json=good)).status_code == 404
    now = (await quiet.get("/hosts/h1")).json()
    assert {**now, "generation": 0} == {**host, "generation": 0}
    assert await count(quiet) == before


@pytest.mark.parametrize(
    ("path", "body", "status", "field"),
    [
        ("/networks", {"name": "n", "cidr": "8.8.8.0/24"}, 422, "cidr"),
        ("/networks", {"name": "n", "cidr": "10.0.0.0/8"}, 422, "cidr"),
        ("/networks", {"name": "n", "cidr": "10.1.2.3/24"}, 422, "cidr"),
        ("/networks", {"name": "default"}, 409, "name"),
        ("/volumes", {"name": "v", "size": -1}, 422, "size"),
        ("/volumes", {"name": "v", "size": 1000}, 422, "size"),
        ("/volumes", {"name": "v"}, 422, "size"),
        ("/images", {"name": "i"}, 422, "recipe"),
        ("/images", {"name": "i", "recipe": "windows"}, 422, "recipe"),
        ("/images", {"name": "i", "recipe": "tiny", "upload": True}, 422, "recipe"),
        ("/images", {"name": "i", "url": "file:///etc/passwd"}, 422, "url"),
        ("/images", {"name": "i", "url": "http://user:pass@example.org/x"}, 422, "url"),
        ("/images", {"name": "i", "url": "http://[::1"}, 422, "url"),
        ("/images", {"name": "i", "upload": True, "sha256": "xyz"}, 422, "sha256"),
        ("/security-groups", {"name": "g", "rules": [{"direction": "up"}]}, 422, "rules[0].direction"),
        ("/security-groups", {"name": "g", "rules": [{"direction": "in", "ports": [1, 2]}]}, 422, "rules[0].ports"),
        (
            "/security-groups",
            {"name": "g", "rules": [{"direction": "in", "protocol": "tcp", "ports": [9, 2]}]},
            422,
            "rules[0].ports",
        ),
        (
            "/security-groups",
            {"name": "g", "rules": [{"direction": "in", "remote": "1.2.3.4/40"}]},
            422,
            "rules[0].remote",
        ),
        ("/forwards", {"machine": "nope", "port": 22}, 404, None),
        ("/forwards", {"machine": "nope", "port": 0}, 422, "port"),
        ("/hosts", {"name": "h", "driver": "nope"}, 422, "driver"),
        ("/hosts", {"name": "h", "driver": "fake", "options": {"colour": "red"}}, 422, "options.colour"),
        ("/hosts", {"name": "h", "driver": "fake", "options": {"cores": -1}}, 422, "options.cores"),
        (
            "/hosts",
            {"name": "h", "driver": "libvirt", "options": {"uri": "qemu+ext:///x?command=id"}},
            422,
            "options.uri",
        ),
        ("/members", {"name": "u", "roles": {"main": "king"}}, 422, "roles.main"),
        ("/keys", {"name": "k", "expires_at": "tomorrow"}, 422, "expires_at"),
        ("/keys", {"name": "k", "role": "king"}, 422, "role"),
        ("/tenants", {"name": "main"}, 409, "name"),
    ],
)
async def test_bad_orders_of_other_things(quiet: Any, path: str, body: Json, status: int, field: str | None) -> None:
    before = await count(quiet)
    answer = await quiet.post(path, json=body)
    assert answer.status_code == status, answer.text
    assert answer.json()["field"] == field
    assert await count(quiet) == before


@pytest.mark.parametrize("path", ["/machines", "/members", "/models/some/commits"])
async def test_bodies_beyond_the_limit(quiet: Any, path: str) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(300):
            yield b" " * 10_000

    for content in (b"x" * (3 << 20), endless()):
        answer = await quiet.post(path, content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code == 413
        assert answer.headers["content-type"] == "application/problem+json"
        assert (answer.json()["code"], answer.json()["field"]) == ("too-large", "body")


async def test_bodies_that_are_not_json(quiet: Any) -> None:
    for content in (b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b'{"name": NaN}'):
        answer = await quiet.post("/machines", content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code == 422, (content, answer.text)
        assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("token", ["", "x", "usk-", "usk-a-b", "usk-../../x-y", "usk-" + "0" * 26 + "-" + "A" * 43])
async def test_a_wrong_key_is_told_nothing(factory: Running, token: str) -> None:
    async with factory.client(token or "-") as client:
        answer = await client.get("/machines")
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize(
    "path", ["/machines/..%2F..%2Fetc", "/machines/%00", "/machines/a%0Ab", "/nothing", "/machines/x/y/z"]
)
async def test_odd_paths(quiet: Any, path: str) -> None:
    answer = await quiet.get(path)
    assert answer.status_code in (404, 422)
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=x", "cursor=../x", "phase=dancing", "name=A'--"])
async def test_odd_queries_name_the_parameter(quiet: Any, query: str) -> None:
    answer = await quiet.get(f"/machines?{query}")
    assert answer.status_code == 422
    assert answer.json()["field"] == query.split("=")[0]


async def test_an_upload_that_is_not_an_image_is_refused_and_a_wrong_offset_told(quiet: Any) -> None:
    image = (await quiet.post("/images", json={"name": "up", "upload": True})).json()
    path = f"/images/{image['id']}"
    sent = await quiet.put(f"{path}/content", content=b"#!/bin/sh\nrm -rf /\n" * 100)
    assert sent.json() == {"offset": 1900}
    wrong = await quiet.put(f"{path}/content", content=b"more", headers={"Upload-Offset": "5"})
    assert (wrong.status_code, wrong.json()["data"]) == (409, {"offset": 1900})
    assert (await quiet.get(f"{path}/content")).json() == {"offset": 1900}
    assert (await quiet.post(f"{path}/complete", json={})).status_code == 202

    async def phase() -> Json:
        return dict((await quiet.get(path)).json())

    failed = await eventually(phase, lambda one: one["phase"] == "failed")
    assert any(not c["ok"] and "content" in c["message"] for c in failed["conditions"])
    answer = await quiet.post("/machines", json={"name": "m", "image": "up"})
    assert (answer.status_code, answer.json()["code"]) == (409, "image-failed")
