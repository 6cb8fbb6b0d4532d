"""Tasks on a network of their project, for real: libvirt's networks and filters, sandboxes and containers on them, with
the command. Gangs meet, strangers stay outside, changed rules hold at once, and nothing is left."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import libvirt
import pytest

from usina.drivers.libvirt.daemon import ensure_local_daemon
from usina.testing.process import FactoryProcess, Json, Refused, end_helpers
from usina.testing.traces import traces
from usina.testing.waiting import until

pytestmark = [
    pytest.mark.real,
    pytest.mark.timeout(180),
    pytest.mark.skipif(os.geteuid() != 0, reason="qemu:///system wants root"),
]

STACKS = ["local", "container"]
OVER = {"succeeded", "failed", "stopped"}
OUT = {"direction": "out", "protocol": "all"}
MEETING = {"direction": "in", "protocol": "tcp", "ports": [29500, 29500]}
SMALL = ["--bare", "--mem", "64MiB", "--cores", "0.1"]

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def factory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FactoryProcess]:
    """One host with three drivers; at the end nothing of theirs is left."""
    folder = tmp_path_factory.mktemp("networks")
    folder.parent.chmod(0o755)
    ensure_local_daemon()
    before = links()
    with FactoryProcess(folder / "data", local_host=False).start() as process:
        wish = {"name": "here", "driver": "libvirt", "options": {"accelerator": "tcg"}, "also": {"process": {}}}
        wish["also"]["podman"] = {}  # type: ignore[index]
        process.call("POST", "/hosts", wish)
        process.call("POST", "/networks", {"name": "train", "project": "main"})
        process.call("POST", "/security-groups", {"name": "mesh", "project": "main", "rules": [OUT, MEETING]})
        try:
            yield process
        finally:
            if not process.alive:
                process.start()
            process.empty(("tasks", "machines"))
            process.wipe()
            process.stop()
    end_helpers(folder)
    assert not traces(process.id), "something is left in libvirt"
    assert links() == before, "network devices were left"
    assert not bindings(), "bindings of filters were left"


def links() -> set[str]:
    return {name for name in os.listdir("/sys/class/net") if name.startswith(("ut-", "uf-"))}


def bindings() -> list[str]:
    conn = libvirt.open("qemu:///system")
    found = [one.portDev() for one in conn.listAllNWFilterBindings() if one.portDev().startswith("ut-")]
    conn.close()
    return found


def image_of(stack: str, archive: Path) -> list[str]:
    return ["--on", stack, *(["--archive", str(archive)] if stack == "container" else [])]


def task(factory: FactoryProcess, name: str) -> Json:
    return factory.call("GET", f"/tasks/{name}", project="main")


def running(factory: FactoryProcess, name: str) -> Json:
    return until(lambda: task(factory, name), lambda one: one["phase"] in {"running", *OVER}, 60)


# Rank 0 hears from every other rank, by address and by name. Others try until it is up.
MEET = {
    "container": """
if [ $RANK = 0 ]; then
  nc -ll -p $MASTER_PORT -e sh -c 'read who; echo $who >> /work/heard; echo welcome' &
  while [ "$(wc -l < /work/heard 2>/dev/null)" != 4 ]; do sleep 0.1; done
  echo peers $USINA_PEERS of $WORLD_SIZE; cat /work/heard; exit 0
fi
for to in $MASTER_ADDR meet-container-0; do
  until [ "$(echo $USINA_ADDRESS by $to | nc -w 5 $to $MASTER_PORT)" = welcome ]; do sleep 0.2; done
done
""",
    "local": """
exec python3 - <<'PY'
import os, socket, time
port = int(os.environ["MASTER_PORT"])
if os.environ["RANK"] == "0":
    here, heard = socket.create_server((socket.gethostbyname(socket.gethostname()), port)), []
    while len(heard) < 4:
        one, (peer, _) = here.accept()
        heard.append(f"{peer} by {one.recv(100).decode()}")
        one.sendall(b"welcome")
    print("peers", os.environ["USINA_PEERS"], "of", os.environ["WORLD_SIZE"])
    print("\\n".join(heard))
else:
    for to in (os.environ["MASTER_ADDR"], "meet-local-0"):
        while True:
            try:
                line = socket.create_connection((to, port), 5)
                break
            except OSError:
                time.sleep(0.2)
        line.sendall(to.encode())
        assert line.recv(100) == b"welcome"
PY
""",
}


@pytest.mark.parametrize("stack", STACKS)
def test_the_ranks_of_a_gang_meet(usina: Run, factory: FactoryProcess, archive: Path, stack: str) -> None:
    name = f"meet-{stack}"
    words = [*image_of(stack, archive), *SMALL, "--replicas", "3", "--network", "train", "--security-group", "mesh"]
    ran = usina("run", *words, "--time", "100s", "--name", name, "--", "sh", "-c", MEET[stack])
    assert ran.returncode == 0, ran
    parts = factory.call("GET", f"/tasks/{name}/parts", project="main")["items"]
    addresses = [part["spec"]["interface"]["address"] for part in parts]
    first, *others = [line.partition("] ")[2] for line in ran.stdout.splitlines()]
    assert first == f"peers {','.join(addresses)} of 3"
    wanted = [f"{address} by {to}" for address in addresses[1:] for to in (addresses[0], f"{name}-0")]
    assert sorted(others) == sorted(wanted)
    shown = usina("task", "show", name)
    assert parts[0]["spec"]["interface"]["network"] in shown.stdout


SERVE = """
exec python3 -uc '
import socket, threading
def serve(port):
    here = socket.create_server(("", port))
    while True:
        one, (peer, _) = here.accept(); one.sendall(peer.encode()); one.close()
threading.Thread(target=serve, args=(29500,)).start()
threading.Thread(target=serve, args=(8000,)).start()
print("up")'
"""


@pytest.fixture
def pair(usina: Run, factory: FactoryProcess) -> Iterator[tuple[Json, Json]]:
    """A task that listens on a port that its group opens and on one that none does, and another beside it."""
    wish = [*SMALL, "--network", "train", "--security-group", "mesh", "-d"]
    assert usina("run", *wish, "--name", "server", "--port", "8000", "--", "sh", "-c", SERVE).returncode == 0
    assert usina("run", *wish, "--name", "client", "--", "sleep", "4321").returncode == 0
    yield running(factory, "server"), running(factory, "client")
    for name in ("server", "client"):
        assert usina("task", "delete", "-y", name).returncode == 0


def reaches(client: Json, target: str, port: int, source: str = "") -> str:
    """What a connection from a task's own network namespace brings, as root there, whom nothing but the filter outside
    keeps from anything; "" if there is none."""
    script = f"""import socket
line = socket.create_connection(({target!r}, {port}), 2, ({source!r}, 0))
print(line.recv(99).decode())"""
    done = subprocess.run([*within(client), sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
    return done.stdout.strip()


def within(one: Json) -> list[str]:
    """Words that do something in the network namespace of a task that sleeps, as soon as it does."""
    return until(lambda: _within(one), limit=20)


def _within(one: Json) -> list[str]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        address = one["spec"]["interface"]["address"]
        enter = ["nsenter", "-t", path.parent.name, "-n"]
        try:
            if path.read_bytes() != b"sleep\x004321\x00":
                continue
        except OSError:
            continue
        found = subprocess.run([*enter, "ip", "-o", "addr"], capture_output=True, text=True).stdout
        if f" {address}/" in found:
            return enter
    return []


def test_only_what_groups_allow_passes(usina: Run, factory: FactoryProcess, pair: tuple[Json, Json]) -> None:
    client = pair[1]
    there, here = (one["spec"]["interface"]["address"] for one in pair)
    assert until(lambda: reaches(client, there, 29500), limit=30) == here
    assert reaches(client, there, 8000) == "", "no security group opens it"
    # The way through Usina does not pass the filter.
    assert usina("task", "exec", "server", "--", "python3", "-c", "import socket; socket.create_connection(('', 8000))")

    # It takes another's address, with and without the MAC that belongs to it, and says so to everybody.
    taken = {int(address.rpartition(".")[2]) for address in (there, here)}
    false = f"{there.rpartition('.')[0]}.{next(n for n in range(2, 250) if n not in taken)}"
    enter = within(client)
    subprocess.run([*enter, "ip", "addr", "add", f"{false}/24", "dev", "eth0"], check=True)
    assert reaches(client, there, 29500, false) == "", "it was heard under an address that is not its own"
    # It asked for its neighbour under that address, in vain, and takes a while to ask again.
    assert until(lambda: reaches(client, there, 29500, here), limit=30) == here
    mac = client["spec"]["interface"]["mac"]
    subprocess.run([*enter, "ip", "link", "set", "dev", "eth0", "address", "52:54:00:00:00:01"], check=True)
    assert reaches(client, there, 29500, here) == "", "it was heard with a MAC that is not its own"
    subprocess.run([*enter, "ip", "link", "set", "dev", "eth0", "address", mac], check=True)
    assert until(lambda: reaches(client, there, 29500, here), limit=30) == here
    gateway = f"{there.rpartition('.')[0]}.1"
    with socket.create_server(("0.0.0.0", 0)) as host:
        port = host.getsockname()[1]
        socket.create_connection((gateway, port), 3).close()
        assert reaches(client, gateway, port) == "", "the host is not for tasks"
        host.settimeout(0)
        host.accept()[0].close()
        with pytest.raises(BlockingIOError):
            host.accept()

    # Rules that change hold for what runs.
    change = {"rules": [OUT]}
    group = factory.call("GET", "/security-groups/mesh", project="main")["id"]
    factory.call("PUT", f"/security-groups/{group}/rules", change)
    factory.phase(f"/security-groups/{group}", "ready")
    assert reaches(client, there, 29500) == ""
    factory.call("PUT", f"/security-groups/{group}/rules", {"rules": [OUT, MEETING]})
    factory.phase(f"/security-groups/{group}", "ready")
    assert until(lambda: reaches(client, there, 29500), limit=30) == here

    # What is in use stays.
    for path in ("/networks/train", "/security-groups/mesh"):
        with pytest.raises(Refused) as refusal:
            factory.call("DELETE", path, project="main")
        assert refusal.value.status == 409


GREETING = """exec python3 -c '
import socket, time
while True:
    try:
        print(socket.create_connection(("guest", 22), 5).recv(8).decode())
        break
    except OSError:
        time.sleep(0.5)'
"""


def test_a_machine_of_the_project_is_reached_by_its_name(usina: Run, factory: FactoryProcess) -> None:
    image = factory.call("POST", "/images", {"name": "tiny", "recipe": "tiny", "project": "main"})
    factory.phase(f"/images/{image['id']}", "ready", limit=120)
    wish = {"name": "guest", "image": "tiny", "project": "main", "memory": 256 << 20, "disk": 1 << 30}
    machine = factory.call("POST", "/machines", wish)
    ran = usina("run", *SMALL, "--rm", "--time", "90s", "--network", "default", "--", "sh", "-c", GREETING)
    assert ran.returncode == 0 and ran.stdout == "SSH-2.0-\n", ran
    factory.delete(f"/machines/{machine['id']}")
    factory.gone(f"/machines/{machine['id']}")


def test_what_no_host_can_do_is_refused(factory: FactoryProcess) -> None:
    wish: dict[str, Any] = {"command": ["true"], "project": "main"}
    for more, status, field in (
        ({"network": "nowhere"}, 404, "network"),
        ({"network": "train", "security_groups": ["none"]}, 404, "security_groups[0]"),
        ({"network": "train", "on": "slurm"}, 422, "network"),
        ({"network": "none", "security_groups": ["mesh"]}, 422, "security_groups"),
    ):
        with pytest.raises(Refused) as refusal:
            factory.call("POST", "/tasks", {**wish, **more})
        assert (refusal.value.status, refusal.value.problem["field"]) == (status, field), more


def test_a_control_plane_that_dies_leaves_nothing_behind(factory: FactoryProcess) -> None:
    factory.stop()
    factory.start("after:Start:1")
    wish = {"command": ["cat", "/etc/hosts"], "project": "main", "network": "train", "cores": 0.1, "memory": 64 << 20}
    one = factory.call("POST", "/tasks", wish)
    factory.died()
    factory.start()
    path = f"/tasks/{one['id']}"
    done = until(lambda: factory.call("GET", path), lambda t: t["phase"] in OVER, 60)
    assert (done["phase"], done["status"]["run"]) == ("succeeded", 1), factory.story(one["id"])
    assert done["spec"]["interface"]["address"] in factory.text(f"{path}/logs")
    until(lambda: not bindings(), limit=60)
    assert not links()
    factory.delete(path)
