"""What this machine has and lacks to run tasks as processes: the lines of `usina doctor`."""

from __future__ import annotations

import asyncio
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Final

from usina.drivers.process.driver import network_program
from usina.drivers.process.inventory import bwrap_version
from usina.drivers.process.warden import groups, seccomp
from usina.ports.driver import Check

_TRIAL: Final = ("--unshare-all", "--unshare-user", "--uid", "1000", "--ro-bind", "/", "/", "--proc", "/proc", "true")
_UNKNOWN: Final = 65_530  # a user that nobody is


async def diagnose() -> list[Check]:
    """One line for each thing, with the command that mends it."""
    return await asyncio.to_thread(lambda: [_bwrap(), _namespaces(), _groups(), _filter(), _outbound()])


def _bwrap() -> Check:
    version = bwrap_version()
    return Check("bubblewrap", bool(version), version or "not found", "apt install bubblewrap")


def _namespaces() -> Check:
    """Makes a sandbox as runs have it: as a user without privileges, even where we are root."""
    mend = "sysctl kernel.unprivileged_userns_clone=1 user.max_user_namespaces=65536; on Ubuntu 24.04 and later also "
    mend += "sysctl kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile for bwrap"
    program = shutil.which("bwrap")
    if program is None:
        return Check("sandbox", False, "not tried without bubblewrap", mend)
    user = {"user": _UNKNOWN, "group": _UNKNOWN, "extra_groups": ()} if os.geteuid() == 0 else {}
    try:
        done = subprocess.run([program, *_TRIAL], capture_output=True, text=True, timeout=10, **user)  # type: ignore[call-overload]
    except (OSError, subprocess.SubprocessError) as error:
        return Check("sandbox", False, str(error), mend)
    words = " ".join(done.stderr.split())[:200]
    return Check("sandbox", done.returncode == 0, words or "a sandbox in a user namespace was made", mend)


def _groups() -> Check:
    mend = "run Usina as root, or as a service with Delegate=yes"
    try:
        mounts = groups.parse_mounts(Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace"))
    except OSError as error:
        return Check("control groups", False, str(error), mend, needed=False)
    there = sorted({mounted.version for mounted in mounts})
    writable = any(os.access(mounted.point, os.W_OK) for mounted in mounts)
    found = (
        f"v{' and v'.join(map(str, there))}, {'writable' if writable else 'not writable'}" if there else "not mounted"
    )
    return Check("control groups", writable, found, mend, needed=False)


def _filter() -> Check:
    machine = platform.machine()
    known = machine in seccomp.ARCHITECTURES
    return Check("system call filter", known, machine, "use a host with x86_64 or aarch64", needed=False)


def _outbound() -> Check:
    program = network_program()
    return Check(
        "outbound network", bool(program), program or "not found", "apt install passt slirp4netns", needed=False
    )
