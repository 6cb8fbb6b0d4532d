"""Every route × every role × own and foreign project. A route that is not in the table fails the test.

What a role may do answers 2xx (or 409 where the state does not allow it now); what it may not do answers 403 or 404
and changes nothing; what belongs to others always answers 404, as if it were not there.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from usina.core.resource import Phase
from usina.core.tenancy import Role
from usina.testing.factory import Running
from usina.testing.waiting import eventually

Json = dict[str, Any]
ROLES = ["viewer", "member", "admin", "operator"]
STALE = {"If-Match": '"999999"'}
_serial = itertools.count()


def fresh(prefix: str = "n") -> str:
    return f"{prefix}{next(_serial)}"


@dataclass(frozen=True)
class Site:
    """One tenant with everything in it, and a key for each role."""

    tenant: str
    project: str
    things: dict[str, str]
    tokens: dict[str, str]


# (method, path) -> (least role in the own project, body). Braces are filled with the ids of a site.
Body = Callable[[Site], Json] | None
V, M, A, OP = Role.VIEWER, Role.MEMBER, Role.ADMIN, Role.OPERATOR
TABLE: dict[tuple[str, str], tuple[Role, Body]] = {
    ("GET", "/v1/site"): (V, None),
    ("GET", "/v1/whoami"): (V, None),
    # resources
    ("GET", "/v1/machines/{machine}"): (V, None),
    ("GET", "/v1/machines/{machine}/placement"): (V, None),
    ("GET", "/v1/machines/{machine}/console-log"): (V, None),
    ("POST", "/v1/machines"): (M, lambda s: {"name": fresh(), "image": s.things["image"], "project": s.project}),
    ("POST", "/v1/machines/batch"): (
        M,
        lambda s: {"name": fresh(), "image": s.things["image"], "project": s.project, "count": 2},
    ),
    ("PATCH", "/v1/machines/{machine}"): (M, lambda s: {"cores": 2}),
    ("DELETE", "/v1/machines/{machine}"): (M, None),
    ("POST", "/v1/machines/{machine}/start"): (M, None),
    ("POST", "/v1/machines/{machine}/stop"): (M, None),
    ("POST", "/v1/machines/{machine}/suspend"): (M, None),
    ("POST", "/v1/machines/{machine}/resume"): (M, None),
    ("POST", "/v1/machines/{machine}/reboot"): (M, None),
    ("POST", "/v1/machines/{machine}/rebuild"): (M, lambda s: {}),
    ("POST", "/v1/machines/{machine}/snapshots"): (M, lambda s: {"name": fresh("s")}),
    ("POST", "/v1/machines/{machine}/snapshots/{snapshot}/restore"): (M, None),
    ("DELETE", "/v1/machines/{machine}/snapshots/{snapshot}"): (M, None),
    ("POST", "/v1/machines/{machine}/volumes"): (M, lambda s: {"volume": s.things["volume"]}),
    ("DELETE", "/v1/machines/{machine}/volumes/{volume}"): (M, None),
    ("POST", "/v1/machines/{machine}/interfaces"): (M, lambda s: {"network": "default"}),
    ("DELETE", "/v1/machines/{machine}/interfaces/{mac}"): (M, None),
    ("GET", "/v1/volumes/{volume}"): (V, None),
    ("POST", "/v1/volumes"): (M, lambda s: {"name": fresh(), "size": 1 << 20, "project": s.project}),
    ("PATCH", "/v1/volumes/{volume}"): (M, lambda s: {"size": 1 << 21}),
    ("DELETE", "/v1/volumes/{volume}"): (M, None),
    ("GET", "/v1/networks/{network}"): (V, None),
    ("POST", "/v1/networks"): (M, lambda s: {"name": fresh(), "project": s.project}),
    ("DELETE", "/v1/networks/{network}"): (M, None),
    ("GET", "/v1/security-groups/{group}"): (V, None),
    ("POST", "/v1/security-groups"): (M, lambda s: {"name": fresh(), "project": s.project}),
    ("PUT", "/v1/security-groups/{group}/rules"): (M, lambda s: {"rules": []}),
    ("DELETE", "/v1/security-groups/{group}"): (M, None),
    ("GET", "/v1/forwards/{forward}"): (V, None),
    ("POST", "/v1/forwards"): (M, lambda s: {"machine": s.things["machine"], "port": 80}),
    ("DELETE", "/v1/forwards/{forward}"): (M, None),
    ("GET", "/v1/images/{image}"): (V, None),
    ("POST", "/v1/images"): (M, lambda s: {"name": fresh(), "upload": True, "project": s.project}),
    ("PATCH", "/v1/images/{image}"): (M, lambda s: {"visibility": "project"}),
    ("DELETE", "/v1/images/{image}"): (M, None),
    ("GET", "/v1/images/{upload}/content"): (M, None),
    ("PUT", "/v1/images/{upload}/content"): (M, None),
    ("POST", "/v1/images/{used}/complete"): (M, lambda s: {}),
    ("GET", "/v1/stories/{machine}"): (V, None),
    ("GET", "/v1/tasks/{task}"): (V, None),
    ("POST", "/v1/tasks"): (M, lambda s: {"on": "fake", "command": ["true"], "project": s.project}),
    ("GET", "/v1/tasks/{task}/parts"): (V, None),
    ("GET", "/v1/tasks/{done}/logs"): (V, None),
    ("GET", "/v1/tasks/{task}/usage"): (V, None),
    ("GET", "/v1/tasks/{done}/artifacts/{artifact}"): (V, None),
    ("POST", "/v1/tasks/{task}/rerun"): (M, None),
    ("POST", "/v1/tasks/{task}/stop"): (M, None),
    ("DELETE", "/v1/tasks/{task}"): (M, None),
    ("GET", "/v1/runtimes"): (V, None),
    ("GET", "/v1/endpoints/{endpoint}"): (V, None),
    ("POST", "/v1/endpoints"): (M, lambda s: OUTSIDE | {"name": fresh("e"), "project": s.project}),
    ("GET", "/v1/endpoints/{endpoint}/replicas"): (V, None),
    ("PATCH", "/v1/endpoints/{endpoint}"): (M, lambda s: {"waiting": 3}),
    ("POST", "/v1/endpoints/{endpoint}/canary"): (M, lambda s: {"weight": 0.2}),
    ("POST", "/v1/endpoints/{endpoint}/promote"): (M, None),
    ("POST", "/v1/endpoints/{endpoint}/rollback"): (M, None),
    ("DELETE", "/v1/endpoints/{endpoint}"): (M, None),
    ("PUT", "/v1/blobs/{digest}"): (M, None),
    ("POST", "/v1/blobs/known"): (M, lambda s: {"digests": [EMPTY]}),
    ("GET", "/v1/models/{model}"): (V, None),
    ("POST", "/v1/models"): (M, lambda s: {"name": f"lab/{fresh()}", "project": s.project}),
    ("PATCH", "/v1/models/{model}"): (M, lambda s: {"gated": True}),
    ("POST", "/v1/models/{model}/accept"): (V, None),
    ("GET", "/v1/models/{model}/acceptances"): (M, None),
    ("PUT", "/v1/models/{model}/content/{digest}"): (M, None),
    ("POST", "/v1/models/{model}/content/known"): (M, lambda s: {"digests": [EMPTY]}),
    ("POST", "/v1/models/{model}/commits"): (M, lambda s: {"title": "x", "files": [{"path": "x", "digest": EMPTY}]}),
    ("GET", "/v1/models/{model}/commits"): (V, None),
    ("POST", "/v1/models/import"): (M, lambda s: {"model": f"lab/{fresh()}", "project": s.project}),
    ("DELETE", "/v1/models/{spare_model}"): (M, None),
    # identity
    ("GET", "/v1/projects/{project}"): (V, None),
    ("POST", "/v1/projects"): (A, lambda s: {"name": fresh("p"), "tenant": s.tenant}),
    ("PATCH", "/v1/projects/{project}"): (A, lambda s: {"name": fresh("p")}),
    ("DELETE", "/v1/projects/{project}"): (A, None),
    ("GET", "/v1/tenants/{tenant}"): (V, None),
    ("POST", "/v1/tenants"): (OP, lambda s: {"name": fresh("t")}),
    ("PATCH", "/v1/tenants/{tenant}"): (OP, lambda s: {"name": fresh("t")}),
    ("DELETE", "/v1/tenants/{tenant}"): (OP, None),
    ("GET", "/v1/members/{member}"): (A, None),
    ("POST", "/v1/members"): (A, lambda s: {"name": fresh("u"), "tenant": s.tenant}),
    ("PATCH", "/v1/members/{member}"): (A, lambda s: {"email": "a@b.example"}),
    ("PUT", "/v1/members/{member}/roles"): (A, lambda s: {"scope": s.project, "role": "viewer"}),
    ("DELETE", "/v1/members/{spare}"): (A, None),
    ("GET", "/v1/keys/{key}"): (A, None),
    ("POST", "/v1/keys"): (A, lambda s: {"name": fresh("k"), "member": s.things["member"]}),
    ("POST", "/v1/keys/{key}/rotate"): (A, lambda s: {}),
    ("DELETE", "/v1/keys/{key}"): (A, None),
    ("PUT", "/v1/keys/{key}/limits"): (A, lambda s: {"requests": 5}),
    ("GET", "/v1/budgets"): (V, None),
    ("PUT", "/v1/budgets/{project}"): (A, lambda s: {"tokens": 5}),
    ("GET", "/v1/budgets/{project}"): (V, None),
    ("DELETE", "/v1/budgets/{project}"): (A, None),
    ("GET", "/v1/usage"): (V, None),
    ("PUT", "/v1/projects/{project}/prompts"): (A, lambda s: {"days": 5}),
    ("GET", "/v1/projects/{project}/prompts"): (A, None),
    ("GET", "/v1/quotas/{project}"): (V, None),
    ("PUT", "/v1/quotas/{project}"): (A, lambda s: {"gpus": 5}),
    # the site's own
    ("GET", "/v1/hosts"): (OP, None),
    ("POST", "/v1/hosts"): (OP, lambda s: {"name": fresh("h"), "driver": "fake"}),
    ("POST", "/v1/hosts/adopt"): (OP, lambda s: {"name": fresh("h"), "driver": "fake"}),
    ("GET", "/v1/hosts/{host}"): (OP, None),
    ("GET", "/v1/hosts/{host}/identities"): (OP, None),
    ("PUT", "/v1/hosts/{host}/identities/{member}"): (OP, lambda s: {"name": "ada"}),
    ("PATCH", "/v1/hosts/{host}"): (OP, lambda s: {"group": fresh("g")}),
    ("GET", "/v1/hosts/{host}/claims"): (OP, None),
    ("GET", "/v1/placement/hosts"): (OP, None),
    ("POST", "/v1/hosts/{host}/cordon"): (OP, None),
    ("POST", "/v1/hosts/{host}/enable"): (OP, None),
    ("POST", "/v1/hosts/{empty}/drain"): (OP, None),
    ("POST", "/v1/hosts/{host}/devices/{device}/cordon"): (OP, None),
    ("POST", "/v1/hosts/{host}/devices/{device}/enable"): (OP, None),
    ("DELETE", "/v1/hosts/{host}"): (OP, None),
    # lists: everybody may ask; what is in them is tested apart
    ("GET", "/v1/machines"): (V, None),
    ("GET", "/v1/tasks"): (V, None),
    ("GET", "/v1/endpoints"): (V, None),
    ("GET", "/v1/volumes"): (V, None),
    ("GET", "/v1/networks"): (V, None),
    ("GET", "/v1/security-groups"): (V, None),
    ("GET", "/v1/forwards"): (V, None),
    ("GET", "/v1/images"): (V, None),
    ("GET", "/v1/models"): (V, None),
    ("GET", "/v1/models/catalogue"): (V, None),
    ("GET", "/v1/projects"): (V, None),
    ("GET", "/v1/tenants"): (V, None),
    ("GET", "/v1/members"): (V, None),
    ("GET", "/v1/keys"): (V, None),
    ("GET", "/v1/events"): (V, None),
    ("GET", "/v1/events/stream"): (V, None),
}  # fmt: skip
OUTSIDE = {"model": "m", "runtime": "external", "url": "https://1.1.1.1/v1"}
LISTS = {"machines", "tasks", "endpoints", "volumes", "networks", "security-groups", "forwards", "images", "models"}
EMPTY = hashlib.sha256(b"").hexdigest()
PUBLIC = ("/v1/site", "/v1/whoami", "/v1/models/catalogue", "/v1/runtimes")
PARTLESS = ("POST", "/v1/hosts/adopt")  # a pretended host has no parts, which is told as 422


def test_the_table_has_every_route() -> None:
    from usina.facades.native.api import application

    document = application().openapi()
    served = {(method.upper(), path) for path, item in document["paths"].items() for method in item}
    normal = {(method, normalised(path)) for method, path in TABLE}
    assert normal == {(method, normalised(path)) for method, path in served}


def normalised(path: str) -> str:
    """Names of parameters do not matter."""
    parts = ["{}" if part.startswith("{") else part for part in path.split("/")]
    return "/".join(parts)


async def a_site(factory: Running, name: str) -> Site:
    """A tenant with a project, a thing of every kind, and a member of every role, each with a key."""
    async with factory.client() as client:

        async def make(path: str, **body: Any) -> Json:
            answer = await client.post(path, json=body)
            assert answer.status_code == 201, answer.text
            return dict(answer.json())

        tenant = (await make("/tenants", name=name))["id"]
        project = (await make("/projects", name="research", tenant=tenant))["id"]
        tokens = {}
        for word in ("viewer", "member", "admin"):
            scope = tenant if word == "admin" else project
            member = await make("/members", name=f"{name}-{word}", tenant=tenant, roles={scope: word})
            tokens[word] = (await make("/keys", name="k", member=member["id"]))["token"]
        other = await make("/members", name=f"{name}-other", tenant=tenant)
        spare = await make("/members", name=f"{name}-spare", tenant=tenant)
        key = await make("/keys", name="k", member=other["id"])
        image = await factory.ready_image("own", project)
        await client.patch(f"/images/{image}", json={"visibility": "project"})
        upload = await make("/images", name="upload", upload=True, project=project)
        used = await make("/images", name="used", upload=True, project=project)
        machine = await make("/machines", name="m1", image=image, project=project)
        await factory.phase(machine["id"], Phase.RUNNING)
        volume = await make("/volumes", name="v1", size=1 << 20, project=project)
        network = await make("/networks", name="n1", project=project)
        group = await make("/security-groups", name="g1", project=project)
        forward = await make("/forwards", machine=machine["id"], port=22)
        await client.post(f"/machines/{machine['id']}/snapshots", json={"name": "s1"})
        task = await make("/tasks", on="fake", command=["sleep", "600"], project=project)
        done = await make("/tasks", on="fake", command=["true"], outputs=["*"], project=project)
        endpoint = await make("/endpoints", name="e1", project=project, **OUTSIDE)
        model = await make("/models", name="lab/model", project=project)
        spare_model = await make("/models", name="lab/spare", project=project)

        async def quiet() -> bool:
            m = (await client.get(f"/machines/{machine['id']}")).json()
            v = (await client.get(f"/volumes/{volume['id']}")).json()
            t = (await client.get(f"/tasks/{done['id']}")).json()
            return m["observed"] == m["generation"] and v["phase"] == "ready" and t["phase"] == "succeeded"

        await eventually(quiet)
    things = {
        "machine": machine["id"], "volume": volume["id"], "network": network["id"], "group": group["id"],
        "forward": forward["id"], "image": image, "upload": upload["id"], "used": used["id"], "member": other["id"],
        "spare": spare["id"], "key": key["id"], "snapshot": "s1", "tenant": tenant, "project": project,
        "task": task["id"], "done": done["id"], "artifact": "outputs.tar", "digest": EMPTY,
        "endpoint": endpoint["id"],
        "model": model["id"], "spare_model": spare_model["id"],
        "mac": machine["spec"]["interfaces"][0]["mac"],
    }  # fmt: skip
    return Site(tenant, project, things, tokens)


async def replenish(factory: Running, site: Site) -> None:
    """What an allowed call may have used up."""
    async with factory.client() as client:
        if (await client.get(f"/members/{site.things['spare']}")).status_code == 404:
            answer = await client.post("/members", json={"name": fresh("spare"), "tenant": site.tenant})
            site.things["spare"] = answer.json()["id"]
        if (await client.get(f"/keys/{site.things['key']}")).json().get("revoked_at"):
            answer = await client.post("/keys", json={"name": "k", "member": site.things["member"]})
            site.things["key"] = answer.json()["id"]
        if (await client.get(f"/models/{site.things['spare_model']}")).status_code == 404:
            answer = await client.post("/models", json={"name": "lab/spare", "project": site.project})
            site.things["spare_model"] = answer.json()["id"]


async def call(factory: Running, site: Site, method: str, path: str, token: str | None) -> int:
    """The status of one call. A stale If-Match keeps an allowed change from happening, without hiding a refusal."""
    _, body = TABLE[method, path]
    url = path.removeprefix("/v1").format(**site.things)
    headers = dict(STALE) if method in ("PATCH", "DELETE", "POST", "PUT") else {}
    params: Json = {}
    if method == "GET" and url.lstrip("/") in LISTS | {"events", "events/stream"}:
        params = {"project": site.project}
    if path.startswith("/v1/blobs/"):
        params = {"project": site.project}
    if path == "/v1/members" and method == "GET":
        params = {}
    async with factory.client(token or "usk-x-y") as client:
        request = client.build_request(
            method, url, json=body(site) if body else None, headers=headers, params=params
        )  # fmt: skip
        if "stream" in path:
            return await first_status(factory, request)
        return (await client.send(request)).status_code


async def first_status(factory: Running, request: Any) -> int:
    """The status of an endless answer, and then leave."""
    import asyncio

    status: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    scope = {
        "type": "http", "method": "GET", "path": request.url.path, "raw_path": request.url.raw_path, "root_path": "",
        "query_string": request.url.query, "headers": [(k.lower(), v) for k, v in request.headers.raw],
        "http_version": "1.1", "scheme": "http",
        "server": ("factory", 80), "client": ("test", 1),
    }  # fmt: skip

    async def receive() -> Json:
        await asyncio.Event().wait()
        return {}

    async def send(message: Json) -> None:
        if message["type"] == "http.response.start" and not status.done():
            status.set_result(message["status"])

    task = asyncio.create_task(factory.app(scope, receive, send))
    try:
        return await status
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.slow
@pytest.mark.timeout(110)
async def test_every_route_for_every_role_in_own_and_foreign_projects(factory: Running) -> None:
    async with factory.client() as client:
        host = (await client.get("/hosts/h1")).json()
        empty = (await client.post("/hosts", json={"name": "empty", "driver": "fake"})).json()
        await client.post(f"/hosts/{empty['id']}/cordon")
    own, foreign = await a_site(factory, "acme"), await a_site(factory, "rival")
    for site in (own, foreign):
        site.things.update(host=host["id"], empty=empty["id"], device=host["devices"][0]["address"])
    own.tokens["operator"] = factory.token
    for method, path in TABLE:
        least, _ = TABLE[method, path]
        assert await call(factory, own, method, path, None) == 401, (method, path, "nobody")
        for word in ("viewer", "member", "admin"):
            status = await call(factory, foreign, method, path, own.tokens[word])
            public = path in PUBLIC or (normalised(path) in (
                "/v1/projects", "/v1/tenants", "/v1/members", "/v1/keys", "/v1/budgets", "/v1/usage"
            ) and method == "GET")  # fmt: skip
            if public:
                assert status == 200, (method, path, word, "foreign")
            elif least is not Role.OPERATOR:
                assert status == 404, (method, path, word, "foreign", status)
            else:
                assert status in (403, 404), (method, path, word, "foreign", status)
        for word in ROLES:
            await replenish(factory, own)
            status = await call(factory, own, method, path, own.tokens[word])
            if Role.named(word) < least:
                assert status in (403, 404), (method, path, word, status)
            elif (method, path) == PARTLESS:
                assert status == 422
            else:
                assert status in (200, 201, 202, 204, 409), (method, path, word, status)


async def test_lists_hold_only_ones_own(factory: Running) -> None:
    own, foreign = await a_site(factory, "acme"), await a_site(factory, "rival")
    for token in (own.tokens["viewer"], own.tokens["member"], own.tokens["admin"]):
        async with factory.client(token) as client:
            for path in (*LISTS, "projects", "tenants", "members", "keys", "events"):
                answer = await client.get(f"/{path}?limit=1000")
                assert answer.status_code == 200, (path, answer.text)
                text = answer.text
                for secret in (foreign.tenant, foreign.project, *foreign.things.values()):
                    if secret not in ("s1", "outputs.tar", EMPTY):
                        assert secret not in text, (path, secret)
    async with factory.client() as client:
        assert len((await client.get("/machines")).json()["items"]) == 2
