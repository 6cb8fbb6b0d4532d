"""Machines for real: a factory in a process of its own, libvirt, guests that boot, and people who log in.

Two guests serve all stories, in the order of this file; a story leaves its guest running.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import libvirt
import pytest
from websockets.exceptions import ConnectionClosed

from usina.drivers.libvirt.daemon import ensure_local_daemon
from usina.testing.inside import serial_line, ssh, ssh_answers, ssh_key, tunnel, websocket
from usina.testing.process import FactoryProcess, Json, end_helpers, factory_process
from usina.testing.traces import traces
from usina.testing.waiting import until

pytestmark = [
    pytest.mark.real,
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="qemu:///system wants root"),
]

MiB = 1 << 20
TOLD_WITHIN = 5.0  # seconds from an outside change to its phase
OPEN = [{"direction": "out", "protocol": "all"}, {"direction": "in", "protocol": "icmp"}]
SSH_IN = {"direction": "in", "protocol": "tcp", "ports": [22, 22]}


@dataclass
class Guest:
    """A machine, its owner's key to the door, and the key to log in with."""

    factory: FactoryProcess
    id: str
    token: str
    key: Path

    @property
    def path(self) -> str:
        return f"/machines/{self.id}"

    def show(self) -> Json:
        return self.call("GET", "")

    def call(self, method: str, path: str, body: Json | None = None) -> Json:
        return self.factory.call(method, self.path + path, body, token=self.token)

    def phase(self, *phases: str, limit: float = 40.0) -> Json:
        return self.factory.phase(self.path, *phases, limit=limit, token=self.token)

    def does(self, deed: str, phase: str, body: Json | None = None) -> Json:
        """Ask for a deed and wait until it is done."""
        self.call("POST", f"/{deed}", body)
        return self.phase(phase)

    @property
    def address(self) -> str:
        return str(self.show()["spec"]["interfaces"][0]["address"])

    def run(self, command: str, limit: float = 90.0) -> str:
        """What a command in the guest writes; tried until the guest lets us in."""
        with tunnel(self.factory, self.id, token=self.token) as port:
            return ssh_answers(port, self.key, command, limit=limit)

    def try_(self, command: str) -> subprocess.CompletedProcess[str]:
        with tunnel(self.factory, self.id, token=self.token) as port:
            return ssh(port, self.key, command)

    def banner(self) -> bytes:
        """The first bytes from its SSH port; nothing when it cannot be reached."""
        try:
            with websocket(self.factory, f"{self.path}/tunnel?port=22", self.token) as socket:
                data = socket.recv(8)
                return data if isinstance(data, bytes) else data.encode()
        except (ConnectionClosed, TimeoutError):
            return b""

    def reason(self, kind: str) -> str:
        return next((str(c["reason"]) for c in self.show()["conditions"] if c["kind"] == kind), "")


@pytest.fixture(scope="module")
def factory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FactoryProcess]:
    ensure_local_daemon()
    folder = tmp_path_factory.mktemp("real")
    with factory_process(folder / "factory") as factory:
        image = factory.call("POST", "/images", {"name": "tiny", "recipe": "tiny", "visibility": "public", **MAIN})
        factory.phase(f"/images/{image['id']}", "ready", limit=300)
        id = factory.id
        try:
            yield factory
        finally:
            factory.wipe()
    end_helpers(folder)
    assert traces(id, factory.made) == set(), "something of it is left"


MAIN = {"project": "main"}


@pytest.fixture(scope="module")
def guests(factory: FactoryProcess, tmp_path_factory: pytest.TempPathFactory) -> tuple[Guest, Guest]:
    """A machine each for two members of two tenants, booting side by side."""
    return made(factory, "physics", tmp_path_factory), made(factory, "biology", tmp_path_factory)


def made(factory: FactoryProcess, who: str, folders: pytest.TempPathFactory) -> Guest:
    key = ssh_key(folders.mktemp(who))
    tenant = factory.call("POST", "/tenants", {"name": who})["id"]
    project = factory.call("POST", "/projects", {"tenant": tenant, "name": who})["id"]
    public = key.with_suffix(".pub").read_text().strip()
    wish = {"name": f"{who}-member", "tenant": tenant, "ssh_keys": [public], "roles": {project: "member"}}
    member = factory.call("POST", "/members", wish)["id"]
    token = factory.call("POST", "/keys", {"name": "first", "member": member})["token"]
    order = {"name": f"{who}-1", "image": "tiny", "memory": 128 * MiB, "disk": 16 * MiB}
    return Guest(factory, factory.call("POST", "/machines", order, token=token)["id"], token, key)


@pytest.fixture(scope="module")
def one(guests: tuple[Guest, Guest]) -> Guest:
    return guests[0]


@pytest.fixture(scope="module")
def other(guests: tuple[Guest, Guest]) -> Guest:
    return guests[1]


# --- ordering, and being in


def test_an_ordered_machine_lets_its_owner_in(one: Guest) -> None:
    machine = one.phase("running")
    assert machine["status"]["accelerator"] in ("kvm", "tcg")
    assert one.run("hostname") == "physics-1"
    assert f"inet {one.address}/24" in one.run("ip -4 addr show eth0")


def test_its_network_has_a_gateway_and_names(one: Guest) -> None:
    gateway = one.address.rpartition(".")[0] + ".1"
    assert f"default via {gateway}" in one.run("ip route")
    answer = one.run(f"nslookup physics-1.physics.internal {gateway}; nslookup physics-1 {gateway}")
    assert answer.count(f"Address: {one.address}") >= 1, answer
    assert "physics.internal" in one.run("cat /etc/resolv.conf")


def test_a_stranger_is_not_let_in(one: Guest, other: Guest) -> None:
    """A member of another tenant finds no such machine; the right door with the wrong key stays shut."""
    door = websocket(one.factory, f"{one.path}/tunnel?port=22", other.token)
    with door, pytest.raises(ConnectionClosed) as refusal:
        door.recv(10)
    assert refusal.value.rcvd is not None
    assert refusal.value.rcvd.code == 4404
    with tunnel(one.factory, one.id, token=one.token) as port:
        assert "Permission denied" in ssh(port, other.key, "true").stderr


def test_a_forward_leads_in_from_outside(one: Guest) -> None:
    forward = one.factory.call("POST", "/forwards", {"machine": one.id, "port": 22}, token=one.token)
    listen = forward["spec"]["listen"]
    assert ssh_answers(listen, one.key, "hostname", limit=30) == "physics-1"
    one.factory.call("DELETE", f"/forwards/{forward['id']}", token=one.token)
    one.factory.gone(f"/forwards/{forward['id']}", token=one.token)
    until(lambda: ssh(listen, one.key, "true").returncode, lambda code: code == 255, limit=15)


def test_the_serial_console_answers(one: Guest) -> None:
    with serial_line(one.factory, one.id, one.token) as line:
        line.say("echo answer-$((40 + 2))")
        assert "answer-42" in line.hear("answer-42")
    until(lambda: one.factory.text(f"{one.path}/console-log", one.token), lambda log: "answer-42" in log)
    assert "usina-tiny ready: physics-1" in one.factory.text(f"{one.path}/console-log", one.token)


# --- what belongs to it


def test_a_volume_comes_and_goes_while_it_runs(one: Guest) -> None:
    call, token = one.factory.call, one.token
    volume = call("POST", "/volumes", {"name": "data", "size": 64 * MiB}, token=token)["id"]
    one.factory.phase(f"/volumes/{volume}", "ready", token=token)
    one.does("volumes", "running", {"volume": "data"})
    until(lambda: one.run("cat /sys/block/vdb/size"), lambda sectors: int(sectors) * 512 == 64 * MiB)
    assert one.run("echo kept | dd of=/dev/vdb 2>/dev/null && sync && head -c 4 /dev/vdb") == "kept"
    one.call("DELETE", f"/volumes/{volume}")
    one.phase("running")
    assert one.run("ls /sys/block | grep -c vdb || true") == "0"
    call("DELETE", f"/volumes/{volume}", token=token)
    one.factory.gone(f"/volumes/{volume}", token=token)


def test_an_interface_comes_and_goes_while_it_runs(one: Guest) -> None:
    call, token = one.factory.call, one.token
    network = call("POST", "/networks", {"name": "lab", "cidr": "172.30.77.0/28"}, token=token)["id"]
    one.factory.phase(f"/networks/{network}", "ready", token=token)
    card = one.does("interfaces", "running", {"network": "lab", "address": "172.30.77.9"})["spec"]["interfaces"][1]
    until(lambda: one.run("ip -4 addr"), lambda text: "inet 172.30.77.9/28" in text)
    assert card["mac"] in one.run("cat /sys/class/net/eth1/address")
    one.call("DELETE", f"/interfaces/{card['mac']}")
    one.phase("running")
    assert card["mac"] not in one.run("cat /sys/class/net/*/address")
    call("DELETE", f"/networks/{network}", token=token)
    one.factory.gone(f"/networks/{network}", token=token)


def test_a_security_group_opens_and_closes_a_running_machine(one: Guest) -> None:
    def rules(*more: Json) -> None:
        one.factory.call("PUT", "/security-groups/default/rules", {"rules": [*OPEN, *more]}, token=one.token)
        one.factory.phase("/security-groups/default", "ready", token=one.token)

    assert one.banner().startswith(b"SSH-2.0")
    rules()
    until(one.banner, lambda seen: seen == b"", limit=15)
    rules(SSH_IN)
    until(one.banner, lambda seen: seen.startswith(b"SSH-2.0"), limit=15)


def test_projects_cannot_reach_each_other(one: Guest, other: Guest) -> None:
    """The other one is there and lets its owner in, but from here there is neither ping nor port; DNS is."""
    other.phase("running")
    assert other.run("hostname") == "biology-1"
    for near, far in ((one, other), (other, one)):
        address, gateway = far.address, near.address.rpartition(".")[0] + ".1"
        assert f"Server:\t\t{gateway}" in near.run(f"nslookup {near.show()['spec']['hostname']} {gateway}")
        assert "0 packets received" in near.run(f"ping -c 2 -W 2 {address} || true")
        assert near.try_(f"nc -w 3 {address} 22 < /dev/null").stdout == ""
        assert "SSH" not in near.try_(f"wget -T 3 -O - http://{address}:22/ 2>&1").stdout


# --- its life


def test_suspended_it_stands_still_and_resumed_it_goes_on(one: Guest) -> None:
    boot = one.run("cat /proc/sys/kernel/random/boot_id")
    one.does("suspend", "suspended")
    assert one.banner() == b""
    one.does("resume", "running")
    assert one.run("cat /proc/sys/kernel/random/boot_id") == boot


def test_a_snapshot_brings_back_disk_and_memory(one: Guest) -> None:
    one.run("touch /root/before")
    one.does("snapshots", "running", {"name": "clean"})
    one.run("touch /root/after")
    one.does("snapshots/clean/restore", "running")
    assert one.run("ls /root") == "before"
    one.call("DELETE", "/snapshots/clean")
    assert one.phase("running")["spec"]["snapshots"] == []


def test_a_reboot_is_a_fresh_boot(one: Guest) -> None:
    boot = one.run("cat /proc/sys/kernel/random/boot_id")
    one.does("reboot", "running")
    assert one.run("cat /proc/sys/kernel/random/boot_id") != boot


def test_it_is_stopped_resized_and_started(one: Guest) -> None:
    one.does("stop", "stopped")
    one.call("PATCH", "", {"memory": 160 * MiB, "disk": 32 * MiB})
    one.phase("stopped")
    one.does("start", "running")
    assert int(one.run("awk '/MemTotal/ {print $2}' /proc/meminfo")) > 100 * 1024
    assert int(one.run("cat /sys/block/vda/size")) * 512 == 32 * MiB
    claims = one.factory.call("GET", "/hosts/local/claims")["items"]
    claim = next(claim for claim in claims if claim["resource"] == one.id)
    assert (claim["cores"], claim["memory"], claim["disk"]) == (1, 160 * MiB, 32 * MiB)


# --- what happens to it from outside is told, not fought


def test_a_guest_that_is_killed_is_told_and_can_be_rebuilt(one: Guest) -> None:
    os.kill(int(Path(f"/run/libvirt/qemu/{one.id}.pid").read_text()), signal.SIGKILL)
    begun = time.monotonic()
    one.phase("failed", limit=TOLD_WITHIN)
    assert one.reason("Healthy") == "guest-died"
    assert any("machine.failed: is failed: the guest died" in line for line in one.factory.story(one.id))
    print(f"told after {time.monotonic() - begun:.1f} s")
    one.does("rebuild", "running", {})
    assert one.run("hostname; ls /root") == "physics-1"
    assert one.reason("Healthy") == "as-wished"


def test_a_guest_that_somebody_removes_is_told_and_made_anew(one: Guest) -> None:
    conn = libvirt.open("qemu:///system")
    domain = conn.lookupByName(one.id)
    domain.destroy()
    one.phase("stopped", limit=TOLD_WITHIN)
    domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA)
    conn.close()
    one.phase("failed", limit=TOLD_WITHIN)
    assert one.reason("Present") == "removed-outside"
    one.does("start", "running")
    assert one.run("hostname") == "physics-1"
    assert one.reason("Present") == "found"


def test_the_factory_restarts_and_its_guests_do_not_notice(one: Guest, other: Guest) -> None:
    boots = [guest.run("cat /proc/sys/kernel/random/boot_id") for guest in (one, other)]
    told = [len(guest.factory.story(guest.id)) for guest in (one, other)]
    one.factory.kill()
    one.factory.start()
    assert [guest.run("cat /proc/sys/kernel/random/boot_id") for guest in (one, other)] == boots
    assert [guest.phase("running")["phase"] for guest in (one, other)] == ["running"] * 2
    assert [len(guest.factory.story(guest.id)) for guest in (one, other)] == told


def test_deleted_it_leaves_nothing(one: Guest, other: Guest) -> None:
    for guest in (one, other):
        guest.call("DELETE", "")
    for guest in (one, other):
        one.factory.gone(guest.path, token=guest.token)
        assert traces("no-such-factory", [guest.id]) == set()
        assert one.factory.story(guest.id)[-1] == "machine.deleted: is gone; everything it held is free"
    assert one.factory.call("GET", "/hosts/local")["used"] == {"cores": 0, "memory": 0, "disk": 0}
