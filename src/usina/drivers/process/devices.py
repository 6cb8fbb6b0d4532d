"""From a device's PCI address to what a run must see of it: nodes of /dev, and variables. Reads below a root.

NVIDIA: /proc/driver/nvidia/gpus/<address>/information says the minor number and the UUID. AMD and Intel: the DRM nodes
below /sys/class/drm that belong to the address; AMD's compute node is /dev/kfd, common to all. A run without devices
sees no node of any, and the variables say so, because libraries look at them first.

Of a partition only that is shown: a MIG instance by its UUID and the capabilities that open it, a partition of AMD's
by its render node. Instances are looked for, never made.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from usina.core.capacity import DeviceKind, Part
from usina.core.task import GivenDevice
from usina.hardware import amd, nvidia
from usina.hardware.files import text
from usina.hardware.nvml import Instance, Nvml
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


def visible(devices: Iterable[GivenDevice], root: str = "", nvml: Nvml | None = None) -> Visible:
    """What a run with these devices sees. Raises `DriverError` (lasting) for one that is not there.

    `nvml`: NVIDIA's library; None: the host's, where a MIG instance is to be found.
    """
    seen = _Seen(root, nvml)
    for device in devices:
        if device.kind not in (DeviceKind.GPU, DeviceKind.ACCELERATOR, DeviceKind.MDEV):
            raise DriverError(
                f"{device.part}: a process cannot be given a device of the kind {device.kind}", lasting=True
            )
        seen.add(Part.parse(device.part))
    return Visible(tuple(seen.nodes), _environment(seen.cuda, seen.rocm))


class _Seen:
    """What is shown so far."""

    def __init__(self, root: str, nvml: Nvml | None) -> None:
        self._root, self._nvml = root, nvml
        self.nodes: dict[str, None] = {}
        self.cuda: list[str] = []
        self.rocm: list[str] = []

    def add(self, part: Part) -> None:
        information = Path(f"{self._root}/proc/driver/nvidia/gpus/{part.address}/information")
        if information.exists():
            self._add_nvidia(part, information)
        elif part.profile:
            self._add_partition(part)
        else:
            self._add_card(part.address)

    def _add_nvidia(self, part: Part, information: Path) -> None:
        minor, name = _nvidia(information)
        nodes = [f"/dev/nvidia{minor}", *_there(self._root, _COMMON_NVIDIA)]
        if part.profile:
            instance = self._instance(part)
            name, caps = instance.uuid, nvidia.capabilities(minor, instance, self._root)
            if len(caps) < 2:
                raise DriverError(f"{part}: its driver does not say which nodes it has", lasting=True)
            nodes += caps
        self.nodes.update(dict.fromkeys(nodes))
        self.cuda.append(name)

    def _instance(self, part: Part) -> Instance:
        """The MIG device that exists where the claim says. It is not made here."""
        with _library(self._root, self._nvml) as nvml:
            cards = nvidia.cards(nvml) if nvml is not None else []
        instance = nvidia.instance_at(cards, part.address, part.profile, part.start)
        if instance is None:
            raise DriverError(f"{part}: this host has no such MIG instance", lasting=True, detail=_there_are(cards))
        return instance

    def _add_partition(self, part: Part) -> None:
        """One of the equal parts of a card of AMD, by its own render node."""
        renders = amd.renders(part.address, self._root)
        mode = amd.mode(part.address, self._root)
        if part.profile.lower() != mode or part.start >= len(renders):
            raise DriverError(f"{part}: this host has no such partition", lasting=True, detail=f"mode {mode or '?'}")
        self.nodes.update(dict.fromkeys((f"/dev/dri/renderD{renders[part.start]}", *_there(self._root, ("kfd",)))))
        self.rocm.append("")

    def _add_card(self, address: str) -> None:
        found, is_amd = _drm(address, self._root)
        self.nodes.update(dict.fromkeys(found))
        if is_amd:
            self.nodes.update(dict.fromkeys(_there(self._root, ("kfd",))))
            self.rocm.append(_rocm_name(address, self._root))


@contextmanager
def _library(root: str, given: Nvml | None) -> Iterator[Nvml | None]:
    if given is not None:
        yield given
    else:
        with nvidia.library(root) as found:
            yield found


def _there_are(cards: Iterable[nvidia.Card]) -> str:
    found = [f"{card.address}/{nvidia.profile(one)}@{one.start}" for card in cards for one in card.instances]
    return f"there are: {', '.join(found) or 'none'}"


def _environment(cuda: list[str], rocm: list[str]) -> dict[str, str]:
    variables = dict(NOTHING)
    if cuda:
        variables |= {"CUDA_VISIBLE_DEVICES": ",".join(cuda), "NVIDIA_VISIBLE_DEVICES": ",".join(cuda)}
    if rocm:
        # Partitions have no name that all drivers know, but nothing else is shown: all that ROCr sees is meant.
        named = rocm if all(rocm) else [str(number) for number in range(len(rocm))]
        variables["ROCR_VISIBLE_DEVICES"] = ",".join(named)
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


def _rocm_name(address: str, root: str) -> str:
    """``GPU-<unique id>``, which means the same whatever else is seen; by place where the card has none."""
    unique = text(f"{root}/sys/bus/pci/devices/{address}/unique_id").lower()
    return f"GPU-{unique}" if re.fullmatch("[0-9a-f]{16}", unique) else str(_place(address, root))


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
