"""Keys, members and roles: one key opens every door, until it does not."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from usina.core.units import iso
from usina.testing.factory import Running

Json = dict[str, Any]


async def make(client: Any, path: str, **body: Any) -> Json:
    answer = await client.post(path, json=body)
    assert answer.status_code in (200, 201), answer.text
    return dict(answer.json())


async def status(factory: Running, token: str, path: str = "/whoami") -> int:
    async with factory.client(token) as client:
        return int((await client.get(path)).status_code)


async def test_the_same_pair_opens_as_bearer_and_as_basic(factory: Running) -> None:
    async with factory.client() as client:
        key = await make(client, "/keys", name="second")
        assert key["token"] == f"usk-{key['id'].removeprefix('key-')}-{key['secret']}"
        pair = base64.b64encode(f"{key['id']}:{key['secret']}".encode()).decode()
        answer = await client.get("/whoami", headers={"Authorization": f"Basic {pair}"})
        assert answer.json()["key"] == key["id"]


async def test_rotation_revocation_and_expiry_hold_at_once(factory: Running) -> None:
    async with factory.client() as client:
        key = await make(client, "/keys", name="k")
        assert await status(factory, key["token"]) == 200
        fresh = await make(client, f"/keys/{key['id']}/rotate")
        assert await status(factory, key["token"]) == 401
        assert await status(factory, fresh["token"]) == 200
        shown = (await client.get(f"/keys/{key['id']}")).json()
        assert shown["version"] == 2
        assert shown["last_used_at"] is not None
        assert "secret" not in shown
        assert (await client.delete(f"/keys/{key['id']}")).status_code == 204
        assert await status(factory, fresh["token"]) == 401
        late = await client.post("/keys", json={"name": "late", "expires_at": iso(1.0)})
        assert (late.status_code, late.json()["field"]) == (422, "expires_at")


async def test_a_key_that_expires_stops(factory: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = factory.factory.house.clock
    async with factory.client() as client:
        key = await make(client, "/keys", name="short", expires_at=iso(clock.now() + 3600))
        assert await status(factory, key["token"]) == 200
        now = clock.now() + 3601
        monkeypatch.setattr(clock, "now", lambda: now)
        assert await status(factory, key["token"]) == 401


async def test_a_key_for_one_project_and_one_role_can_do_no_more(factory: Running) -> None:
    async with factory.client() as client:
        await make(client, "/projects", name="other", tenant="main")
        narrow = await make(client, "/keys", name="narrow", project="main", role="viewer")
    async with factory.client(narrow["token"]) as client:
        assert (await client.get("/machines")).status_code == 200
        assert [p["name"] for p in (await client.get("/projects")).json()["items"]] == ["main"]
        assert (await client.get("/machines?project=other")).status_code == 404
        assert (await client.get("/hosts")).status_code == 404
        refused = await client.post("/machines", json={"name": "m", "image": "ready"})
        assert refused.status_code == 403
        wider = await make(client, "/keys", name="wider", role="operator")
        assert (wider["project"], wider["role"]) == (narrow["project"], "viewer")
        listed = (await client.get("/keys")).json()["items"]
        first = next(k for k in listed if k["name"] == "first")
        assert (await client.post(f"/keys/{first['id']}/rotate", json={})).status_code == 404


async def test_a_disabled_member_is_out_and_an_admin_cannot_touch_an_operator(factory: Running) -> None:
    async with factory.client() as client:
        admin = await make(client, "/members", name="boss", tenant="main", roles={"main": "admin"})
        key = await make(client, "/keys", name="k", member=admin["id"])
        me = (await client.get("/whoami")).json()["member"]
    async with factory.client(key["token"]) as boss:
        assert (await boss.get(f"/members/{me}")).status_code == 404
        assert (await boss.post("/keys", json={"name": "k", "member": me})).status_code == 404
        worker = await make(boss, "/members", name="worker", tenant="main", roles={"main": "member"})
        for role in ("operator", "viewer"):
            refused = await boss.put(f"/members/{worker['id']}/roles", json={"scope": "*", "role": role})
            assert refused.status_code in (403, 404)
        assert (await boss.patch(f"/members/{worker['id']}", json={"disabled": True})).status_code == 200
    async with factory.client() as client:
        workers = await make(client, "/keys", name="w", member=worker["id"])
        assert await status(factory, workers["token"]) == 401
        await client.patch(f"/members/{worker['id']}", json={"disabled": False})
        assert await status(factory, workers["token"]) == 200


async def test_secrets_are_in_no_story_and_no_list(factory: Running) -> None:
    async with factory.client() as client:
        key = await make(client, "/keys", name="k")
        text = (await client.get("/events?limit=1000")).text + (await client.get("/keys")).text
    assert key["secret"] not in text
    assert factory.token.split("-", 2)[2] not in text  # a secret may have hyphens itself
    database = factory.factory.settings.data_dir / "usina.db"
    stored = b"".join(p.read_bytes() for p in database.parent.glob("usina.db*"))
    assert key["secret"].encode() not in stored


async def test_tenants_and_projects_go_only_when_empty(factory: Running) -> None:
    async with factory.client() as client:
        await make(client, "/tenants", name="acme")
        project = await make(client, "/projects", name="research", tenant="acme")
        assert (await client.delete("/tenants/acme")).status_code == 409
        await make(client, "/volumes", name="v", size=1 << 20, project=project["id"])
        assert (await client.delete(f"/projects/{project['id']}")).status_code == 409
        await client.delete(f"/volumes/v?project={project['id']}")
        volume = (await client.get(f"/volumes?project={project['id']}")).json()["items"]
        for one in volume:
            await factory.gone(one["id"], "volumes")
        assert (await client.delete(f"/projects/{project['id']}")).status_code == 204
        assert (await client.delete("/tenants/acme")).status_code == 204
        assert (await client.get("/tenants/acme")).status_code == 404
