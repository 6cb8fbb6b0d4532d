"""A machine plan in libvirt's words. Pure: the same plan and ground give the same text, byte for byte.

The guest is a q35 with virtio devices, a serial console and nothing a server does not need. Spare PCIe root ports are
there from the start, because a q35 cannot grow them later and every hot-plugged device takes one.

Virtual functions are given as plain PCI devices and not as `<interface type='hostdev'>`, which sets an Ethernet
address on the physical function and so refuses InfiniBand.

Format: https://libvirt.org/formatdomain.html
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network
from itertools import pairwise
from typing import Final
from xml.etree.ElementTree import Element

from usina.core.capacity import DeviceKind
from usina.core.machine import DevicePlan, Firmware, InterfacePlan, MachinePlan, NetworkPlan
from usina.core.units import KiB, MiB
from usina.drivers.libvirt import names
from usina.drivers.libvirt.metadata import guest_metadata
from usina.drivers.libvirt.xml import add, cpu_set, pci_address, render, root

SPARE_PORTS: Final = 8
_FIXED_PORTS: Final = 4  # root disk, seed's SCSI controller, random numbers, balloon


@dataclass(frozen=True, slots=True)
class Files:
    """Paths on the host."""

    root: str
    seed: str
    console_log: str
    kernel: str = ""
    initrd: str = ""


@dataclass(frozen=True, slots=True)
class Ground:
    """What the host adds to a plan."""

    factory: str
    accelerator: str  # "kvm" | "tcg"
    files: Files
    arch: str = "x86_64"
    session: bool = False  # an unprivileged libvirt: no bridges, so user-mode networking
    volumes: Mapping[str, str] = field(default_factory=dict)  # handle -> path
    node_cpus: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    marks: Mapping[str, int] = field(default_factory=dict)


def domain_xml(plan: MachinePlan, ground: Ground) -> str:
    domain = root("domain", type="kvm" if ground.accelerator == "kvm" else "qemu")
    add(domain, "name", plan.handle)
    add(domain, "uuid", names.guest_uuid(ground.factory, plan.handle))
    if plan.title:
        add(domain, "title", " ".join(plan.title.split()))
    add(domain, "metadata").append(guest_metadata(ground.factory, plan, ground.marks))
    add(domain, "memory", str(plan.memory // KiB), unit="KiB")
    _memory_backing(domain, plan)
    _cores(domain, plan, ground)
    _memory_nodes(domain, plan)
    _boot(domain, plan, ground)
    _platform(domain, plan, ground)
    _devices(domain, plan, ground)
    return render(domain)


def interface_xml(plan: MachinePlan, mac: str, ground: Ground) -> str:
    """One network card, for hot-plug. Raises `KeyError` when the plan has no such interface."""
    interface = next((card for card in plan.interfaces if card.mac == mac), None)
    if interface is None:
        raise KeyError(mac)
    devices = root("devices")
    return render(_interface(devices, plan, interface, ground))


def volume_disk_xml(volume: str, path: str, target: str) -> str:
    """One volume, for hot-plug."""
    return render(_volume(root("devices"), volume, path, target))


def _network_of(plan: MachinePlan, interface: InterfacePlan) -> NetworkPlan:
    """Raises `KeyError` when the plan does not tell of the interface's network."""
    return {network.handle: network for network in plan.networks}[interface.network]


def disk_target(position: int) -> str:
    """0 → ``vda``, 25 → ``vdz``, 26 → ``vdaa``."""
    letters = ""
    position += 1
    while position:
        position, letter = divmod(position - 1, 26)
        letters = chr(ord("a") + letter) + letters
    return f"vd{letters}"


def _memory_backing(domain: Element, plan: MachinePlan) -> None:
    if plan.hugepage:
        backing = add(domain, "memoryBacking")
        add(add(backing, "hugepages"), "page", size=plan.hugepage // KiB, unit="KiB")


def _cores(domain: Element, plan: MachinePlan, ground: Ground) -> None:
    near = tuple(cpu for node in plan.nodes for cpu in ground.node_cpus.get(node, ()))
    where = {"cpuset": cpu_set(near)} if near and not plan.cpus else {}
    add(domain, "vcpu", str(plan.cores), placement="static", **where)
    if plan.cpus:
        tune = add(domain, "cputune")
        for core, cpu in enumerate(plan.cpus):
            add(tune, "vcpupin", vcpu=core, cpuset=cpu)
        add(tune, "emulatorpin", cpuset=cpu_set(near or plan.cpus))


def _memory_nodes(domain: Element, plan: MachinePlan) -> None:
    if not plan.nodes:
        return
    tune = add(domain, "numatune")
    add(tune, "memory", mode="strict", nodeset=cpu_set(plan.nodes))
    if len(plan.nodes) > 1:
        for cell, node in enumerate(plan.nodes):
            add(tune, "memnode", cellid=cell, mode="strict", nodeset=node)


def _boot(domain: Element, plan: MachinePlan, ground: Ground) -> None:
    uefi = {"firmware": "efi"} if plan.firmware is Firmware.UEFI else {}
    system = add(domain, "os", **uefi)
    add(system, "type", "hvm", arch=ground.arch, machine="q35" if ground.arch == "x86_64" else "virt")
    if uefi:
        features = add(system, "firmware")
        add(features, "feature", enabled="no", name="enrolled-keys")
        add(features, "feature", enabled="no", name="secure-boot")
    if ground.files.kernel:
        add(system, "kernel", ground.files.kernel)
        if ground.files.initrd:
            add(system, "initrd", ground.files.initrd)
        if plan.image.cmdline:
            add(system, "cmdline", plan.image.cmdline)
    else:
        add(system, "boot", dev="hd")


def _platform(domain: Element, plan: MachinePlan, ground: Ground) -> None:
    features = add(domain, "features")
    add(features, "acpi")
    if ground.arch == "x86_64":
        add(features, "apic")
    if ground.accelerator == "kvm":
        cpu = add(domain, "cpu", mode="host-passthrough", check="none")
    else:
        cpu = add(domain, "cpu", mode="maximum")
    if len(plan.nodes) > 1:
        _cells(add(cpu, "numa"), plan, ground)
    add(domain, "clock", offset="utc")
    add(domain, "on_poweroff", "destroy")
    add(domain, "on_reboot", "restart")
    add(domain, "on_crash", "destroy")


def _cells(numa: Element, plan: MachinePlan, ground: Ground) -> None:
    cores, memory = _cores_by_node(plan, ground), _memory_by_node(plan)
    for cell, (cpus, size) in enumerate(zip(cores, memory, strict=True)):
        add(numa, "cell", id=cell, cpus=cpu_set(cpus), memory=size // KiB, unit="KiB")


def _cores_by_node(plan: MachinePlan, ground: Ground) -> list[tuple[int, ...]]:
    """Guest cores of each cell: where their host cores are when pinned, evenly in order otherwise."""
    if plan.cpus:
        homes = [set(ground.node_cpus.get(node, ())) for node in plan.nodes]
        cells = [tuple(core for core, cpu in enumerate(plan.cpus) if cpu in home) for home in homes]
        if all(cells) and sum(map(len, cells)) == plan.cores:
            return cells
    count = len(plan.nodes)
    edges = [plan.cores * cell // count for cell in range(count + 1)]
    return [tuple(range(first, last)) for first, last in pairwise(edges)]


def _memory_by_node(plan: MachinePlan) -> list[int]:
    """Whole pages for each cell; what does not divide goes to the first."""
    grain, count = plan.hugepage or MiB, len(plan.nodes)
    share = plan.memory // grain // count * grain
    return [plan.memory - share * (count - 1)] + [share] * (count - 1)


def _devices(domain: Element, plan: MachinePlan, ground: Ground) -> None:
    devices = add(domain, "devices")
    _controllers(devices, plan)
    _root_disk(devices, plan, ground)
    for position, volume in enumerate(plan.volumes, start=1):
        _volume(devices, volume, ground.volumes[volume], disk_target(position))
    _seed(devices, ground)
    for interface in plan.interfaces:
        _interface(devices, plan, interface, ground)
    for device in plan.devices:
        _host_device(devices, plan, device)
    _console(devices, ground)
    add(add(devices, "rng", model="virtio"), "backend", "/dev/urandom", model="random")
    add(add(devices, "memballoon", model="virtio"), "stats", period=10)


def _controllers(devices: Element, plan: MachinePlan) -> None:
    add(devices, "controller", type="usb", model="none")
    add(devices, "controller", type="scsi", index=0, model="virtio-scsi")
    add(devices, "controller", type="pci", index=0, model="pcie-root")
    ports = _FIXED_PORTS + len(plan.volumes) + len(plan.interfaces) + len(plan.devices) + SPARE_PORTS
    for index in range(1, ports + 1):
        add(devices, "controller", type="pci", index=index, model="pcie-root-port")


def _root_disk(devices: Element, plan: MachinePlan, ground: Ground) -> None:
    disk = _file_disk(devices, "disk", "qcow2", ground.files.root, disk_target(0), "virtio")
    add(disk, "serial", "root")


def _volume(devices: Element, volume: str, path: str, target: str) -> Element:
    disk = _file_disk(devices, "disk", "qcow2", path, target, "virtio")
    add(disk, "serial", names.serial(volume))
    return disk


def _seed(devices: Element, ground: Ground) -> None:
    disk = _file_disk(devices, "cdrom", "raw", ground.files.seed, "sda", "scsi")
    add(disk, "readonly")


def _file_disk(devices: Element, device: str, format: str, path: str, target: str, bus: str) -> Element:
    disk = add(devices, "disk", type="file", device=device)
    discard = {"discard": "unmap"} if format == "qcow2" else {}
    add(disk, "driver", name="qemu", type=format, **discard)
    add(disk, "source", file=path)
    add(disk, "target", dev=target, bus=bus)
    return disk


def _interface(devices: Element, plan: MachinePlan, interface: InterfacePlan, ground: Ground) -> Element:
    card = add(devices, "interface", type="user" if ground.session else "network")
    add(card, "mac", address=interface.mac)
    if not ground.session:
        add(card, "source", network=names.network(ground.factory, interface.network))
    add(card, "model", type="virtio")
    if plan.queues > 1 and not ground.session:
        add(card, "driver", queues=plan.queues)
    if not ground.session:
        filtered = names.packet_filter(plan.handle, interface.mac)
        filter_reference(card, filtered, interface.address, _network_of(plan, interface))
    add(card, "rom", enabled="no")
    return card


def filter_reference(parent: Element, packet_filter: str, address: str, network: NetworkPlan) -> None:
    """What a packet filter is to be filled in with, for one interface."""
    subnet = IPv4Network(network.cidr)
    values = {
        "CTRL_IP_LEARNING": "none",
        "GATEWAY": network.gateway,
        "IP": address,
        "MASK": str(subnet.prefixlen),
        "SUBNET": str(subnet.network_address),
    }
    reference = add(parent, "filterref", filter=packet_filter)
    for name, value in values.items():
        add(reference, "parameter", name=name, value=value)


def _host_device(devices: Element, plan: MachinePlan, device: DevicePlan) -> None:
    if device.kind is DeviceKind.MDEV:
        given = add(devices, "hostdev", mode="subsystem", type="mdev", model="vfio-pci", display="off")
        add(add(given, "source"), "address", uuid=names.mdev_uuid(plan.handle, device.address))
    else:
        given = add(devices, "hostdev", mode="subsystem", type="pci", managed="yes")
        add(add(given, "source"), "address", **pci_address(device.address))


def _console(devices: Element, ground: Ground) -> None:
    serial = add(devices, "serial", type="pty")
    add(serial, "log", file=ground.files.console_log, append="on")
    add(serial, "target", type="isa-serial", port=0)
    console = add(devices, "console", type="pty")
    add(console, "target", type="serial", port=0)
