"""The gateway of models beside LiteLLM's proxy, a router in Rust and no gateway at all: what a request costs, and how
long it takes.

`./dev bench gateway` starts a trivial upstream, a factory (`usina up`, with an endpoint of the runtime ``external``, a
key with limits of every kind, and budgets of the key, its project and its tenant), with `--workers N` a second one that
has so many processes, and out of environments of their own LiteLLM's proxy (no database, one worker, its production
mode) and `smg`, which only routes: no keys, budgets, checks of health or retries. The same chats, whole and as streams
of 17 chunks, go to each in turns, by 1, 32 and 128 clients at a time over connections that are kept.

Reported are milliseconds of CPU of the gateway's processes per request, requests a second, and times of the median and
of one in a hundred. `--memory N` sends N more chats and reports how the process grows. Ends with status 1 when a target
is missed. Figures mean something only on a machine that does nothing else: upstream and clients share its cores.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench._llm_load import Timing, load
from usina.testing.process import FactoryProcess, cpu_seconds, resident
from usina.testing.waiting import until

ROOT = Path(__file__).parent.parent
PEERS = ROOT / ".venv" / "peers"
LITELLM = "litellm[proxy]==1.106.2"
ROUTER = "smg==1.13.0"
CLIENTS = (1, 32, 128)
PLAIN, STREAMED = 0.5, 1.0  # milliseconds of CPU per request, at most
MiB = 1 << 20
GROWTH = 4 * MiB  # over the second half, at most


@dataclass(frozen=True)
class Door:
    """Where chats can be sent, and the processes that it costs. `base`: none, for the upstream itself."""

    name: str
    port: int
    token: str
    pids: tuple[int, ...]

    def cpu(self) -> float:
        return sum(cpu_seconds(pid) for pid in self.pids)


@dataclass(frozen=True)
class Row:
    door: str
    stream: bool
    clients: int
    timing: Timing
    cpu: float  # milliseconds per request

    @property
    def rate(self) -> float:
        return self.timing.count / self.timing.wall


# --- the doors


@contextmanager
def upstream() -> Iterator[int]:
    command = [sys.executable, "-m", "bench._llm_upstream"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()


@contextmanager
def usina(folder: Path, port: int, workers: int = 1) -> Iterator[Door]:
    data = folder / f"factory-{workers}"
    with FactoryProcess(data, local_host=False, private_urls=True, workers=workers).start() as factory:
        token = furnish(factory, port)
        time.sleep(1)  # every worker knows the key
        yield Door("Usina" if workers == 1 else f"Usina, {workers}", factory.port, token, tuple(_family(factory.pid)))


def furnish(factory: FactoryProcess, port: int) -> str:
    """An endpoint, and a key that every check there is applies to; its token."""
    url = f"http://127.0.0.1:{port}/v1"
    order = {"name": "parrot", "runtime": "external", "model": "parrot", "url": url, "slots": 1024, "context": 8192}
    endpoint = factory.call("POST", "/endpoints", order)
    factory.phase(f"/endpoints/{endpoint['id']}", "ready")
    limits = {"models": ["parrot"], "requests": 10**9, "tokens": 10**12, "concurrency": 10_000}
    key = factory.call("POST", "/keys", {"name": "bench", "project": "main", "limits": limits})
    for scope in (key["id"], endpoint["project"], endpoint["tenant"]):
        factory.call("PUT", f"/budgets/{scope}", {"tokens": 10**13, "every": "month"})
    return str(key["token"])


@contextmanager
def litellm(folder: Path, port: int) -> Iterator[Door]:
    config = folder / "litellm.yaml"
    config.write_text(
        "model_list:\n"
        "  - model_name: parrot\n"
        f"    litellm_params: {{model: openai/parrot, api_base: 'http://127.0.0.1:{port}/v1', api_key: none}}\n"
        "litellm_settings: {telemetry: false, request_timeout: 600, num_retries: 0}\n"
        "general_settings: {master_key: sk-bench, disable_spend_logs: true, disable_error_logs: true}\n"
    )
    mine = free_port()
    command = [str(_peer("litellm", LITELLM) / "bin" / "litellm"), "--config", str(config), "--port", str(mine)]
    settings = {"LITELLM_MODE": "PRODUCTION", "LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    with (folder / "litellm.log").open("wb") as log:
        process = subprocess.Popen([*command, "--num_workers", "1"], stdout=log, stderr=log, env=os.environ | settings)
    try:
        until(lambda: answers(mine, "/health/liveliness"), limit=120)
        yield Door("LiteLLM", mine, "sk-bench", tuple(_family(process.pid)))
    finally:
        process.terminate()
        process.wait()


@contextmanager
def router(folder: Path, port: int) -> Iterator[Door]:
    mine = free_port()
    command = [str(_peer("smg", ROUTER) / "bin" / "smg"), "launch", "--worker-urls", f"http://127.0.0.1:{port}"]
    command += ["--host", "127.0.0.1", "--port", str(mine), "--prometheus-port", str(free_port())]
    command += ["--policy", "round_robin", "--log-level", "error"]
    command += ["--disable-retries", "--disable-circuit-breaker", "--disable-health-check"]
    with (folder / "smg.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        until(lambda: answers(mine, "/readiness"), limit=60)
        yield Door("smg", mine, "none", tuple(_family(process.pid)))
    finally:
        process.terminate()
        process.wait()


def _peer(name: str, package: str) -> Path:
    """An environment with a peer in it, made once."""
    folder = PEERS / name
    if not (folder / "done").exists():
        print(f"installing {package}", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([str(folder / "bin" / "pip"), "install", "-q", package], check=True)
        (folder / "done").touch()
    return folder


def _family(pid: int) -> list[int]:
    """A process and its descendants."""
    found = [pid]
    for one in found:
        for children in Path(f"/proc/{one}/task").glob("*/children"):
            found += [int(child) for child in children.read_text().split()]
    return found


def answers(port: int, path: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def free_port() -> int:
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


# --- measuring


def measure(door: Door, *, stream: bool, clients: int, seconds: float) -> Row:
    """So many chats as take about `seconds`."""
    trial = load(door.port, door.token, count=max(100, 2 * clients), clients=clients, stream=stream)
    count = max(200, 4 * clients, int(trial.count / trial.wall * seconds))
    before = door.cpu()
    timing = load(door.port, door.token, count=count, clients=clients, stream=stream)
    if timing.failed:
        raise SystemExit(f"{door.name}: {timing.failed} of {timing.count} chats failed")
    return Row(door.name, stream, clients, timing, 1000 * (door.cpu() - before) / timing.count)


def draw(rows: list[Row]) -> Table:
    table = Table("door", "chats", "clients", "CPU ms each", "a second", "p50 ms", "p99 ms", "first byte p50 ms")
    for row in rows:
        t = row.timing
        times = (t.at(0.5), t.at(0.99), t.at(0.5, first=True))
        table.add_row(
            row.door, "streamed" if row.stream else "whole", str(row.clients), f"{row.cpu:.3f}" if row.cpu else "–",
            f"{row.rate:,.0f}", *(f"{1000 * value:.2f}" for value in times),
        )  # fmt: skip
    return table


def ratios(rows: list[Row]) -> Table:
    """Peers over Usina, each with the same load."""
    table = Table("door", "peer", "chats", "clients", "CPU: times less", "a second: times more", "p99: times less")
    for row in rows:
        if not row.door.startswith("Usina"):
            continue
        like = [r for r in rows if (r.stream, r.clients) == (row.stream, row.clients) and r.door in ("LiteLLM", "smg")]
        for other in like:
            table.add_row(
                row.door, other.door, "streamed" if row.stream else "whole", str(row.clients),
                f"{other.cpu / row.cpu:.2f}", f"{row.rate / other.rate:.2f}",
                f"{other.timing.at(0.99) / row.timing.at(0.99):.2f}",
            )  # fmt: skip
    return table


def grows(door: Door, count: int) -> list[int]:
    """Bytes of the process before, half way and after so many chats, half of them streamed; past ten thousand more."""
    pid, found = door.pids[0], []
    for share in (10_000, count // 2, count // 2):
        for stream in (False, True):
            load(door.port, door.token, count=share // 2, clients=32, stream=stream)
        time.sleep(2)  # the last batch goes to the ledger
        found.append(resident(pid))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="./dev bench gateway", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement, about")
    parser.add_argument("--memory", type=int, default=100_000, help="chats in the test of memory; 0: none")
    parser.add_argument("--workers", type=int, default=1, help="more than 1: of another factory beside the first")
    parser.add_argument("--without-litellm", action="store_true")
    parser.add_argument("--without-router", action="store_true")
    given = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 120)
    missed: list[str] = []
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        port = stack.enter_context(upstream())
        doors = [Door("direct", port, "none", ()), stack.enter_context(usina(folder, port))]
        if given.workers > 1:
            doors.append(stack.enter_context(usina(folder, port, given.workers)))
        if not given.without_router:
            doors.append(stack.enter_context(router(folder, port)))
        if not given.without_litellm:
            doors.append(stack.enter_context(litellm(folder, port)))
        rows = [
            measure(door, stream=stream, clients=clients, seconds=given.seconds)
            for stream in (False, True) for clients in CLIENTS for door in doors
        ]  # fmt: skip
        console.print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}", draw(rows))
        if not (given.without_litellm and given.without_router):
            console.print(ratios(rows))
        for row in rows:
            limit = STREAMED if row.stream else PLAIN
            if row.door.startswith("Usina") and row.cpu > limit:
                missed.append(f"{row.clients} clients: {row.cpu:.2f} ms of CPU a chat; at most {limit} are wanted")
        if given.memory:
            before, half, after = grows(doors[1], given.memory)
            told = " → ".join(f"{size / MiB:.1f}" for size in (before, half, after))
            console.print(f"memory over {given.memory:,} chats, at the beginning, half way, and the end: {told} MiB")
            if after - half > GROWTH:
                missed.append(f"the process grew by {(after - half) / MiB:.1f} MiB over the second half")
    for text in missed:
        console.print(f"missed: {text}", style="red")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
