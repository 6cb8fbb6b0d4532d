"""Endpoints through the native door, pretended runtime on a pretended host: scaling, trials, failures, quotas."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from usina.core.endpoint import Load
from usina.server import discovery
from usina.testing import loads
from usina.testing.factory import Running, running
from usina.testing.models import stored
from usina.testing.runtimes import PRETENDED
from usina.testing.waiting import eventually

Json = dict[str, Any]
MODEL = "acme/tiny"


@pytest.fixture
async def factory(tmp_path: Path) -> AsyncIterator[Running]:
    """One pretended host, and a model of two revisions, the second tagged nothing: `main` moves on."""
    runtimes = {**discovery.runtimes().plugins, "pretended": PRETENDED}
    async with running(tmp_path / "data", runtimes=runtimes) as factory:
        async with factory.client() as client:
            body = {"name": "h1", "driver": "fake", "options": {"cores": 4, "memory": 8 << 30}}
            (await client.post("/hosts", json=body)).raise_for_status()
        await stored(factory.context(), MODEL, {"a.weights": b"one"}, "main")
        await stored(factory.context(), "acme/other", {"a.weights": b"two"}, "main")
        yield factory


async def ask(
    factory: Running, method: str, path: str, body: Json | None = None, status: int = 200, **more: Any
) -> Json:
    async with factory.client(more.get("token")) as client:
        answer = await client.request(method, path, json=body)
        assert answer.status_code == status, answer.text
        return dict(answer.json())


async def order(factory: Running, status: int = 201, **more: Any) -> Json:
    return await ask(factory, "POST", "/endpoints", {"name": "chat", "model": MODEL, "project": "main"} | more, status)


async def until(factory: Running, endpoint: Json, good: Callable[[Json], bool], limit: float = 20.0) -> Json:
    return await eventually(lambda: ask(factory, "GET", f"/endpoints/{endpoint['id']}"), good, limit)


def states(endpoint: Json) -> list[str]:
    return sorted(replica["state"] for replica in endpoint["status"]["replicas"])


def settled(endpoint: Json) -> bool:
    return bool(endpoint["observed"] == endpoint["generation"] and endpoint["phase"] == "ready")


async def measured(factory: Running, endpoint: Json, **load: Any) -> None:
    """A gateway tells what it has measured."""
    await loads.measured(factory.factory.store, endpoint["id"], Load(**{"last_at": time.time()} | load))


async def parts(factory: Running, endpoint: Json) -> list[Json]:
    return list((await ask(factory, "GET", f"/endpoints/{endpoint['id']}/replicas"))["items"])


async def nothing_left(factory: Running, endpoint: Json) -> None:
    await factory.gone(endpoint["id"], "endpoints")
    assert not (await ask(factory, "GET", "/tasks"))["items"]
    used = (await ask(factory, "GET", "/quotas/main"))["used"]
    assert not any(used.values()), used
    host = await ask(factory, "GET", "/hosts/h1")
    assert host["used"] == {"cores": 0, "memory": 0, "disk": 0}


async def test_from_order_to_ready_and_away(factory: Running) -> None:
    endpoint = await order(factory, minimum=2, maximum=2)
    assert endpoint["phase"] == "pending" and endpoint["spec"]["runtime"] == "pretended"
    assert endpoint["status"]["formula"] == "3 bytes" and len(endpoint["spec"]["variant"]["revision"]) == 40
    ready = await until(factory, endpoint, settled)
    assert states(ready) == ["ready", "ready"]
    replica = ready["status"]["replicas"][0]
    assert (replica["stack"], replica["port"]) == ("fake", 8000) and replica["handle"] == f"{replica['id']}.1"
    tasks = await parts(factory, endpoint)
    assert {task["parent"] for task in tasks} == {endpoint["id"]} and tasks[0]["name"].startswith("chat-")
    assert not (await ask(factory, "GET", "/tasks"))["items"]  # they are listed with their endpoint
    story = [e["kind"] for e in (await ask(factory, "GET", f"/stories/{endpoint['id']}"))["items"]]
    assert story[0] == "endpoint.ordered"
    assert {"endpoint.scaled", "endpoint.added", "endpoint.replicas", "endpoint.ready"} <= set(story)
    await ask(factory, "DELETE", f"/endpoints/{endpoint['id']}", status=202)
    await nothing_left(factory, endpoint)


async def test_replicas_leave_a_host_that_is_drained_once_there_are_others(factory: Running) -> None:
    endpoint = await order(factory, drain=1)
    before = await until(factory, endpoint, settled)
    old = before["status"]["replicas"][0]
    body = {"name": "h2", "driver": "fake", "options": {"cores": 4, "memory": 8 << 30}}
    other = await ask(factory, "POST", "/hosts", body, 201)
    await ask(factory, "POST", "/hosts/h1/drain")
    after = await until(factory, endpoint, lambda e: states(e) == ["ready"] and e["status"]["replicas"][0] != old)
    [task] = await eventually(lambda: parts(factory, endpoint), lambda found: len(found) == 1)
    assert task["host"] == other["id"]
    assert after["status"]["failures"] == 0
    story = [e["kind"] for e in (await ask(factory, "GET", f"/stories/{endpoint['id']}"))["items"]]
    assert story.count("endpoint.draining") == 1 and "endpoint.replica-failed" not in story
    await ask(factory, "POST", "/hosts/h1/enable")
    await ask(factory, "DELETE", f"/endpoints/{endpoint['id']}", status=202)
    await nothing_left(factory, endpoint)


async def test_load_scales_it_up_from_none_and_down_again(factory: Running) -> None:
    endpoint = await order(factory, minimum=0, maximum=3, slots=4, drain=1, idle_limit=600)
    await until(factory, endpoint, settled)
    await measured(factory, endpoint, waiting=1, oldest=0.1)
    await until(factory, endpoint, lambda e: states(e) == ["ready"])
    await measured(factory, endpoint, in_flight=7)
    await until(factory, endpoint, lambda e: states(e) == ["ready"] * 3)
    await ask(factory, "PATCH", f"/endpoints/{endpoint['id']}", {"idle_limit": 0.5})
    await measured(factory, endpoint)

    def at_rest(found: Json) -> bool:
        scaled = next(c for c in found["conditions"] if c["kind"] == "Scaled")
        return (scaled["ok"], scaled["reason"]) == (True, "scaled-to-zero") and not found["status"]["replicas"]

    gone = await until(factory, endpoint, at_rest)
    assert settled(gone) and gone["status"]["wanted"] == 0


async def test_a_replica_that_is_busy_is_drained_before_it_goes(factory: Running) -> None:
    endpoint = await order(factory, minimum=2, maximum=2, drain=600)
    ready = await until(factory, endpoint, settled)
    one, other = (replica["id"] for replica in ready["status"]["replicas"])
    await measured(factory, endpoint, in_flight=3, by_replica={one: 2, other: 1})
    await ask(factory, "PATCH", f"/endpoints/{endpoint['id']}", {"minimum": 1, "maximum": 1})
    draining = await until(factory, endpoint, lambda e: states(e) == ["draining", "ready"])
    assert next(r["id"] for r in draining["status"]["replicas"] if r["state"] == "draining") == other
    await measured(factory, endpoint, in_flight=2, by_replica={one: 2})
    left = await until(factory, endpoint, lambda e: states(e) == ["ready"])
    assert left["status"]["replicas"][0]["id"] == one


async def test_a_new_model_comes_up_before_the_old_one_goes(factory: Running) -> None:
    endpoint = await order(factory, drain=0)
    first = await until(factory, endpoint, settled)
    changed = await ask(factory, "PATCH", f"/endpoints/{endpoint['id']}", {"model": "acme/other"})
    assert changed["spec"]["previous"]["model"] == MODEL
    seen: set[tuple[str, ...]] = set()

    def rolled(e: Json) -> bool:
        seen.add(tuple(states(e)))
        return settled(e)

    after = await until(factory, endpoint, rolled)
    assert after["status"]["replicas"][0]["variant"]["model"] == "acme/other"
    assert after["status"]["replicas"][0]["id"] != first["status"]["replicas"][0]["id"]
    assert all("ready" in one for one in seen), seen
    back = await ask(factory, "POST", f"/endpoints/{endpoint['id']}/rollback")
    assert back["spec"]["variant"]["model"] == MODEL
    await until(factory, endpoint, lambda e: settled(e) and e["status"]["replicas"][0]["variant"]["model"] == MODEL)


async def test_options_make_replicas_anew_and_numbers_do_not(factory: Running) -> None:
    endpoint = await order(factory, drain=0)
    first = await until(factory, endpoint, settled)
    changed = await ask(factory, "PATCH", f"/endpoints/{endpoint['id']}", {"waiting": 7, "fallback": ["spare"]})
    assert changed["spec"]["recipe"]["mark"] == first["spec"]["recipe"]["mark"]
    assert (changed["spec"]["waiting"], changed["spec"]["fallback"]) == (7, ["spare"])
    changed = await ask(factory, "PATCH", f"/endpoints/{endpoint['id']}", {"options": {"note": "other"}})
    assert changed["spec"]["recipe"]["mark"] != first["spec"]["recipe"]["mark"]
    await until(factory, endpoint, lambda e: settled(e) and e["status"]["replicas"] != first["status"]["replicas"])


async def test_a_trial_is_promoted(factory: Running) -> None:
    endpoint = await order(factory, drain=0)
    path = f"/endpoints/{endpoint['id']}"
    await until(factory, endpoint, settled)
    await ask(factory, "POST", f"{path}/promote", status=409)
    trial = await ask(factory, "POST", f"{path}/canary", {"model": "acme/other", "weight": 0.25})
    assert (trial["spec"]["canary"]["weight"], trial["spec"]["variant"]["model"]) == (0.25, MODEL)
    both = await until(factory, endpoint, settled)
    assert {r["variant"]["model"] for r in both["status"]["replicas"]} == {MODEL, "acme/other"}
    lighter = await ask(factory, "POST", f"{path}/canary", {"weight": 0.5})
    assert lighter["spec"]["canary"]["weight"] == 0.5
    promoted = await ask(factory, "POST", f"{path}/promote")
    assert promoted["spec"]["variant"]["model"] == "acme/other" and promoted["spec"]["canary"] is None
    done = await until(factory, endpoint, lambda e: settled(e) and len(e["status"]["replicas"]) == 1)
    assert done["status"]["replicas"][0]["variant"]["model"] == "acme/other"
    assert done["status"]["replicas"][0]["id"] in {r["id"] for r in both["status"]["replicas"]}


async def test_a_trial_ends_by_a_rollback(factory: Running) -> None:
    endpoint = await order(factory, drain=0)
    path = f"/endpoints/{endpoint['id']}"
    await ask(factory, "POST", f"{path}/rollback", status=409)
    await ask(factory, "POST", f"{path}/canary", {"model": "acme/other", "weight": 0.25})
    await until(factory, endpoint, settled)
    back = await ask(factory, "POST", f"{path}/rollback")
    assert back["spec"]["canary"] is None and back["spec"]["variant"]["model"] == MODEL
    await until(factory, endpoint, lambda e: settled(e) and len(e["status"]["replicas"]) == 1)


async def test_what_fails_is_replaced_and_its_log_is_kept(factory: Running) -> None:
    endpoint = await order(factory, options={"command": "exit 3"})
    failed = await until(factory, endpoint, lambda e: e["status"]["failures"] >= 2)
    assert failed["phase"] in ("pending", "starting") and not failed["observed"]
    told = next(c for c in failed["conditions"] if c["kind"] == "Replicas")
    assert not told["ok"] and "exit code 3" in told["message"]
    kept = await until(factory, endpoint, lambda e: bool(e["status"]["failed"]))
    tasks = {task["id"]: task for task in await parts(factory, endpoint)}
    assert tasks[kept["status"]["failed"]]["phase"] == "failed"
    await ask(factory, "PATCH", f"/endpoints/{endpoint['id']}", {"options": {"note": "better"}})
    await until(factory, endpoint, settled)
    await ask(factory, "DELETE", f"/endpoints/{endpoint['id']}", status=202)
    await nothing_left(factory, endpoint)


async def test_a_replica_that_ends_is_replaced(factory: Running) -> None:
    endpoint = await order(factory)
    ready = await until(factory, endpoint, settled)
    (replica,) = ready["status"]["replicas"]
    driver = await factory.factory.fleet.tasks(replica["provider"], "fake")
    await driver.stop(replica["handle"], grace=0)
    again = await until(factory, endpoint, lambda e: states(e) == ["ready"] and e["status"]["failures"] == 1)
    assert again["status"]["replicas"][0]["id"] != replica["id"]


async def test_a_quota_keeps_it_smaller_and_says_so(factory: Running) -> None:
    await ask(factory, "PUT", "/quotas/main", {"tasks": 2})
    endpoint = await order(factory, minimum=3, maximum=3)
    found = await until(factory, endpoint, lambda e: states(e) == ["ready", "ready"] and bool(e["status"]["refusal"]))
    scaled = next(c for c in found["conditions"] if c["kind"] == "Scaled")
    assert (scaled["ok"], scaled["reason"]) == (False, "quota")
    assert scaled["message"] == "the quota of the tenant does not allow 3 replicas: tasks: 2 of 2 are used"
    assert found["phase"] == "ready" and found["observed"] == 0


async def test_no_room_is_told_with_numbers(factory: Running) -> None:
    endpoint = await order(factory, minimum=3, maximum=3, cores=2)
    found = await until(
        factory, endpoint, lambda e: any(c["kind"] == "Scaled" and not c["ok"] for c in e["conditions"])
    )
    scaled = next(c for c in found["conditions"] if c["kind"] == "Scaled")
    assert scaled["reason"] == "no-room" and scaled["message"].startswith("1 of 3 replicas have no place")


async def test_replicas_are_changed_through_their_endpoint_only(factory: Running) -> None:
    endpoint = await order(factory)
    await until(factory, endpoint, settled)
    (task,) = await parts(factory, endpoint)
    for method, path in (("POST", "stop"), ("POST", "rerun"), ("DELETE", "")):
        refused = await ask(factory, method, f"/tasks/{task['id']}/{path}".rstrip("/"), status=409)
        assert refused["code"] == "part-of-another" and "endpoint chat" in refused["detail"]


async def test_its_model_stays_while_it_serves_it(factory: Running) -> None:
    from usina.app import models
    from usina.core.errors import Conflict

    endpoint = await order(factory)
    with pytest.raises(Conflict):
        await models.delete(factory.context(), MODEL)
    await until(factory, endpoint, settled)
    await ask(factory, "DELETE", f"/endpoints/{endpoint['id']}", status=202)
    await factory.gone(endpoint["id"], "endpoints")
    await models.delete(factory.context(), MODEL)


async def test_a_secret_is_not_sent_where_it_was_not_given_for(factory: Running) -> None:
    """Whoever may change an endpoint must not get a secret that somebody else gave it."""
    outside = {"runtime": "external", "model": "gpt", "url": "https://1.1.1.1/v1", "secret": "s3cr3t"}
    endpoint = await order(factory, **outside)
    path = f"/endpoints/{endpoint['id']}"
    refused = await ask(factory, "PATCH", path, {"url": "https://8.8.8.8/v1"}, 422)
    assert refused["field"] == "secret"
    assert (await ask(factory, "GET", path))["spec"]["url"] == "https://1.1.1.1/v1"
    await ask(factory, "PATCH", path, {"url": "https://1.1.1.1/v2"})
    await ask(factory, "PATCH", path, {"url": "https://8.8.8.8/v1", "secret": "another"})


async def test_an_endpoint_of_somebody_else(factory: Running) -> None:
    outside = {"runtime": "external", "model": "gpt", "url": "https://1.1.1.1/v1", "secret": "s3cr3t"}
    endpoint = await order(factory, **outside)
    assert endpoint["spec"]["secret"] == "***" and endpoint["spec"]["recipe"] is None
    ready = await until(factory, endpoint, settled)
    assert ready["status"]["replicas"][0]["id"] == endpoint["id"]
    for url in ("http://127.0.0.1/v1", "http://169.254.169.254/", "ftp://1.1.1.1", "https://user:pw@1.1.1.1/"):
        refused = await order(factory, 422, **outside | {"name": "other", "url": url})
        assert refused["field"] == "url", refused
        assert (await ask(factory, "PATCH", f"/endpoints/{endpoint['id']}", {"url": url}, 422))["field"] == "url"
    stored = await factory.factory.store.resources.get(endpoint["id"])
    assert stored is not None and "s3cr3t" not in repr(stored)


@pytest.mark.parametrize(
    ("wish", "field"),
    [
        ({"minimum": 3, "maximum": 2}, "minimum"),
        ({"maximum": 0}, "maximum"),
        ({"runtime": "ollama"}, "runtime"),
        ({"runtime": "vllm"}, "runtime"),
        ({"on": "local"}, "on"),
        ({"options": {"colour": "red"}}, "options"),
        ({"fallback": ["chat"]}, "fallback[0]"),
        ({"name": "Chat"}, "name"),
        ({"slots": 0}, "slots"),
        ({"url": "https://1.1.1.1"}, "url"),
    ],
)
async def test_bad_orders_name_the_field_and_change_nothing(factory: Running, wish: Json, field: str) -> None:
    refused = await order(factory, 422, **wish)
    assert refused["field"] == field, refused
    assert not (await ask(factory, "GET", "/endpoints"))["items"]


async def test_what_could_never_fit_says_what_it_lacks(factory: Running) -> None:
    refused = await order(factory, 409, cores=500)
    assert refused["code"] == "refused" and "fake: no host can ever hold this" in refused["detail"]
    assert (await order(factory, 404, model="acme/nothing"))["field"] == "model"


async def test_orders_are_idempotent_and_names_are_unique(factory: Running) -> None:
    body = {"name": "chat", "model": MODEL, "project": "main"}
    async with factory.client() as client:
        answers = [await client.post("/endpoints", json=body, headers={"Idempotency-Key": "k"}) for _ in range(2)]
    assert [a.status_code for a in answers] == [201, 201]
    assert answers[0].json()["id"] == answers[1].json()["id"]
    assert (await order(factory, 409))["code"] == "name-taken"


async def test_other_tenants_see_nothing(factory: Running) -> None:
    endpoint = await order(factory)
    tenant = await ask(factory, "POST", "/tenants", {"name": "rival"}, 201)
    await ask(factory, "POST", "/projects", {"name": "p", "tenant": tenant["id"]}, 201)
    member = await ask(
        factory, "POST", "/members", {"name": "eve", "tenant": tenant["id"], "roles": {tenant["id"]: "admin"}}, 201
    )
    token = (await ask(factory, "POST", "/keys", {"name": "k", "member": member["id"]}, 201))["token"]
    for method, path, body in (
        ("GET", "", None), ("PATCH", "", {"waiting": 1}), ("DELETE", "", None), ("GET", "/replicas", None),
        ("POST", "/canary", {"weight": 0.1}), ("POST", "/promote", None), ("POST", "/rollback", None),
    ):  # fmt: skip
        await ask(factory, method, f"/endpoints/{endpoint['id']}{path}", body, 404, token=token)
    refused = {"name": "mine", "model": MODEL, "project": "p"}
    await ask(factory, "POST", "/endpoints", refused, 404, token=token)
