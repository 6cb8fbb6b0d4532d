"""What this machine has and lacks to run tasks as processes: the lines of `usina doctor`."""

from __future__ import annotations

import asyncio
import os
import platform
import tempfile
from pathlib import Path
from typing import Any, Final

from usina.drivers.process.driver import network_program
from usina.drivers.process.warden import groups, kernel, seccomp
from usina.drivers.process.warden.spawn import Sandboxes, release, words
from usina.hardware.folders import mounts
from usina.ports.driver import Check

_PATIENCE: Final = 10.0  # seconds
_UNKNOWN: Final = 65_530  # a user that nobody is


async def diagnose() -> list[Check]:
    """One line for each thing, with the command that mends it."""
    return await asyncio.to_thread(lambda: [_sandbox(), _groups(), _filter(), _outbound(), _volumes()])


def _sandbox() -> Check:
    """Makes a sandbox as runs have it, and runs a command in it."""
    mend = "sysctl kernel.unprivileged_userns_clone=1 user.max_user_namespaces=65536; where Usina is not root on "
    mend += "Ubuntu 24.04 and later also sysctl kernel.apparmor_restrict_unprivileged_userns=0"
    with tempfile.TemporaryDirectory(prefix="usina-doctor-") as folder:
        try:
            problem = _try_one(folder)
        except OSError as error:
            problem = str(error.strerror)
    return Check("sandbox", not problem, problem or "one was made, and a command ran in it", mend)


def _try_one(folder: str) -> str:
    """What went wrong; "" for nothing."""
    user = _UNKNOWN if os.geteuid() == 0 else None
    os.chmod(folder, 0o711)  # noqa: S103 - its user must pass through
    for name in ("view", "box", "box/etc", "box/trial", "box/trial/work", "box/trial/tmp"):
        os.mkdir(f"{folder}/{name}", 0o755)
    common = {"filter": "", "read_only": [], "open_files": 1024, "view": f"{folder}/view", "box": f"{folder}/box"}
    sandboxes = Sandboxes(common)
    record: dict[str, Any] = {"handle": "trial", "uid": user, "network": "none", "memory": 0, "workdir": "/"}
    record |= {"extra": [], "devices": [], "volumes": [], "command": ["true"], "shown": {"PATH": "/usr/bin:/bin"}}
    try:
        started = sandboxes.make(record, folder)
        release(started.tell(words(record)))
        kernel.has_ended(started.own, _PATIENCE)
        for fd in (started.own, *started.says):
            os.close(fd)
    finally:
        sandboxes.close()
    status = Path(folder, "status").read_text().strip()
    return "" if status == "exit 0" else status.removeprefix("problem ") or "its command did not come to its end"


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


def _volumes() -> Check:
    """Makes one, and a mount of it, of a file that has no name."""
    problem = "" if os.geteuid() == 0 else "needs root"
    with tempfile.TemporaryDirectory(prefix="usina-doctor-") as folder:
        try:
            if not problem:
                mounts.trial(folder)
        except OSError as error:
            problem = str(error.strerror or error)
    mend = "run Usina as root, with e2fsprogs and loop devices, on Linux 5.12 or newer"
    return Check("volumes of tasks", not problem, problem or "one was made and mounted", mend, needed=False)


def _outbound() -> Check:
    program = network_program()
    return Check(
        "outbound network", bool(program), program or "not found", "apt install passt slirp4netns", needed=False
    )
