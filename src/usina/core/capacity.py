"""What a provider has, what a resource needs, and what is held between them.

Memory and disk in bytes; cores are logical CPUs as the host numbers them. `Claim` is exact: the core set, the NUMA
nodes and the PCI addresses are named, not only counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property, lru_cache
from typing import Any

from usina.core.units import Instant


class HostState(StrEnum):
    ENABLED = "enabled"
    CORDONED = "cordoned"  # nothing new; what runs stays
    DRAINING = "draining"  # nothing new; what runs is being stopped


LEVELS = ("site", "block", "rack", "nvlink", "host")
"""The topology above a host, widest first, as labels an operator gives; below it are NUMA nodes and devices."""

DAY = 86_400.0


class Numa(StrEnum):
    """How cores, memory and devices of one request lie on NUMA nodes, where it does not say over how many."""

    NONE = "none"
    PREFERRED = "preferred"  # one node if one has room, else anywhere on the host
    STRICT = "strict"  # one node, with the devices that say where they are


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
    siblings: tuple[tuple[int, ...], ...] = ()  # hardware threads of each physical core; () = one thread each


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
    link: str | None = None  # devices of one host with the same name here reach each other by NVLink (or alike)
    mode: str = ""  # how it is partitioned now: "" whole, "mig", or an AMD mode such as "cpx"
    traits: frozenset[str] = frozenset()


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


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """Something came to light about one device."""

    address: str
    reason: str
    cordon: bool = True  # False: a warning


GIVEN = "task"
"""The trait of a device that tasks can be given, on the host as it is."""
FOR_MACHINES = "vfio"
"""The trait of a device that is set aside for machines."""
MACHINES = "machine"
"""The trait of a provider that machines can be made on."""
FOLDERS = "task:volumes"
"""The trait of a provider that has volumes for its tasks."""
QUEUE = "queue"
"""The trait of a provider that has a queue of its own: what it has is never too full to be asked for."""


def runs(stack: str) -> str:
    """The trait of a provider that runs tasks on a stack."""
    return f"task:{stack}"


def has_tool(name: str) -> str:
    """The trait of a provider that has a program which tasks can name."""
    return f"tool:{name}"


def merged(inventories: Sequence[Inventory]) -> Inventory:
    """One host as several drivers see it: sizes as the first says, what each can do, devices as all of them know."""
    first, *others = inventories
    devices = {device.address: device for device in first.devices}
    for one in others:
        for device in one.devices:
            known = devices.get(device.address)
            devices[device.address] = device if known is None else _detailed(known, device)
    facts: dict[str, str] = {}
    for one in reversed(inventories):
        facts |= one.facts
    traits = frozenset().union(*(one.traits for one in inventories))
    return replace(first, devices=tuple(devices.values()), traits=traits, facts=facts)


def _detailed(known: Device, more: Device) -> Device:
    """A device with what a second driver knows where the first says nothing."""
    return replace(
        known,
        memory=known.memory or more.memory,
        link=known.link or more.link,
        mode=known.mode or more.mode,
        node=known.node if known.node is not None else more.node,
        model=more.model if more.memory and more.model else known.model or more.model,
        traits=known.traits | more.traits,
    )


@dataclass(frozen=True, slots=True)
class DeviceRequest:
    kind: DeviceKind
    count: int = 1
    model: str | None = None  # "A|B": parts of accepted model names, or "vendor:device", matched without case
    mdev_type: str | None = None
    memory: int = 0  # bytes the device (or the partition) has at least
    share: int = 0  # thousandths of one device, 1 to 999; 0 = all of it
    profile: str | None = None  # a partition: a MIG profile ("1g.10gb") or an AMD mode ("cpx")
    linked: bool = False  # required: all of them joined by NVLink; else only preferred
    traits: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Affinity:
    """Near to, or apart from, a resource or every member of a group."""

    to: str  # a resource's id, or a group that requests name in `Needs.groups`
    apart: bool = False
    level: str = "host"  # one of LEVELS
    required: bool = True


@dataclass(frozen=True, slots=True)
class Needs:
    """A request as placement understands it."""

    cores: float  # in thousandths at the finest
    memory: int
    disk: int
    pinned: bool = False  # whole host cores of its own
    numa_nodes: int = 0  # spread cores and memory evenly over so many nodes; 0 = anywhere
    hugepage: int = 0  # page size in bytes; 0 = ordinary memory
    devices: tuple[DeviceRequest, ...] = ()
    traits: frozenset[str] = frozenset()  # required
    host: str | None = None  # only this one
    numa: Numa = Numa.NONE
    whole_cores: bool = False  # pinned, and no hardware thread of its physical cores is anybody else's
    forbidden: frozenset[str] = frozenset()  # traits
    affinities: tuple[Affinity, ...] = ()
    groups: frozenset[str] = frozenset()
    tenant: str = ""
    priority: int = 0  # higher may preempt lower
    preemptible: bool = False  # may use what is reserved but idle, and give way
    begins: Instant = 0.0
    ends: Instant = float("inf")  # when it will be over; maintenance and reservations that begin later do not matter

    def at(self, now: Instant) -> Needs:
        """The same, beginning now. What has no end is held for a day: hosts go into maintenance one by one, and a
        window far ahead must not keep machines away for weeks; a host is drained when its window comes."""
        return replace(self, begins=now, ends=min(self.ends, now + DAY))


@dataclass(frozen=True, slots=True)
class Gang:
    """Replicas alike, placed all together or not at all."""

    needs: Needs
    size: int  # replicas wanted
    least: int | None = None  # elastic: fewer will do, down to this many
    level: str = "host"  # the level of topology that `arrange` speaks of
    arrange: str = "pack"  # "same" (required) | "pack" (as few as possible) | "spread" (as many as possible)


@dataclass(frozen=True, slots=True)
class Window:
    begins: Instant
    ends: Instant


@dataclass(frozen=True, slots=True)
class Terms:
    """What the operator says of a provider, beside what it has."""

    topology: Mapping[str, str] = field(default_factory=dict)  # level -> name of the domain, for LEVELS above host
    group: str = ""  # provider group, which has a policy
    memory_ratio: float = 1.0  # ordinary memory sold per real byte
    tenants: frozenset[str] = frozenset()  # dedicated to these; empty = everybody's
    maintenance: tuple[Window, ...] = ()
    price: int = 0  # micro-credits an hour for all of it


@dataclass(frozen=True, slots=True)
class Holding:
    """A claim, and what rules and preemption must know of who holds it."""

    resource: str
    claim: Claim
    tenant: str = ""
    groups: frozenset[str] = frozenset()
    priority: int = 0
    preemptible: bool = False


@dataclass(frozen=True, slots=True)
class Reservation:
    """Capacity promised for a window: the claims it will have, held by nobody until it begins."""

    id: str
    tenant: str
    window: Window
    claims: tuple[Claim, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """All of a device or a part of it, as claims name it.

    ``0000:3b:00.0`` the whole; ``…/250m`` a share in thousandths; ``…/1g.10gb@4`` a partition that starts at slice 4;
    ``…/nvidia-63`` an instance of a mediated type.
    """

    address: str
    share: int = 0
    profile: str = ""
    start: int = 0
    mdev_type: str = ""

    def __str__(self) -> str:
        if self.share:
            return f"{self.address}/{self.share}m"
        if self.profile:
            return f"{self.address}/{self.profile}@{self.start}"
        return f"{self.address}/{self.mdev_type}" if self.mdev_type else self.address

    @staticmethod
    @lru_cache(maxsize=65536)
    def parse(name: str) -> Part:
        """The part that a claim's `name` says. Never fails: what is not understood is a mediated type."""
        address, _, what = name.partition("/")
        profile, at, start = what.rpartition("@")
        if at and start.isdecimal():
            return Part(address, profile=profile, start=int(start))
        if what.endswith("m") and what[:-1].isdecimal():
            return Part(address, share=int(what[:-1]))
        return Part(address, mdev_type=what)


@dataclass(frozen=True, slots=True)
class Claim:
    """Capacity held on a provider for a resource."""

    provider: str
    cores: float = 0
    memory: int = 0
    disk: int = 0
    cpus: tuple[int, ...] = ()  # named only when pinned
    nodes: tuple[int, ...] = ()  # NUMA nodes, when asked for
    hugepage: int = 0
    devices: tuple[str, ...] = ()  # names as `Part` writes them


@dataclass(frozen=True, slots=True)
class Provider:
    """A snapshot of one provider: inventory, what is taken, and the generation it was read at.

    The generation counts what may take room away; `releases` what only gives some back.
    """

    id: str
    name: str
    driver: str
    state: HostState
    generation: int
    inventory: Inventory
    cpu_ratio: float = 1.0  # shared cores sold per real one
    used_cores: float = 0
    used_memory: int = 0
    used_disk: int = 0
    taken_cpus: frozenset[int] = frozenset()
    taken_devices: Mapping[str, int] = field(default_factory=dict)  # name in claims (see `Part`) -> how often
    used_hugepages: Mapping[tuple[int, int], int] = field(default_factory=dict)  # (node, page size) -> pages
    bound_memory: Mapping[int, int] = field(default_factory=dict)  # node -> bytes of claims bound to it
    cordoned_devices: frozenset[str] = frozenset()
    reachable: bool = True
    seen_at: Instant = 0.0
    terms: Terms = Terms()
    releases: int = 0


@dataclass(frozen=True, slots=True)
class Host:
    """A host row: how to reach it, and the provider it is."""

    provider: Provider
    created_at: Instant
    options: Mapping[str, Any] = field(default_factory=dict)
    message: str = ""
    also: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # further drivers of the same host -> options

    @property
    def drivers(self) -> dict[str, Mapping[str, Any]]:
        """All its drivers with their options; the first one says whether it answers."""
        return {self.provider.driver: self.options, **self.also}

    @property
    def id(self) -> str:
        return self.provider.id

    @property
    def name(self) -> str:
        return self.provider.name
