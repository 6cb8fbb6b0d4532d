"""Xids: the errors that NVIDIA's driver writes to the kernel log, and which of them mean that a GPU is of no use.

The table is NVIDIA's Xid catalogue (docs.nvidia.com/deploy/xid-errors, "Analyzing Xid Errors with the Xid Catalog"):
cordoned is what it answers with a reset of the GPU or a restart of the host. What it answers with a restart of the
application (13, 31, 43, 45, 68, 69 …) is the application's doing, or harmed only it, and is in no table here: a tenant
must not be able to take GPUs out of service.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from usina.hardware.files import pci_address

CORDON: Final[Mapping[int, str]] = {
    46: "GPU stopped processing",
    48: "double bit ECC error",
    62: "internal micro-controller halt",
    64: "memory row could not be remapped, or page not retired",
    74: "NVLink error",
    79: "GPU has fallen off the bus",
    95: "uncontained memory error",
    109: "context switch timeout",
    110: "security fault",
    119: "GSP does not answer",
    120: "GSP error",
    136: "NVLink training failed",
    140: "unrecovered ECC error",
    143: "GPU could not be initialised",
    156: "resource retired until the next reset",
    158: "GPU fatal timeout",
}
"""Unusable until it is reset or replaced."""

WARN: Final[Mapping[int, str]] = {
    63: "memory row is remapped, or page retired, at the next reset",
    92: "high rate of single bit ECC errors",
    94: "contained memory error: reset the GPU when convenient",
    121: "corrected errors of the link to the processor",
    155: "NVLink went down",
    157: "no resource is left to retire",
}
"""Goes on working; an operator should know."""

# From NVLink 5 on: an error of one part of the link, of which the line says whether it is fatal.
_NVLINK5: Final = range(144, 151)
# Sums up the others: "GPU recovery action changed from 0x0 (None) to 0x2 (Node Reboot Required)".
_RECOVERY: Final = 154
_UNUSABLE: Final = ("GPU Reset Required", "Node Reboot Required", "Drain and Reset")

_LINE: Final = re.compile(r"NVRM: Xid \((?:PCI:)?([0-9a-fA-F:.]{7,16})[^)]{0,64}\): ([0-9]{1,5})\b,? ?(.*)")
_RECORD: Final = re.compile(r"([0-9]{1,6}),([0-9]{1,18}),[0-9]+,[^;]*;")
_KERNEL: Final = 7  # the highest priority of facility 0, which the kernel lets nobody else write
_FATAL: Final = re.compile(r"(?<![\w-])fatal\b", re.IGNORECASE)
_LONGEST: Final = 8192  # of a record of /dev/kmsg


@dataclass(frozen=True, slots=True)
class Xid:
    address: str
    number: int
    text: str = ""
    sequence: int = 0  # of its line in the kernel log; 0 where that was not said

    @property
    def fatal(self) -> bool:
        if self.number == _RECOVERY:
            return self._action in _UNUSABLE
        return self.number in CORDON or (self.number in _NVLINK5 and bool(_FATAL.search(self.text)))

    @property
    def notable(self) -> bool:
        if self.number == _RECOVERY:
            return self._action not in ("", "None")
        return self.fatal or self.number in WARN or self.number in _NVLINK5

    @property
    def reason(self) -> str:
        known = CORDON.get(self.number) or WARN.get(self.number)
        if self.number == _RECOVERY:
            known = self._action
        return f"Xid {self.number}: {known or ('fatal' if self.fatal else 'passing') + ' NVLink error'}"

    @property
    def _action(self) -> str:
        """What the last pair of parentheses says."""
        return self.text.rpartition("(")[2].partition(")")[0][:40] if "(" in self.text else ""


def parse(line: str) -> Xid | None:
    """A line of the kernel log, as /dev/kmsg, dmesg or a journal has it; None if it tells of no Xid.

    Of /dev/kmsg only what the kernel itself said counts, from the beginning of its message: programs write there too,
    and names that a tenant chose come up in what the kernel says of others.
    """
    record = _RECORD.match(line)
    if record is not None and int(record.group(1)) > _KERNEL:
        return None
    found = _LINE.match(line, record.end()) if record is not None else _LINE.search(line)
    address = pci_address(found.group(1)) if found else None
    if found is None or address is None:
        return None
    return Xid(address, int(found.group(2)), found.group(3).strip(), int(record.group(2)) if record else 0)


def parse_all(lines: Iterable[str]) -> list[Xid]:
    return [xid for line in lines if (xid := parse(line)) is not None]


def kernel_log(path: str = "/dev/kmsg") -> Iterator[str]:
    """The kernel's ring from its oldest record to its newest, without waiting. Nothing where we may not read it."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return
    try:
        while record := _record(file):
            yield record.decode("utf-8", "replace")
    finally:
        os.close(file)


def _record(file: int) -> bytes:
    """The next one; b"" at the end. Records that were overwritten while we read are left out."""
    while True:
        try:
            return os.read(file, _LONGEST)
        except BrokenPipeError:
            continue
        except OSError:
            return b""
