"""A factory killed at every boundary of ordering and deleting real things, and started again.

The client does what clients do: it repeats its order with the same idempotency key. Whatever the instant of death, one
of everything comes to be, and after the deletion nothing is left. Guests need not boot for that.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import httpx2
import pytest

from usina.drivers.libvirt import names
from usina.drivers.libvirt.daemon import ensure_local_daemon
from usina.testing.nursery import Nursery
from usina.testing.process import FactoryProcess, Json
from usina.testing.traces import kinds, traces
from usina.testing.waiting import until

pytestmark = [
    pytest.mark.real,
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="qemu:///system wants root"),
]

MiB = 1 << 20
Answer = TypeVar("Answer")

# In the order in which they are passed: the volume is placed and applied, the network applied, the machine made.
# A point before a step is the same instant as the one after the step before it: one of the two stands for both.
ORDERING = [
    "before:Place:1",
    "after:Place:1",
    "after:Apply:1",
    "after:Record:1",
    "before:Record:2",
    "before:Place:2",
    "after:Place:2",
    "after:ensure_image:1",
    "after:ensure_network:1",
    "after:Define:1",
    "after:Start:1",
    "after:Record:3",
]
# The machine goes, then the volume, then the network.
DELETING = [
    "before:Remove:1",
    "after:Remove:1",
    "after:Forget:1",
    "before:Remove:2",
    "after:Remove:2",
    "after:Forget:2",
    "before:Remove:3",
    "after:Remove:3",
    "before:Forget:3",
    "after:Forget:3",
]
CASES = [(point, DELETING[number % len(DELETING)]) for number, point in enumerate(ORDERING)]


@dataclass
class Site:
    """One factory for all cases; each case leaves it as it was."""

    factory: FactoryProcess
    project: str
    host: str
    cases: int = 0
    clean: bool = True

    def fresh(self) -> str:
        """A name for the next case, which finds nothing of one that failed."""
        if not self.clean:
            if self.factory.alive:
                self.factory.kill()
            self.factory.start().empty()
        self.cases, self.clean = self.cases + 1, False
        return f"c{self.cases}"

    def through_death(self, deed: Callable[[], Answer], then: str = "") -> Answer:
        """Do `deed` on a factory that dies meanwhile, and again on the one started after it."""
        with suppress(httpx2.TransportError):  # or it passes the point after the last answer that the client waits for
            deed()
        self.factory.died()
        self.factory.start(then)
        return deed()

    def order(self, name: str, key: str) -> dict[str, str]:
        """A volume, a network and a machine that uses both; returns when the machine runs."""
        call, project = self.factory.call, self.project
        volume = call(
            "POST", "/volumes", {"name": name, "size": MiB, "project": project, "host": self.host}, key=f"{key}v"
        )
        self.factory.phase(f"/volumes/{volume['id']}", "ready")
        network = call("POST", "/networks", {"name": name, "project": project}, key=f"{key}n")
        self.factory.phase(f"/networks/{network['id']}", "ready")
        wish = {
            "name": name,
            "image": "tiny",
            "project": project,
            "memory": 128 * MiB,
            "disk": 16 * MiB,
            "interfaces": [{"network": name}],
            "volumes": [name],
        }
        machine = call("POST", "/machines", wish, key=f"{key}m")
        self.factory.phase(f"/machines/{machine['id']}", "running")
        return {"machine": machine["id"], "volume": volume["id"], "network": network["id"]}

    def delete(self, ids: dict[str, str]) -> None:
        """What is gone already, is: a client that repeats its request learns so."""
        for kind, id in ids.items():
            until(partial(self.factory.delete, f"/{kind}s/{id}"))
            self.factory.gone(f"/{kind}s/{id}")

    def rows(self, query: str, *values: str) -> list[tuple[object, ...]]:
        """Straight from the database: what no door shows."""
        database = sqlite3.connect(f"file:{self.factory.data_dir}/usina.db?mode=ro", uri=True)
        try:
            return database.execute(query, values).fetchall()
        finally:
            database.close()

    def claims(self) -> dict[str, Json]:
        return {one["resource"]: one for one in self.factory.call("GET", f"/hosts/{self.host}/claims")["items"]}

    def used(self) -> Json:
        return dict(self.factory.call("GET", f"/quotas/{self.project}")["used"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    ensure_local_daemon()
    with Nursery() as nursery:
        yield from found(tmp_path_factory.mktemp("crash"), nursery)


def found(folder: Path, nursery: Nursery) -> Iterator[Site]:
    factory = FactoryProcess(folder / "factory", local_host=False, nursery=nursery).start()
    # Emulation by name: looking whether KVM works takes seconds at each of the many starts.
    host = {"name": "local", "driver": "libvirt", "options": {"accelerator": "tcg"}}
    host_id = factory.call("POST", "/hosts", host)["id"]
    tenant = factory.call("POST", "/tenants", {"name": "crash"})["id"]
    project = factory.call("POST", "/projects", {"tenant": tenant, "name": "crash"})["id"]
    image = factory.call("POST", "/images", {"name": "tiny", "recipe": "tiny", "project": project})["id"]
    factory.phase(f"/images/{image}", "ready", limit=300)
    for kind in ("networks", "security-groups"):
        until(lambda kind=kind: settled(factory, kind))
    yield Site(factory, project, host_id)
    if factory.alive:  # a case that failed may have left its fault armed
        factory.kill()
    factory.start().wipe()
    id = factory.id
    factory.stop()
    assert traces(id, factory.made) == set()


def settled(factory: FactoryProcess, kind: str) -> bool:
    return all(one["phase"] == "ready" for one in factory.call("GET", f"/{kind}")["items"])


@pytest.mark.parametrize(("ordering", "deleting"), CASES, ids=[f"{one}-{other}" for one, other in CASES])
def test_one_of_everything_and_then_nothing(site: Site, ordering: str, deleting: str) -> None:
    name = site.fresh()
    before = site.used()
    site.factory.stop()
    site.factory.start(ordering)

    ids = site.through_death(lambda: site.order(name, f"{name}-"), then=deleting)

    exactly_one(site, ids, name, before)
    site.through_death(lambda: site.delete(ids))
    nothing_left(site, ids, before)
    site.clean = True


def exactly_one(site: Site, ids: dict[str, str], name: str, before: Json) -> None:
    factory, machine = site.factory, ids["machine"]
    assert kinds(factory.id, "domain") == [machine]
    assert factory.call("GET", "/machines")["items"][0]["id"] == machine
    assert len(factory.call("GET", "/machines")["items"]) == 1
    pool = Path(f"/var/lib/usina/{factory.id}-{site.host}")
    assert [path.name for path in pool.glob("root-*")] == [names.root_disk(machine)]
    assert [path.name for path in pool.glob("volume-*")] == [names.volume(ids["volume"])]
    assert kinds(factory.id, "network") == [names.network(factory.id, ids["network"])]
    claims = site.claims()
    sizes = {id: (claims[id]["cores"], claims[id]["memory"], claims[id]["disk"]) for id in claims}
    assert sizes.pop(machine) == (1, 128 * MiB, 16 * MiB)
    assert sizes.pop(ids["volume"]) == (0, 0, MiB)
    assert set(sizes.values()) <= {(0, 0, 0)}  # images and networks are merely present
    host = factory.call("GET", f"/hosts/{site.host}")["used"]
    assert host == {"cores": 1, "memory": 128 * MiB, "disk": 17 * MiB}
    used = site.used()
    grown = {measure: used[measure] - before[measure] for measure in used}
    assert grown == {
        "machines": 1,
        "cores": 1,
        "memory": 128 * MiB,
        "disk": 17 * MiB,
        "gpus": 0,
        "addresses": 0,
        "tasks": 0,
    }
    address = factory.call("GET", f"/machines/{machine}")["spec"]["interfaces"][0]["address"]
    assert site.rows("SELECT key, owner FROM reservations WHERE scope = ?", f"use:{ids['network']}") == [
        (address, machine)
    ]
    story = factory.story(machine)
    assert sum("machine.running" in line for line in story) == 1, story


def nothing_left(site: Site, ids: dict[str, str], before: Json) -> None:
    assert site.used() == before
    assert site.factory.call("GET", f"/hosts/{site.host}")["used"] == {"cores": 0, "memory": 0, "disk": 0}
    assert not set(ids.values()) & set(site.claims())
    for id in ids.values():
        assert not site.rows("SELECT scope FROM reservations WHERE owner = ? OR scope = ?", id, f"use:{id}")
        assert not site.rows("SELECT id FROM resources WHERE id = ?", id)
    assert kinds(site.factory.id, "domain") == []
    assert kinds(site.factory.id, "network") == []
    assert traces("no-such-factory", ids.values()) == set()  # no file is named after any of them
