"""The control plane killed by SIGKILL at every boundary between a deed and its record, on a pretended host.

The host is files that outlive the process, as a real host would. After a restart the wish is fulfilled exactly once:
one guest, one claim, one address, the quota counted once; and after deletion nothing is left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest

from usina.drivers.fake.world import World
from usina.testing.nursery import Nursery
from usina.testing.process import FactoryProcess, Refused
from usina.testing.waiting import until

pytestmark = pytest.mark.slow

Json = dict[str, Any]
MiB = 1 << 20


@pytest.fixture
def factory(tmp_path: Path, nursery: Nursery) -> Iterator[FactoryProcess]:
    with FactoryProcess(tmp_path / "data", local_host=False, nursery=nursery).start() as process:
        process.call("POST", "/hosts", {"name": "h1", "driver": "fake"})
        process.call("POST", "/images", {"name": "tiny", "recipe": "tiny"})
        process.phase("/images/tiny", "ready", limit=90)
        yield process


def attempt(factory: FactoryProcess, method: str, path: str, body: Json | None = None, key: str = "") -> None:
    """Ask, whatever becomes of the answer: the process may die before it gives one."""
    try:
        factory.call(method, path, body, key=key)
    except httpx2.TransportError:
        return
    except Refused as refused:
        assert refused.status in (404, 409), refused


def again(factory: FactoryProcess, fault: str, wish: Callable[[], None]) -> None:
    """Start with a fault, make the wish, see the process die there, start without it and make the wish again."""
    factory.stop()
    factory.start(fault)
    wish()
    factory.died()
    factory.start()
    wish()


def world(factory: FactoryProcess) -> list[Json]:
    """The guests that stand on the pretended host."""
    [host] = factory.data_dir.glob("hosts/*/fake")
    with closing(World(host)) as opened:
        return [msgspec.to_builtins(guest) for _, guest in sorted(opened.all().items())]


def exactly_one(factory: FactoryProcess) -> Json:
    """One running guest, held once and counted once."""
    machine = factory.phase("/machines/m1", "running")
    [guest] = world(factory)
    assert (guest["handle"], guest["power"]) == (machine["id"], "on")
    claims = [c for c in factory.call("GET", "/hosts/h1/claims")["items"] if c["cores"]]
    assert [c["resource"] for c in claims] == [machine["id"]]
    host = factory.call("GET", "/hosts/h1")
    assert (host["used"]["cores"], host["used"]["memory"]) == (machine["spec"]["cores"], machine["spec"]["memory"])
    used = factory.call("GET", "/quotas/main")["used"]
    assert (used["machines"], used["cores"]) == (1, machine["spec"]["cores"])
    return guest


def nothing_left(factory: FactoryProcess) -> None:
    factory.gone("/machines/m1")
    assert world(factory) == []
    assert not any(factory.call("GET", "/hosts/h1")["used"].values())
    assert not any(factory.call("GET", "/quotas/main")["used"].values())
    with pytest.raises(Refused):
        factory.call("GET", "/forwards/f1")
    assert not [c for c in factory.call("GET", "/hosts/h1/claims")["items"] if c["cores"]]


ORDER = {"name": "m1", "image": "tiny", "memory": 64 * MiB, "disk": 16 * MiB}


def order(factory: FactoryProcess) -> None:
    attempt(factory, "POST", "/machines", ORDER, key="once")


POINTS = ["before:Place", "after:Place", "before:Define", "after:Define", "before:Start", "after:Start",
          "before:Record", "after:Record"]  # fmt: skip


@pytest.mark.parametrize("point", POINTS)
def test_ordering(factory: FactoryProcess, point: str) -> None:
    again(factory, f"{point}:1", lambda: order(factory))
    assert exactly_one(factory)["starts"] == 1


@pytest.mark.parametrize("point", ["before:Remove", "after:Remove", "before:Forget", "after:Forget"])
def test_deleting(factory: FactoryProcess, point: str) -> None:
    order(factory)
    exactly_one(factory)
    again(factory, f"{point}:1", lambda: attempt(factory, "DELETE", "/machines/m1"))
    nothing_left(factory)


def change(factory: FactoryProcess, method: str, path: str, body: Json | None = None) -> None:
    """A wish that counts its deeds: asked once only, as the first asking was recorded before the death."""
    if not getattr(factory, "asked", False):
        factory.asked = True  # type: ignore[attr-defined]
        attempt(factory, method, path, body)


CHANGES: list[tuple[str, str, str, Json | None, Callable[[Json], bool]]] = [
    ("Reboot", "POST", "/machines/m1/reboot", None, lambda g: g["marks"] == {"reboots": 1} and g["starts"] == 2),
    ("Rebuild", "POST", "/machines/m1/rebuild", {}, lambda g: g["marks"] == {"rebuilds": 1}),
    ("Snapshot", "POST", "/machines/m1/snapshots", {"name": "s1"}, lambda g: g["snapshots"] == ["s1"]),
    ("AttachVolume", "POST", "/machines/m1/volumes", {"volume": "v1"}, lambda g: len(g["volumes"]) == 1),
    ("AttachInterface", "POST", "/machines/m1/interfaces", {"network": "n2"}, lambda g: len(g["macs"]) == 2),
    ("Place", "PATCH", "/machines/m1", {"cores": 2}, lambda g: g["cores"] == 2),
    ("Stop", "PATCH", "/machines/m1", {"cores": 2}, lambda g: g["cores"] == 2),
    ("Define", "PATCH", "/machines/m1", {"cores": 2}, lambda g: g["cores"] == 2),
]


@pytest.mark.parametrize("side", ["before", "after"])
@pytest.mark.parametrize(("step", "method", "path", "body", "good"), CHANGES)
def test_changing(
    factory: FactoryProcess,
    side: str,
    step: str,
    method: str,
    path: str,
    body: Json | None,
    good: Callable[[Json], bool],
) -> None:
    factory.call("POST", "/volumes", {"name": "v1", "size": MiB})
    factory.phase("/volumes/v1", "ready")
    factory.call("POST", "/networks", {"name": "n2"})
    order(factory)
    exactly_one(factory)
    again(factory, f"{side}:{step}:1", lambda: change(factory, method, path, body))
    assert good(exactly_one(factory))
    factory.call("DELETE", "/machines/m1")
    nothing_left_but_the_volume(factory)


def nothing_left_but_the_volume(factory: FactoryProcess) -> None:
    factory.gone("/machines/m1")
    assert world(factory) == []
    assert factory.call("GET", "/hosts/h1")["used"] == {"cores": 0, "memory": 0, "disk": MiB}
    for path in ("/volumes/v1", "/networks/n2"):
        factory.call("DELETE", path)
        factory.gone(path)
    assert not any(factory.call("GET", "/quotas/main")["used"].values())


def test_killed_in_the_middle_of_a_burst(factory: FactoryProcess) -> None:
    """Fifty machines ordered; killed three times on the way; fifty stand in the end, each started once."""
    names = [f"b{number}" for number in range(50)]
    factory.stop()
    for ordered, fault in ((16, "after:Define:7"), (32, "after:Start:11"), (50, "after:Place:3")):
        factory.start(fault)  # reached by those that are new alone, however far the others have come
        for name in names[:ordered]:
            if factory.alive:
                attempt(factory, "POST", "/machines", ORDER | {"name": name}, key=name)
        factory.died()
    factory.start()
    for name in names:
        attempt(factory, "POST", "/machines", ORDER | {"name": name}, key=name)

    def running() -> int:
        return len(factory.call("GET", "/machines", phase="running", limit=1000)["items"])

    until(running, lambda count: count == 50, limit=60)
    guests = world(factory)
    assert len(guests) == 50
    assert {guest["starts"] for guest in guests} == {1}
    addresses = [m["spec"]["interfaces"][0]["address"] for m in factory.call("GET", "/machines", limit=1000)["items"]]
    assert len(set(addresses)) == 50
    assert factory.call("GET", "/quotas/main")["used"]["machines"] == 50
    assert factory.call("GET", "/hosts/h1")["used"]["cores"] == 50
