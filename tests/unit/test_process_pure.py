"""The process driver's pure parts: options, devices, plans, the journal, routes, patterns; hosts as recorded trees."""

from __future__ import annotations

import ipaddress
import struct
from pathlib import Path, PurePosixPath

import pytest

from usina.core.capacity import DeviceKind
from usina.core.errors import Invalid
from usina.core.machine import Absent
from usina.core.task import End, Ended, GivenDevice, Queued, Running, TaskPlan
from usina.core.units import GiB, KiB
from usina.drivers.process.devices import NOTHING, visible
from usina.drivers.process.options import check, parse_uids, read, uids_taken
from usina.drivers.process.sights import order, sight
from usina.drivers.process.warden import journal, network
from usina.drivers.process.warden.files import matches
from usina.drivers.process.warden.run import show_bytes, show_seconds
from usina.drivers.process.warden.spawn import words
from usina.hardware.nodes import memory_limit, parse_list, read_nodes
from usina.ports.driver import DriverError, HostSettings


def put(root: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return str(root)


# --- options


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"nosuch": 1}, "nosuch"),
        ({"dir": "relative"}, "dir"),
        ({"dir": "/a/../b"}, "dir"),
        ({"dir": "/"}, "dir"),
        ({"dir": 3}, "dir"),
        ({"uids": "5-9"}, "uids"),
        ({"uids": "9000-8000"}, "uids"),
        ({"uids": "1000"}, "uids"),
        ({"uids": 1000}, "uids"),
        ({"uids": "2000-9999999999"}, "uids"),
        ({"uids": "65000-66000"}, "uids"),  # nobody
        ({"pids": 1}, "pids"),
        ({"pids": True}, "pids"),
        ({"log_limit": "8MiB"}, "log_limit"),
        ({"idle": 0}, "idle"),
        ({"host_network": 1}, "host_network"),
        ({"control_groups": "no"}, "control_groups"),
        ({"read_only": "/opt"}, "read_only"),
        ({"read_only": ["/etc/ssl"]}, "read_only"),
        ({"read_only": ["/opt/.."]}, "read_only"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, object], field: str) -> None:
    with pytest.raises(Invalid) as failure:
        check(options)
    assert failure.value.field == field


def test_options_have_defaults() -> None:
    options = read(HostSettings("hst-1", "h", "f", Path("/state"), {"uids": "2000000-2000009", "read_only": ["/opt"]}))
    assert (options.folder, options.uids, options.read_only) == (Path("/state/process"), (2000000, 10), ("/opt",))
    assert read(HostSettings("hst-1", "h", "f", Path("/state"), {"dir": "/else"})).folder == Path("/else")


def test_users_that_are_taken_are_found(tmp_path: Path) -> None:
    files = {"etc/passwd": "root:x:0:0::/:\nann:x:70000:70000::/:\nbroken\n", "etc/subuid": "bob:100000:65536\n"}
    root = put(tmp_path, files)
    assert uids_taken(69_990, 11, root) == "the user ann"
    assert uids_taken(90_000, 10_001, root) == "bob, for containers (/etc/subuid)"
    assert uids_taken(165_536, 100, root) == ""
    assert parse_uids("5000-5009") == (5000, 10)


# --- plans and sights


def test_a_plan_is_told_whole() -> None:
    plan = TaskPlan("tsk-1.1", "p", command=("a",), environment={"A": "1", "B": "2"}, secret=frozenset({"B"}))
    told = order(plan, visible(()))
    assert (told["secrets"], told["network"], told["forced"]) == (["2"], "none", NOTHING)


def test_sights() -> None:
    end = {"state": "ended", "at": 2.0, "since": 1.0, "how": "out-of-memory", "code": 137, "message": "m"}
    assert sight(None) == Absent()
    assert sight({"state": "running", "since": 1.0}) == Running(1.0)
    assert sight({"state": "queued", "reason": "r"}) == Queued("r")
    seen = sight({**end, "usage": [1.5, 0, 9]})
    assert isinstance(seen, Ended) and seen.how is End.MEMORY and seen.usage is not None and seen.usage.peak == 9


def test_what_a_sandbox_is_told() -> None:
    record = {"command": ["run", "--x=1"], "shown": {"KEY": "va lue", "E": ""}, "workdir": "/work/a", "memory": 64}
    body = b"/work/a\0task\x0064\0run\0--x=1\0KEY=va lue\0E=\0"
    assert words(record) == b"2\0%d\0" % len(body) + body
    assert b"\0n1\x001073741824\0" in words({**record, "memory": 0, "card": {"hostname": "n1"}})


# --- the journal


def test_a_journal_is_read_as_far_as_it_was_written(tmp_path: Path) -> None:
    path = str(tmp_path / "journal")
    assert journal.read(path) == {}
    journal.add(path, "record", {"a": 1})
    journal.add(path, "cause", "stopped")
    whole = Path(path).read_bytes()
    for length in range(len(whole)):
        Path(path).write_bytes(whole[:length])
        found = journal.read(path)
        assert found in ({}, {"record": {"a": 1}})
    Path(path).write_bytes(whole)
    journal.replace(path, {"record": {}, "end": 1})
    assert journal.read(path) == {"record": {}, "end": 1}


# --- devices


def test_no_device_shows_nothing() -> None:
    assert visible(()).nodes == () and visible(()).environment == NOTHING


def test_nvidia_devices_by_address(tmp_path: Path) -> None:
    text = "Model: \t\t NVIDIA H100\nIRQ:   \t\t 0\nGPU UUID: \t GPU-{0}\nDevice Minor: \t {0}\n"
    folder = "proc/driver/nvidia/gpus"
    files = {f"{folder}/0000:{n:02x}:00.0/information": text.format(n) for n in (3, 4)}
    root = put(tmp_path, {**files, "dev/nvidiactl": "", "dev/nvidia-uvm": ""})
    seen = visible([GivenDevice(f"0000:0{n}:00.0", DeviceKind.GPU) for n in (4, 3)], root)
    assert seen.nodes == ("/dev/nvidia4", "/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia3")
    assert seen.environment["CUDA_VISIBLE_DEVICES"] == "GPU-4,GPU-3"


def test_drm_devices_by_address(tmp_path: Path) -> None:
    def card(address: str, vendor: str, number: int) -> dict[str, str]:
        folder = f"sys/bus/pci/devices/{address}"
        names = (f"drm/card{number}/dev", f"drm/renderD{128 + number}/dev")
        return {f"{folder}/vendor": f"{vendor}\n", **{f"{folder}/{name}": "" for name in names}}

    files = {
        **card("0000:c1:00.0", "0x1002", 1),
        **card("0000:03:00.0", "0x8086", 0),
        **card("0000:d1:00.0", "0x1002", 2),
    }
    root = put(tmp_path, {**files, "dev/kfd": ""})
    seen = visible([GivenDevice("0000:d1:00.0", DeviceKind.GPU)], root)
    assert seen.nodes == ("/dev/dri/card2", "/dev/dri/renderD130", "/dev/kfd")
    assert seen.environment == {**NOTHING, "ROCR_VISIBLE_DEVICES": "1"}
    seen = visible([GivenDevice("0000:03:00.0", DeviceKind.GPU)], root)
    assert seen.nodes == ("/dev/dri/card0", "/dev/dri/renderD128") and seen.environment == NOTHING
    with pytest.raises(DriverError) as failure:
        visible([GivenDevice("0000:ff:00.0", DeviceKind.GPU)], root)
    assert failure.value.lasting


# --- files and words


@pytest.mark.parametrize(
    ("path", "patterns", "expected"),
    [
        ("out/a.txt", ["out"], True),
        ("out/deep/a.txt", ["out/*"], True),
        ("a.txt", ["*.txt"], True),
        ("b/a.txt", ["*.txt"], True),
        ("b/a.log", ["*.txt"], False),
        ("outer", ["out"], False),
    ],
)
def test_patterns(path: str, patterns: list[str], expected: bool) -> None:
    assert matches(PurePosixPath(path), patterns) is expected


def test_limits_in_words() -> None:
    assert [show_bytes(n) for n in (12, 64 << 20, 3 << 29, 1 << 30)] == ["12 bytes", "64 MiB", "1.5 GiB", "1 GiB"]
    assert [show_seconds(n) for n in (0.5, 90, 5400, 7200)] == ["0.5 s", "90 s", "90 min", "2 h"]


# --- networks


def test_a_route_to_nowhere() -> None:
    message = network.unreachable(ipaddress.ip_network("169.254.0.0/16"))
    length, kind, flags, _, _ = struct.unpack_from("=IHHII", message)
    assert (length, kind, flags) == (len(message), 24, 0x505)
    assert struct.unpack_from("=BBBB", message, 16) == (2, 16, 0, 0) and message[16 + 7] == 7
    assert message.endswith(bytes((169, 254, 0, 0)))


def test_own_addresses(tmp_path: Path) -> None:
    trie = (
        "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 127.0.0.1\n        /32 host LOCAL\n     |-- 192.0.2.0\n"
        "        /24 link UNICAST\n     |-- 192.0.2.2\n        /32 host LOCAL\n"
    )
    inet6 = (
        "fd000000000000000000000000000002 02 40 00 80     eth0\n"
        "00000000000000000000000000000001 01 80 10 80       lo\n"
        "fe8000000000000000fc00fffe000001 02 40 20 80     eth0\n"
    )
    root = put(tmp_path, {"proc/net/fib_trie": trie, "proc/net/if_inet6": inet6})
    assert [str(address) for address in network.own_addresses(root)] == ["192.0.2.2/32", "fd00::2/128"]


def test_the_resolver_is_ours_and_the_search_list_the_hosts() -> None:
    assert network.resolver("nameserver 10.0.0.1\nsearch a.example\n") == "nameserver 198.18.255.3\nsearch a.example\n"


# --- hosts


def _meminfo(gib: int, node: str = "") -> str:
    return f"{node}MemTotal:       {gib * GiB // KiB} kB\n{node}MemFree:        1 kB\n"


def test_a_host_of_two_nodes(tmp_path: Path) -> None:
    node = "sys/devices/system/node"
    files = {
        f"{node}/node0/cpulist": "0-1,4-5\n",
        f"{node}/node0/meminfo": _meminfo(64, "Node 0 "),
        f"{node}/node0/hugepages/hugepages-1048576kB/nr_hugepages": "4\n",
        f"{node}/node1/cpulist": "2-3,6-7\n",
        f"{node}/node1/meminfo": _meminfo(64, "Node 1 "),
        f"{node}/node2/cpulist": "\n",  # memory without processors
        f"{node}/node2/meminfo": _meminfo(512, "Node 2 "),
        **{f"sys/devices/system/cpu/cpu{n}/topology/thread_siblings_list": f"{n % 4},{n % 4 + 4}\n" for n in range(8)},
        "proc/self/cgroup": "0::/\n",
    }
    one, two = read_nodes(put(tmp_path, files), range(8))
    assert (one.cpus, two.cpus) == ((0, 1, 4, 5), (2, 3, 6, 7))
    assert one.siblings == ((0, 4), (1, 5)) and one.hugepages == {GiB: 4}
    assert one.memory < 60 * GiB and 60 * GiB < two.memory < 64 * GiB
    (only,) = read_nodes(str(tmp_path), {0, 4, 5})
    assert only.cpus == (0, 4, 5) and only.siblings == ((0, 4), (5,))


def test_a_host_without_nodes_held_to_less_memory(tmp_path: Path) -> None:
    files = {
        "sys/devices/system/cpu/online": "0-3\n",
        "proc/meminfo": _meminfo(32),
        "proc/self/cgroup": "4:memory:/a/b\n0::/\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/memory/a/memory.limit_in_bytes": f"{8 * GiB}\n",
    }
    (node,) = read_nodes(put(tmp_path, files), range(4))
    assert node.cpus == (0, 1, 2, 3) and node.memory == 7 * GiB
    assert memory_limit(str(tmp_path)) == 8 * GiB


def test_v2_limits_of_memory_count_upwards(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/a/b\n",
        "sys/fs/cgroup/a/memory.max": f"{GiB}\n",
        "sys/fs/cgroup/a/b/memory.max": "max\n",
    }
    assert memory_limit(put(tmp_path, files)) == GiB
    assert parse_list("0,4-6\n") == (0, 4, 5, 6) and parse_list("") == ()


def test_this_host_is_read() -> None:
    nodes = read_nodes()
    assert nodes and sum(len(node.cpus) for node in nodes) > 0 and all(node.memory > 0 for node in nodes)
