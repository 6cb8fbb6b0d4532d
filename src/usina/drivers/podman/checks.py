"""What this machine has and lacks to run containers; for `usina doctor`."""

from __future__ import annotations

import os
import shutil
import subprocess

from usina.ports.driver import Check


async def diagnose() -> list[Check]:
    podman = shutil.which("podman")
    found = _version() if podman else "not found"
    runtimes = [name for name in ("crun", "runc") if shutil.which(name)]
    checks = [
        Check("podman", podman is not None, found, "apt-get install podman", needed=False),
        Check("OCI runtime", bool(runtimes), ", ".join(runtimes) or "not found", "apt-get install runc", needed=False),
    ]
    slirp = shutil.which("slirp4netns")
    checks.append(
        Check(
            "network of containers",
            slirp is not None,
            "slirp4netns" if slirp else "not found",
            "apt-get install slirp4netns",
            needed=False,
        )
    )
    if os.geteuid() != 0:
        good = shutil.which("newuidmap") is not None
        checks.append(
            Check("rootless users", good, "newuidmap" if good else "not found", "apt-get install uidmap", needed=False)
        )
    return checks


def _version() -> str:
    done = subprocess.run(["podman", "--version"], capture_output=True, text=True, timeout=10, check=False)
    return done.stdout.strip() or done.stderr.strip()[:100]
