"""Networks of runs, made before the command begins.

A card on a project's network is one end of a veth pair, made and plugged in elsewhere: it is put into the run's network
namespace and set up there by `ip`. The run has no privilege to change it, and a packet filter at its other end.

Outbound, a program in user space carries what a run sends, and routes keep it from where it must not go: slirp4netns or
pasta (of passt) gives the run's network namespace an interface, and makes its connections as the host's own; nothing of
the host is opened for it. Routes that lead nowhere are set for what must not be reached: link-local addresses (where
clouds keep their metadata) and the own addresses of the host. The run has no privilege to change them. The loopback of
the host is not mapped into it at all.

The program is a process outside; its number is in the run's folder (`network`), and it ends with the run.
"""

from __future__ import annotations

import ipaddress
import itertools
import json
import os
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from . import kernel
from .loop import Loop, fork
from .spawn import END

Address = ipaddress.IPv4Network | ipaddress.IPv6Network

RANGE: Final = "198.18.255.0/24"  # of the run's interface: meant for benchmarks of networks, so nobody's
RESOLVER: Final = "198.18.255.3"  # inside; passed on to the host's resolver
FORBIDDEN: Final = ("169.254.0.0/16", "fd00:ec2::254/128")
_PATIENCE: Final = 5.0  # seconds for the sandbox to have its namespaces, and for the program to be ready
_PAUSE: Final = 0.002


def resolver(text: str) -> str:
    """/etc/resolv.conf of runs: ours, with the host's search list and options."""
    kept = [line for line in text.splitlines() if line.split(" ")[0] in ("search", "options", "domain")]
    return "\n".join([f"nameserver {RESOLVER}", *kept, ""])


def attach(
    loop: Loop, folder: str, pid: int, gate: int, program: str, user: int | None, done: Callable[[str], None]
) -> None:
    """Give a starting run its outbound network, then open its gate. `done` gets what went wrong, or ""."""

    def make(namespace: int) -> None:
        _start(program, namespace, user, folder)
        _forbid(namespace, [ipaddress.ip_network(text) for text in FORBIDDEN] + own_addresses())

    _in_child(loop, pid, gate, make, done)


def put_in(loop: Loop, folder: str, pid: int, gate: int, card: Mapping[str, str], done: Callable[[str], None]) -> None:
    """The same for a card on a project's network."""
    _in_child(loop, pid, gate, lambda namespace: _put_in(namespace, card), done)


def _put_in(namespace: int, card: Mapping[str, str]) -> None:
    place = f"/proc/self/fd/{namespace}"
    _run(("ip", "link", "set", "dev", card["device"], "netns", place, "name", card["name"]), namespace)
    _run(("nsenter", f"--net={place}", "ip", "-batch", "-"), namespace, card["inside"])


def _run(command: Sequence[str], namespace: int, told: str = "") -> None:
    done = subprocess.run(
        command, input=told, capture_output=True, text=True, timeout=_PATIENCE, check=False, pass_fds=(namespace,),
        cwd="/", env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{command[0]}: {' '.join((done.stderr or done.stdout).split())[-300:]}")


def _in_child(loop: Loop, pid: int, gate: int, make: Callable[[int], None], done: Callable[[str], None]) -> None:
    told, tells = os.pipe()
    child = fork(lambda: _attach(pid, gate, make, tells), (gate, tells))
    os.close(tells)

    def over(code: int) -> None:
        problem = os.read(told, 2000).decode("utf-8", "replace")
        os.close(told)
        done(problem or ("its network could not be made" if code else ""))

    loop.when_over(child, over)


def _attach(pid: int, gate: int, make: Callable[[int], None], tells: int) -> int:
    """In a process of its own."""
    try:
        make(_namespace(pid))
        os.write(gate, END)
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        os.write(tells, f"its network could not be made: {error}".encode())
        return 1
    return 0


def _namespace(pid: int) -> int:
    """A descriptor of the network namespace of a run whose first process waits."""
    try:
        return os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        raise RuntimeError("the sandbox has ended") from None


def _start(program: str, namespace: int, user: int | None, folder: str) -> None:
    owner = kernel.owner_of(namespace)
    ready, readies = os.pipe()
    command = _command(program, f"/proc/self/fd/{namespace}", f"/proc/self/fd/{owner}", readies, user, folder)
    with open(f"{folder}/network.said", "wb") as said:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, pass_fds=(namespace, owner, readies),
            start_new_session=True, cwd="/", env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
            **_as(user if program.endswith("pasta") else None),
        )  # fmt: skip
    found = kernel.stat_of(process.pid)
    text = json.dumps({"pid": process.pid, "start": found.start if found else 0, "boot": kernel.boot_id()})
    with open(f"{folder}/network", "w", encoding="ascii") as file:
        file.write(text)
    os.close(readies)
    deadline = time.monotonic() + _PATIENCE
    os.set_blocking(ready, False)
    while time.monotonic() < deadline and process.poll() is None:
        if _is_ready(program, ready, namespace):
            return
        time.sleep(_PAUSE)
    process.kill()
    with open(f"{folder}/network.said", encoding="utf-8", errors="replace") as words:
        raise RuntimeError(f"{os.path.basename(program)}: {' '.join(words.read().split())[-300:]}")


def _as(user: int | None) -> dict[str, Any]:
    return {} if user is None else {"user": user, "group": user, "extra_groups": ()}


def _command(program: str, network: str, owner: str, ready: int, user: int | None, folder: str) -> list[str]:
    if program.endswith("pasta"):
        ports = [word for option in "tuTU" for word in (f"-{option}", "none")]
        options = ["--no-map-gw", "--no-dhcp", "--no-dhcpv6", "--dns-forward", RESOLVER]
        return [
            program,
            "--foreground",
            "--quiet",
            "--config-net",
            *ports,
            *options,
            "--userns",
            owner,
            "--netns",
            network,
        ]
    joined = ["--userns-path", owner] if os.geteuid() != 0 else []
    return [
        *(program, "--configure", "--mtu=65520", f"--cidr={RANGE}", "--disable-host-loopback", "--enable-sandbox"),
        *("--enable-seccomp", f"--ready-fd={ready}", *joined, "--netns-type=path", network, "tap0"),
    ]


def _is_ready(program: str, ready: int, namespace: int) -> bool:
    """slirp4netns says so; of pasta we see the default route."""
    if not program.endswith("pasta"):
        try:
            return os.read(ready, 1) == b"1"
        except BlockingIOError:
            return False
    return _within(namespace, lambda: "\t00000000\t" in _text("/proc/thread-self/net/route"))


def _within(namespace: int, work: Callable[[], bool]) -> bool:
    """Do something small in a network namespace, by a child: who is not root cannot come back."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            _enter(namespace)
            code = 0 if work() else 1
        finally:
            os._exit(code)
    return os.waitpid(pid, 0)[1] == 0


def _enter(namespace: int) -> None:
    if os.geteuid() != 0:
        kernel.setns(kernel.owner_of(namespace), kernel.NEWUSER)
    kernel.setns(namespace, kernel.NEWNET)


# --- where it must not go


def own_addresses(root: str = "") -> list[Address]:
    """The host's own addresses, each as a network of one, but for its loopback ones."""
    found: list[Address] = []
    lines = _text(f"{root}/proc/net/fib_trie").splitlines()
    for line, following in itertools.pairwise(lines):
        if following.strip() == "/32 host LOCAL":
            found.append(ipaddress.IPv4Network(line.split()[-1]))
    for line in _text(f"{root}/proc/net/if_inet6").splitlines():
        found.append(ipaddress.IPv6Network(int(line.split()[0], 16)))
    kept = {network for network in found if not network.is_loopback and not network.is_link_local}
    return sorted(kept, key=lambda network: (network.version, network))


def _forbid(namespace: int, networks: Iterable[Address]) -> None:
    if not _within(namespace, lambda: _set_routes(networks)):
        raise RuntimeError("routes could not be set")


def _set_routes(networks: Iterable[Address]) -> bool:
    with socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE if hasattr(socket, "NETLINK_ROUTE") else 0
    ) as line:
        for network in networks:
            line.send(unreachable(network))
            error = struct.unpack_from("=i", line.recv(4096), 16)[0]
            if error and network.version == 4:  # IPv6 may be switched off
                return False
    return True


def unreachable(network: Address) -> bytes:
    """An rtnetlink message that adds a route to nowhere; see rtnetlink(7)."""
    family = socket.AF_INET if network.version == 4 else socket.AF_INET6
    address = network.network_address.packed
    route = struct.pack("=BBBBBBBBI", family, network.prefixlen, 0, 0, 254, 4, 0, 7, 0)  # main table, static
    attribute = struct.pack("=HH", 4 + len(address), 1) + address
    body = route + attribute
    flags = 0x1 | 0x4 | 0x100 | 0x400  # request, acknowledge, replace, create
    return struct.pack("=IHHII", 16 + len(body), 24, flags, 1, 0) + body


def end(folder: str) -> bool:
    """End a run's program, where it has one. Whether it is gone; it may need a moment."""
    text = _text(f"{folder}/network")
    known: Mapping[str, Any] = json.loads(text) if text else {}
    if not known or known["boot"] != kernel.boot_id():
        return True
    fd = kernel.open_process(known["pid"], known["start"])
    if fd is None:
        return True
    try:
        kernel.kill(fd)
        return kernel.has_ended(fd)
    finally:
        os.close(fd)


def _text(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
