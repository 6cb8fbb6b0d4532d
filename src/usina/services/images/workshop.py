"""Where a recipe works: a scratch folder, tools run as subprocesses, progress told, everything cleaned up.

Invariant: when a build ends, by success, error or cancellation, no process, mount or scratch file of it is
left.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from usina.core.errors import Unavailable

Progress = Callable[[float, str], None]
"""Told a fraction from 0 to 1 and what is being done, in a few words."""

_KEPT_LINES = 40
_PATIENCE = 5.0  # seconds between asking and killing
_UMOUNT_LIMIT = 10.0  # seconds
_SEARCH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def silent(fraction: float, message: str) -> None:
    """The progress of somebody who does not look."""


@dataclass(slots=True)
class Workshop:
    """A scratch folder `place` and a way to tell progress. `run` is the only way to start a process."""

    place: Path
    progress: Progress = silent
    env: Mapping[str, str] = field(default_factory=dict)

    async def run(self, *argv: str | Path, on_line: Callable[[str], None] | None = None) -> str:
        """Run a tool to its end and return what it printed (its last 40 lines).

        Raises `Unavailable` with the end of the output when it fails. Cancelled, it takes the tool and all
        of its children with it.
        """
        process = await asyncio.create_subprocess_exec(
            *map(str, argv),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=1 << 20,
            start_new_session=True,
            env={**os.environ, "PATH": _path(), "LC_ALL": "C.UTF-8", **self.env},
        )
        tail: deque[str] = deque(maxlen=_KEPT_LINES)
        try:
            assert process.stdout is not None
            async for raw in process.stdout:
                line = raw.decode(errors="replace").rstrip()
                tail.append(line)
                if on_line:
                    on_line(line)
            code = await process.wait()
        finally:
            await _end(process)
        output = "\n".join(tail)
        if code:
            raise Unavailable(f"{Path(str(argv[0])).name} failed: {_last_words(tail)}", detail=output)
        return output

    def clean(self) -> None:
        """Unmount whatever is mounted under `place`, then remove it."""
        for mount in _mounts_under(self.place):
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                subprocess.run(["umount", "--lazy", mount], check=False, timeout=_UMOUNT_LIMIT)
        if not _mounts_under(self.place):
            shutil.rmtree(self.place, ignore_errors=True)


def require(tools: Mapping[str, str]) -> None:
    """Raise `Unavailable` naming what is missing of `tools` (tool → Debian package), and the command."""
    missing = {tool: package for tool, package in tools.items() if not shutil.which(tool, path=_path())}
    if missing:
        packages = " ".join(sorted(set(missing.values())))
        raise Unavailable(
            f"building this image needs {', '.join(sorted(missing))}; "
            f"run: apt-get install --no-install-recommends {packages}",
            code="tools-missing",
            data={"tools": sorted(missing), "packages": sorted(set(missing.values()))},
        )


async def _end(process: asyncio.subprocess.Process) -> None:
    """Ask the tool to end, then end it and every child it left in its session's process group."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                await process.wait()
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:{_SEARCH}"


def _last_words(tail: Sequence[str]) -> str:
    """The line that says most about a failure: the last one that speaks of an error, else the last one."""
    said = [line for line in tail if line.strip()]
    blamed = [line for line in said if line.startswith(("E:", "error", "ERROR", "mkfs", "qemu-img:"))]
    return (blamed or said or ["it said nothing"])[-1][:300]


def _mounts_under(place: Path) -> list[str]:
    try:
        lines = Path("/proc/self/mounts").read_text().splitlines()
    except OSError:
        return []
    points = [line.split()[1].encode().decode("unicode_escape") for line in lines]
    return sorted((point for point in points if point.startswith(f"{place}/")), key=len, reverse=True)
