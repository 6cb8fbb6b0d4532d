"""From a device's PCI address to what a run must see of it: nodes of /dev, and variables. Reads below a root.

NVIDIA: /proc/driver/nvidia/gpus/<address>/information says the minor number and the UUID. AMD and Intel: the DRM nodes
below /sys/class/drm that belong to the address; AMD's compute node is /dev/kfd, common to all. A run without devices
sees no node of any, and the variables say so, because libraries look at them first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from usina.core.capacity import DeviceKind, Part
from usina.core.task import GivenDevice
from usina.ports.driver import DriverError

_COMMON_NVIDIA: Final = ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset")
_AMD: Final = "0x1002"
NOTHING: Final = {"CUDA_VISIBLE_DEVICES": "", "NVIDIA_VISIBLE_DEVICES": "void"}
_FIELD: Final = re.compile(r"^(GPU UUID|Device Minor)\s*:\s*(\S+)\s*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Visible:
    """Paths of device nodes to show, and variables to set."""

    nodes: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=lambda: dict(NOTHING))


def visible(devices: Iterable[GivenDevice], root: str = "") -> Visible:
    """What a run with these devices sees. Raises `DriverError` (lasting) for one that is not there."""
    nodes: dict[str, None] = {}
    cuda: list[str] = []
    rocm: list[str] = []
    for device in devices:
        address = Part.parse(device.part).address
        if device.kind not in (DeviceKind.GPU, DeviceKind.ACCELERATOR, DeviceKind.MDEV):
            raise DriverError(
                f"{device.part}: a process cannot be given a device of the kind {device.kind}", lasting=True
            )
        information = Path(f"{root}/proc/driver/nvidia/gpus/{address}/information")
        if information.exists():
            minor, name = _nvidia(information)
            nodes.update(dict.fromkeys((f"/dev/nvidia{minor}", *_there(root, _COMMON_NVIDIA))))
            cuda.append(name)
        else:
            found, amd = _drm(address, root)
            nodes.update(dict.fromkeys(found))
            if amd:
                nodes.update(dict.fromkeys(_there(root, ("kfd",))))
                rocm.append(str(_place(address, root)))
    return Visible(tuple(nodes), _environment(cuda, rocm))


def _environment(cuda: list[str], rocm: list[str]) -> dict[str, str]:
    variables = dict(NOTHING)
    if cuda:
        variables |= {"CUDA_VISIBLE_DEVICES": ",".join(cuda), "NVIDIA_VISIBLE_DEVICES": ",".join(cuda)}
    if rocm:
        variables["ROCR_VISIBLE_DEVICES"] = ",".join(rocm)
    return variables


def _nvidia(information: Path) -> tuple[int, str]:
    """Minor number and UUID."""
    told = dict(_FIELD.findall(information.read_text(encoding="utf-8", errors="replace")))
    try:
        return int(told["Device Minor"]), told["GPU UUID"]
    except (KeyError, ValueError):
        raise DriverError(
            f"{information.parent.name}: its driver does not say which node it has", lasting=True
        ) from None


def _drm(address: str, root: str) -> tuple[list[str], bool]:
    """DRM nodes of an address, and whether it is AMD's."""
    folder = Path(f"{root}/sys/bus/pci/devices/{address}")
    names = sorted(entry.name for entry in folder.glob("drm/*") if entry.name.startswith(("card", "renderD")))
    if not names:
        raise DriverError(f"{address}: this host has no such device for processes", lasting=True)
    vendor = (folder / "vendor").read_text(encoding="ascii").strip() if (folder / "vendor").exists() else ""
    return [f"/dev/dri/{name}" for name in names], vendor == _AMD


def _place(address: str, root: str) -> int:
    """How many of AMD's come before it, in the order of their render nodes: so ROCr counts those that it sees."""
    render = {
        entry.parent.parent.name: int(entry.name.removeprefix("renderD"))
        for entry in Path(f"{root}/sys/bus/pci/devices").glob("*/drm/renderD*")
        if (entry.parent.parent / "vendor").read_text(encoding="ascii").strip() == _AMD
    }
    return sorted(render, key=lambda a: render[a]).index(address) if address in render else 0


def _there(root: str, names: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"/dev/{name}" for name in names if Path(f"{root}/dev/{name}").exists())
