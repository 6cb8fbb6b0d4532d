"""Process hosts for tests: a driver with a warden of its own, and nothing left of them in the end."""

from __future__ import annotations

import glob
import os
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from usina.core.ids import Ids
from usina.drivers.process import PLUGIN
from usina.drivers.process.driver import ProcessDriver
from usina.ports.driver import HostSettings
from usina.testing.waiting import until

_ids = Ids(time.time)


def opened(folder: Path, beside: Any = None, **options: Any) -> ProcessDriver:
    """A driver on a folder; every one on the same folder speaks with the same warden."""
    PLUGIN.check(options)
    return ProcessDriver(HostSettings(f"host-{folder.name}", "h1", "test", folder, options, beside))


@asynccontextmanager
async def process_host(folder: Path, **options: Any) -> AsyncIterator[ProcessDriver]:
    """A driver whose runs, warden, groups and processes are gone in the end; fails where they are not."""
    driver = opened(folder, **options)
    try:
        yield driver
    finally:
        for handle in list(await driver.survey()):
            await driver.remove(handle)
        await driver._client.shutdown()
        until(lambda: left_of(folder), lambda left: not left)
        assert not os.listdir(folder / "process" / "runs")
        assert os.listdir(folder / "process" / "box") == ["etc"]


def left_of(folder: Path) -> list[str]:
    """Processes and groups that belong to a host on this folder."""
    name = opened(folder).group
    groups = glob.glob(f"/sys/fs/cgroup/**/{name}", recursive=True)
    return [*groups, *glob.glob(f"/run/{name}"), *processes_that(lambda text: str(folder) in text)]


def processes_that(good: Any) -> list[str]:
    """Command lines of processes, one text each."""
    return [text for pid in pids() if (text := command_of(pid)) and pid != os.getpid() and good(text)]


def pids() -> Iterable[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def waits(pid: int, first: int = 0, last: int = 1 << 32) -> bool:
    """Whether a process, of any user of a range, is a sandbox that waits for its run, or is being made to."""
    try:
        named = Path(f"/proc/{pid}/comm").read_text().strip() in ("usina-zygote", "usina-spare")
        return named and first <= os.stat(f"/proc/{pid}").st_uid <= last
    except OSError:
        return False


def of_users(first: int, last: int) -> list[str]:
    """Processes of any user of a range, but for sandboxes that wait for their runs."""
    found = []
    for pid in pids():
        try:
            if first <= os.stat(f"/proc/{pid}").st_uid <= last and (text := command_of(pid)) and not waits(pid):
                found.append(f"{pid} {text}")
        except OSError:
            continue
    return found
