"""What a host has, read from libvirt's own XML. Pure: texts in, `Inventory` out; `read_texts` is the one reader.

Formats: https://libvirt.org/formatcaps.html, formatdomaincaps.html, formatnode.html
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final
from xml.etree.ElementTree import Element

import libvirt

from usina.core.capacity import Device, DeviceKind, Inventory, NumaNode
from usina.core.units import GiB, KiB
from usina.drivers.libvirt.probe import Accelerator
from usina.drivers.libvirt.xml import parse

_BOARD_GRAPHICS: Final = {"1a03", "102b"}  # ASPEED and Matrox: the management processor's screen, nobody's GPU
_HOST_SHARE: Final = 0.05  # of memory, left for the host


@dataclass(frozen=True, slots=True)
class Texts:
    """What libvirt says about a host."""

    capabilities: str
    domain_capabilities: str
    devices: tuple[str, ...]  # node devices of the capabilities "pci" and "mdev"
    disk: int
    memory: int  # of the whole host, where the topology does not say better
    version: str
    hostname: str = ""


def read_texts(conn: libvirt.virConnect, disk: int, accelerator: str) -> Texts:
    """Ask libvirt. Blocking."""
    kinds = libvirt.VIR_CONNECT_LIST_NODE_DEVICES_CAP_PCI_DEV | libvirt.VIR_CONNECT_LIST_NODE_DEVICES_CAP_MDEV
    virt = "kvm" if accelerator == "kvm" else "qemu"
    return Texts(
        capabilities=conn.getCapabilities(),
        domain_capabilities=conn.getDomainCapabilities(None, None, "q35", virt),
        devices=tuple(device.XMLDesc() for device in conn.listAllDevices(kinds)),
        disk=disk,
        memory=conn.getInfo()[1] * 1024 * KiB,
        version=show_version(conn.getLibVersion()),
        hostname=conn.getHostname(),
    )


def build_inventory(texts: Texts, accelerator: Accelerator, *, session: bool) -> Inventory:
    capabilities = parse(texts.capabilities)
    devices = read_devices(texts.devices)
    nodes = _without_host_share(read_nodes(capabilities, texts.memory))
    facts = {
        "libvirt": texts.version,
        "hostname": texts.hostname,
        "cpu": capabilities.findtext("host/cpu/model", ""),
        "accelerator": accelerator.name,
        "accelerator_reason": accelerator.reason,
    }
    return Inventory(
        nodes=nodes,
        disk=texts.disk,
        devices=devices,
        traits=frozenset(_traits(texts, capabilities, nodes, devices, accelerator, session)),
        facts=facts,
    )


def read_nodes(capabilities: Element, host_memory: int) -> tuple[NumaNode, ...]:
    """NUMA nodes with processors, by number. Memory of huge page pools is not counted as ordinary memory."""
    cells = [cell for cell in capabilities.iterfind("host/topology/cells/cell") if cell.find("cpus/cpu") is not None]
    nodes = (_node(cell, host_memory if len(cells) == 1 else 0) for cell in cells)
    return tuple(sorted(nodes, key=lambda node: node.id))


def node_cpus(capabilities: str) -> dict[int, tuple[int, ...]]:
    return {node.id: node.cpus for node in read_nodes(parse(capabilities), 0)}


def _node(cell: Element, host_memory: int) -> NumaNode:
    pools = {int(page.get("size", "0")) * KiB: int(page.text or 0) for page in cell.iterfind("pages")}
    huge = {size: count for size, count in pools.items() if size > 4 * KiB and count}
    told = int(cell.findtext("memory", "0")) * KiB
    return NumaNode(
        id=int(cell.get("id", "0")),
        cpus=tuple(sorted(int(cpu.get("id", "0")) for cpu in cell.iterfind("cpus/cpu"))),
        memory=max(told, host_memory) - sum(size * count for size, count in huge.items()),
        hugepages=huge,
        siblings=_siblings(cell),
    )


def _siblings(cell: Element) -> tuple[tuple[int, ...], ...]:
    """The hardware threads of each physical core; () where each has one."""
    told = ((cpu.get("id", "0"), cpu.get("siblings")) for cpu in cell.iterfind("cpus/cpu"))
    cores = {_cpu_list(siblings or id) for id, siblings in told}
    return tuple(sorted(cores)) if any(len(core) > 1 for core in cores) else ()


def _cpu_list(text: str) -> tuple[int, ...]:
    """``0,4-6`` → 0, 4, 5, 6."""
    spans = [(first, last or first) for first, _, last in (part.partition("-") for part in text.split(","))]
    return tuple(cpu for first, last in spans for cpu in range(int(first), int(last) + 1))


def _without_host_share(nodes: tuple[NumaNode, ...]) -> tuple[NumaNode, ...]:
    """Leave the host the greater of 1 GiB and 5 % of its ordinary memory, evenly from every node."""
    if not nodes:
        return nodes
    total = sum(node.memory for node in nodes)
    share = int(max(GiB, total * _HOST_SHARE)) // len(nodes)
    return tuple(replace(node, memory=max(0, node.memory - share)) for node in nodes)


def _traits(
    texts: Texts,
    capabilities: Element,
    nodes: tuple[NumaNode, ...],
    devices: tuple[Device, ...],
    accelerator: Accelerator,
    session: bool,
) -> Iterable[str]:
    yield from (accelerator.name, capabilities.findtext("host/cpu/arch", "x86_64"), "snapshots")
    if "efi" in {value.text for value in parse(texts.domain_capabilities).iterfind("os/enum/value")}:
        yield "uefi"
    if any(node.hugepages for node in nodes):
        yield "hugepages"
    if len(nodes) > 1:
        yield "numa"
    if session:
        yield "session"
        return
    yield from ("multiqueue", "pinning")
    if has_iommu(texts.devices):
        yield "pci-passthrough"
    if any(device.mdev_types for device in devices):
        yield "mdev"


def has_iommu(devices: Iterable[str]) -> bool:
    return any(parse(text).find("capability[@type='pci']/iommuGroup") is not None for text in devices)


def read_devices(texts: Iterable[str]) -> tuple[Device, ...]:
    """GPUs, other accelerators and virtual functions that a guest can be given, by address."""
    nodes = [parse(text) for text in texts]
    carried = Counter(_mdev_of(node) for node in nodes)
    found = (_pci_device(node, carried) for node in nodes)
    return tuple(sorted((device for device in found if device), key=lambda device: device.address))


def _pci_device(node: Element, carried: Mapping[tuple[str, str] | None, int]) -> Device | None:
    pci = node.find("capability[@type='pci']")
    if pci is None:
        return None
    kind = _kind(pci)
    if kind is None:
        return None
    product, vendor, numa = pci.find("product"), pci.find("vendor"), pci.find("numa")
    parent = pci.find("capability[@type='phys_function']/address")
    return Device(
        address=_address(pci),
        kind=kind,
        model=_text(product),
        vendor=f"{_identifier(vendor)}:{_identifier(product)}",
        node=int(numa.get("node", "0")) if numa is not None else None,
        parent=_address_of(parent) if parent is not None else None,
        mdev_types={
            kind: left + carried.get((node.findtext("name", ""), kind), 0) for kind, left in _mdev_types(pci).items()
        },
        driver=node.findtext("driver/name", ""),
    )


def _kind(pci: Element) -> DeviceKind | None:
    """What a guest could be given. A GPU's virtual function is a GPU; a network card's physical one stays ours."""
    if pci.find("iommuGroup") is None and not _mdev_types(pci):
        return None
    is_virtual = pci.find("capability[@type='phys_function']") is not None
    match int(pci.findtext("class", "0x0"), 16) >> 16:
        case 0x03 if _identifier(pci.find("vendor")) not in _BOARD_GRAPHICS:
            return DeviceKind.MDEV if _mdev_types(pci) else DeviceKind.GPU
        case 0x12:
            return DeviceKind.ACCELERATOR
        case 0x02 if is_virtual:
            return DeviceKind.VF
    return None


def _mdev_of(node: Element) -> tuple[str, str] | None:
    """The parent's name and the type of a mediated device that exists; None for any other device."""
    kind = node.find("capability[@type='mdev']/type")
    return None if kind is None else (node.findtext("parent", ""), kind.get("id", ""))


def _mdev_types(pci: Element) -> Mapping[str, int]:
    """Type → instances that can still be made."""
    types = pci.iterfind("capability[@type='mdev_types']/type")
    return {type_.get("id", ""): int(type_.findtext("availableInstances", "0")) for type_ in types}


def _address(pci: Element) -> str:
    domain, bus, slot, function = (int(pci.findtext(part, "0")) for part in ("domain", "bus", "slot", "function"))
    return f"{domain:04x}:{bus:02x}:{slot:02x}.{function:x}"


def _address_of(element: Element) -> str:
    domain, bus, slot, function = (int(element.get(part, "0x0"), 16) for part in ("domain", "bus", "slot", "function"))
    return f"{domain:04x}:{bus:02x}:{slot:02x}.{function:x}"


def _identifier(element: Element | None) -> str:
    return (element.get("id", "0x0000") if element is not None else "0x0000").removeprefix("0x")


def _text(element: Element | None) -> str:
    return (element.text or "").strip() if element is not None else ""


def show_version(number: int) -> str:
    """9000000 → ``9.0.0``."""
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"
