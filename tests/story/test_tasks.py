"""Tasks through the native door, on a pretended stack: orders, arrays, gangs, waiting, restarts, refusals, logs."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import pytest

from usina.core.resource import Phase
from usina.core.task import TaskPlan, handle_of
from usina.drivers.fake.tasks import FakeTasks
from usina.engine.reconcile import GIVE_UP
from usina.ports.tasks import LogPiece
from usina.testing.factory import Running
from usina.testing.waiting import eventually

Json = dict[str, Any]
OVER = {"succeeded", "failed", "stopped"}


async def order(factory: Running, *command: str, status: int = 201, token: str | None = None, **more: Any) -> Json:
    async with factory.client(token) as client:
        answer = await client.post("/tasks", json={"on": "fake", "command": command, "cores": 1} | more)
        assert answer.status_code == status, answer.text
        return dict(answer.json())


async def look(factory: Running, path: str) -> Json:
    async with factory.client() as client:
        return dict((await client.get(path)).raise_for_status().json())


async def over(factory: Running, task: Json, limit: float = 20.0) -> Json:
    def good(found: Json) -> bool:
        return found["phase"] in OVER and found["observed"] == found["generation"]

    return await eventually(lambda: look(factory, f"/tasks/{task['id']}"), good, limit)


async def phase(factory: Running, task: Json, wanted: Phase, limit: float = 15.0) -> Json:
    return await eventually(lambda: look(factory, f"/tasks/{task['id']}"), lambda t: t["phase"] == wanted, limit)


async def log(factory: Running, task: Json, **query: Any) -> list[str]:
    async with factory.client() as client:
        text = (await client.get(f"/tasks/{task['id']}/logs", params=query)).raise_for_status().text
    return [line.split(" ", 2)[2] for line in text.splitlines()]


async def nothing_held(factory: Running) -> None:
    host = await look(factory, "/hosts/h1")
    assert host["used"] == {"cores": 0, "memory": 0, "disk": 0}
    quota = await look(factory, "/quotas/main")
    assert {name: n for name, n in quota["used"].items() if n and name != "tasks"} == {}


async def test_from_order_to_end(factory: Running) -> None:
    task = await order(factory, "echo", "hello")
    assert task["phase"] == "pending" and task["name"].startswith("echo-")
    done = await over(factory, task)
    assert (done["phase"], done["status"]["code"], done["status"]["how"], done["status"]["run"]) == (
        "succeeded", 0, "exited", 1,
    )  # fmt: skip
    assert await log(factory, task) == ["hello"]
    await nothing_held(factory)
    story = (await look(factory, f"/stories/{task['id']}"))["items"]
    assert [e["kind"] for e in story] == ["task.ordered", "task.placed", "task.step", "task.succeeded"]


async def test_an_exit_code_is_told(factory: Running) -> None:
    done = await over(factory, await order(factory, "exit", "7"))
    assert (done["phase"], done["status"]["code"]) == ("failed", 7)
    assert "exit code 7" in done["status"]["message"]


async def test_what_its_stack_refuses_holds_nothing(factory: Running) -> None:
    done = await over(factory, await order(factory, "refuse"))
    assert (done["phase"], done["status"]["how"]) == ("failed", "could-not-start")
    assert "refuses" in done["status"]["message"]
    await nothing_held(factory)


async def test_it_is_stopped_and_run_again(factory: Running) -> None:
    task = await order(factory, "sleep", "600")
    await phase(factory, task, Phase.RUNNING)
    async with factory.client() as client:
        assert (await client.post(f"/tasks/{task['id']}/rerun")).status_code == 409
        assert (await client.post(f"/tasks/{task['id']}/stop")).status_code == 202
        assert (await over(factory, task))["phase"] == "stopped"
        await nothing_held(factory)
        assert (await client.post(f"/tasks/{task['id']}/rerun")).status_code == 202
        again = await phase(factory, task, Phase.RUNNING)
        assert again["status"]["run"] == 2
        assert (await client.delete(f"/tasks/{task['id']}")).status_code == 202
    await factory.gone(task["id"], "tasks")
    await nothing_held(factory)


async def test_a_time_limit(factory: Running) -> None:
    done = await over(factory, await order(factory, "sleep", "600", time_limit=0.3))
    assert (done["phase"], done["status"]["how"]) == ("failed", "time-limit")


async def test_failures_are_tried_again_as_often_as_asked(factory: Running) -> None:
    task = await order(factory, "exit", "1", restart="on-failure", retries=1)
    done = await over(factory, task)
    assert (done["phase"], done["status"]["run"], done["status"]["failures"]) == ("failed", 2, 1)
    await nothing_held(factory)


async def test_secrets_are_used_and_never_shown(factory: Running) -> None:
    task = await order(factory, "echo", "it", "is", "$KEY", secrets={"KEY": "hunter22"}, environment={"A": "b"})
    assert task["spec"]["secrets"] == {"KEY": "***"} and task["spec"]["environment"] == {"A": "b"}
    await over(factory, task)
    assert await log(factory, task) == ["it is ***"]
    async with factory.client() as client:
        for path in (f"/tasks/{task['id']}", f"/stories/{task['id']}", "/tasks", "/events"):
            assert "hunter22" not in (await client.get(path)).text
    found = await factory.factory.store.resources.get(task["id"])
    assert found is not None and "hunter22" not in repr(found.spec), "sealed at rest"


async def test_an_array_runs_so_many_at_a_time(factory: Running) -> None:
    task = await order(factory, "sleep", "0.3", indices=[0, 1, 2, 3, 7], at_once=2)
    most = 0

    async def finished() -> Json:
        nonlocal most
        parts = (await look(factory, f"/tasks/{task['id']}/parts"))["items"]
        host = await look(factory, "/hosts/h1")
        most = max(most, int(host["used"]["cores"]))
        assert [part["spec"]["index"] for part in parts] == [0, 1, 2, 3, 7]
        return await look(factory, f"/tasks/{task['id']}")

    done = await eventually(finished, lambda t: t["phase"] in OVER, 30)
    assert done["phase"] == "succeeded"
    assert most == 2
    async with factory.client() as client:
        listed = (await client.get("/tasks")).json()["items"]
        assert [t["id"] for t in listed] == [task["id"]], "parts are listed with their whole"
        part = (await look(factory, f"/tasks/{task['id']}/parts"))["items"][0]
        for verb in ("stop", "rerun"):
            assert (await client.post(f"/tasks/{part['id']}/{verb}")).status_code == 409
        assert (await client.delete(f"/tasks/{part['id']}")).status_code == 409
        assert (await client.delete(f"/tasks/{task['id']}")).status_code == 202
    await factory.gone(task["id"], "tasks")
    await factory.gone(part["id"], "tasks")
    assert (await look(factory, "/quotas/main"))["used"]["tasks"] == 0
    await nothing_held(factory)


async def test_the_log_of_an_array_is_told_part_by_part(factory: Running) -> None:
    task = await order(factory, "echo", "part", "$USINA_INDEX", indices=[0, 1, 2])
    await over(factory, task)
    assert sorted(await log(factory, task)) == ["[0] part 0", "[1] part 1", "[2] part 2"]
    assert await log(factory, task, index=1) == ["part 1"]


async def test_an_array_is_stopped_as_a_whole(factory: Running) -> None:
    task = await order(factory, "sleep", "600", indices=list(range(6)), at_once=2)
    await phase(factory, task, Phase.RUNNING)
    async with factory.client() as client:
        assert (await client.post(f"/tasks/{task['id']}/stop")).status_code == 202
    assert (await over(factory, task))["phase"] == "stopped"
    await nothing_held(factory)


async def test_a_gang_is_placed_whole_or_not_at_all(factory: Running) -> None:
    gang = await order(factory, "sleep", "600", replicas=4, cores=16)
    await phase(factory, gang, Phase.RUNNING)
    assert (await look(factory, "/hosts/h1"))["used"]["cores"] == 64
    waiting = await order(factory, "true", replicas=2, cores=1)
    found = await eventually(
        lambda: look(factory, f"/tasks/{waiting['id']}"),
        lambda t: any(c["kind"] == "Placed" and not c["ok"] for c in t["conditions"]),
    )
    assert found["phase"] == "pending"
    async with factory.client() as client:
        await client.post(f"/tasks/{gang['id']}/stop")
    assert (await over(factory, gang))["phase"] == "stopped"
    assert (await over(factory, waiting))["phase"] == "succeeded"
    await nothing_held(factory)


async def test_a_gang_ends_with_the_first_that_fails(factory: Running) -> None:
    gang = await order(factory, "exit", "3", replicas=3)
    done = await over(factory, gang)
    assert done["phase"] == "failed"
    await nothing_held(factory)


@pytest.mark.parametrize(
    ("first", "on", "phase"),
    [("0", "success", "succeeded"), ("1", "success", "failed"), ("1", "end", "succeeded")],
)
async def test_a_task_waits_for_another(factory: Running, first: str, on: str, phase: str) -> None:
    before = await order(factory, "sleep", "0.5", first, name="before")
    after = await order(factory, "true", after=[{"task": "before", "on": on}])
    ended = await over(factory, before)
    done = await over(factory, after)
    assert done["phase"] == phase
    if phase == "succeeded":
        assert done["status"]["began_at"] >= ended["status"]["ended_at"]
    await nothing_held(factory)


async def test_waiting_tasks_begin_as_room_comes_free_in_order(factory: Running) -> None:
    first = [await order(factory, "sleep", "0.4", cores=32) for _ in range(2)]
    later = [await order(factory, "sleep", "0.1", cores=64, name=f"later-{n}") for n in range(3)]
    for task in (*first, *later):
        assert (await over(factory, task, 30))["phase"] == "succeeded"
    await nothing_held(factory)


async def test_quotas_hold_for_what_runs_and_the_rest_waits(factory: Running) -> None:
    async with factory.client() as client:
        assert (await client.put("/quotas/main", json={"cores": 2, "tasks": 4})).status_code == 200
        refused = await client.post("/tasks", json={"on": "fake", "command": ["true"], "cores": 3})
        assert (refused.status_code, refused.json()["field"]) == (409, "cores")
    tasks = [await order(factory, "sleep", "0.4", cores=0.75, name=f"t{n}") for n in range(4)]
    most = 0.0

    async def finished() -> bool:
        nonlocal most
        most = max(most, (await look(factory, "/quotas/main"))["used"]["cores"])
        return all([(await look(factory, f"/tasks/{t['id']}"))["phase"] == "succeeded" for t in tasks])

    await order(factory, "true", status=409)
    await eventually(finished, lambda done: done, 30)
    assert 0.75 <= most <= 2
    await nothing_held(factory)


async def test_the_same_order_twice_is_one_task(factory: Running) -> None:
    async with factory.client() as client:
        body = {"on": "fake", "command": ["true"]}
        made = [
            (await client.post("/tasks", json=body, headers={"Idempotency-Key": "k"})).json()["id"] for _ in range(2)
        ]
        assert made[0] == made[1]


async def test_content_belongs_to_its_project(factory: Running) -> None:
    content = b"x" * 100_000
    digest = hashlib.sha256(content).hexdigest()
    async with factory.client() as client:
        assert (await client.put(f"/blobs/{'0' * 64}", content=content)).status_code == 422
        assert (await client.put(f"/blobs/{digest}", content=content)).json()["size"] == len(content)
        assert (await client.post("/blobs/known", json={"digests": [digest, "1" * 64]})).json()["items"] == [
            {"digest": digest, "size": len(content)}
        ]
        tenant = (await client.get("/tenants")).json()["items"][0]["name"]
        await client.post("/projects", json={"name": "other", "tenant": tenant})
        body = {"on": "fake", "command": ["true"], "files": [{"digest": digest, "path": "a"}]}
        assert (await client.post("/tasks", json=body | {"project": "other"})).status_code == 404
        assert (await client.post("/tasks", json=body | {"project": "main"})).status_code == 201


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"command": []}, "command"),
        ({"on": "nowhere"}, "on"),
        ({"cores": 0.0001}, "cores"),
        ({"memory": 1}, "memory"),
        ({"environment": {"1A": "x"}}, "environment"),
        ({"secrets": {"A": "x"}, "environment": {"A": "y"}}, "secrets"),
        ({"files": [{"digest": "0" * 64, "path": "../x"}]}, "files[0].path"),
        ({"outputs": ["/etc/*"]}, "outputs[0]"),
        ({"indices": [1, 1]}, "indices"),
        ({"at_once": 3}, "at_once"),
        ({"indices": [1], "replicas": 2}, "replicas"),
        ({"machine": "m"}, "machine"),
        ({"health": {"port": 1, "command": ["a"]}}, "health"),
        ({"dialect": {"Bad Key": "x"}}, "dialect"),
        ({"ports": [0]}, "ports[0]"),
        ({"command": ["a\0b"]}, "command"),
    ],
)
async def test_what_is_wrong_is_named_and_changes_nothing(factory: Running, body: Json, field: str) -> None:
    async with factory.client() as client:
        answer = await client.post("/tasks", json={"on": "fake", "command": ["true"]} | body)
        assert (answer.status_code, answer.json()["field"]) == (422, field), answer.text
        assert (await client.get("/tasks")).json()["items"] == []


async def test_a_task_no_host_could_ever_run_is_refused_with_counts(factory: Running) -> None:
    answer = await order(factory, "true", cores=65, status=409)
    assert "no host can ever hold this" in answer["detail"]


async def test_a_run_that_vanishes_is_told_and_its_place_is_free(factory: Running) -> None:
    task = await order(factory, "sleep", "600")
    await phase(factory, task, Phase.RUNNING)
    found = await look(factory, f"/tasks/{task['id']}")
    driver = await factory.factory.fleet.tasks(found["host"], "fake")
    await driver.remove(handle_of(task["id"], 1))
    done = await over(factory, task)
    assert (done["phase"], done["status"]["how"]) == ("failed", "node-failed")
    await nothing_held(factory)


async def test_a_run_that_no_task_knows_of_is_removed(factory: Running) -> None:
    driver = await factory.factory.fleet.tasks((await look(factory, "/hosts/h1"))["id"], "fake")
    handle = handle_of(factory.factory.house.ids.new("task"), 1)

    async def silent(share: float, doing: str) -> None: ...

    await driver.start(TaskPlan(handle, "prj-x", command=("sleep", "600")), silent)
    for _ in range(2):  # suspected at the first look, removed at the second
        assert handle in await driver.survey()
        await factory.factory.orphans.sweep()
    assert handle not in await driver.survey()


@pytest.mark.slow
async def test_a_host_that_is_away_keeps_its_tasks(factory: Running) -> None:
    task = await order(factory, "sleep", "3")
    found = await phase(factory, task, Phase.RUNNING)
    down: Path = factory.factory.settings.data_dir / "hosts" / found["host"] / "fake/down"
    down.touch()
    await phase(factory, task, Phase.UNREACHABLE, 20)
    down.unlink()
    assert (await over(factory, task, 30))["phase"] == "succeeded"


async def test_a_followed_log_ends_with_its_task(factory: Running) -> None:
    task = await order(factory, "echo", "hello")

    async def follow() -> list[str]:
        return await log(factory, task, follow="true")

    assert await asyncio.wait_for(follow(), 20) == ["hello"]


async def test_a_log_is_searched_by_time(factory: Running) -> None:
    task = await order(factory, "echo", "hello")
    done = await over(factory, task)
    at = int(done["status"]["ended_at"] * 1000)
    assert await log(factory, task, since=at - 1000, until=at + 1000) == ["hello"]
    assert await log(factory, task, since=at + 1000) == []
    assert await log(factory, task, until=at - 1000) == []


async def test_a_device_that_ails_is_cordoned_alone(factory: Running) -> None:
    host = await look(factory, "/hosts/h1")
    address = host["devices"][0]["address"]
    await factory.factory.fleet.tasks(host["id"], "fake")
    ailing = factory.factory.settings.data_dir / "hosts" / host["id"] / "fake/ailing"
    ailing.write_text(f"{address} it has fallen off the bus\n")
    await factory.factory.ailments.round()
    devices = (await look(factory, "/hosts/h1"))["devices"]
    assert [d["address"] for d in devices if d["cordoned"]] == [address]
    story = (await look(factory, f"/stories/{host['id']}"))["items"]
    assert any("fallen off the bus" in event["text"] for event in story)
    gpus = [{"kind": "gpu", "count": 3}]
    assert (await over(factory, await order(factory, "true", devices=gpus)))["phase"] == "succeeded"
    waiting = await order(factory, "true", devices=[{"kind": "gpu", "count": 4}])
    found = await eventually(
        lambda: look(factory, f"/tasks/{waiting['id']}"), lambda t: any(not c["ok"] for c in t["conditions"])
    )
    assert found["phase"] == "pending"


async def test_a_followed_log_ends_with_its_key(factory: Running) -> None:
    task = await order(factory, "sleep", "600")
    await phase(factory, task, Phase.RUNNING)
    async with factory.client() as client:
        key = (await client.post("/keys", json={"name": "short"})).json()

        async def follow() -> int:
            async with factory.client(key["token"]) as mine:
                return (await mine.get(f"/tasks/{task['id']}/logs", params={"follow": "true"})).status_code

        following = asyncio.create_task(follow())
        await eventually(lambda: client.get(f"/keys/{key['id']}"), lambda answer: answer.json()["last_used_at"])
        assert not following.done()
        assert (await client.delete(f"/keys/{key['id']}")).status_code in (200, 204)
        assert await asyncio.wait_for(following, 20) == 200


@pytest.mark.slow
async def test_what_cannot_be_finished_now_is_finished_later(factory: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often it fails: a task that is over must not hold its place for ever."""
    tries = 0
    whole = FakeTasks.log

    async def failing(self: FakeTasks, handle: str, after: int, limit: int) -> LogPiece:
        nonlocal tries
        tries += 1
        if tries <= GIVE_UP + 1:
            raise RuntimeError("broken")
        return await whole(self, handle, after, limit)

    monkeypatch.setattr(FakeTasks, "log", failing)
    monkeypatch.setattr("usina.engine.reconcile.pause", lambda attempts: 0.05)
    assert (await over(factory, await order(factory, "echo", "hello"), 30))["phase"] == "succeeded"
    assert tries > GIVE_UP
    await nothing_held(factory)
