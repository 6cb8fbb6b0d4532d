"""What a provider has, what a resource needs, and what is held between them.

Memory and disk in bytes; cores are logical CPUs as the host numbers them. `Claim` is exact: the core set, the NUMA
nodes and the PCI addresses are named, not only counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any

from usina.core.units import Instant


class HostState(StrEnum):
    ENABLED = "enabled"
    CORDONED = "cordoned"  # nothing new; what runs stays
    DRAINING = "draining"  # nothing new; what runs is being stopped


class DeviceKind(StrEnum):
    GPU = "gpu"
    VF = "vf"  # SR-IOV virtual function of a network card
    MDEV = "mdev"  # mediated device type of a parent (vGPU); claimed by parent address + type
    ACCELERATOR = "accelerator"  # any other PCI accelerator


@dataclass(frozen=True, slots=True)
class NumaNode:
    id: int
    cpus: tuple[int, ...]
    memory: int  # ordinary memory; huge page pools are counted apart
    hugepages: Mapping[int, int] = field(default_factory=dict)  # page size in bytes -> pages in the pool


@dataclass(frozen=True, slots=True)
class Device:
    """A device that can be given to a guest."""

    address: str  # PCI address "0000:3b:00.0"; unique on its host
    kind: DeviceKind
    model: str = ""
    vendor: str = ""  # "10de:2330"
    node: int | None = None  # NUMA node, None where the platform does not say
    memory: int = 0
    parent: str | None = None  # PCI address of the physical function of a VF
    mdev_types: Mapping[str, int] = field(default_factory=dict)  # type -> instances it can carry in all
    driver: str = ""  # kernel driver bound now


@dataclass(frozen=True)
class Inventory:
    """What a host has, as its driver probed it."""

    nodes: tuple[NumaNode, ...]
    disk: int
    devices: tuple[Device, ...] = ()
    traits: frozenset[str] = frozenset()  # "kvm", "uefi", "hugepages", "pci-passthrough", "multiqueue", "x86_64" …
    facts: Mapping[str, str] = field(default_factory=dict)  # for people: versions, accelerator and why

    @cached_property
    def cores(self) -> int:
        return sum(len(node.cpus) for node in self.nodes)

    @cached_property
    def memory(self) -> int:
        return sum(node.memory for node in self.nodes)


@dataclass(frozen=True, slots=True)
class DeviceRequest:
    kind: DeviceKind
    count: int = 1
    model: str | None = None  # substring of the model, or "vendor:device", matched without case
    mdev_type: str | None = None


@dataclass(frozen=True, slots=True)
class Needs:
    """A request as placement understands it."""

    cores: int
    memory: int
    disk: int
    pinned: bool = False  # whole host cores of its own
    numa_nodes: int = 0  # spread cores and memory evenly over so many nodes; 0 = anywhere
    hugepage: int = 0  # page size in bytes; 0 = ordinary memory
    devices: tuple[DeviceRequest, ...] = ()
    traits: frozenset[str] = frozenset()  # required
    host: str | None = None  # only this one


@dataclass(frozen=True, slots=True)
class Claim:
    """Capacity held on a provider for a resource."""

    provider: str
    cores: int = 0
    memory: int = 0
    disk: int = 0
    cpus: tuple[int, ...] = ()  # named only when pinned
    nodes: tuple[int, ...] = ()  # NUMA nodes, when asked for
    hugepage: int = 0
    devices: tuple[str, ...] = ()  # PCI addresses; "address/type" for mediated devices


@dataclass(frozen=True, slots=True)
class Provider:
    """A snapshot of one provider: inventory, what is taken, and the generation it was read at."""

    id: str
    name: str
    driver: str
    state: HostState
    generation: int
    inventory: Inventory
    cpu_ratio: float = 1.0  # shared cores sold per real one
    used_cores: int = 0
    used_memory: int = 0
    used_disk: int = 0
    taken_cpus: frozenset[int] = frozenset()
    taken_devices: Mapping[str, int] = field(default_factory=dict)  # name in claims -> how often
    used_hugepages: Mapping[tuple[int, int], int] = field(default_factory=dict)  # (node, page size) -> pages
    bound_memory: Mapping[int, int] = field(default_factory=dict)  # node -> bytes of claims bound to it
    cordoned_devices: frozenset[str] = frozenset()
    reachable: bool = True
    seen_at: Instant = 0.0


@dataclass(frozen=True, slots=True)
class Host:
    """A host row: how to reach it, and the provider it is."""

    provider: Provider
    created_at: Instant
    options: Mapping[str, Any] = field(default_factory=dict)
    message: str = ""

    @property
    def id(self) -> str:
        return self.provider.id

    @property
    def name(self) -> str:
        return self.provider.name
