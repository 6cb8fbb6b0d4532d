"""Does KVM really run a guest here?

`/dev/kvm` may exist and yet hang every guest, for example inside another hypervisor. So a guest is booted: the
firmware loads one boot sector, which writes to QEMU's debug-exit port, and QEMU ends with a status that says so.
Healthy hardware needs a tenth of a second; the time limit is for the sick.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

_PORT: Final = 0xF4
_VALUE: Final = 0x2A
_EXPECTED: Final = (_VALUE << 1) | 1  # what isa-debug-exit makes of the value
_TIME_LIMIT: Final = 4.0
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
        try:
            return _boot(emulator)
        except FileNotFoundError:
            continue
        except subprocess.TimeoutExpired:
            return Accelerator("tcg", f"KVM hangs: a probe guest did not finish in {_TIME_LIMIT:g} s")
    return Accelerator("tcg", "no x86-64 QEMU was found to probe KVM with")


def _boot(emulator: str) -> Accelerator:
    with tempfile.TemporaryDirectory(prefix="usina-probe-") as folder:
        disk = Path(folder) / "boot.img"
        disk.write_bytes(boot_sector())
        command = [
            *(emulator, "-accel", "kvm", "-machine", "pc", "-m", "16"),
            *("-nodefaults", "-no-user-config", "-display", "none"),
            *("-device", f"isa-debug-exit,iobase={_PORT:#x},iosize=1"),
            *("-drive", f"file={disk},format=raw,if=ide"),
        ]
        done = subprocess.run(command, capture_output=True, timeout=_TIME_LIMIT, stdin=subprocess.DEVNULL)
    if done.returncode == _EXPECTED:
        return Accelerator("kvm", "a probe guest booted")
    return Accelerator("tcg", f"a probe guest failed under KVM (QEMU ended with {done.returncode})")
