"""The volumes of one host, kept as files in its state folder. All task drivers of a host have the same shelf."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from usina.core.machine import VolumePlan
from usina.core.task import MountPlan
from usina.hardware.folders import mounts
from usina.ports.driver import DriverError

_PATIENCE: Final = 2.0  # seconds for the last mount of a run that has ended to go
_SAFE: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")

T = TypeVar("T")


class Shelf:
    """`state`: the folder of the host (`HostSettings.state_dir`)."""

    def __init__(self, state: Path) -> None:
        self._folder = state / "volumes"
        self._trouble: str | None = None  # why there can be no volumes; None: not tried yet

    async def trouble(self) -> str:
        """Why this host can have no volumes for tasks; "" where it can. Tried for real, and again only if it failed."""
        if self._trouble != "":
            self._trouble = await asyncio.to_thread(self._try)
        return self._trouble

    def _try(self) -> str:
        if os.geteuid() != 0:
            return "volumes need root"
        try:
            self._make_folder()
            mounts.trial(str(self._folder))
        except OSError as error:
            return str(error.strerror or error)
        return ""

    def _make_folder(self) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def image(self, handle: str) -> str:
        """The file of a volume, whether or not it is there."""
        if not handle or not _SAFE.issuperset(handle):
            raise DriverError("the volume's handle is not a plain name", lasting=True)
        return str(self._folder.absolute() / f"{handle}.img")

    async def ensure(self, plan: VolumePlan) -> None:
        """Make a volume, or grow it to its size. Raises `DriverError`."""
        image = self.image(plan.handle)
        if trouble := await self.trouble():
            raise DriverError(f"this host can have no volumes for tasks: {trouble}", lasting=True)
        if not os.path.exists(image):
            self._make_folder()
            await self._work(lambda: mounts.make(image, plan.size))
        if not await self._patiently(lambda: mounts.grow(image, plan.size)):
            raise DriverError("the volume is in use; it can grow when no task uses it")

    async def remove(self, handle: str) -> None:
        """Remove a volume and what is on it. Raises `DriverError` while anything uses it."""
        image = self.image(handle)
        if not await self._patiently(lambda: mounts.remove(image)):
            raise DriverError("the volume is in use on its host")

    async def mounted(self, plan: MountPlan, host: int) -> int:
        """A descriptor of a mount for a container, whose users are those from `host` on. Raises `DriverError`."""
        try:
            return await asyncio.to_thread(
                mounts.mounted, self.image(plan.volume), mounts.many_users(host), read_only=plan.read_only
            )
        except FileNotFoundError as error:
            raise DriverError(f"volume {plan.volume} is not on this host", lasting=True) from error
        except OSError as error:
            raise DriverError(f"volume {plan.volume}: {error.strerror or error}") from error

    async def _patiently(self, deed: Callable[[], bool]) -> bool:
        deadline = time.monotonic() + _PATIENCE
        while not await self._work(deed):
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(0.05)
        return True

    @staticmethod
    async def _work(deed: Callable[[], T]) -> T:
        """Beside the loop: programs are waited for."""
        try:
            return await asyncio.to_thread(deed)
        except OSError as error:
            raise DriverError(f"the volume's file: {error.strerror or error}") from error
