"""Machines, measured: how long a guest takes, how many are ordered and run per second, how fast they are read.

`./dev bench machines` runs all of it; ``--only guest``, ``burst``, ``operators`` or ``reads`` one part. Ends with
status 1 when a target is missed. Figures mean something only on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench._plain import PATIENCE, POLL, PlainGuest
from usina.drivers.libvirt.daemon import ensure_local_daemon
from usina.testing import postgres
from usina.testing.inside import banner, ssh, ssh_key, tunnel
from usina.testing.process import FactoryProcess, factory_process, idle_share, resident
from usina.testing.waiting import until

Json = dict[str, Any]
MiB = 1 << 20
HOSTS = 100
CLIENTS = 8
BATCH = 100
IMAGES = ("tiny", "debian-12")
OPENNEBULA_1000 = 123.0  # seconds for 1,000 VMs, OpenNebula 7.4 tuned: a figure to compare with, measured elsewhere
OPENNEBULA_ORDERS = 4 * 115.0  # its orders per second, times four


@dataclass(frozen=True)
class Figure:
    """One line of the result. `target` is checked by `good`."""

    name: str
    value: str
    target: str = ""
    good: bool | None = None


@dataclass
class Bench:
    count: int
    rounds: int
    idle: float
    images: tuple[str, ...]
    figures: list[Figure] = field(default_factory=list)

    def add(self, name: str, value: str, target: str = "", good: bool | None = None) -> None:
        self.figures.append(Figure(name, value, target, good))
        print(f"  {name}: {value}" + (f"  (target {target})" if target else ""), file=sys.stderr, flush=True)

    def at_most(self, name: str, value: float, limit: float, unit: str, digits: int = 2) -> None:
        self.add(name, f"{value:.{digits}f} {unit}".strip(), f"<= {limit:g} {unit}".strip(), value <= limit)

    def at_least(self, name: str, value: float, limit: float, unit: str) -> None:
        self.add(name, f"{value:,.0f} {unit}", f">= {limit:g} {unit}", value >= limit)


# --- a guest, beside the same guest without us


def guest(bench: Bench) -> None:
    ensure_local_daemon()
    with tempfile.TemporaryDirectory(prefix="usina-bench-") as folder, factory_process(Path(folder) / "f") as factory:
        os.chmod(folder, 0o711)
        key = ssh_key(Path(folder))
        try:
            for recipe in bench.images:
                _guest_of(bench, factory, recipe, key)
        finally:
            factory.wipe()


def _guest_of(bench: Bench, factory: FactoryProcess, recipe: str, key: Path) -> None:
    image = factory.call("POST", "/images", {"name": recipe, "recipe": recipe, "project": "main"})
    factory.phase(f"/images/{image['id']}", "ready", limit=600)
    user = image["spec"]["user"]
    ours: list[float] = []
    plain: list[float] = []
    twin = PlainGuest(key.parent)
    _one_of_ours(factory, recipe, key, user, twin)  # not counted: it brings image and network to the host
    for _ in range(bench.rounds):
        ours.append(_one_of_ours(factory, recipe, key, user, twin))
        plain.append(twin.seconds_to_login(user, key))
        print(f"  {recipe}: ours {ours[-1]:.2f} s, plain {plain[-1]:.2f} s", file=sys.stderr, flush=True)
    bench.add(f"{recipe}: order to login, Usina", _seconds(ours))
    bench.add(f"{recipe}: launch to login, plain QEMU", _seconds(plain))
    ratio = statistics.median(ours) / statistics.median(plain)
    bench.at_most(f"{recipe}: Usina / plain QEMU", ratio, 1.10, "")


def _one_of_ours(factory: FactoryProcess, recipe: str, key: Path, user: str, twin: PlainGuest) -> float:
    """Seconds from the order to a login through Usina. Its twin learns how the guest was launched."""
    public = key.with_suffix(".pub").read_text().strip()
    wish = {"name": "bench", "image": recipe, "project": "main", "ssh_keys": [public]} | _size(recipe)
    begun = time.monotonic()
    machine = factory.call("POST", "/machines", wish)
    path = f"/machines/{machine['id']}"
    with tunnel(factory, machine["id"]) as port:
        until(lambda: banner(port, PATIENCE), limit=300, pause=POLL)
        until(lambda: ssh(port, key, "true", user=user).returncode, lambda code: code == 0, 300)
    took = time.monotonic() - begun
    twin.learn(machine["id"])
    factory.call("DELETE", path)
    factory.gone(path, limit=60)
    return took


def _size(recipe: str) -> Json:
    if recipe == "tiny":
        return {"memory": 256 * MiB, "disk": 16 * MiB, "cores": 1}
    return {"memory": 1024 * MiB, "disk": 10240 * MiB, "cores": 1}


def _seconds(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} s (of {', '.join(f'{value:.2f}' for value in values)})"


# --- bursts on pretended hosts


class Client:
    """One connection, kept open, as a program under load does."""

    def __init__(self, port: int, token: str) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        self._headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}

    def call(self, method: str, path: str, body: Json | None = None) -> Json:
        text = json.dumps(body) if body is not None else None
        self._connection.request(method, f"/api/v1{path}", text, self._headers)
        answer = self._connection.getresponse()
        data = answer.read()
        if answer.status >= 300:
            raise RuntimeError(f"{method} {path}: {answer.status} {data[:300]!r}")
        return dict(json.loads(data)) if data else {}


def _order_many(port: int, token: str, prefix: str, count: int, batch: int) -> None:
    """`count` machines, one by one or `batch` to an order."""
    client = Client(port, token)
    for begin in range(0, count, batch):
        wish: Json = {
            "name": f"{prefix}-{begin}",
            "image": "tiny",
            "project": "main",
            "memory": 64 * MiB,
            "disk": 16 * MiB,
            "interfaces": [{"network": "big"}],
        }
        if batch == 1:
            client.call("POST", "/machines", wish)
        else:
            client.call("POST", "/machines/batch", wish | {"count": min(batch, count - begin)})


@contextmanager
def pretended(folder: Path, database: str) -> Iterator[FactoryProcess]:
    """A factory with a hundred pretended hosts, an image and a wide network."""
    with factory_process(folder, local_host=False, database=database) as factory:
        client = Client(factory.port, factory.token)
        for number in range(HOSTS):
            options = {"cores": 256, "memory": 1 << 40}
            client.call("POST", "/hosts", {"name": f"h{number}", "driver": "fake", "options": options})
        image = client.call("POST", "/images", {"name": "tiny", "recipe": "tiny", "project": "main"})
        client.call("POST", "/networks", {"name": "big", "cidr": "10.10.0.0/16", "project": "main"})
        until(lambda: client.call("GET", f"/images/{image['id']}")["phase"], lambda phase: phase == "ready", 300)
        time.sleep(1)
        yield factory


def order_all(factory: FactoryProcess, count: int, batch: int = 1) -> tuple[float, float]:
    """Order `count` machines from eight processes; seconds until all are ordered, and until all run."""
    prefix = f"b{time.monotonic_ns() % 10**9}"
    shares = [count // CLIENTS + (number < count % CLIENTS) for number in range(CLIENTS)]
    port, token = factory.port, factory.token
    with multiprocessing.get_context("fork").Pool(CLIENTS) as pool:
        begun = time.monotonic()
        wishes = [(port, token, f"{prefix}-{number}", share, batch) for number, share in enumerate(shares)]
        pool.starmap(_order_many, wishes, chunksize=1)
        ordered = time.monotonic() - begun
        client = Client(port, token)
        while any(client.call("GET", f"/machines?phase={phase}&limit=1")["items"] for phase in _NOT_YET):
            time.sleep(0.1)
        return ordered, time.monotonic() - begun


_NOT_YET = ("pending", "building", "starting")


def burst(bench: Bench, name: str, database: str) -> None:
    """Ordered a hundred at a time, and (on a factory of its own) one by one."""
    for batch, how in ((BATCH, f"{BATCH} to an order"), (1, "one by one")):
        with ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="usina-bench-"))
            url = stack.enter_context(postgres.database(database)) if database else ""
            factory = stack.enter_context(pretended(Path(folder) / "f", url))
            ordered, running = order_all(factory, bench.count, batch)
            assert _all_run(factory, bench.count)
            bench.add(f"{name}: {bench.count:,} orders, {how}", f"{bench.count / ordered:,.0f} /s")
            bench.at_least(f"{name}: {bench.count:,} ordered {how} and running", bench.count / running, 500, "/s")
            bench.at_most(f"{name}: memory of the process", resident(factory.pid) / MiB, 400, "MiB", 0)
            if batch > 1:
                time.sleep(min(5.0, bench.idle))
                share = 100 * idle_share(factory.pid, bench.idle)
                bench.at_most(
                    f"{name}: idle, {bench.count:,} running, over {bench.idle:g} s", share, 3.0, "% of a core"
                )


def _all_run(factory: FactoryProcess, count: int) -> bool:
    """Every one of them, by the quota's exact account and by their phases."""
    client = Client(factory.port, factory.token)
    assert client.call("GET", "/quotas/main")["used"]["machines"] == count
    return not client.call("GET", "/machines?phase=failed&limit=1")["items"]


def operators(bench: Bench) -> None:
    """What an operator of a centre knows from elsewhere: a thousand at once."""
    count = min(1000, bench.count)
    with tempfile.TemporaryDirectory(prefix="usina-bench-") as folder, pretended(Path(folder) / "f", "") as factory:
        ordered, running = order_all(factory, count)
        bench.at_most(f"{count:,} at once on {HOSTS} hosts, all running", running, OPENNEBULA_1000 / 4, "s")
        bench.add("the same with OpenNebula 7.4, tuned (reference)", f"{OPENNEBULA_1000:g} s")
        bench.at_least(f"order rate of {CLIENTS} clients", count / ordered, OPENNEBULA_ORDERS, "/s")


# --- reads


def reads(bench: Bench) -> None:
    with tempfile.TemporaryDirectory(prefix="usina-bench-") as folder, pretended(Path(folder) / "f", "") as factory:
        order_all(factory, bench.count, BATCH)
        client = Client(factory.port, factory.token)
        ids = [one["id"] for one in client.call("GET", "/machines?project=main&limit=1000")["items"]]
        middle = ids[len(ids) // 2]
        _reading(bench, factory, "one machine", lambda number: f"/machines/{ids[number % len(ids)]}", 2000)
        _reading(
            bench, factory, "a page of 100", lambda number: f"/machines?project=main&cursor={middle}&limit=100", 300
        )


def _reading(bench: Bench, factory: FactoryProcess, what: str, path: Callable[[int], str], times: int) -> None:
    port, token = factory.port, factory.token
    alone = _timed(port, token, [path(number) for number in range(times)])
    middle, late = statistics.median(alone) * 1000, sorted(alone)[int(len(alone) * 0.99)] * 1000
    bench.add(f"read {what} of {bench.count:,}: p50, p99, one client", f"{middle:.2f} ms, {late:.2f} ms")
    begun = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda share: _timed(port, token, [path(n) for n in range(times)]), range(4)))
    bench.add(f"read {what} of {bench.count:,}: four clients", f"{4 * times / (time.monotonic() - begun):,.0f} /s")


def _timed(port: int, token: str, paths: list[str]) -> list[float]:
    client, took = Client(port, token), []
    for path in paths:
        begun = time.perf_counter()
        client.call("GET", path)
        took.append(time.perf_counter() - begun)
    return took


# --- the whole


def databases(stack: ExitStack, wanted: str) -> list[tuple[str, str]]:
    """Name and URL of each database to measure on; ``""`` is SQLite."""
    if "://" in wanted:
        return [("the given server", wanted)]
    found = [("SQLite", "")] if wanted in ("all", "sqlite") else []
    if wanted in ("all", "postgresql"):
        found.append(("PostgreSQL", stack.enter_context(postgres.server())))
    return found


def show(bench: Bench) -> None:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    where = f"{os.cpu_count()} cores, {memory:.0f} GiB, Linux {platform.release()}, Python {platform.python_version()}"
    table = Table(title=f"machines · {time.strftime('%Y-%m-%d')} · {commit} · {where}", title_justify="left")
    for column in ("figure", "value", "target", ""):
        table.add_column(column, overflow="fold")
    verdicts = {None: "", True: "PASS", False: "FAIL"}
    for figure in bench.figures:
        table.add_row(figure.name, figure.value, figure.target, verdicts[figure.good])
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(prog="./dev bench machines", description=__doc__)
    parser.add_argument("--only", choices=("guest", "burst", "operators", "reads"), help="one part")
    parser.add_argument("--count", type=int, default=10_000, help="machines of the bursts (10000)")
    parser.add_argument("--rounds", type=int, default=3, help="guests of each kind (3)")
    parser.add_argument("--idle", type=float, default=30.0, help="seconds to watch the idle process (30)")
    parser.add_argument("--database", default="all", help="sqlite, postgresql, a URL, or all, for the burst")
    parser.add_argument("--image", choices=IMAGES, action="append", help="of the guests; else both")
    chosen = parser.parse_args()
    bench = Bench(chosen.count, chosen.rounds, chosen.idle, tuple(chosen.image or IMAGES))
    with ExitStack() as stack:
        if chosen.only in (None, "burst"):
            for name, url in databases(stack, chosen.database):
                burst(bench, name, url)
        for part, run in (("operators", operators), ("reads", reads), ("guest", guest)):
            if chosen.only in (None, part):
                run(bench)
    show(bench)
    sys.exit(any(figure.good is False for figure in bench.figures))


if __name__ == "__main__":
    main()
