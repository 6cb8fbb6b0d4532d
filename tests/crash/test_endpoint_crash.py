"""The control plane killed by SIGKILL at every boundary of an endpoint's life, on a pretended stack that outlives it.

After a restart there are as many replicas as are wanted, each begun once; and nothing is left of an endpoint that went.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pretended_stack import attempt, left, starts

from usina.testing.nursery import Nursery
from usina.testing.process import FactoryProcess
from usina.testing.waiting import until

pytestmark = pytest.mark.slow

Json = dict[str, Any]
ORDER = {"name": "chat", "model": "tiny", "runtime": "pretended", "minimum": 2, "maximum": 2, "drain": 0}


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    """With a pretended runtime, as a package of somebody else's would bring it."""
    info = tmp_path_factory.mktemp("plugins") / "pretended-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: pretended\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[usina.runtimes]\npretended = usina.testing.runtimes:PRETENDED\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(info.parent))
        with Nursery() as nursery:
            yield nursery


def ready(factory: FactoryProcess, number: int = 2) -> Json:
    """Wait until it is as it was wished, with so many replicas."""

    def good(found: Json) -> bool:
        states = [replica["state"] for replica in found["status"]["replicas"]]
        return found["observed"] == found["generation"] and states == ["ready"] * number

    return dict(until(lambda: factory.call("GET", "/endpoints/chat"), good, 60))


def standing(factory: FactoryProcess, endpoint: Json) -> None:
    """Its replicas are all that runs, and all that counts."""
    handles = {replica["handle"] for replica in endpoint["status"]["replicas"]}
    until(lambda: left(factory) == handles, limit=60)
    assert factory.call("GET", "/quotas/main")["used"]["tasks"] == len(handles)
    assert factory.call("GET", "/hosts/h1")["used"]["cores"] == len(handles)


POINTS = ["before:Scale", "after:Scale", "before:AddReplicas", "after:AddReplicas", "after:Place", "after:Start",
          "before:Record", "after:Record"]  # fmt: skip


@pytest.mark.parametrize("point", POINTS)
def test_it_comes_up_with_as_many_as_are_wanted(factory: FactoryProcess, point: str) -> None:
    factory.stop()
    factory.start(f"{point}:1")
    attempt(factory, "POST", "/endpoints", ORDER)
    factory.died()
    factory.start()
    attempt(factory, "POST", "/endpoints", ORDER)
    endpoint = ready(factory)
    assert set(starts(factory).values()) == {1}
    standing(factory, endpoint)


@pytest.mark.parametrize(
    "point", ["before:drained", "after:DrainReplicas", "before:DropReplicas", "after:DropReplicas"]
)
def test_a_change_ends_with_the_new_ones_only(factory: FactoryProcess, point: str) -> None:
    factory.call("POST", "/endpoints", ORDER)
    before = ready(factory)
    factory.stop()
    factory.start(f"{point}:1")
    attempt(factory, "PATCH", "/endpoints/chat", {"options": {"note": "other"}})
    factory.died()
    factory.start()
    attempt(factory, "PATCH", "/endpoints/chat", {"options": {"note": "other"}})
    mark = factory.call("GET", "/endpoints/chat")["spec"]["recipe"]["mark"]
    assert mark != before["spec"]["recipe"]["mark"]
    endpoint = ready(factory)
    assert not {r["id"] for r in endpoint["status"]["replicas"]} & {r["id"] for r in before["status"]["replicas"]}
    standing(factory, endpoint)


@pytest.mark.parametrize("point", ["before:CountFailures", "after:CountFailures"])
def test_a_failure_is_counted_once_and_replaced(factory: FactoryProcess, point: str) -> None:
    factory.stop()
    factory.start(f"{point}:1")
    order = ORDER | {"minimum": 1, "maximum": 1, "options": {"command": "sleep 1 3"}}
    attempt(factory, "POST", "/endpoints", order)
    factory.died()
    factory.start()
    attempt(factory, "POST", "/endpoints", order)
    until(lambda: factory.call("GET", "/endpoints/chat"), lambda e: e["status"]["failures"] >= 2, 60)
    assert set(starts(factory).values()) == {1}
    kept = [t for t in factory.call("GET", "/endpoints/chat/replicas")["items"] if t["phase"] == "failed"]
    assert len(kept) <= 2  # the last one, and one that is just going


@pytest.mark.parametrize("point", ["before:DropReplicas", "after:DropReplicas", "before:Forget", "after:Forget"])
def test_deleting_leaves_nothing(factory: FactoryProcess, point: str) -> None:
    factory.call("POST", "/endpoints", ORDER)
    ready(factory)
    factory.stop()
    factory.start(f"{point}:1")
    attempt(factory, "DELETE", "/endpoints/chat")
    factory.died()
    factory.start()
    attempt(factory, "DELETE", "/endpoints/chat")
    factory.gone("/endpoints/chat")
    until(lambda: left(factory) == set(), limit=60)
    used = factory.call("GET", "/quotas/main")["used"]
    assert not any(used.values()), used
    assert not any(factory.call("GET", "/hosts/h1")["used"].values())
