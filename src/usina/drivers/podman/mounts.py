"""Volumes of runs, on their way into containers.

Podman is told of a mount by a path. So a volume is mounted in our folder for as long as a container is being started,
which takes a mount of its own from there; ours then goes, and what the container has goes with it.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from contextlib import suppress
from pathlib import Path

from usina.core.task import MountPlan
from usina.hardware.folders import mounts
from usina.hardware.folders.shelf import Shelf
from usina.ports.driver import DriverError


class Mounts:
    """`folder`: of this driver alone. `first`: the host's user that a container's root is."""

    def __init__(self, folder: Path, shelf: Shelf, first: int) -> None:
        self._folder, self._shelf, self._first = folder.absolute(), shelf, first

    async def make(self, handle: str, wanted: tuple[MountPlan, ...]) -> list[str]:
        """Where the volumes of a run are, in order. What an earlier try left goes first. Raises `DriverError`."""
        await self.drop(handle)
        paths = []
        for number, one in enumerate(wanted):
            path = self._folder / handle / str(number)
            path.mkdir(mode=0o700, parents=True)
            fd = await self._shelf.mounted(one, self._first)
            try:
                await asyncio.to_thread(mounts.move, fd, str(path))
            except OSError as error:
                raise DriverError(f"volume {one.volume}: {error.strerror or error}") from error
            finally:
                os.close(fd)
            paths.append(str(path))
        return paths

    async def drop(self, handle: str) -> None:
        """Leave nothing of them here; containers keep theirs."""
        if (self._folder / handle).is_dir():
            await asyncio.to_thread(self._drop, self._folder / handle)

    @staticmethod
    def _drop(folder: Path) -> None:
        for path in folder.iterdir():
            mounts.unmount(str(path))
            path.rmdir()
        folder.rmdir()

    def handles(self) -> list[str]:
        """Runs of which something is mounted here."""
        with suppress(FileNotFoundError):
            return sorted(os.listdir(self._folder))
        return []


def sees_ours(service: str) -> bool:
    """Whether the service behind a socket has our mount namespace; else it would not find what is mounted for it.
    Raises `OSError` where it does not answer, or ends meanwhile."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
        line.connect(service)
        pid, _, _ = struct.unpack("3i", line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return pid > 0 and os.readlink(f"/proc/{pid}/ns/mnt") == os.readlink("/proc/self/ns/mnt")
