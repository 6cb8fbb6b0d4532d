"""What an operator says of a host, through the native door: what is set, what stays, and what the story tells."""

from __future__ import annotations

import asyncio
from typing import Any

from usina.testing.factory import Running

Json = dict[str, Any]
WINDOW = {"begins": "2026-12-01T08:00:00.000Z", "ends": "2026-12-01T12:00:00.000Z"}
UNSAID = {
    "topology": {}, "group": "", "cpu_ratio": 1.0, "memory_ratio": 1.0, "tenants": [], "maintenance": [], "price": 0,
}  # fmt: skip


def terms(host: Json) -> Json:
    return {name: host[name] for name in UNSAID}


async def test_terms_are_set_kept_and_taken_away(factory: Running) -> None:
    async with factory.client() as client:

        async def change(**body: Any) -> Json:
            answer = await client.patch("/hosts/h1", json=body)
            assert answer.status_code == 200, answer.text
            assert terms(answer.json()) == terms((await client.get("/hosts/h1")).json())
            return dict(answer.json())

        host = (await client.get("/hosts/h1")).json()
        assert terms(host) == UNSAID
        main = (await client.get("/tenants/main")).json()["id"]
        said: Json = {
            "topology": {"site": "lisbon", "rack": "R1"},
            "group": "gpu",
            "cpu_ratio": 4,
            "memory_ratio": 1.2,
            "tenants": [main],
            "maintenance": [WINDOW],
            "price": 3_600_000,
        }
        changed = await change(**said | {"tenants": ["main", main]})  # by name as by id
        assert terms(changed) == said
        assert changed["generation"] > host["generation"]
        assert terms(await change(topology={"block": "b1", "site": ""}, price=0)) == said | {
            "topology": {"block": "b1", "rack": "R1"},
            "price": 0,
        }
        later = {"begins": "2027-01-01T00:00:00+01:00", "ends": "2027-01-02T00:00:00Z"}
        both = await change(maintenance=[later, WINDOW])
        assert both["maintenance"] == [
            WINDOW,
            {"begins": "2026-12-31T23:00:00.000Z", "ends": "2027-01-02T00:00:00.000Z"},
        ]
        nothing = {"topology": {"block": "", "rack": ""}, "group": "", "tenants": [], "maintenance": []}
        assert terms(await change(**nothing, cpu_ratio=1.0, memory_ratio=1.0)) == UNSAID


async def test_the_story_tells_who_changed_what(factory: Running) -> None:
    async with factory.client() as client:
        await client.patch("/hosts/h1", json={"topology": {"rack": "r1"}, "cpu_ratio": 2.0})
        await client.patch("/hosts/h1", json={"topology": {"rack": "r1"}, "tenants": ["main"]})
        await client.patch("/hosts/h1", json={"topology": {"rack": "r1"}})  # says nothing new
        await client.patch("/hosts/h1", json={})
        main = (await client.get("/tenants/main")).json()["id"]
        host = (await client.get("/hosts/h1")).json()["id"]
        story = (await client.get(f"/stories/{host}")).json()["items"]
        me = (await client.get("/whoami")).json()
    changes = [event for event in story if event["kind"] == "host.changed"]
    assert [event["data"] for event in changes] == [{"rack": "r1", "cpu_ratio": 2.0}, {"tenants": [main]}]
    assert {event["actor"] for event in changes} == {me["member"]}
    assert changes[0]["text"] == f"host h1 has rack r1, cpu_ratio 2.0, by {me['name']}"


async def test_terms_given_at_once_are_all_kept(factory: Running) -> None:
    """While claims and sights count the host's generations on."""
    async with factory.client() as client:
        levels = {"site": "s", "block": "b", "rack": "r", "nvlink": "n"}
        changes = [client.patch("/hosts/h1", json={"topology": {level: name}}) for level, name in levels.items()]
        answers = await asyncio.gather(*changes, client.patch("/hosts/h1", json={"price": 5}))
        assert {answer.status_code for answer in answers} == {200}
        host = (await client.get("/hosts/h1")).json()
    assert (host["topology"], host["price"]) == (levels, 5)


async def test_a_tenant_that_has_a_host_of_its_own_stays(factory: Running) -> None:
    async with factory.client() as client:
        await client.post("/tenants", json={"name": "acme"})
        await client.patch("/hosts/h1", json={"tenants": ["acme"]})
        refused = await client.delete("/tenants/acme")
        assert (refused.status_code, refused.json()["code"]) == (409, "in-use")
        await client.patch("/hosts/h1", json={"tenants": []})
        assert (await client.delete("/tenants/acme")).status_code == 204
