"""A convenience for laptops and containers: start libvirtd where root runs without an init system.

Only daemons that do not answer are started, and none is ever stopped: others may use them by then.
"""

from __future__ import annotations

import grp
import os
import shutil
import socket
import stat
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

_SOCKETS: Final = {
    "virtlogd": Path("/run/libvirt/virtlogd-sock"),
    "libvirtd": Path("/run/libvirt/libvirt-sock"),
}
_PATIENCE: Final = 10.0


def ensure_local_daemon() -> None:
    """Start virtlogd and libvirtd when we are root, there is no systemd, and they are not running. Else do nothing.

    A start that fails is left for the connection to report, which says what it tried to reach.
    """
    if os.geteuid() != 0 or Path("/run/systemd/system").exists():
        return
    _open_kvm_to_its_group()
    for name, path in _SOCKETS.items():
        if not _answers(path) and shutil.which(name):
            subprocess.run([name, "-d"], check=False, capture_output=True, timeout=30)
            _wait_for(path)


def _open_kvm_to_its_group() -> None:
    """What udev does elsewhere. With a `/dev/kvm` for root alone, libvirtd finds at every call that root and its guests
    see different accelerators, and probes QEMU anew: sixteen seconds each time."""
    with suppress(OSError, KeyError):
        device = Path("/dev/kvm")
        if device.stat().st_gid == 0 and stat.S_IMODE(device.stat().st_mode) == 0o600:
            shutil.chown(device, group=grp.getgrnam("kvm").gr_gid)
            device.chmod(0o660)


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def _wait_for(path: Path) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not _answers(path) and time.monotonic() < deadline:
        time.sleep(0.05)
