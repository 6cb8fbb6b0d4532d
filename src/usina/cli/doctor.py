"""Looks at this machine: what a factory here would have, what it would lack, and the command that mends it."""

from __future__ import annotations

import asyncio
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.text import Text

from usina.cli import screen
from usina.cli.options import Out
from usina.cli.screen import Output
from usina.core.units import GiB, show_size

if TYPE_CHECKING:
    from usina.ports.driver import Check

ROOM = 10 * GiB
_TIMEOUT = 60.0


def doctor(output: Out = Output.TABLE) -> None:
    """Check what this machine has and lacks to run a factory. Exit code 1 if something needed is missing.

    Examples:
      usina doctor
      usina doctor -o json
    """
    checks = asyncio.run(_all_checks())
    if output is Output.JSON:
        screen.print_json({area: [_plain(check) for check in found] for area, found in checks.items()})
    else:
        _print(checks)
    if any(check.needed and not check.ok for found in checks.values() for check in found):
        raise typer.Exit(1)


async def _all_checks() -> dict[str, list[Check]]:
    """The checks of this command, then of each driver, by name."""
    from usina.server import discovery

    shelf = discovery.drivers()
    checks = {"usina": _own()}
    for name, plugin in sorted(shelf.plugins.items()):
        checks[name] = await _ask(name, plugin.diagnose())
    for name, reason in sorted(shelf.missing.items()):
        checks[name] = [_missing(name, reason)]
    return checks


async def _ask(name: str, diagnosis: object) -> list[Check]:
    """A driver's own checks; one that fails or hangs becomes a check that did not pass."""
    from usina.ports.driver import Check

    try:
        async with asyncio.timeout(_TIMEOUT):
            found: list[Check] = await diagnosis  # type: ignore[misc]
            return found
    except TimeoutError:
        return [Check(name, False, f"no answer within {_TIMEOUT:.0f} s", needed=False)]
    except Exception as error:
        return [Check(name, False, f"{type(error).__name__}: {error}", needed=False)]


def _missing(name: str, reason: str) -> Check:
    from usina.ports.driver import Check

    return Check(name, False, f"left out: {reason}", f"pip install 'usina[{name}]'", needed=False)


def _own() -> list[Check]:
    from usina.ports.driver import Check

    ssh = shutil.which("ssh")
    free = shutil.disk_usage(_existing(Path("~/.local/share/usina").expanduser())).free
    return [
        Check("python", sys.version_info >= (3, 11), platform.python_version(), "install Python 3.11 or newer"),
        Check("ssh", ssh is not None, ssh or "not found (usina ssh)", "apt install openssh-client", needed=False),
        Check("disk", free >= ROOM, f"{show_size(free)} free", f"make {show_size(ROOM)} free for images", needed=False),
        Check("user", os.geteuid() == 0, _user(), "as root, machines get networks of their own", needed=False),
    ]


def _user() -> str:
    return "root" if os.geteuid() == 0 else f"uid {os.geteuid()}, not root"


def _existing(path: Path) -> Path:
    """The nearest folder above that is there."""
    return next(place for place in (path, *path.parents) if place.exists())


def _print(checks: dict[str, list[Check]]) -> None:
    console = screen.out()
    for area, found in checks.items():
        console.print(Text(area, style="bold"))
        width = max(len(check.name) for check in found) if found else 0
        for check in found:
            sign, style = ("✔", "green") if check.ok else ("✘", "red") if check.needed else ("–", "yellow")
            line = Text.assemble("  ", (sign, style), f" {check.name:{width}}  ", screen.clean(check.found))
            console.print(line, soft_wrap=True)
            if not check.ok and check.mend:
                console.print(Text(f"    {'':{width}}→ {screen.clean(check.mend)}", style="cyan"), soft_wrap=True)


def _plain(check: Check) -> dict[str, object]:
    return {
        "name": check.name,
        "ok": check.ok,
        "found": check.found,
        "mend": "" if check.ok else check.mend,
        "needed": check.needed,
    }
