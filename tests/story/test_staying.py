"""What stays: a factory stopped and started again keeps everything; two control planes share one database."""

from __future__ import annotations

import json
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from usina.core.capacity import Claim
from usina.drivers.fake.world import World
from usina.placement.simulate import hosts_of
from usina.testing import postgres
from usina.testing.process import FactoryProcess, Json
from usina.testing.replay import violations
from usina.testing.waiting import until

pytestmark = pytest.mark.slow

MiB = 1 << 20
SMALL = {"image": "tiny", "memory": 64 * MiB, "disk": 16 * MiB}
# Four cores and a GPU of its own, all on one NUMA node: claims that name everything.
EXACT = SMALL | {"cores": 4, "pinned": True, "numa": "strict", "devices": [{"kind": "gpu", "count": 1}]}


def test_a_factory_started_again_keeps_everything(tmp_path: Path) -> None:
    with FactoryProcess(tmp_path / "data", local_host=False).start() as factory:
        factory.call("POST", "/hosts", {"name": "h1", "driver": "fake"})
        factory.call("POST", "/images", {"name": "tiny", "recipe": "tiny"})
        factory.phase("/images/tiny", "ready", limit=90)
        factory.call("POST", "/machines", {"name": "m1"} | SMALL)
        before = factory.phase("/machines/m1", "running")
        story = factory.story("m1")
        token = factory.token
        factory.stop()
        factory.start()
        assert factory.token == token
        after = factory.phase("/machines/m1", "running")
        assert {k: after[k] for k in ("id", "spec", "host")} == {k: before[k] for k in ("id", "spec", "host")}
        assert factory.story("m1") == story
        factory.call("DELETE", "/machines/m1")
        factory.gone("/machines/m1")
        assert (factory.data_dir / "admin.json").stat().st_mode & 0o777 == 0o600
        assert (factory.data_dir / "master.key").stat().st_mode & 0o777 == 0o600


def test_a_second_process_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    from usina.core.errors import Unavailable
    from usina.server.run import run
    from usina.server.settings import Settings

    with (
        FactoryProcess(tmp_path / "data", local_host=False).start(),
        pytest.raises(Unavailable, match="another factory"),
    ):
        run(Settings(tmp_path / "data", port=postgres.free_port()), lambda settings, admin: None)


@pytest.mark.timeout(110)
def test_two_control_planes_on_one_postgresql_share_the_work(tmp_path: Path, postgres_server: str) -> None:
    """A hundred parallel orders through both doors; then one dies and the other finishes what it had begun."""
    with postgres.database(postgres_server) as url:
        first = FactoryProcess(tmp_path / "one", local_host=False, database=url).start()
        (tmp_path / "two").mkdir()
        for name in ("master.key", "admin.json"):  # what every control plane of a site is given
            (tmp_path / "two" / name).write_bytes((tmp_path / "one" / name).read_bytes())
        second = FactoryProcess(tmp_path / "two", local_host=False, database=url).start()
        try:
            share(first, second, tmp_path)
        finally:
            for process in (first, second):
                if process.alive:
                    process.stop()


def share(first: FactoryProcess, second: FactoryProcess, tmp_path: Path) -> None:
    # Room for exactly 100 guests of four cores and a GPU on ten hosts, so that any double claim would show.
    for number in range(10):
        options = {"cores": 40, "numa_nodes": 2, "gpus": 10, "dir": str(tmp_path / f"h{number}")}
        first.call("POST", "/hosts", {"name": f"h{number}", "driver": "fake", "options": options})
    first.call("POST", "/images", {"name": "tiny", "recipe": "tiny"})
    second.phase("/images/tiny", "ready", limit=90)
    order_in_parallel((first, second), [f"m{n}" for n in range(60)])
    machines = until(lambda: running(second), lambda found: len(found) == 60, limit=60)
    placed = replay(first)
    assert Counter(m["host"] for m in machines) == Counter(placed.values())
    first.kill()
    order_in_parallel((second,), [f"n{n}" for n in range(40)])
    machines = until(lambda: running(second), lambda found: len(found) == 100, limit=60)
    assert set(replay(second).values()) == {m["host"] for m in machines}
    assert all(count == 10 for count in Counter(replay(second).values()).values())
    second.call("POST", "/machines", {"name": "one-too-many"} | EXACT)
    told = until(lambda: refusal(second, "one-too-many"))
    assert told == "10 hosts: 10 lack a free gpu; the nearest: 0 of 1 gpu free; 4 cores short"
    worlds = [World(tmp_path / f"h{n}") for n in range(10)]
    assert sum(len(world.all()) for world in worlds) == 100
    for world in worlds:
        world.close()


def order_in_parallel(doors: tuple[FactoryProcess, ...], names: list[str]) -> None:
    refused: list[Exception] = []

    def order(door: FactoryProcess, mine: list[str]) -> None:
        try:
            for name in mine:
                door.call("POST", "/machines", {"name": name} | EXACT)
        except Exception as error:
            refused.append(error)

    lanes = [(door, names[n :: len(doors) * 4]) for n, door in enumerate(doors * 4)]
    threads = [threading.Thread(target=order, args=lane) for lane in lanes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not refused


def running(door: FactoryProcess) -> list[Json]:
    return list(door.call("GET", "/machines", phase="running", limit=1000)["items"])


def refusal(door: FactoryProcess, name: str) -> str:
    conditions: list[dict[str, Any]] = door.call("GET", f"/machines/{name}")["conditions"]
    return next((c["message"] for c in conditions if c["kind"] == "Placed" and not c["ok"]), "")


def replay(door: FactoryProcess) -> dict[str, str]:
    """Every claim again from nothing: no CPU, GPU or byte is held twice. Resource → host."""
    placed: dict[str, str] = {}
    for host in hosts_of(json.dumps(door.call("GET", "/placement/hosts"))):
        held = [c for c in door.call("GET", f"/hosts/{host.id}/claims")["items"] if c["cores"]]
        assert host.used_cores == 4 * len(held)
        placed |= {claim["resource"]: host.id for claim in held}
        assert violations(host, [claim_of(host.id, claim) for claim in held]) == []
        assert all(len(claim["cpus"]) == 4 and len(claim["devices"]) == 1 for claim in held)
    assert len(placed) == sum(host["used"]["cores"] for host in door.call("GET", "/hosts")["items"]) // 4
    return placed


def claim_of(host: str, held: Json) -> Claim:
    named = {name: tuple(held[name]) for name in ("cpus", "nodes", "devices")}
    return Claim(host, held["cores"], held["memory"], held["disk"], hugepage=held["hugepage"], **named)
