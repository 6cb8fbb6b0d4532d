"""Tasks that do nothing, measured: how long until one begins, and how many a second, beside the bare tool.

`./dev bench tasks` runs every stack that can be used here; ``--only local`` (or ``container``, ``slurm``, ``fake``) one
of them. For each, the same command is run bare (`bwrap`, `podman run`, `sbatch`) and through Usina, in turns, so that
both meet the same machine. Ends with status 1 when a target is missed. Figures mean something only on a machine that
does nothing else.

"Begins" is the first instruction of the command: it prints the clock, which is held against the clock before the order.
"""

from __future__ import annotations

import argparse
import itertools
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

from bench._clients import order
from usina.drivers.podman.service import command
from usina.testing import images
from usina.testing.process import FactoryProcess, end_helpers, factory_process
from usina.testing.slurm import cluster
from usina.testing.waiting import until

Json = dict[str, Any]
SetUp = Callable[[FactoryProcess], object]
MiB = 1 << 20
OVER = {"succeeded", "failed", "stopped"}
CLOCK = ("date", "+%s%N")
CLIENTS = 4
SMALL = {"cores": 1, "memory": 32 * MiB}


@dataclass
class Stack:
    """One stack: how the bare tool runs a command, and what a task needs besides."""

    name: str
    bare: Callable[[tuple[str, ...]], str]  # runs it to its end; what it printed
    tool: str
    more: Json = field(default_factory=dict)
    at_once: int = 2  # of the bare tool
    clock: tuple[str, ...] = CLOCK  # prints nanoseconds since the epoch


@dataclass(frozen=True)
class Figure:
    name: str
    value: str
    target: str = ""
    good: bool | None = None


class Bench:
    def __init__(self) -> None:
        self.figures: list[Figure] = []

    def add(self, name: str, value: str, target: str = "", good: bool | None = None) -> None:
        self.figures.append(Figure(name, value, target, good))
        print(f"  {name}: {value}" + (f"  (target {target})" if target else ""), file=sys.stderr, flush=True)


# --- the stacks


def bwrap(command: tuple[str, ...]) -> str:
    """As near to what a sandbox of ours is as the bare tool comes with a line of options."""
    words = ["bwrap", "--unshare-all", "--new-session", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]
    for folder in ("/usr", "/bin", "/lib", "/lib64", "/sbin", "/etc"):
        words += ["--ro-bind", folder, folder]
    return subprocess.run([*words, "--", *command], check=True, capture_output=True, text=True).stdout


def fake(command: tuple[str, ...]) -> str:
    return str(time.time_ns())


@contextmanager
def local() -> Iterator[tuple[Stack, SetUp]]:
    yield Stack("local", bwrap, "bwrap"), _host({"name": "local", "driver": "process"})


def _host(host: Json) -> SetUp:
    """Add a host that sells each core many times: what does nothing needs none."""
    return lambda factory: factory.call("POST", "/hosts", host | {"cpu_ratio": 64})


def _clock(folder: Path) -> Path:
    """A static program that prints the clock, for images whose `date` knows seconds only."""
    source, program = folder / "clock.c", folder / "clock"
    source.write_text(
        "#include <stdio.h>\n#include <time.h>\n"
        "int main(void) { struct timespec t; clock_gettime(CLOCK_REALTIME, &t);"
        ' printf("%lld%09ld\\n", (long long)t.tv_sec, t.tv_nsec); return 0; }\n'
    )
    subprocess.run(["gcc", "-static", "-O1", "-o", program, source], check=True, capture_output=True)
    return program


@contextmanager
def pretended() -> Iterator[tuple[Stack, SetUp]]:
    yield Stack("fake", fake, "nothing"), _host({"name": "h", "driver": "fake", "options": {"cores": 64}})


@contextmanager
def container() -> Iterator[tuple[Stack, SetUp]]:
    """The same image, limits and network for both; each container is removed at its end."""
    with tempfile.TemporaryDirectory(prefix="usina-bench-image-") as folder:
        archive = images.archive(Path(folder), {"clock": _clock(Path(folder))})
        podman = command("")
        subprocess.run([*podman, "load", "-i", archive], check=True, capture_output=True)
        plain = [
            "--rm",
            "--network",
            "none",
            "--memory",
            "32m",
            "--ulimit",
            "nofile=1024:1024",
            "--ulimit",
            "nproc=1024:1024",
        ]

        def bare(words: tuple[str, ...]) -> str:
            done = subprocess.run([*podman, "run", *plain, images.NAME, *words], capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(done.stderr)
            return done.stdout

        stack = Stack("container", bare, "podman run", {"image": images.NAME}, clock=("/bin/clock",))
        yield stack, _host({"name": "local", "driver": "podman"})
        subprocess.run([*podman, "rmi", "-f", images.NAME], capture_output=True)


@contextmanager
def slurm() -> Iterator[tuple[Stack, SetUp]]:
    """A cluster of three pretended nodes under a real controller, its jobs as the same user both ways."""
    with cluster() as here:
        user = here.users[0]
        said = here.folder / "homes" / user / "said"

        def bare(words: tuple[str, ...]) -> str:
            number = next(numbers)
            options = ["--parsable", "--wait", "--mem=32", "--partition=main", f"--output={said}.{number}"]
            here.command("sbatch", *options, "--wrap", " ".join(words), user=user)
            return Path(f"{said}.{number}").read_text()

        def adopt(factory: FactoryProcess) -> None:
            options = {"url": here.rest_url, "jwt_key": str(here.jwt_key), "conf": str(here.conf)}
            factory.call("POST", "/hosts/adopt", {"name": "hpc", "driver": "slurm", "options": options}, key="")
            me = factory.call("GET", "/whoami")["member"]
            factory.call("PUT", f"/hosts/hpc-main/identities/{me}", {"name": user}, key="")

        numbers = itertools.count()
        yield Stack("slurm", bare, "sbatch --wait", {"dialect": {"partition": "main"}}, at_once=8), adopt


STACKS: dict[str, Callable[[], Any]] = {"local": local, "container": container, "slurm": slurm, "fake": pretended}


# --- what is measured


def latency(bench: Bench, stack: Stack, factory: FactoryProcess, rounds: int) -> None:
    ours, bare = [], []
    for _ in range(rounds):
        bare.append(_bare_begin(stack))
        ours.append(_our_begin(stack, factory))
    for name, found in ((f"{stack.tool}, bare", bare), ("Usina", ours)):
        p50, p90 = statistics.median(found), sorted(found)[int(len(found) * 0.9)]
        bench.add(f"{stack.name}: until it begins, {name}", f"p50 {p50:.1f} ms, p90 {p90:.1f} ms")
    more = statistics.median(ours) - statistics.median(bare)
    bench.add(f"{stack.name}: Usina adds", f"{more:.1f} ms p50", "<= 10 ms", more <= 10)


def _bare_begin(stack: Stack) -> float:
    before = time.time_ns()
    return (int(stack.bare(stack.clock)) - before) / 1e6


def _our_begin(stack: Stack, factory: FactoryProcess) -> float:
    wish = {"on": stack.name, "command": stack.clock, **SMALL, **stack.more}
    if stack.name == "fake":
        wish["command"] = ("true",)
    before = time.time_ns()
    task = factory.call("POST", "/tasks", wish)
    done = until(lambda: factory.call("GET", f"/tasks/{task['id']}"), lambda t: t["phase"] in OVER, 60, pause=0.02)
    if done["phase"] != "succeeded":
        raise RuntimeError(f"it has {done['phase']}: {done['status']}")
    if stack.name == "fake":
        return float(done["status"]["began_at"] * 1000 - before / 1e6)
    text = factory.text(f"/tasks/{task['id']}/logs")
    return (int(text.split()[-1]) - before) / 1e6


def throughput(bench: Bench, stack: Stack, factory: FactoryProcess, count: int) -> None:
    begun = time.monotonic()
    with ThreadPoolExecutor(stack.at_once) as pool:
        list(pool.map(lambda _: stack.bare(("true",)), range(count)))
    bare = count / (time.monotonic() - begun)
    wish = {"on": stack.name, "command": ["true"], **SMALL, **stack.more}
    begun = time.monotonic()
    order(factory.port, factory.token, "/tasks", [wish] * count, CLIENTS)
    ordered = count / (time.monotonic() - begun)
    _all_over(factory)
    ours = count / (time.monotonic() - begun)
    bench.add(f"{stack.name}: {count} ordered one by one", f"{ordered:.0f}/s")
    bench.add(f"{stack.name}: {stack.tool}, bare, {stack.at_once} at a time", f"{bare:.0f}/s run to their ends")
    target = ">= 200/s" if stack.name == "local" else ""
    bench.add(f"{stack.name}: Usina", f"{ours:.0f}/s run to their ends", target, ours >= 200 if target else None)
    begun = time.monotonic()
    task = factory.call("POST", "/tasks", wish | {"indices": list(range(count))})
    until(lambda: factory.call("GET", f"/tasks/{task['id']}"), lambda t: t["phase"] in OVER, 600, pause=0.1)
    bench.add(f"{stack.name}: Usina, as one array", f"{count / (time.monotonic() - begun):.0f}/s run to their ends")


def _all_over(factory: FactoryProcess) -> None:
    def left() -> int:
        phases = ("pending", "building", "running", "queued")
        return sum(len(factory.call("GET", "/tasks", phase=phase, limit=1)["items"]) for phase in phases)

    until(left, lambda n: n == 0, 600, pause=0.1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=STACKS, action="append")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=100)
    wanted = parser.parse_args()
    bench = Bench()
    for name in wanted.only or [name for name in STACKS if name != "fake"]:
        with ExitStack() as open_:
            folder = Path(open_.enter_context(tempfile.TemporaryDirectory(prefix="usina-bench-")))
            os.chmod(folder, 0o711)
            open_.callback(end_helpers, folder)
            stack, set_up = open_.enter_context(STACKS[name]())
            factory = open_.enter_context(factory_process(folder / "f", local_host=False))
            set_up(factory)
            try:
                for _ in range(5):
                    _our_begin(stack, factory)
                latency(bench, stack, factory, wanted.rounds)
                throughput(bench, stack, factory, wanted.count)
            finally:
                factory.empty(("tasks",), 300)
    _show(bench)
    sys.exit(any(figure.good is False for figure in bench.figures))


def _show(bench: Bench) -> None:
    table = Table(title=f"{os.cpu_count()} cores, {platform.platform()}, Python {platform.python_version()}")
    for title in ("measured", "value", "target", ""):
        table.add_column(title)
    for one in bench.figures:
        mark = "" if one.good is None else "met" if one.good else "MISSED"
        table.add_row(one.name, one.value, one.target, mark)
    Console().print(table)


if __name__ == "__main__":
    main()
