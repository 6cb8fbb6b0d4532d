"""What is asked of NVIDIA's management library (NVML), as a protocol: one method a question, and its answers.

Written from NVIDIA's documentation of nvml.h. `libnvml` answers by the real library; tests answer from recordings. Any
question may raise `NvmlError`: a card that is lost answers none, an older driver or a lesser card not all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

INVALID: Final = 2
NOT_SUPPORTED: Final = 3
NO_PERMISSION: Final = 4
NOT_FOUND: Final = 6
NO_FUNCTION: Final = 13
LOST: Final = 15
RESET_REQUIRED: Final = 16

_WORDS: Final = {
    NOT_SUPPORTED: "not supported",
    NO_PERMISSION: "no permission",
    NOT_FOUND: "not found",
    9: "driver not loaded",
    NO_FUNCTION: "not known to this driver",
    LOST: "GPU is lost",
    RESET_REQUIRED: "GPU requires a reset",
    18: "driver and library are of different versions",
    999: "unknown error",
}


class NvmlError(Exception):
    """An answer that is not NVML_SUCCESS."""

    def __init__(self, code: int) -> None:
        super().__init__(f"{_WORDS.get(code, 'error')} (NVML {code})")
        self.code = code


@dataclass(frozen=True, slots=True)
class Instance:
    """A MIG device: a compute instance of a GPU instance."""

    uuid: str
    name: str  # "NVIDIA A100-SXM4-40GB MIG 3g.20gb"
    gpu: int  # number of the GPU instance on its card
    compute: int  # number of the compute instance in it
    start: int = -1  # first memory slice of the GPU instance; -1 where we are not told


@dataclass(frozen=True, slots=True)
class Fabric:
    """nvmlGpuFabricInfo_v2_t. A cluster of zeros is no cluster: such a switch does not reach beyond its host."""

    state: int
    status: int
    cluster: str  # 32 hexadecimal digits
    clique: int


FABRIC_COMPLETED: Final = 3


@dataclass(frozen=True, slots=True)
class Remapped:
    """Rows of memory replaced by spare ones."""

    uncorrectable: int
    pending: bool  # takes effect at the next reset
    failed: bool  # no spare row was left


class Nvml(Protocol):
    """GPUs are numbered from 0 to `count() - 1`, in the order of their PCI addresses."""

    def driver(self) -> str: ...
    def cuda(self) -> int:
        """12040 is 12.4."""
        ...

    def count(self) -> int: ...
    def bus(self, index: int) -> str:
        """``00000000:3B:00.0``."""
        ...

    def uuid(self, index: int) -> str: ...
    def name(self, index: int) -> str: ...
    def memory(self, index: int) -> int:
        """Bytes in all."""
        ...

    def mig(self, index: int) -> tuple[int, int]:
        """Whether it is in MIG mode now, and after the next reset."""
        ...

    def instances(self, index: int) -> Sequence[Instance]: ...
    def linked(self, index: int, other: int) -> bool:
        """Whether the two can reach each other's memory by NVLink."""
        ...

    def fabric(self, index: int) -> Fabric: ...
    def uncorrected(self, index: int) -> int:
        """Uncorrected errors of memory since the driver was loaded."""
        ...

    def retiring(self, index: int) -> bool:
        """Pages wait to be retired (before Ampere)."""
        ...

    def remapped(self, index: int) -> Remapped:
        """Ampere and later."""
        ...

    def slowed(self, index: int) -> int:
        """Why its clocks are not what they could be: bits of nvmlClocksEventReasons."""
        ...
