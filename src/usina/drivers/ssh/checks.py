"""What this machine has and lacks to reach into machines."""

from __future__ import annotations

from importlib.metadata import version

from usina.ports.driver import Check


async def diagnose() -> list[Check]:
    found = f"asyncssh {version('asyncssh')}; a machine needs an SSH server, systemd, and sudo for its login user"
    return [Check("tasks in machines", True, found)]
