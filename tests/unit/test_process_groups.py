"""Control groups on recorded trees: v1, v2 and both; and what the kernel says of processes."""

from __future__ import annotations

import fcntl
import os
import resource
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from usina.drivers.process.warden.groups import Group, Limits, find, parse_mounts, parse_own
from usina.drivers.process.warden.kernel import has_ended, kill, open_process, parse_stat, stat_of

V1 = """30 24 0:26 / /sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/memory rw,relatime shared:10 - cgroup cgroup rw,memory
32 30 0:28 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:11 - cgroup cgroup rw,cpu,cpuacct
33 30 0:29 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
34 30 0:30 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset
35 30 0:31 / /sys/fs/cgroup/devices rw,relatime - cgroup cgroup rw,devices
"""
UNIFIED = "36 30 0:32 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"
V2 = "30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
OWN = "5:devices:/\n4:cpuset:/\n3:pids:/a.slice\n2:cpu,cpuacct:/a.slice\n1:memory:/a.slice/b\n0::/a.slice\n"


def tree(root: Path, mounts: str, own: str, files: dict[str, str]) -> str:
    for path, text in {"proc/self/mountinfo": mounts, "proc/self/cgroup": own, **files}.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return str(root)


CPUSET = {"sys/fs/cgroup/cpuset/cpuset.cpus": "0-3\n", "sys/fs/cgroup/cpuset/cpuset.mems": "0\n"}


def v1_tree(root: Path, more: str = "") -> str:
    for name in ("memory/a.slice/b", "cpu,cpuacct/a.slice", "pids/a.slice", "cpuset/usina-x", "unified"):
        (root / "sys/fs/cgroup" / name).mkdir(parents=True)
    files = {**CPUSET, "sys/fs/cgroup/unified/cgroup.controllers": "hugetlb\n"}
    files |= {"sys/fs/cgroup/cpuset/usina-x/cpuset.cpus": "", "sys/fs/cgroup/cpuset/usina-x/cpuset.mems": ""}
    return tree(root, V1 + more, OWN, files)


@pytest.mark.parametrize(("more", "mode"), [("", "v1"), (UNIFIED, "hybrid")])
def test_v1_groups_lie_below_our_own(tmp_path: Path, more: str, mode: str) -> None:
    root = v1_tree(tmp_path, more)
    layout = find("usina-x", root)
    top = f"{root}/sys/fs/cgroup"
    assert (layout.mode, set(layout.versions.values())) == (mode, {1})
    assert layout.folders == {
        "memory": f"{top}/memory/a.slice/b/usina-x",
        "cpu": f"{top}/cpu,cpuacct/a.slice/usina-x",
        "cpuacct": f"{top}/cpu,cpuacct/a.slice/usina-x",
        "pids": f"{top}/pids/a.slice/usina-x",
        "cpuset": f"{top}/cpuset/usina-x",
    }
    assert all(os.path.isdir(folder) for folder in layout.folders.values())
    assert Path(f"{top}/cpuset/usina-x/cpuset.cpus").read_text() == "0-3"
    assert not os.path.exists(f"{top}/unified/usina-x")


def kernel_files(group: Group, *files: str) -> None:
    """What the kernel puts into a new group."""
    for folder in set(group.folders.values()):
        os.makedirs(folder, exist_ok=True)
        for file in (*files, "cgroup.procs"):
            Path(folder, file).write_text("")


def test_v1_limits(tmp_path: Path) -> None:
    layout = find("usina-x", v1_tree(tmp_path))
    limits = Limits(memory=1 << 30, cores=1.5, pids=99, cpus=(1, 3))
    group = Group.of(layout, "run.1", limits)
    kernel_files(group, "memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "cpu.cfs_quota_us", "pids.max")
    kernel_files(group, "cpuset.cpus", "cpuset.mems")
    group.make(limits)
    group.join(4711)
    written = {p.name: p.read_text() for f in group.folders.values() for p in Path(f).iterdir() if p.read_text()}
    assert written == {
        "memory.limit_in_bytes": str(1 << 30),
        "memory.memsw.limit_in_bytes": str(1 << 30),
        "cpu.cfs_quota_us": "150000",
        "pids.max": "99",
        "cpuset.cpus": "1,3",
        "cpuset.mems": "0",
        "cgroup.procs": "4711",
    }
    assert group.processes() == [4711]
    assert "cpuset" not in Group.of(layout, "run.2", Limits()).folders


def test_v1_use_and_kills(tmp_path: Path) -> None:
    layout = find("usina-x", v1_tree(tmp_path))
    group = Group.of(layout, "run.1", Limits())
    kernel_files(group)
    memory, cpu = Path(group.folders["memory"]), Path(group.folders["cpuacct"])
    (cpu / "cpuacct.usage").write_text("1500000000\n")
    (memory / "memory.usage_in_bytes").write_text("5000\n")
    (memory / "memory.max_usage_in_bytes").write_text("9000\n")
    (memory / "memory.stat").write_text("cache 1\ntotal_inactive_file 1000\n")
    (memory / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n")
    use = group.use()
    assert use is not None and (use.cpu, use.memory, use.peak) == (1.5, 4000, 9000)
    assert group.memory_kills() == 2


def v2_tree(root: Path, own: str = "0::/a.service\n") -> str:
    top = "sys/fs/cgroup"
    names = ("cgroup.controllers", "cgroup.subtree_control")
    files = {f"{top}/{folder}{name}": "" for folder in ("", "a.service/", "usina-x/") for name in names}
    files |= {f"{top}/cgroup.controllers": "cpuset cpu io memory pids\n", f"{top}/cgroup.subtree_control": "memory\n"}
    files[f"{top}/usina-x/cgroup.controllers"] = "cpu memory pids\n"
    return tree(root, V2, own, files)


def test_v2_groups_lie_below_the_root_and_controllers_are_handed_on(tmp_path: Path) -> None:
    root = v2_tree(tmp_path)
    layout = find("usina-x", root)
    top = Path(root, "sys/fs/cgroup")
    assert layout.mode == "v2" and set(layout.versions.values()) == {2}
    assert layout.folders == dict.fromkeys(("memory", "cpu", "pids"), f"{top}/usina-x")
    assert "+pids" in (top / "cgroup.subtree_control").read_text() or (top / "cgroup.subtree_control").read_text()


def test_v2_limits_use_and_kills(tmp_path: Path) -> None:
    layout = find("usina-x", v2_tree(tmp_path))
    limits = Limits(memory=1 << 30, cores=0.001, pids=99)
    group = Group.of(layout, "run.1", limits)
    kernel_files(group, "memory.max", "memory.swap.max", "cpu.max", "pids.max")
    group.make(limits)
    group.join(4711)
    folder = Path(group.folders["memory"])
    written = {path.name: path.read_text() for path in folder.iterdir()}
    assert written == {
        "memory.max": str(1 << 30),
        "memory.swap.max": "0",
        "cpu.max": "1000 100000",
        "pids.max": "99",
        "cgroup.procs": "4711",
    }
    (folder / "cpu.stat").write_text("usage_usec 2500000\nuser_usec 1\n")
    (folder / "memory.current").write_text("5000\n")
    (folder / "memory.peak").write_text("9000\n")
    (folder / "memory.stat").write_text("anon 1\ninactive_file 1000\n")
    (folder / "memory.events").write_text("low 0\noom 1\noom_kill 3\n")
    use = group.use()
    assert use is not None and (use.cpu, use.memory, use.peak) == (2.5, 4000, 9000)
    assert group.memory_kills() == 3


def test_without_groups_it_says_why(tmp_path: Path) -> None:
    layout = find("usina-x", tree(tmp_path, "", "", {}))
    assert (layout.mode, layout.why) == ("none", "no control groups are mounted")
    layout = find("usina-x", tree(tmp_path, V2, "0::/\n", {"sys/fs/cgroup/cgroup.controllers": "memory pids\n"}))
    assert layout.mode == "none" and "subtree_control" in layout.why
    assert Group.of(layout, "run.1", Limits()).use() is None


def test_a_container_sees_a_part_of_the_hierarchy(tmp_path: Path) -> None:
    mounts = "31 30 0:27 /docker/abc /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    (tmp_path / "sys/fs/cgroup/memory/inner").mkdir(parents=True)
    layout = find("usina-x", tree(tmp_path, mounts, "1:memory:/docker/abc/inner\n", {}))
    assert layout.folders == {"memory": f"{tmp_path}/sys/fs/cgroup/memory/inner/usina-x"}


def test_texts_of_proc_are_read() -> None:
    assert parse_own("2:cpu,cpuacct:/x\n1:name=systemd:/y:z\n0::/\n") == {
        "cpu": "/x",
        "cpuacct": "/x",
        "name=systemd": "/y:z",
        "": "/",
    }
    assert [m.version for m in parse_mounts(V1 + UNIFIED)] == [1, 1, 1, 1, 1, 2]
    text = "42 (a) b (c)) S 7 42 42 0 -1 4194304 1 2 3 4 10 20 30 40 20 0 1 0 987654 1 1"
    stat = parse_stat(text)
    assert (stat.state, stat.parent, stat.ticks, stat.start) == ("S", 7, 100, 987654)


def test_our_own_process_is_known() -> None:
    found = stat_of(os.getpid())
    assert found is not None and found.parent == os.getppid() and found.start > 0
    assert stat_of(1 << 30) is None


@pytest.fixture
def many_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_end_of_a_process_is_seen_by_a_descriptor_of_any_number(many_files: None) -> None:
    process = subprocess.Popen(["sleep", "600"])
    try:
        found = stat_of(process.pid)
        assert found
        assert open_process(process.pid, found.start + 1) is None, "another process of the same number"
        low = open_process(process.pid, found.start)
        assert low is not None
        high = fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, 1500)
        begun = time.monotonic()
        assert not has_ended(high)
        assert not has_ended(high, patience=-1.0)
        assert not has_ended(high, patience=0.02)
        assert time.monotonic() - begun >= 0.02
        kill(high)
        assert has_ended(high, patience=30)
        for fd in (low, high):
            os.close(fd)
    finally:
        process.kill()
        process.wait()
