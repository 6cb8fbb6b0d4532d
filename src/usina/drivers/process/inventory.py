"""What this host offers to tasks: processors, memory, the disk of the runs' folder, and what is possible here."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path

from usina.core.capacity import FOLDERS, Inventory, has_tool
from usina.drivers.process.options import Options
from usina.drivers.process.warden import seccomp
from usina.hardware import devices, read_nodes

_WHY = "tasks are not held to their memory, cores and processes: "


def build_inventory(
    options: Options, groups: str, why: str, network: str, volumes: str, tools: Sequence[str] = (), root: str = ""
) -> Inventory:
    """`groups` and `why`: the warden's control groups, and why there are none. `network`: the program that gives runs
    an outbound network, or "". `volumes`: why runs can have none, or "". `tools`: programs that runs can name."""
    nodes = read_nodes(root)
    traits = {"task:local", platform.machine()}
    traits |= {"task:outbound"} if network else set()
    traits |= {"task:host-network"} if options.host_network else set()
    traits |= {FOLDERS} if not volumes else set()
    traits |= {"task:limits"} if groups != "none" else set()
    traits |= {has_tool(tool) for tool in tools}
    traits |= {"numa"} if len(nodes) > 1 else set()
    return Inventory(
        nodes=nodes,
        disk=_disk(options.folder),
        devices=devices(root),
        traits=frozenset(traits),
        facts={**_facts(options, groups, why, network), "volumes": volumes or "folders"},
    )


def _facts(options: Options, groups: str, why: str, network: str) -> dict[str, str]:
    root = os.geteuid() == 0
    first, count = options.uids
    return {
        "hostname": platform.node(),
        "kernel": platform.release(),
        "control_groups": f"none; {_WHY}{why}" if groups == "none" else groups,
        "seccomp": "on" if platform.machine() in seccomp.ARCHITECTURES else "no filter for this architecture",
        "users": f"each run its own, of {first} to {first + count - 1}"
        if root
        else f"every run is user {os.geteuid()}",
        "outbound": Path(network).name if network else "neither pasta nor slirp4netns can be used",
        "disk_limits": "none: a task's disk size bounds only the files that it is given",
    }


def _disk(folder: Path) -> int:
    """All of the filesystem that an ordinary user could fill, not what is free just now."""
    while not folder.exists():
        folder = folder.parent
    usage = os.statvfs(folder)
    return usage.f_frsize * (usage.f_blocks - (usage.f_bfree - usage.f_bavail))
