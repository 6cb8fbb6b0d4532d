"""Recorded hosts for tests: answers of NVML from `trees/*.json`, and files of /proc, /sys and /dev below a root.

All were made by hand from documentation, none on a machine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from usina.hardware.nvml import NOT_SUPPORTED, Fabric, Instance, NvmlError, Remapped

TREES = Path(__file__).parent / "trees"
RECORDINGS = sorted(path.stem.removeprefix("nvml-") for path in TREES.glob("nvml-*.json"))


class Recorded:
    """Answers as in a recording; what is not in it is not supported."""

    def __init__(self, name: str) -> None:
        self.told: dict[str, Any] = json.loads((TREES / f"nvml-{name}.json").read_text())
        self.gpus: list[dict[str, Any]] = self.told["gpus"]

    def _of(self, index: int, what: str) -> Any:
        gpu = self.gpus[index]
        if "lost" in gpu:
            raise NvmlError(gpu["lost"])
        if "lost_but_bus" in gpu and what != "bus":
            raise NvmlError(gpu["lost_but_bus"])
        if what not in gpu:
            raise NvmlError(NOT_SUPPORTED)
        return gpu[what]

    def driver(self) -> str:
        return str(self.told["driver"])

    def cuda(self) -> int:
        return int(self.told["cuda"])

    def count(self) -> int:
        return len(self.gpus)

    def bus(self, index: int) -> str:
        return str(self._of(index, "bus"))

    def uuid(self, index: int) -> str:
        return str(self._of(index, "uuid"))

    def name(self, index: int) -> str:
        return str(self._of(index, "name"))

    def memory(self, index: int) -> int:
        return int(self._of(index, "memory"))

    def mig(self, index: int) -> tuple[int, int]:
        now, later = self._of(index, "mig")
        return now, later

    def instances(self, index: int) -> Sequence[Instance]:
        return [Instance(**one) for one in self._of(index, "instances")]

    def linked(self, index: int, other: int) -> bool:
        self._of(index, "bus"), self._of(other, "bus")
        return any(index in group and other in group for group in self.told["nvlink"])

    def fabric(self, index: int) -> Fabric:
        return Fabric(**self._of(index, "fabric"))

    def uncorrected(self, index: int) -> int:
        return int(self._of(index, "uncorrected"))

    def retiring(self, index: int) -> bool:
        return bool(self._of(index, "retiring"))

    def remapped(self, index: int) -> Remapped:
        return Remapped(*self._of(index, "remapped"))

    def slowed(self, index: int) -> int:
        return int(self._of(index, "slowed"))


def put(root: Path, files: Mapping[str, str]) -> str:
    for name, words in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(words)
    return str(root)


def function(root: Path, address: str, code: str, ids: str, driver: str = "", node: int = 0, **more: str) -> str:
    """A PCI function: `code` as "0x030200", `ids` as "10de:2330". Further files by name, "__" for a slash."""
    vendor, product = ids.split(":")
    folder = f"sys/bus/pci/devices/{address}"
    words = {"class": code, "vendor": f"0x{vendor}", "device": f"0x{product}", "numa_node": str(node)}
    words |= {name.replace("__", "/"): text for name, text in more.items()}
    put(root, {f"{folder}/{name}": f"{text}\n" for name, text in words.items()})
    if driver:
        (root / folder / "driver").symlink_to(f"../../../../bus/pci/drivers/{driver}")
    return str(root)


def nvidia_host(root: Path, recorded: Recorded) -> str:
    """The files of a recorded host: sysfs, the driver's /proc with the capabilities of MIG, and nodes."""
    for gpu in recorded.gpus:
        address = f"{int(gpu['bus'][:8], 16):04x}{gpu['bus'][8:].lower()}"
        function(root, address, "0x030200", f"10de:{gpu['device'][2:]}", "nvidia", gpu["node"])
        fields = {"Model": gpu["name"], "IRQ": 16, "GPU UUID": gpu["uuid"], "Video BIOS": "96.00", "Bus Type": "PCIe"}
        fields |= {"Bus Location": address, "Device Minor": gpu["minor"]}
        lines = "".join(f"{name}: \t {value}\n" for name, value in fields.items())
        put(root, {f"proc/driver/nvidia/gpus/{address}/information": lines, f"dev/nvidia{gpu['minor']}": ""})
        for one in gpu.get("instances", ()):
            top = f"proc/driver/nvidia/capabilities/gpu{gpu['minor']}/mig/gi{one['gpu']}"
            first = 3 + 126 * gpu["minor"] + 9 * one["gpu"]
            access = "DeviceFileMinor: {}\nDeviceFileMode: 292\nDeviceFileModify: 1\n"
            put(root, {f"{top}/access": access.format(first)})
            put(root, {f"{top}/ci{one['compute']}/access": access.format(first + 1 + one["compute"])})
    version = f"NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {recorded.driver()}  Release Build\n"
    return put(root, {"proc/driver/nvidia/version": version, "dev/nvidiactl": "", "dev/nvidia-uvm": ""})


def amd_host(root: Path, count: int = 8, mode: str = "SPX", parts: int = 1, hive: int = 0x1A2B) -> str:
    """MI300X cards in one hive, each cut in `parts`; the host's processors are KFD's first two nodes."""
    nodes = "sys/class/kfd/kfd/topology/nodes"
    put(root, {f"{nodes}/{n}/properties": "cpu_cores_count 96\nsimd_count 0\n" for n in (0, 1)} | {"dev/kfd": ""})
    for card in range(count):
        bus = 0x05 + 0x10 * card
        more = {
            "product_name": "AMD Instinct MI300X OAM",
            "current_compute_partition": mode,
            "available_compute_partition": "SPX, DPX, QPX, CPX",
            "current_memory_partition": "NPS1",
            "mem_info_vram_total": str(206141652992),
            "xgmi_hive_info__xgmi_hive_id": str(hive),
            "unique_id": f"{0xABC0 + card:016x}",
            "ras__umc_err_count": "ue: 0\nce: 3",
            "ras__gfx_err_count": "ue: 0\nce: 0",
            f"drm__card{card + 1}__dev": "226:1",
            f"drm__renderD{128 + card * parts}__dev": "226:128",
        }
        function(root, f"0000:{bus:02x}:00.0", "0x120000", "1002:74a1", "amdgpu", card // 4, **more)
        for part in range(parts):
            words = {"simd_count": 1216 // parts, "vendor_id": 4098, "location_id": bus << 8 | part << 28, "domain": 0}
            words |= {"drm_render_minor": 128 + card * parts + part, "hive_id": hive, "unique_id": 0xABC0 + card}
            name = f"{nodes}/{2 + card * parts + part}/properties"
            put(root, {name: "".join(f"{key} {value}\n" for key, value in words.items())})
    return str(root)
