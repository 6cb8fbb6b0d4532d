"""What a pretended host has, from the options it was added with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from usina.core.capacity import Device, DeviceKind, Inventory, NumaNode
from usina.core.units import GiB, TiB

MOST_VFS = 248  # of one card: functions 0 to 7 of slots 1 to 31; slot 0 is the card itself

_TRAITS = frozenset({"fake", "uefi", "pinning", "multiqueue", "snapshots", "x86_64", "task:network"})
_FACTS = {"accelerator": "fake", "accelerator_reason": "nothing runs here"}


def inventory(options: Mapping[str, Any]) -> Inventory:
    """`options` as the plugin's `check` let them pass."""
    nodes = tuple(_nodes(options))
    devices = (*_gpus(options, len(nodes)), *_functions(options, len(nodes)))
    return Inventory(nodes, int(options.get("disk", 10 * TiB)), devices, _TRAITS, _FACTS)


def _nodes(options: Mapping[str, Any]) -> Iterator[NumaNode]:
    count, cores = int(options.get("numa_nodes", 1)), int(options.get("cores", 64))
    memory, pages = int(options.get("memory", 256 * GiB)), int(options.get("hugepages", 0))
    share = cores // count
    for n in range(count):
        cpus = tuple(range(n * share, (n + 1) * share if n < count - 1 else cores))
        yield NumaNode(
            id=n,
            cpus=cpus,
            memory=memory // count - pages * GiB,
            hugepages={GiB: pages} if pages else {},
            siblings=_siblings(cpus, int(options.get("threads", 1))),
        )


def _siblings(cpus: tuple[int, ...], threads: int) -> tuple[tuple[int, ...], ...]:
    if threads == 1:
        return ()
    return tuple(cpus[first : first + threads] for first in range(0, len(cpus), threads))


def _gpus(options: Mapping[str, Any], nodes: int) -> Iterator[Device]:
    count, joined = int(options.get("gpus", 0)), int(options.get("nvlink", 0))
    for i in range(count):
        yield Device(
            address=f"0000:{0x10 + i:02x}:00.0",
            kind=DeviceKind.GPU,
            model=str(options.get("gpu_model", "H100")),
            vendor="10de:2330",
            node=i * nodes // count,
            memory=int(options.get("gpu_memory", 80 * GiB)),
            link=f"nvl{i // joined}" if joined else None,
        )


def _functions(options: Mapping[str, Any], nodes: int) -> Iterator[Device]:
    for node in range(nodes):
        for i in range(int(options.get("vfs", 0))):
            yield Device(
                address=f"0001:{node:02x}:{1 + i // 8:02x}.{i % 8}",
                kind=DeviceKind.VF,
                model="ConnectX Virtual Function",
                vendor="15b3:101e",
                node=node,
                parent=f"0001:{node:02x}:00.0",
            )
