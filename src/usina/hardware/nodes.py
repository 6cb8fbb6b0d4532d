"""Processors and memory of a host by NUMA node, as far as we may use them.

Read below a root: /sys/devices/system/node (where it is missing, the host is one node), /sys/devices/system/cpu and
/proc/meminfo. What we may use is less than what there is when a container or a service manager holds this process to
some processors (its affinity) or to some memory (a limit of its control group, or of one above).
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Final

from usina.core.capacity import NumaNode
from usina.core.units import GiB, KiB

_HOST_SHARE: Final = 0.05  # of memory, left for the host
_NO_LIMIT: Final = 1 << 60  # v1 writes "none" as a number near 2**63


def read_nodes(root: str = "", affinity: Collection[int] | None = None) -> tuple[NumaNode, ...]:
    """Nodes with processors that we may use, by number, less what the host itself needs. `affinity`: the processors
    this process is held to; None: ask."""
    usable = set(os.sched_getaffinity(0) if affinity is None else affinity)
    found = [node for node in _all(root) if usable.intersection(node.cpus)]
    whole = sum(node.memory for node in found)
    limit = min(whole, memory_limit(root))
    kept = max(0, limit - int(max(GiB, limit * _HOST_SHARE))) if limit > 2 * GiB else limit // 2
    return tuple(_held(node, usable, kept / whole if whole else 0) for node in found)


def _held(node: NumaNode, usable: set[int], share: float) -> NumaNode:
    """A node without processors that are not ours, and its share of the memory that is."""
    cpus = tuple(cpu for cpu in node.cpus if cpu in usable)
    cores = {tuple(cpu for cpu in core if cpu in usable) for core in node.siblings} - {()}
    return replace(node, cpus=cpus, memory=int(node.memory * share), siblings=tuple(sorted(cores)))


def _all(root: str) -> list[NumaNode]:
    folders = list(Path(f"{root}/sys/devices/system/node").glob("node[0-9]*"))
    if not folders:
        return [_whole(root)]
    nodes = (_node(folder, root) for folder in folders)
    return sorted((node for node in nodes if node.cpus), key=lambda node: node.id)


def _whole(root: str) -> NumaNode:
    """A host that does not speak of nodes."""
    cpus = parse_list(_text(f"{root}/sys/devices/system/cpu/online")) or tuple(range(os.cpu_count() or 1))
    pools = _pools(Path(f"{root}/sys/kernel/mm/hugepages"))
    memory = meminfo(_text(f"{root}/proc/meminfo")).get("MemTotal", 0)
    return NumaNode(0, cpus, _ordinary(memory, pools), pools, _siblings(cpus, root))


def _node(folder: Path, root: str) -> NumaNode:
    cpus = parse_list(_text(f"{folder}/cpulist"))
    pools = _pools(folder / "hugepages")
    memory = meminfo(_text(f"{folder}/meminfo")).get("MemTotal", 0)
    return NumaNode(int(folder.name[4:]), cpus, _ordinary(memory, pools), pools, _siblings(cpus, root))


def _ordinary(memory: int, pools: dict[int, int]) -> int:
    return max(0, memory - sum(size * count for size, count in pools.items()))


def _pools(folder: Path) -> dict[int, int]:
    """Size of page → pages, of pools that have any."""
    sizes = {
        int(entry.name.removeprefix("hugepages-").removesuffix("kB")) * KiB: int(_text(f"{entry}/nr_hugepages") or 0)
        for entry in folder.glob("hugepages-*kB")
    }
    return {size: count for size, count in sorted(sizes.items()) if count}


def _siblings(cpus: Iterable[int], root: str) -> tuple[tuple[int, ...], ...]:
    """Hardware threads of each physical core; () where each has one."""
    cores = {
        parse_list(_text(f"{root}/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")) or (cpu,)
        for cpu in cpus
    }
    return tuple(sorted(cores)) if any(len(core) > 1 for core in cores) else ()


def memory_limit(root: str = "") -> int:
    """The least limit of memory of our control group and those above it, v1 or v2. `_NO_LIMIT`: none."""
    least = _NO_LIMIT
    tops: tuple[str, ...]
    for line in _text(f"{root}/proc/self/cgroup").splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            tops, file = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified"), "memory.max"
        elif "memory" in controllers.split(","):
            tops, file = ("/sys/fs/cgroup/memory",), "memory.limit_in_bytes"
        else:
            continue
        for top in tops:
            least = min([least, *_limits_above(f"{root}{top}", group, file)])
    return least


def _limits_above(top: str, group: str, file: str) -> Iterable[int]:
    parts = [part for part in group.split("/") if part]
    for count in range(len(parts), -1, -1):
        text = _text("/".join([top, *parts[:count], file])).strip()
        if text.isdecimal():
            yield int(text)


def parse_list(text: str) -> tuple[int, ...]:
    """``0,4-6`` → 0, 4, 5, 6."""
    found: list[int] = []
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first.isdecimal():
            found += range(int(first), int(last or first) + 1)
    return tuple(found)


def meminfo(text: str) -> dict[str, int]:
    """Name → bytes, from /proc/meminfo or a node's (whose lines begin with ``Node 0``)."""
    pairs = re.findall(r"^(?:Node \d+ )?([\w()]+):\s+(\d+) kB$", text, re.MULTILINE)
    return {name: int(number) * KiB for name, number in pairs}


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
