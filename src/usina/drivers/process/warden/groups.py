"""Control groups: one group per run below one of ours, on cgroup v1, v2, and hosts that mix them.

`find` reads what the host has; each controller is used where it is mounted, v1 before v2. Where nothing may be written
there are no groups, and runs have no limits but their namespaces': `Layout.mode` is then "none", and facts say why.

v1: below the group we are in, so that limits of an enclosing container hold. v2: below the root of the hierarchy (a
group with processes of its own cannot hand on controllers), or below ours where that one was delegated and is empty.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from .kernel import content

WANTED: Final = ("memory", "cpu", "cpuacct", "pids", "cpuset")
_PERIOD: Final = 100_000  # microseconds, over which `cpu` counts
_LEAST_QUOTA: Final = 1000


@dataclass(frozen=True, slots=True)
class Mounted:
    """One hierarchy: where it is mounted, which part of it, and the group this process is in."""

    point: str
    root: str
    controllers: tuple[str, ...]  # () for v2
    version: int


@dataclass(frozen=True, slots=True)
class Layout:
    """Where our groups are made: controller -> folder; `version` says how its files are named."""

    mode: str  # "v1" | "v2" | "hybrid" | "none"
    folders: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, int] = field(default_factory=dict)
    why: str = ""

    def has(self, controller: str) -> bool:
        return controller in self.folders


def parse_mounts(text: str) -> list[Mounted]:
    """Hierarchies in a text like /proc/self/mountinfo; see proc(5)."""
    found = []
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.partition(" ")
        fields = left.split(" ")
        if kind == "cgroup":
            controllers = tuple(c for c in options.split(" ")[-1].split(",") if c in WANTED)
            found.append(Mounted(fields[4], fields[3], controllers, 1))
        elif kind == "cgroup2":
            found.append(Mounted(fields[4], fields[3], (), 2))
    return found


def parse_own(text: str) -> dict[str, str]:
    """Controller -> group, from a text like /proc/self/cgroup; ``""`` is v2."""
    own: dict[str, str] = {}
    for line in text.splitlines():
        _, names, path = line.split(":", 2)
        own.update(dict.fromkeys(names.split(","), path))
    return own


def find(name: str, root: str = "") -> Layout:
    """The layout of the host below `root` ("" is the real one), with our parent groups made. `name` is theirs."""
    try:
        mounts = parse_mounts(_read(f"{root}/proc/self/mountinfo"))
        own = parse_own(_read(f"{root}/proc/self/cgroup"))
    except (OSError, ValueError) as error:
        return Layout("none", why=f"{error}")
    folders: dict[str, str] = {}
    versions: dict[str, int] = {}
    why = "no control groups are mounted"
    for mounted in sorted(mounts, key=lambda m: m.version):
        try:
            made = (
                _parent_v1(mounted, own, name, root) if mounted.version == 1 else _parent_v2(mounted, own, name, root)
            )
        except OSError as error:
            why = f"{error.filename or mounted.point}: {error.strerror}"
            continue
        for controller, folder in made.items():
            if controller not in folders:
                folders[controller], versions[controller] = folder, mounted.version
    return Layout(_mode(mounts, folders), folders, versions, "" if folders else why)


def _mode(mounts: Iterable[Mounted], folders: Mapping[str, str]) -> str:
    there = {m.version for m in mounts}
    if not folders:
        return "none"
    return "hybrid" if there == {1, 2} else f"v{there.pop()}"


def _below(mounted: Mounted, group: str) -> str:
    """A group's path below the mount point: in a container the hierarchy's upper part is not mounted."""
    if mounted.root != "/" and group.startswith(mounted.root):
        group = group[len(mounted.root) :]
    return group.strip("/")


def _parent_v1(mounted: Mounted, own: Mapping[str, str], name: str, root: str) -> dict[str, str]:
    if not mounted.controllers:
        return {}
    base = os.path.join(root + mounted.point, _below(mounted, own.get(mounted.controllers[0], "/")))
    folder = os.path.join(base, name)
    _make(folder)
    if "cpuset" in mounted.controllers:  # an empty set takes no process
        for file in ("cpuset.cpus", "cpuset.mems"):
            _write(folder, file, _read(os.path.join(base, file)).strip())
    return dict.fromkeys(mounted.controllers, folder)


def _parent_v2(mounted: Mounted, own: Mapping[str, str], name: str, root: str) -> dict[str, str]:
    top = root + mounted.point
    if not {"memory", "pids"}.intersection(_read(os.path.join(top, "cgroup.controllers")).split()):
        return {}  # mounted beside v1, which has them
    mine = os.path.join(top, _below(mounted, own.get("", "/")))
    problem: OSError | None = None
    for base in dict.fromkeys((top, mine)):
        try:
            given = _hand_on(base)
            folder = os.path.join(base, name)
            _make(folder)
            given = _hand_on(folder, given)
            return dict.fromkeys(given, folder)
        except OSError as error:
            problem = error
    raise problem or OSError(1, "not permitted", top)


def _hand_on(folder: str, among: Iterable[str] = WANTED) -> list[str]:
    """Give a group's children those controllers that it has. Raises `OSError` where memory or pids cannot be given."""
    there = _read(os.path.join(folder, "cgroup.controllers")).split()
    wanted = [c for c in among if c in there]
    given = _read(os.path.join(folder, "cgroup.subtree_control")).split()
    for controller in wanted:
        if controller not in given:
            _write(folder, "cgroup.subtree_control", f"+{controller}")
    return wanted


@dataclass(frozen=True, slots=True)
class Limits:
    memory: int = 0  # bytes; 0: none
    cores: float = 0.0  # 0: none
    pids: int = 0
    cpus: tuple[int, ...] = ()
    nodes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Use:
    cpu: float
    memory: int
    peak: int


class Group:
    """One run's group: a folder per controller. Cheap to make from what a run's record says of it."""

    def __init__(self, folders: Mapping[str, str], versions: Mapping[str, int]) -> None:
        self.folders = dict(folders)
        self._versions = versions

    @classmethod
    def of(cls, layout: Layout, name: str, limits: Limits) -> Group:
        """A run's group, not made yet. `cpuset` only where the plan names processors: it is the dearest to make."""
        skip = set() if limits.cpus or limits.nodes else {"cpuset"}
        return cls({c: f"{f}/{name}" for c, f in layout.folders.items() if c not in skip}, layout.versions)

    @property
    def _distinct(self) -> list[str]:
        return list(dict.fromkeys(self.folders.values()))

    def make(self, limits: Limits) -> None:
        for folder in self._distinct:
            _make(folder)
        self.limit(limits)

    def limit(self, limits: Limits) -> None:
        for controller, folder in self.folders.items():
            for file, value in _settings(controller, self._versions[controller], limits, folder):
                _write(folder, file, value)
        if "memory" in self.folders and limits.memory:
            self._no_swap(limits.memory)

    def _no_swap(self, memory: int) -> None:
        file, value = ("memory.memsw.limit_in_bytes", memory) if self._v1("memory") else ("memory.swap.max", 0)
        with suppress(OSError):  # kernels without swap accounting
            _write(self.folders["memory"], file, str(value))

    def _v1(self, controller: str) -> bool:
        return self._versions[controller] == 1

    def lists(self) -> list[int]:
        """Descriptors of the lists of its processes, to be written by who joins. The caller closes them."""
        found: list[int] = []
        try:
            for folder in self._distinct:
                found.append(os.open(f"{folder}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC))
        except OSError:
            for fd in found:
                os.close(fd)
            raise
        return found

    def join(self, pid: int) -> None:
        for folder in self._distinct:
            _write(folder, "cgroup.procs", str(pid))

    def processes(self) -> list[int]:
        for folder in self._distinct:
            try:
                return [int(line) for line in _read(f"{folder}/cgroup.procs").split()]
            except OSError:
                continue
        return []

    def memory_kills(self) -> int:
        """Processes killed because the group's memory was used up."""
        if "memory" not in self.folders:
            return 0
        file = "memory.oom_control" if self._v1("memory") else "memory.events"
        return _keyed(self.folders["memory"], file).get("oom_kill", 0)

    def use(self) -> Use | None:
        if not self.folders:
            return None
        memory, peak = self._memory()
        return Use(self._cpu(), memory, peak)

    def whole_use(self) -> Use | None:
        """What a run that has ended has used, in which nothing is left; cheaper than `use`."""
        return Use(self._cpu(), 0, self._peak()) if self.folders else None

    def _peak(self) -> int:
        if "memory" not in self.folders:
            return 0
        return _number(self.folders["memory"], "memory.max_usage_in_bytes" if self._v1("memory") else "memory.peak")

    def _cpu(self) -> float:
        if "cpuacct" in self.folders:
            return _number(self.folders["cpuacct"], "cpuacct.usage") / 1e9
        if "cpu" in self.folders and not self._v1("cpu"):
            return _keyed(self.folders["cpu"], "cpu.stat").get("usage_usec", 0) / 1e6
        return 0.0

    def _memory(self) -> tuple[int, int]:
        """Now and at most. Pages of files that could be dropped at once are not counted as used now."""
        folder = self.folders.get("memory")
        if folder is None:
            return 0, 0
        now, key = ("usage_in_bytes", "total_inactive_file") if self._v1("memory") else ("current", "inactive_file")
        idle = _keyed(folder, "memory.stat").get(key, 0)
        return max(0, _number(folder, f"memory.{now}") - idle), self._peak()

    def remove(self) -> bool:
        """False where something is in it yet."""
        gone = True
        for folder in self._distinct:
            try:
                os.rmdir(folder)
            except FileNotFoundError:
                pass
            except OSError:
                gone = False
        return gone


def _settings(controller: str, version: int, limits: Limits, folder: str) -> Iterable[tuple[str, str]]:
    v1 = version == 1
    match controller:
        case "memory" if limits.memory:
            yield "memory.limit_in_bytes" if v1 else "memory.max", str(limits.memory)
        case "cpu" if limits.cores:
            quota = max(_LEAST_QUOTA, int(limits.cores * _PERIOD))
            yield ("cpu.cfs_quota_us", str(quota)) if v1 else ("cpu.max", f"{quota} {_PERIOD}")
        case "pids" if limits.pids:
            yield "pids.max", str(limits.pids)
        case "cpuset":
            above = os.path.dirname(folder)
            cpus, nodes = (",".join(map(str, numbers)) for numbers in (limits.cpus, limits.nodes))
            if cpus or v1:
                yield "cpuset.cpus", cpus or _read(f"{above}/cpuset.cpus").strip()
            if nodes or v1:
                yield "cpuset.mems", nodes or _read(f"{above}/cpuset.mems").strip()


def sweep(layout: Layout, prefix: str) -> None:
    """Remove groups that are called so and in which nothing is."""
    for folder in set(layout.folders.values()):
        for name in os.listdir(folder):
            if name.startswith(prefix):
                with suppress(OSError):
                    os.rmdir(f"{folder}/{name}")


def remove_parents(layout: Layout) -> None:
    """Our own groups, where nothing is in them any more."""
    Group(layout.folders, layout.versions).remove()


def _make(folder: str) -> None:
    with suppress(FileExistsError):
        os.mkdir(folder, 0o755)


def _read(path: str) -> str:
    return content(path).decode("ascii", "replace")


def _write(folder: str, file: str, value: str) -> None:
    """One write, without making the file: a kernel's file is there or it is not."""
    fd = os.open(f"{folder}/{file}", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)


def _number(folder: str, file: str) -> int:
    try:
        return int(_read(f"{folder}/{file}"))
    except (OSError, ValueError):
        return 0


def _keyed(folder: str, file: str) -> dict[str, int]:
    """Lines of ``key number``."""
    try:
        lines = (line.split() for line in _read(f"{folder}/{file}").splitlines())
        return {line[0]: int(line[1]) for line in lines if len(line) == 2 and line[1].isdecimal()}
    except OSError:
        return {}
