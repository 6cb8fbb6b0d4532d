"""The control plane killed by SIGKILL at every boundary of a task's life, on a pretended stack that outlives it.

After a restart each task has run exactly once, holds nothing, and nothing of it is left on the stack.
"""

from __future__ import annotations

from typing import Any

import pytest
from pretended_stack import attempt, left, starts

from usina.testing.process import FactoryProcess
from usina.testing.waiting import until

pytestmark = pytest.mark.slow

Json = dict[str, Any]


def crash(factory: FactoryProcess, fault: str, body: Json) -> None:
    """Order with a fault, see the process die there, start without it and order again."""
    factory.stop()
    factory.start(fault)
    attempt(factory, "POST", "/tasks", body)
    factory.died()
    factory.start()
    attempt(factory, "POST", "/tasks", body)


def nothing_held(factory: FactoryProcess) -> None:
    assert not any(factory.call("GET", "/hosts/h1")["used"].values())
    used = factory.call("GET", "/quotas/main")["used"]
    assert {name: n for name, n in used.items() if n and name != "tasks"} == {}


POINTS = ["before:Place", "after:Place", "after:plan", "before:Start", "after:Start", "before:Record", "after:Record",
          "before:Finish", "after:Finish"]  # fmt: skip


@pytest.mark.parametrize("point", POINTS)
def test_a_task_runs_exactly_once(factory: FactoryProcess, point: str) -> None:
    crash(factory, f"{point}:1", {"name": "t1", "on": "fake", "command": ["sleep", "0.5"]})
    task = factory.phase("/tasks/t1", "succeeded")
    assert starts(factory) == {task["id"]: 1}
    assert task["status"]["run"] == 1
    nothing_held(factory)
    until(lambda: not left(factory), limit=60)


@pytest.mark.parametrize("point", ["before:PlaceTogether", "after:PlaceTogether", "before:Admit", "after:Admit"])
@pytest.mark.parametrize("number", [1, 2])
def test_a_gang_and_an_array_run_exactly_once(factory: FactoryProcess, point: str, number: int) -> None:
    many = {"replicas": 3} if "Together" in point else {"indices": [0, 1, 2], "at_once": 2}
    if "Together" in point and number == 2:
        point = "after:Start"
    crash(factory, f"{point}:{number}", {"name": "t1", "on": "fake", "command": ["sleep", "0.5"], **many})
    factory.phase("/tasks/t1", "succeeded")
    assert sorted(starts(factory).values()) == [1, 1, 1]
    nothing_held(factory)
    until(lambda: not left(factory), limit=60)


@pytest.mark.parametrize("point", ["before:Again", "after:Again", "after:Start"])
def test_a_restart_is_counted_once(factory: FactoryProcess, point: str) -> None:
    body = {"name": "t1", "on": "fake", "command": ["exit", "1"], "restart": "on-failure", "retries": 1}
    crash(factory, f"{point}:{2 if point == 'after:Start' else 1}", body)
    task = factory.phase("/tasks/t1", "failed")
    assert task["status"]["run"] == 2
    assert starts(factory) == {task["id"]: 2}
    nothing_held(factory)
    until(lambda: not left(factory), limit=60)


@pytest.mark.parametrize("point", ["before:Stop", "after:Stop"])
def test_stopping(factory: FactoryProcess, point: str) -> None:
    factory.call("POST", "/tasks", {"name": "t1", "on": "fake", "command": ["sleep", "600"]})
    factory.phase("/tasks/t1", "running")
    factory.stop()
    factory.start(f"{point}:1")
    attempt(factory, "POST", "/tasks/t1/stop")
    factory.died()
    factory.start()
    factory.phase("/tasks/t1", "stopped")
    nothing_held(factory)


@pytest.mark.parametrize("point", ["before:Remove", "after:Remove", "before:Forget", "after:Forget"])
def test_deleting(factory: FactoryProcess, point: str) -> None:
    factory.call("POST", "/tasks", {"name": "t1", "on": "fake", "command": ["sleep", "600"]})
    factory.phase("/tasks/t1", "running")
    factory.stop()
    factory.start(f"{point}:1")
    attempt(factory, "DELETE", "/tasks/t1")
    factory.died()
    factory.start()
    attempt(factory, "DELETE", "/tasks/t1")
    factory.gone("/tasks/t1")
    assert left(factory) == set()
    nothing_held(factory)
    assert factory.call("GET", "/quotas/main")["used"]["tasks"] == 0


FOLDER = {"name": "data", "size": 1 << 30, "form": "folder", "project": "main"}


@pytest.mark.parametrize("point", ["before:Apply", "after:Apply", "before:Remove", "after:Remove", "after:Forget"])
def test_a_volume_is_made_and_removed(factory: FactoryProcess, point: str) -> None:
    making = point.endswith("Apply")
    if not making:
        factory.call("POST", "/volumes", FOLDER)
        factory.phase("/volumes/data", "ready")
    factory.stop()
    factory.start(f"{point}:1")
    attempt(factory, *(("POST", "/volumes", FOLDER) if making else ("DELETE", "/volumes/data")))
    factory.died()
    factory.start()
    if making:
        factory.phase("/volumes/data", "ready")
        factory.call("DELETE", "/volumes/data")
    until(lambda: not factory.call("GET", "/volumes")["items"])
    assert not list(factory.data_dir.glob("hosts/*/fake/volumes/*"))
    nothing_held(factory)


@pytest.mark.parametrize("point", ["after:Place", "after:Start", "before:Finish", "after:Finish"])
@pytest.mark.parametrize("many", [{}, {"indices": [0, 1]}], ids=["one", "array"])
def test_a_volume_is_free_when_its_task_is_over(factory: FactoryProcess, point: str, many: Json) -> None:
    volume = factory.call("POST", "/volumes", FOLDER)
    factory.phase("/volumes/data", "ready")
    held = {"volumes": [{"volume": volume["id"], "path": "/data"}]}
    crash(factory, f"{point}:1", {"name": "t1", "on": "fake", "command": ["sleep", "0.5"], **held, **many})
    factory.phase("/tasks/t1", "succeeded")
    factory.call("DELETE", "/volumes/data")
    until(lambda: not factory.call("GET", "/volumes")["items"])
    nothing_held(factory)
