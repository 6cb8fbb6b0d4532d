"""Machine: something with an operating system to log in to. The wish, the sight, and what a driver is told.

`MachineSpec` is what the member wants and is stored. `Seen` is what a driver finds on the host. `MachinePlan` is the
wish with every name resolved, the one thing a driver needs to make the guest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from usina.core.capacity import DeviceKind, DeviceRequest, Numa


class Power(StrEnum):
    ON = "on"
    OFF = "off"
    SUSPENDED = "suspended"


class Firmware(StrEnum):
    BIOS = "bios"
    UEFI = "uefi"


class Restart(StrEnum):
    NEVER = "never"
    ON_FAILURE = "on-failure"
    ALWAYS = "always"


@dataclass(frozen=True, slots=True)
class Interface:
    """A network card of a guest or a task. `mac` and `address` are given at order and stay for life, or until a task is
    over; the whole of an array or gang has neither, its parts have."""

    network: str  # network id
    mac: str
    address: str  # IPv4 in the network's range
    security_groups: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RestoreWish:
    snapshot: str
    token: int


@dataclass(frozen=True, slots=True)
class MachineSpec:
    image: str
    cores: int
    memory: int
    disk: int
    power: Power = Power.ON
    hostname: str = ""
    ssh_keys: tuple[str, ...] = ()
    user_data: str | None = None
    interfaces: tuple[Interface, ...] = ()
    volumes: tuple[str, ...] = ()
    pinned: bool = False
    numa_nodes: int = 0
    hugepage: int = 0
    firmware: Firmware = Firmware.BIOS
    queues: int = 1
    devices: tuple[DeviceRequest, ...] = ()
    restart: Restart = Restart.NEVER
    host: str | None = None
    snapshots: tuple[str, ...] = ()
    # Deeds wished for are counters: a driver does one when its own mark is below the wish, so asking twice is safe.
    reboots: int = 0
    rebuilds: int = 0
    restore: RestoreWish | None = None
    numa: Numa = Numa.NONE
    whole_cores: bool = False
    near: tuple[str, ...] = ()  # machine ids, and groups of the project by name
    apart: tuple[str, ...] = ()
    group: str = ""
    spread_over: str = ""  # a level of topology at which the members of its group are kept apart
    priority: int = 0
    preemptible: bool = False
    tasks: bool = True  # whether tasks of its project may be run in it, for which it lets in the project's key


def group_of(project: str, name: str) -> str:
    """A project's group as placement knows it: no other project's is called the same."""
    return f"{project}/{name}"


@dataclass(frozen=True, slots=True)
class MachineStatus:
    power: Power | None = None
    accelerator: str = ""
    marks: Mapping[str, int] = field(default_factory=dict)  # deeds done, as last seen; outlive a guest removed by hand


@dataclass(frozen=True, slots=True)
class Absent:
    """The host answers and has no such guest."""


@dataclass(frozen=True, slots=True)
class Unreachable:
    """The host does not answer, so nothing is known."""

    reason: str = ""


@dataclass(frozen=True, slots=True)
class Present:
    """The guest as it is on its host."""

    power: Power
    cores: int
    memory: int
    volumes: frozenset[str] = frozenset()  # volume handles attached
    macs: frozenset[str] = frozenset()
    snapshots: frozenset[str] = frozenset()
    marks: Mapping[str, int] = field(default_factory=dict)  # "reboots", "rebuilds", "restore": highest token done
    crashed: bool = False  # power is off because the guest died, not because anybody stopped it
    accelerator: str = ""
    dark: bool = False  # it runs, but its start was broken off before its cards had their links


Seen = Absent | Present | Unreachable


@dataclass(frozen=True, slots=True)
class ImageFiles:
    """Files of an image on the control plane's disk; a driver copies them to its host, once per digest."""

    digest: str  # sha256 of the disk, hex; names the copy on the host
    disk: str  # path of a qcow2 or raw file; "" for a diskless appliance
    format: str = "qcow2"
    virtual_size: int = 0
    kernel: str = ""  # path; direct kernel boot when set
    initrd: str = ""
    cmdline: str = ""


@dataclass(frozen=True, slots=True)
class Rule:
    """What a security group lets in or out. `ports` is an inclusive range; (0, 0) means all of the protocol."""

    direction: str  # "in" | "out"
    protocol: str  # "tcp" | "udp" | "icmp" | "all"
    ports: tuple[int, int] = (0, 0)
    remote: str = "0.0.0.0/0"  # IPv4 CIDR


@dataclass(frozen=True, slots=True)
class InterfacePlan:
    mac: str
    address: str
    network: str  # network handle
    rules: tuple[Rule, ...]  # union of its security groups; what no rule allows is dropped


@dataclass(frozen=True, slots=True)
class NetworkPlan:
    handle: str
    cidr: str
    gateway: str
    domain: str  # DNS domain of the project
    hosts: tuple[tuple[str, str, str], ...] = ()  # (mac, address, hostname) known now


@dataclass(frozen=True, slots=True)
class Card:
    """An interface for a network device that is there already, such as a task's, and the network that it goes to.
    `network.hosts` has its entry."""

    interface: InterfacePlan
    network: NetworkPlan


@dataclass(frozen=True, slots=True)
class VolumePlan:
    handle: str
    size: int


@dataclass(frozen=True, slots=True)
class DevicePlan:
    address: str  # "0000:3b:00.0" or "0000:3b:00.0/nvidia-63"
    kind: DeviceKind


@dataclass(frozen=True, slots=True)
class MachinePlan:
    """Everything a driver must know to make, or remake, one guest."""

    handle: str
    hostname: str
    cores: int
    memory: int
    disk: int
    image: ImageFiles
    meta_data: str  # NoCloud documents, ready to be written
    user_data: str
    network_config: str
    interfaces: tuple[InterfacePlan, ...] = ()
    networks: tuple[NetworkPlan, ...] = ()
    volumes: tuple[str, ...] = ()  # handles
    cpus: tuple[int, ...] = ()  # host CPUs, one per guest core, when pinned
    nodes: tuple[int, ...] = ()  # host NUMA nodes of memory and cores
    hugepage: int = 0
    firmware: Firmware = Firmware.BIOS
    queues: int = 1
    devices: tuple[DevicePlan, ...] = ()
    marks: Mapping[str, int] = field(default_factory=dict)  # deeds done already; a guest made anew begins with these
    title: str = ""  # for people who look at the host: tenant/project/name
