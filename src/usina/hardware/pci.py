"""GPUs and other accelerators among the PCI functions of a host, by class and vendor; the least that is known of any.

Reads /sys/bus/pci/devices below a root, and names from a pci.ids file where the host has one. What is found here is a
device whoever drives it: one bound to vfio-pci has the trait `vfio`, because it is for machines and not for tasks.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Final

from usina.core.capacity import Device, DeviceKind
from usina.hardware.files import entries, number, pci_address, target, text

NVIDIA: Final = 0x10DE
AMD: Final = 0x1002
INTEL: Final = 0x8086
VFIO: Final = "vfio"

_VGA, _3D, _DISPLAY, _PROCESSING = 0x0300, 0x0302, 0x0380, 0x1200
_BRIDGE: Final = 0x06
# Graphics that are worth a task or a guest. Left out so are the boards' own (ASPEED, Matrox), those of virtual
# machines (QEMU, virtio, Cirrus, VMware) and, as VGA, Intel's graphics inside processors.
_GRAPHICS: Final[Mapping[int, frozenset[int]]] = {
    NVIDIA: frozenset({_VGA, _3D, _DISPLAY}),
    AMD: frozenset({_VGA, _3D, _DISPLAY, _PROCESSING}),  # MI300 and later are processing accelerators
    INTEL: frozenset({_3D, _DISPLAY}),
}
_MAKERS: Final = frozenset({0x1DA3, 0x1D95, 0x1E52})  # Habana (Gaudi), Graphcore, Tenstorrent: nothing but accelerators
# Makers of other things too, whose accelerators have no telling class: AWS Neuron and Google TPU.
_MODELS: Final = frozenset(
    {(0x1D0F, one) for one in (0x7064, 0x7164, 0x7264, 0x7364)}
    | {(0x1AE0, one) for one in (0x0027, 0x005E, 0x0062, 0x0063, 0x006F)}
)
_NAMES: Final = ("/usr/share/misc/pci.ids", "/usr/share/hwdata/pci.ids")


@dataclass(frozen=True, slots=True)
class Function:
    """A PCI function as sysfs shows it."""

    address: str
    code: int  # class and subclass, 0x0302
    vendor: int
    product: int
    node: int | None
    driver: str
    parent: str | None  # physical function of a virtual one
    folder: str

    @property
    def kind(self) -> DeviceKind | None:
        """None: nothing that a task or a machine would be given for computing."""
        if self.code >> 8 == _BRIDGE:
            return None
        if self.code in _GRAPHICS.get(self.vendor, ()):
            return DeviceKind.GPU
        known = self.vendor in _MAKERS or (self.vendor, self.product) in _MODELS
        return DeviceKind.ACCELERATOR if known or self.code == _PROCESSING else None


def functions(root: str = "") -> tuple[Function, ...]:
    """All that are GPUs or accelerators, by address."""
    top = f"{root}/sys/bus/pci/devices"
    found = {}
    for name in entries(top):
        address = pci_address(name)
        if address is not None:
            found[address] = _function(address, f"{top}/{name}")
    return tuple(one for _, one in sorted(found.items()) if one.kind is not None)


def _function(address: str, folder: str) -> Function:
    return Function(
        address=address,
        code=number(f"{folder}/class") >> 8,
        vendor=number(f"{folder}/vendor"),
        product=number(f"{folder}/device"),
        node=_node(text(f"{folder}/numa_node")),
        driver=target(f"{folder}/driver"),
        parent=pci_address(target(f"{folder}/physfn")),
        folder=folder,
    )


def _node(words: str) -> int | None:
    """ "-1" is how the kernel says that it does not know."""
    return int(words) if re.fullmatch(r"[0-9]{1,4}", words) else None


def plain(function: Function, name: str = "") -> Device:
    """A device of which no more is known."""
    device = Device(
        address=function.address,
        kind=function.kind or DeviceKind.ACCELERATOR,
        model=name,
        vendor=f"{function.vendor:04x}:{function.product:04x}",
        node=function.node,
        parent=function.parent,
        driver=function.driver,
    )
    return replace(device, traits=frozenset({VFIO})) if function.driver == "vfio-pci" else device


def names(found: Collection[Function], root: str = "") -> dict[str, str]:
    """Address → model as the host's pci.ids has it; nothing for those it does not know."""
    listed = _listed({one.vendor for one in found}, root) if found else {}
    return {one.address: listed[key] for one in found if (key := (one.vendor, one.product)) in listed}


def _listed(vendors: Collection[int], root: str) -> dict[tuple[int, int], str]:
    """A line at the margin is a vendor, one after a tab is a product of it."""
    words = next(filter(None, (text(f"{root}{path}") for path in _NAMES)), "")
    listed: dict[tuple[int, int], str] = {}
    vendor = -1
    for line in words.splitlines():
        if found := re.match(r"([0-9a-f]{4})  ", line):
            vendor = int(found.group(1), 16)
        elif vendor in vendors and (found := re.match(r"\t([0-9a-f]{4})  (.+)", line)):
            listed[vendor, int(found.group(1), 16)] = found.group(2).strip()
    return listed
