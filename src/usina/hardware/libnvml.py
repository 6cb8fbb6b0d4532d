"""NVML by ctypes on libnvidia-ml.so.1.

Names, layouts of structures and values are those of NVIDIA's documentation of nvml.h. This module was written without
a GPU at hand and HAS NOT BEEN RUN ON REAL HARDWARE: what was tested is that it loads or does not, and its calls
against a library of stand-ins. All that can be decided elsewhere is decided in `nvidia` and `health`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import Structure, byref, c_char, c_int, c_ubyte, c_uint, c_ulonglong, c_void_p, create_string_buffer
from typing import Any, Final

from usina.hardware.nvml import INVALID, NO_FUNCTION, NOT_FOUND, Fabric, Instance, NvmlError, Remapped

LIBRARY: Final = "libnvidia-ml.so.1"
_TEXT: Final = 96  # NVML_DEVICE_NAME_V2_BUFFER_SIZE and NVML_DEVICE_UUID_V2_BUFFER_SIZE; other texts are shorter
_P2P_NVLINK: Final = 2  # NVML_P2P_CAPS_INDEX_NVLINK
_UNCORRECTED: Final = 1  # NVML_MEMORY_ERROR_TYPE_UNCORRECTED
_VOLATILE: Final = 0  # NVML_VOLATILE_ECC


class _Pci(Structure):
    """nvmlPciInfo_t"""

    _fields_ = [
        ("busIdLegacy", c_char * 16),
        ("domain", c_uint),
        ("bus", c_uint),
        ("device", c_uint),
        ("pciDeviceId", c_uint),
        ("pciSubSystemId", c_uint),
        ("busId", c_char * 32),
    ]


class _Memory(Structure):
    """nvmlMemory_t"""

    _fields_ = [("total", c_ulonglong), ("free", c_ulonglong), ("used", c_ulonglong)]


class _Placement(Structure):
    """nvmlGpuInstancePlacement_t"""

    _fields_ = [("start", c_uint), ("size", c_uint)]


class _InstanceInfo(Structure):
    """nvmlGpuInstanceInfo_t"""

    _fields_ = [("device", c_void_p), ("id", c_uint), ("profileId", c_uint), ("placement", _Placement)]


class _FabricInfo(Structure):
    """nvmlGpuFabricInfo_v2_t"""

    _fields_ = [
        ("version", c_uint),
        ("clusterUuid", c_ubyte * 16),
        ("status", c_uint),
        ("cliqueId", c_uint),
        ("state", c_ubyte),
        ("healthMask", c_uint),
    ]


class Library:
    """Raises OSError where there is no such library, `NvmlError` where it finds no driver. `close` it."""

    def __init__(self, name: str = LIBRARY) -> None:
        self._library = ctypes.CDLL(name)
        self._call("nvmlInit_v2")
        self._handles: dict[int, c_void_p] = {}

    def close(self) -> None:
        self._call("nvmlShutdown")

    def driver(self) -> str:
        return self._text("nvmlSystemGetDriverVersion")

    def cuda(self) -> int:
        number = c_int()
        self._call("nvmlSystemGetCudaDriverVersion_v2", byref(number))
        return number.value

    def count(self) -> int:
        return self._number("nvmlDeviceGetCount_v2")

    def bus(self, index: int) -> str:
        info = _Pci()
        self._call("nvmlDeviceGetPciInfo_v3", self._device(index), byref(info))
        return bytes(info.busId).decode("ascii", "replace")

    def uuid(self, index: int) -> str:
        return self._text("nvmlDeviceGetUUID", self._device(index))

    def name(self, index: int) -> str:
        return self._text("nvmlDeviceGetName", self._device(index))

    def memory(self, index: int) -> int:
        info = _Memory()
        self._call("nvmlDeviceGetMemoryInfo", self._device(index), byref(info))
        return int(info.total)

    def mig(self, index: int) -> tuple[int, int]:
        now, later = c_uint(), c_uint()
        self._call("nvmlDeviceGetMigMode", self._device(index), byref(now), byref(later))
        return now.value, later.value

    def instances(self, index: int) -> Sequence[Instance]:
        device = self._device(index)
        found = []
        for number in range(self._number("nvmlDeviceGetMaxMigDeviceCount", device)):
            handle = c_void_p()
            try:
                self._call("nvmlDeviceGetMigDeviceHandleByIndex", device, c_uint(number), byref(handle))
            except NvmlError as error:
                if error.code in (NOT_FOUND, INVALID):
                    continue
                raise
            found.append(self._instance(device, handle))
        return found

    def linked(self, index: int, other: int) -> bool:
        status = c_int()
        pair = self._device(index), self._device(other)
        self._call("nvmlDeviceGetP2PStatus", *pair, c_int(_P2P_NVLINK), byref(status))
        return status.value == 0

    def fabric(self, index: int) -> Fabric:
        info = _FabricInfo(version=ctypes.sizeof(_FabricInfo) | 2 << 24)
        self._call("nvmlDeviceGetGpuFabricInfoV", self._device(index), byref(info))
        return Fabric(int(info.state), int(info.status), bytes(info.clusterUuid).hex(), int(info.cliqueId))

    def uncorrected(self, index: int) -> int:
        count = c_ulonglong()
        kind = c_int(_UNCORRECTED), c_int(_VOLATILE)
        self._call("nvmlDeviceGetTotalEccErrors", self._device(index), *kind, byref(count))
        return count.value

    def retiring(self, index: int) -> bool:
        return self._number("nvmlDeviceGetRetiredPagesPendingStatus", self._device(index)) == 1

    def remapped(self, index: int) -> Remapped:
        corrected, uncorrected, pending, failed = c_uint(), c_uint(), c_uint(), c_uint()
        numbers = byref(corrected), byref(uncorrected), byref(pending), byref(failed)
        self._call("nvmlDeviceGetRemappedRows", self._device(index), *numbers)
        return Remapped(uncorrected.value, pending.value == 1, failed.value == 1)

    def slowed(self, index: int) -> int:
        """By its older name, which old and new drivers know."""
        reasons = c_ulonglong()
        self._call("nvmlDeviceGetCurrentClocksThrottleReasons", self._device(index), byref(reasons))
        return reasons.value

    def _instance(self, device: c_void_p, handle: c_void_p) -> Instance:
        number = self._number("nvmlDeviceGetGpuInstanceId", handle)
        return Instance(
            uuid=self._text("nvmlDeviceGetUUID", handle),
            name=self._text("nvmlDeviceGetName", handle),
            gpu=number,
            compute=self._number("nvmlDeviceGetComputeInstanceId", handle),
            start=self._start(device, number),
        )

    def _start(self, device: c_void_p, number: int) -> int:
        """Only who may administer MIG is told."""
        instance, info = c_void_p(), _InstanceInfo()
        try:
            self._call("nvmlDeviceGetGpuInstanceById", device, c_uint(number), byref(instance))
            self._call("nvmlGpuInstanceGetInfo", instance, byref(info))
        except NvmlError:
            return -1
        return int(info.placement.start)

    def _device(self, index: int) -> c_void_p:
        if index not in self._handles:
            handle = c_void_p()
            self._call("nvmlDeviceGetHandleByIndex_v2", c_uint(index), byref(handle))
            self._handles[index] = handle
        return self._handles[index]

    def _text(self, function: str, *about: c_void_p) -> str:
        buffer = create_string_buffer(_TEXT)
        self._call(function, *about, buffer, c_uint(_TEXT))
        return buffer.value.decode("utf-8", "replace")

    def _number(self, function: str, *about: c_void_p) -> int:
        found = c_uint()
        self._call(function, *about, byref(found))
        return found.value

    def _call(self, function: str, *arguments: Any) -> None:
        try:
            code = int(getattr(self._library, function)(*arguments))
        except AttributeError:
            raise NvmlError(NO_FUNCTION) from None
        if code:
            raise NvmlError(code)
