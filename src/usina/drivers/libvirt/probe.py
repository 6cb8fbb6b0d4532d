"""Does KVM really run a guest here?

`/dev/kvm` may exist and yet hang every guest, for example inside another hypervisor. So a guest is booted: the
firmware loads one boot sector, which writes to QEMU's debug-exit port, and QEMU ends with a status that says so.
Healthy hardware needs a tenth of a second; the time limit is for the sick. Some do not hang but crawl, forty times
slower than emulation, and lose real kernels later. So emulation boots the same sector first, as the yardstick.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

_PORT: Final = 0xF4
_VALUE: Final = 0x2A
_EXPECTED: Final = (_VALUE << 1) | 1  # what isa-debug-exit makes of the value
_PATIENCE: Final = 4.0  # seconds
_LEAST: Final = 1.0  # below which nothing is called slow
_LONGEST: Final = 2.5  # above which nothing is called fast, however busy the machine
_SLOWER: Final = 3.0  # than emulation; beyond that it is not worth having
_QEMU: Final = ("qemu-system-x86_64", "/usr/libexec/qemu-kvm")


@dataclass(frozen=True, slots=True)
class Accelerator:
    name: str  # "kvm" | "tcg"
    reason: str


def boot_sector() -> bytes:
    """``mov al, value; out port, al; hlt`` and the signature that firmware looks for."""
    code = bytes((0xB0, _VALUE, 0xE6, _PORT, 0xF4))
    return code.ljust(510, b"\0") + b"\x55\xaa"


@cache
def probe_local() -> Accelerator:
    """The best accelerator of this machine; tried once per process."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return Accelerator("tcg", "/dev/kvm is missing or may not be opened")
    for emulator in _QEMU:
        if shutil.which(emulator):
            return _compare(emulator)
    return Accelerator("tcg", "no x86-64 QEMU was found to probe KVM with")


def _compare(emulator: str) -> Accelerator:
    emulated = _boot(emulator, "tcg", _PATIENCE)
    limit = max(_LEAST, min(_LONGEST, _SLOWER * emulated.seconds))
    real = _boot(emulator, "kvm", limit)
    if real.status is None:
        reason = f"KVM hangs or crawls: a probe guest needed {emulated.seconds:.1f} s emulated, and over {limit:.1f} s"
        return Accelerator("tcg", reason)
    if real.status != _EXPECTED:
        return Accelerator("tcg", f"a probe guest failed under KVM (QEMU ended with {real.status})")
    return Accelerator("kvm", f"a probe guest booted in {real.seconds:.1f} s")


@dataclass(frozen=True, slots=True)
class _Run:
    status: int | None  # None: it did not end in time
    seconds: float


def _boot(emulator: str, accelerator: str, limit: float) -> _Run:
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="usina-probe-") as folder:
        disk = Path(folder) / "boot.img"
        disk.write_bytes(boot_sector())
        command = [
            *(emulator, "-accel", accelerator, "-machine", "pc", "-m", "16"),
            *("-nodefaults", "-no-user-config", "-display", "none"),
            *("-device", f"isa-debug-exit,iobase={_PORT:#x},iosize=1"),
            *("-drive", f"file={disk},format=raw,if=ide"),
        ]
        try:
            done = subprocess.run(command, capture_output=True, timeout=limit, stdin=subprocess.DEVNULL)
        except subprocess.TimeoutExpired:
            return _Run(None, limit)
    return _Run(done.returncode, time.monotonic() - begun)
