"""The libvirt driver: the port's verbs, in the order of the port. Waiting happens here, libvirt's work in threads.

Everything made carries a name that follows from its handle, so each verb can be repeated after any crash: it looks
what is there and does what is missing. Nothing is remembered between calls but the connection and what does not change
(the accelerator, the host's NUMA layout).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Final, TypeVar
from weakref import WeakValueDictionary

import libvirt

from usina.core.capacity import Inventory
from usina.core.machine import Card, ImageFiles, MachinePlan, NetworkPlan, Rule, Seen, Unreachable, VolumePlan
from usina.drivers.libvirt import devices, inventory, names, plugs, settings, snapshots
from usina.drivers.libvirt.connection import Connection
from usina.drivers.libvirt.console import StreamConsole, open_console
from usina.drivers.libvirt.dial import dial
from usina.drivers.libvirt.domain_xml import Files, Ground, domain_xml
from usina.drivers.libvirt.filters import Filters
from usina.drivers.libvirt.guests import Guests, attached_volumes, config_xml, grow_while_paused, suppress_missing
from usina.drivers.libvirt.networks import Networks
from usina.drivers.libvirt.probe import Accelerator, probe_local
from usina.drivers.libvirt.seed import seed_iso
from usina.drivers.libvirt.storage import Storage
from usina.drivers.libvirt.xml import parse
from usina.ports.driver import DriverError, HostSettings, HostUnreachable

Result = TypeVar("Result")

_REBOOT_GRACE: Final = 20.0
_UNPLUG_PATIENCE: Final = 15.0
_ASK_AGAIN: Final = 3.0  # a guest that is still booting does not hear the first request
_LOOK_AGAIN: Final = 0.2
_HEARTBEAT: Final = 5.0  # seconds after which a silent watcher makes sure that the connection lives
_LOG_LIMIT: Final = 1 << 20


class LibvirtDriver:
    """One open host."""

    def __init__(self, host: HostSettings) -> None:
        self._settings = settings.read(host)
        self._connection = Connection(self._settings)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._node_cpus: Mapping[int, tuple[int, ...]] | None = None
        self._accelerator: Accelerator | None = None

    # --- the host

    async def inventory(self) -> Inventory:
        accelerator = await self._probe()

        def read(conn: libvirt.virConnect) -> inventory.Texts:
            return inventory.read_texts(conn, self._storage(conn).size(), accelerator.name)

        texts = await self._do("be inspected", read)
        found = inventory.build_inventory(texts, accelerator, session=self._settings.session)
        more = {"task:network"} if plugs.possible(self._settings) else set()
        return replace(found, traits=found.traits | more)

    async def survey(self) -> Mapping[str, Seen]:
        return await self._do("list its guests", lambda conn: self._guests(conn).survey())

    async def watch(self) -> AsyncIterator[str]:
        loop = asyncio.get_running_loop()
        changed: asyncio.Queue[str] = asyncio.Queue()

        def hear(name: str, uuid: str) -> None:
            if not name or uuid == names.guest_uuid(self._settings.factory, name):
                loop.call_soon_threadsafe(changed.put_nowait, name)

        with self._connection.listening(hear):
            yield ""
            while True:
                try:
                    async with asyncio.timeout(_HEARTBEAT):
                        handle = await changed.get()
                except TimeoutError:
                    await self._stay_connected()
                else:
                    yield handle

    async def observe(self, handle: str) -> Seen:
        try:
            return await self._do("be asked about a guest", lambda conn: self._guests(conn).observe(handle))
        except HostUnreachable as error:
            return Unreachable(error.public)

    # --- images, networks, volumes

    async def ensure_image(self, image: ImageFiles) -> None:
        async with self._alone(f"image/{image.digest}"):
            await self._do("store the image", lambda conn: self._storage(conn).ensure_image(image))

    async def remove_image(self, digest: str) -> None:
        async with self._alone(f"image/{digest}"):
            await self._do("remove the image", lambda conn: self._storage(conn).remove_image(digest))

    async def ensure_network(self, plan: NetworkPlan) -> None:
        async with self._alone("networks"):
            await self._do("make the network", lambda conn: self._networks(conn).ensure(plan))

    async def remove_network(self, handle: str) -> None:
        async with self._alone("networks"):
            await self._do("remove the network", lambda conn: self._networks(conn).remove(handle))

    async def ensure_volume(self, plan: VolumePlan) -> None:
        def ensure(conn: libvirt.virConnect) -> None:
            small = self._storage(conn).ensure_volume(plan)
            if small is not None and not self._grow_attached(conn, plan):
                small.resize(plan.size)

        await self._do("make the volume", ensure)

    async def remove_volume(self, handle: str) -> None:
        name = names.volume(handle)
        await self._do("remove the volume", lambda conn: self._storage(conn).delete(name))

    # --- machines

    async def define(self, plan: MachinePlan) -> None:
        await self.ensure_image(plan.image)
        for network in plan.networks:
            await self.ensure_network(network)
        ground = await self._ground(plan)
        await self._do("make the guest", lambda conn: self._define(conn, plan, ground))

    async def start(self, handle: str) -> None:
        await self._do("start the guest", lambda conn: self._guests(conn).start(handle))

    async def stop(self, handle: str, *, grace: float) -> None:
        deadline = time.monotonic() + grace
        while grace and time.monotonic() < deadline:
            asked_at = time.monotonic()
            if not await self._do("stop the guest", lambda conn: self._guests(conn).ask_to_power_off(handle)):
                return
            while time.monotonic() < min(deadline, asked_at + _ASK_AGAIN):
                await asyncio.sleep(_LOOK_AGAIN)
                if await self._do("stop the guest", lambda conn: self._guests(conn).is_off(handle)):
                    return
        await self._do("stop the guest", lambda conn: self._guests(conn).pull_plug(handle))

    async def suspend(self, handle: str) -> None:
        await self._do("suspend the guest", lambda conn: self._guests(conn).suspend(handle))

    async def resume(self, handle: str) -> None:
        await self._do("resume the guest", lambda conn: self._guests(conn).resume(handle))

    async def reboot(self, handle: str, token: int) -> None:
        """Off, mark, on. The mark is written while the guest is off: a crash before it repeats only the stop, and a
        crash after it leaves a guest that is off, which whoever wants it on starts. So no reboot is lost or doubled.
        Off and on, and not a reset: every guest understands the power button, and devices come back clean."""
        if await self._is_done(handle, "reboots", token):
            return
        await self.stop(handle, grace=_REBOOT_GRACE)
        await self._do("restart the guest", lambda conn: self._guests(conn).mark(handle, reboots=token))
        await self.start(handle)

    async def rebuild(self, plan: MachinePlan, token: int) -> None:
        if await self._is_done(plan.handle, "rebuilds", token):
            return
        await self.ensure_image(plan.image)
        await self.stop(plan.handle, grace=0)

        def renew(conn: libvirt.virConnect) -> None:
            domain = self._guests(conn).find(plan.handle)
            if domain is not None:
                snapshots.forget_all(domain)
            self._storage(conn).delete(names.root_disk(plan.handle))

        await self._do("rebuild the guest", renew)
        await self.define(plan)
        await self._do("rebuild the guest", lambda conn: self._guests(conn).mark(plan.handle, rebuilds=token))

    async def snapshot(self, handle: str, name: str) -> None:
        await self._do("take the snapshot", lambda conn: snapshots.take(self._guests(conn).need(handle), name))

    async def restore(self, handle: str, name: str, token: int) -> None:
        if await self._is_done(handle, "restore", token):
            return
        await self._do("restore the snapshot", lambda conn: snapshots.restore(self._guests(conn), handle, name, token))

    async def drop_snapshot(self, handle: str, name: str) -> None:
        def drop(conn: libvirt.virConnect) -> None:
            domain = self._guests(conn).find(handle)
            if domain is not None:
                snapshots.drop(domain, name)

        await self._do("remove the snapshot", drop)

    async def attach_volume(self, handle: str, volume: str) -> None:
        def attach(conn: libvirt.virConnect) -> None:
            storage = self._storage(conn)
            if not storage.has(names.volume(volume)):
                raise DriverError("the volume is not on the host")
            path = storage.path(names.volume(volume))
            devices.plug_volume(self._guests(conn).need(handle), volume, path)

        await self._do("attach the volume", attach)

    async def detach_volume(self, handle: str, volume: str) -> None:
        await self._unplug(handle, "detach the volume", lambda domain: devices.unplug_volume(domain, volume))

    async def attach_interface(self, plan: MachinePlan, mac: str) -> None:
        for network in plan.networks:
            await self.ensure_network(network)
        ground = await self._ground(plan)

        def attach(conn: libvirt.virConnect) -> None:
            domain = self._guests(conn).need(plan.handle)
            self._ensure_filters(conn, plan, {mac})
            devices.plug_interface(domain, plan, mac, ground)

        await self._do("attach the interface", attach)

    async def detach_interface(self, handle: str, mac: str) -> None:
        cards = await self._do("detach the interface", lambda conn: self._guests(conn).cards(handle))
        async with self._alone("networks"):
            mine = [card for card in cards if card[1] == mac]
            await self._do("detach the interface", lambda conn: self._networks(conn).forget_names(mine))
        await self._unplug(handle, "detach the interface", lambda domain: devices.unplug_interface(domain, mac))
        await self._do("detach the interface", lambda conn: self._filters(conn).remove(handle, mac))

    async def set_rules(self, handle: str, mac: str, rules: tuple[Rule, ...]) -> None:
        def replace_rules(conn: libvirt.virConnect) -> None:
            if self._filters(conn).has(handle, mac) or self._guests(conn).find(handle) is not None:
                self._filters(conn).ensure(handle, mac, rules)

        await self._do("set the packet filter", replace_rules)

    async def remove(self, handle: str) -> None:
        """The definition goes late: what is looked up in it must be gone before it is."""

        def forget_names(conn: libvirt.virConnect) -> None:
            self._guests(conn).pull_plug(handle)
            self._networks(conn).forget_names(self._guests(conn).cards(handle))

        def remove(conn: libvirt.virConnect) -> None:
            domain = self._guests(conn).find(handle)
            text = config_xml(domain) if domain is not None else "<domain/>"
            self._guests(conn).pull_plug(handle)
            devices.remove_mdevs(conn, text)
            self._guests(conn).undefine(handle)
            self._filters(conn).remove(handle)
            self._storage(conn).delete_guest_files(handle)

        async with self._alone("networks"):
            await self._do("remove the guest", forget_names)
        await self._do("remove the guest", remove)

    # --- what is no guest of ours

    async def plug(self, handle: str, device: str, card: Card) -> None:
        if not plugs.possible(self._settings):
            raise DriverError(
                "only a libvirt of this machine, used as root, can plug tasks into networks", lasting=True
            )
        await self.ensure_network(card.network)

        def put_on(conn: libvirt.virConnect) -> None:
            self._filters(conn).ensure(handle, card.interface.mac, card.interface.rules)
            plugs.put_on(conn, self._settings.factory, handle, device, card)

        await self._do("plug the task into its network", put_on)

    async def unplug(self, handle: str, device: str, card: Card) -> None:
        mac, bridge = card.interface.mac, names.network(self._settings.factory, card.interface.network)

        def forget_name(conn: libvirt.virConnect) -> None:
            if not plugs.others_with(conn, device, mac):
                self._networks(conn).forget_names([(bridge, mac)])

        def take_off(conn: libvirt.virConnect) -> None:
            plugs.take_off(conn, device, bridge)
            self._filters(conn).remove(handle, mac)

        if self._settings.session:
            return
        async with self._alone("networks"):
            await self._do("unplug the task from its network", forget_name)
        await self._do("unplug the task from its network", take_off)

    # --- to the guest

    async def console_log(self, handle: str) -> bytes:
        name = names.console_log(handle)
        return await self._do(
            "read the console's log", lambda conn: self._storage(conn).download_tail(name, _LOG_LIMIT)
        )

    async def console(self, handle: str) -> StreamConsole:
        def open_(conn: libvirt.virConnect) -> StreamConsole:
            domain = self._guests(conn).need(handle)
            if not domain.isActive():
                raise DriverError("the guest is off")
            return open_console(conn, domain)

        return await self._do("open the guest's console", open_)

    async def dial(self, handle: str, address: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await dial(self._settings, address, port)

    async def close(self) -> None:
        """Close, and tidy up: a host on which nothing of this factory is left keeps no empty pool and no filter."""

        def tidy(conn: libvirt.virConnect) -> None:
            self._filters(conn).remove_shelter_if_unused()
            self._storage(conn).remove_if_empty()

        with suppress(DriverError):  # the next close tries again
            await self._do("be tidied up", tidy)
        await self._connection.close()

    # --- within

    def _guests(self, conn: libvirt.virConnect) -> Guests:
        return Guests(conn, self._settings.factory)

    def _storage(self, conn: libvirt.virConnect) -> Storage:
        return Storage(conn, self._settings)

    def _networks(self, conn: libvirt.virConnect) -> Networks:
        return Networks(conn, self._settings)

    def _filters(self, conn: libvirt.virConnect) -> Filters:
        return Filters(conn, self._settings)

    async def _do(self, deed: str, verb: Callable[[libvirt.virConnect], Result]) -> Result:
        return await self._connection.call(deed, verb)

    def _alone(self, name: str) -> asyncio.Lock:
        """A lock for what several machines share, held by one call of this process at a time."""
        return self._locks.setdefault(name, asyncio.Lock())

    async def _stay_connected(self) -> None:
        with suppress(HostUnreachable):  # heard again when it is back
            await self._do("be reached", lambda conn: None)

    async def _probe(self) -> Accelerator:
        if self._accelerator is None:
            self._accelerator = await self._choose_accelerator()
        return self._accelerator

    async def _choose_accelerator(self) -> Accelerator:
        if self._settings.accelerator != "auto":
            return Accelerator(self._settings.accelerator, "set by the operator")
        if self._settings.local:
            return await asyncio.to_thread(probe_local)
        has_kvm = await self._do("be inspected", lambda conn: "type='kvm'" in conn.getCapabilities())
        return Accelerator("kvm" if has_kvm else "tcg", "as its libvirt says; a far host is not probed")

    async def _ground(self, plan: MachinePlan) -> Ground:
        accelerator = await self._probe()

        def survey_ground(conn: libvirt.virConnect) -> Ground:
            storage = self._storage(conn)
            image = storage.find_image(plan.image)
            if image is None:
                raise DriverError("the image is not on the host yet")
            files = Files(
                root=storage.path(names.root_disk(plan.handle)),
                seed=storage.path(names.seed(plan.handle)),
                console_log=storage.path(names.console_log(plan.handle)),
                kernel=image.kernel,
                initrd=image.initrd,
            )
            if self._node_cpus is None:
                self._node_cpus = inventory.node_cpus(conn.getCapabilities())
            return Ground(
                factory=self._settings.factory,
                accelerator=accelerator.name,
                files=files,
                session=self._settings.session,
                volumes={volume: storage.path(names.volume(volume)) for volume in plan.volumes},
                node_cpus=self._node_cpus,
            )

        return await self._do("be inspected", survey_ground)

    def _define(self, conn: libvirt.virConnect, plan: MachinePlan, ground: Ground) -> None:
        guests, storage = self._guests(conn), self._storage(conn)
        domain = guests.find(plan.handle)
        if domain is not None and domain.isActive():
            return  # only a call that was repeated late finds it running, and then there is nothing to do
        right_size = storage.ensure_root_disk(plan)
        storage.write_seed(plan.handle, seed_iso(plan))
        self._ensure_filters(conn, plan, {card.mac for card in plan.interfaces})
        devices.ensure_mdevs(conn, plan)
        domain = conn.defineXML(domain_xml(plan, replace(ground, marks={**plan.marks, **guests.marks(plan.handle)})))
        if not right_size:
            grow_while_paused(domain, plan.disk)

    def _ensure_filters(self, conn: libvirt.virConnect, plan: MachinePlan, macs: set[str]) -> None:
        for card in plan.interfaces:
            if card.mac in macs:
                self._filters(conn).ensure(plan.handle, card.mac, card.rules)

    def _grow_attached(self, conn: libvirt.virConnect, plan: VolumePlan) -> bool:
        """A volume in use is grown by the guest's own process, which tells the guest."""
        for domain in self._guests(conn).all():
            with suppress_missing():
                disk = attached_volumes(parse(domain.XMLDesc())).get(plan.handle) if domain.isActive() else None
                target = disk.find("target") if disk is not None else None
                if target is not None:
                    domain.blockResize(target.get("dev"), plan.size, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)
                    return True
        return False

    async def _is_done(self, handle: str, mark: str, token: int) -> bool:
        marks = await self._do("be asked about a guest", lambda conn: self._guests(conn).marks(handle))
        return marks.get(mark, 0) >= token

    async def _unplug(self, handle: str, deed: str, ask: Callable[[libvirt.virDomain], bool]) -> None:
        def ask_guest(conn: libvirt.virConnect) -> bool:
            domain = self._guests(conn).find(handle)
            return domain is None or ask(domain)

        deadline = time.monotonic() + _UNPLUG_PATIENCE
        while not await self._do(deed, ask_guest):
            if time.monotonic() > deadline:
                raise DriverError(f"the guest did not let go of the device: the host could not {deed} yet")
            await asyncio.sleep(_LOOK_AGAIN)
