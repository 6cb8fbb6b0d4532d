"""The fake driver: every verb of the port on a `World` of files."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from pathlib import Path

from usina.core.capacity import Inventory
from usina.core.machine import (
    Absent,
    Card,
    ImageFiles,
    MachinePlan,
    NetworkPlan,
    Power,
    Present,
    Rule,
    Seen,
    Unreachable,
    VolumePlan,
)
from usina.drivers.fake.hardware import inventory
from usina.drivers.fake.world import Guest, World
from usina.ports.driver import Console, DriverError, HostSettings, HostUnreachable

_BOOT_LINE = "fake guest {handle} is up\n"


class FakeDriver:
    """One pretended host."""

    def __init__(self, settings: HostSettings) -> None:
        self._settings = settings
        self._world = World(Path(settings.options.get("dir") or settings.state_dir / "fake"))
        self._delay = float(settings.options.get("delay", 0))
        self._changed: asyncio.Queue[str] = asyncio.Queue()
        self._surveyed: tuple[Mapping[str, Guest], Mapping[str, Seen]] = ({}, {})

    async def inventory(self) -> Inventory:
        self._reach()
        return inventory(self._settings.options)

    async def survey(self) -> Mapping[str, Seen]:
        self._reach()
        guests = self._world.all()
        if guests is not self._surveyed[0]:
            before, sights = self._surveyed
            fresh = {h: sights[h] if before.get(h) is guest else _present(guest) for h, guest in guests.items()}
            self._surveyed = (guests, fresh)
        return self._surveyed[1]

    async def watch(self) -> AsyncIterator[str]:
        while True:
            yield await self._changed.get()

    async def observe(self, handle: str) -> Seen:
        if not self._world.answers:
            return Unreachable("the pretended host is down")
        guest = self._world.load(handle)
        return _present(guest) if guest else Absent()

    async def ensure_image(self, image: ImageFiles) -> None:
        self._reach()
        self._world.note("images", image.digest)

    async def remove_image(self, digest: str) -> None:
        self._reach()
        self._world.drop("images", digest)

    async def ensure_network(self, plan: NetworkPlan) -> None:
        self._reach()
        self._world.note("networks", plan.handle)

    async def remove_network(self, handle: str) -> None:
        self._reach()
        self._world.drop("networks", handle)

    async def ensure_volume(self, plan: VolumePlan) -> None:
        self._reach()
        size = int(self._world.read("volumes", plan.handle) or 0)
        if plan.size > size:
            self._world.note("volumes", plan.handle, str(plan.size))

    async def remove_volume(self, handle: str) -> None:
        self._reach()
        self._world.drop("volumes", handle)

    async def define(self, plan: MachinePlan) -> None:
        self._reach()
        if self._delay:
            await asyncio.sleep(self._delay)
        guest = self._world.load(plan.handle)
        if guest is None:
            guest = Guest(handle=plan.handle, cores=plan.cores, memory=plan.memory, image=plan.image.digest)
            guest.volumes = list(plan.volumes)
            guest.macs = [i.mac for i in plan.interfaces]
            guest.marks = dict(plan.marks)
            guest.rules = {i.mac: len(i.rules) for i in plan.interfaces}
        elif guest.power is not Power.OFF:
            raise DriverError("a guest that runs cannot be defined anew")
        guest.cores, guest.memory = plan.cores, plan.memory
        self._save(guest)

    async def start(self, handle: str) -> None:
        if self._delay:
            await asyncio.sleep(self._delay)

        def act(guest: Guest) -> None:
            guest.power, guest.crashed = Power.ON, False
            guest.starts += 1
            guest.log += _BOOT_LINE.format(handle=handle)

        self._change(handle, act, unless=lambda guest: guest.power is Power.ON)

    async def stop(self, handle: str, *, grace: float) -> None:
        def act(guest: Guest) -> None:
            guest.power, guest.crashed = Power.OFF, False

        self._change(handle, act, unless=lambda guest: guest.power is Power.OFF)

    async def suspend(self, handle: str) -> None:
        self._switch(handle, Power.ON, Power.SUSPENDED)

    async def resume(self, handle: str) -> None:
        self._switch(handle, Power.SUSPENDED, Power.ON)

    async def reboot(self, handle: str, token: int) -> None:
        def act(guest: Guest) -> None:
            guest.marks["reboots"] = token
            guest.power = Power.ON
            guest.starts += 1
            guest.log += _BOOT_LINE.format(handle=handle)

        self._change(handle, act, unless=lambda guest: guest.marks.get("reboots", 0) >= token)

    async def rebuild(self, plan: MachinePlan, token: int) -> None:
        def act(guest: Guest) -> None:
            guest.marks["rebuilds"] = token
            guest.power, guest.image, guest.snapshots, guest.log = Power.OFF, plan.image.digest, [], ""

        self._change(plan.handle, act, unless=lambda guest: guest.marks.get("rebuilds", 0) >= token)

    async def snapshot(self, handle: str, name: str) -> None:
        self._change(handle, lambda guest: guest.snapshots.append(name), unless=lambda g: name in g.snapshots)

    async def restore(self, handle: str, name: str, token: int) -> None:
        def act(guest: Guest) -> None:
            if name not in guest.snapshots:
                raise DriverError(f"there is no snapshot {name}", lasting=True)
            guest.marks["restore"] = token

        self._change(handle, act, unless=lambda guest: guest.marks.get("restore", 0) >= token)

    async def drop_snapshot(self, handle: str, name: str) -> None:
        self._change(handle, lambda guest: guest.snapshots.remove(name), unless=lambda g: name not in g.snapshots)

    async def attach_volume(self, handle: str, volume: str) -> None:
        self._change(handle, lambda guest: guest.volumes.append(volume), unless=lambda g: volume in g.volumes)

    async def detach_volume(self, handle: str, volume: str) -> None:
        self._change(handle, lambda guest: guest.volumes.remove(volume), unless=lambda g: volume not in g.volumes)

    async def attach_interface(self, plan: MachinePlan, mac: str) -> None:
        self._change(plan.handle, lambda guest: guest.macs.append(mac), unless=lambda g: mac in g.macs)

    async def detach_interface(self, handle: str, mac: str) -> None:
        self._change(handle, lambda guest: guest.macs.remove(mac), unless=lambda g: mac not in g.macs)

    async def set_rules(self, handle: str, mac: str, rules: tuple[Rule, ...]) -> None:
        def act(guest: Guest) -> None:
            guest.rules[mac] = len(rules)

        self._reach()
        if self._world.read("cards", f"{handle}-{mac}") is not None:
            self._world.note("cards", f"{handle}-{mac}", str(len(rules)))
        elif self._world.load(handle) is not None:
            self._change(handle, act)

    async def plug(self, handle: str, device: str, card: Card) -> None:
        """Only noted, with how many rules it has: a pretended host has no network devices."""
        await self.ensure_network(card.network)
        self._world.note("cards", f"{handle}-{card.interface.mac}", str(len(card.interface.rules)))

    async def unplug(self, handle: str, device: str, card: Card) -> None:
        self._reach()
        self._world.drop("cards", f"{handle}-{card.interface.mac}")

    async def remove(self, handle: str) -> None:
        self._reach()
        self._world.remove(handle)
        self._changed.put_nowait(handle)

    async def console_log(self, handle: str) -> bytes:
        return self._guest(handle).log.encode()

    async def console(self, handle: str) -> Console:
        return _Echo(self._guest(handle).handle)

    async def dial(self, handle: str, address: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        raise DriverError("a pretended guest has no network")

    async def close(self) -> None:
        while not self._changed.empty():
            self._changed.get_nowait()
        self._world.close()

    # --- within

    def _reach(self) -> None:
        if not self._world.answers:
            raise HostUnreachable("the pretended host is down")

    def _guest(self, handle: str) -> Guest:
        self._reach()
        guest = self._world.load(handle)
        if guest is None:
            raise DriverError(f"there is no guest {handle}")
        return guest

    def _change(
        self,
        handle: str,
        act: Callable[[Guest], object],
        unless: Callable[[Guest], bool] = lambda guest: False,
    ) -> None:
        guest = self._guest(handle)
        if not unless(guest):
            act(guest)
            self._save(guest)

    def _switch(self, handle: str, before: Power, after: Power) -> None:
        def act(guest: Guest) -> None:
            if guest.power is not before:
                raise DriverError(f"the guest is {guest.power.value}")
            guest.power = after

        self._change(handle, act, unless=lambda guest: guest.power is after)

    def _save(self, guest: Guest) -> None:
        self._world.save(guest)
        self._changed.put_nowait(guest.handle)


def _present(guest: Guest) -> Present:
    return Present(
        power=guest.power,
        cores=guest.cores,
        memory=guest.memory,
        volumes=frozenset(guest.volumes),
        macs=frozenset(guest.macs),
        snapshots=frozenset(guest.snapshots),
        marks=dict(guest.marks),
        crashed=guest.crashed,
        accelerator="fake",
    )


class _Echo:
    """A serial line that answers what it is told."""

    def __init__(self, handle: str) -> None:
        self._lines: asyncio.Queue[bytes] = asyncio.Queue()
        self._lines.put_nowait(f"{handle} login: ".encode())

    async def read(self) -> bytes:
        return await self._lines.get()

    async def write(self, data: bytes) -> None:
        self._lines.put_nowait(data)

    async def close(self) -> None:
        with suppress(asyncio.QueueFull):
            self._lines.put_nowait(b"")
