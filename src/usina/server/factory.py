"""One control-plane process, wired: the store, the house for operations, the engine, the doors."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

from usina.app.addresses import Addresses
from usina.app.context import House
from usina.app.doors import Doors
from usina.app.near import Near
from usina.core.clock import Clock, SystemClock
from usina.core.ids import Ids
from usina.core.resource import Kind
from usina.engine.ailments import Ailments
from usina.engine.endpoints import EndpointHand
from usina.engine.fleet import Fleet
from usina.engine.forwards import Forwards
from usina.engine.goods import GoodsHand, NetworkHand, SecurityGroupHand, VolumeHand
from usina.engine.hand import Hand
from usina.engine.images import ImageHand
from usina.engine.llm_feed import LlmFeed
from usina.engine.llm_ledger import CheckedOutside, FleetDial
from usina.engine.loads import Loads
from usina.engine.machines import MachineHand
from usina.engine.orphans import Orphans
from usina.engine.placer import Placer
from usina.engine.plans import Plans
from usina.engine.reconcile import Reconciler
from usina.engine.samples import Samples
from usina.engine.task_plans import TaskPlans
from usina.engine.tasks import TaskHand
from usina.engine.tidy import Tidy
from usina.placement import Policies
from usina.ports.driver import DriverPlugin, Tool
from usina.ports.llm import Directory, Streams
from usina.ports.runtime import RuntimePlugin
from usina.server import discovery
from usina.server.gateways import hand_in_left, make_gateway, prompt_folder, traces_of
from usina.server.guards import placed
from usina.server.login_keys import DerivedKeys
from usina.server.messages import Dial
from usina.server.settings import Settings, factory_id, hub_token, instance_id, master_key
from usina.server.vault import MasterVault
from usina.services.blobs import BlobFolder
from usina.services.images.cache import default_cache
from usina.services.images.catalogue import RECIPES
from usina.services.images.library import ImageLibrary
from usina.services.llm.shared import Table
from usina.services.models import FileReader, Hub, XorbFolder
from usina.services.models.catalogue import entries
from usina.services.reach import Reach
from usina.store.store import Store


class Factory:
    """Everything a process runs. Made by `open_factory`."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        plugins: Mapping[str, DriverPlugin],
        master: bytes,
        clock: Clock,
        runtimes: Mapping[str, RuntimePlugin],
    ) -> None:
        self.settings, self.clock = settings, clock
        self.store = store
        self.master = master
        self.leases = store.leases(f"{instance_id(settings)}:{os.getpid()}:{secrets.token_hex(4)}")
        reach = Reach(allow_private=settings.allow_private_urls)
        library = ImageLibrary(settings.data_dir / "images", default_cache(), reach)
        login_keys = DerivedKeys(master)
        self.fleet = Fleet(
            store, plugins, clock, settings.data_dir, factory_id(master), login_keys, tools=_tools(runtimes, settings)
        )
        plans = Plans(store, login_keys)
        blobs, vault, ids = BlobFolder(settings.data_dir / "blobs"), MasterVault(master), Ids(clock.now)
        prompts = prompt_folder(settings)
        xorbs = XorbFolder(settings.data_dir / "xet")
        task_plans = TaskPlans(store, blobs, vault, plugins, plans)
        hands: dict[Kind, Hand] = {
            Kind.MACHINE: MachineHand(self.fleet, plans),
            Kind.VOLUME: VolumeHand(store, self.fleet, plans),
            Kind.NETWORK: NetworkHand(store, self.fleet, plans),
            Kind.SECURITY_GROUP: SecurityGroupHand(store, self.fleet, plans),
            Kind.FORWARD: GoodsHand(store, self.fleet, plans),
            Kind.TASK: TaskHand(store, self.fleet, clock, task_plans, blobs, _queues(plugins)),
            Kind.ENDPOINT: EndpointHand(store, clock, ids, vault),
            Kind.IMAGE: ImageHand(store, self.fleet, plans, library, settings.upload_limit),
        }
        policies = Policies.of(settings.policies)
        self.placer = Placer(store, clock, policies)
        self.reconciler = Reconciler(store, self.leases, clock, self.placer, hands)
        self.forwards = Forwards(store, self.fleet, settings.bind)
        self.tidy = Tidy(store, clock, blobs, xorbs, prompts)
        self.orphans = Orphans(store, self.fleet)
        self.ailments = Ailments(store, self.fleet, clock)
        self.samples = Samples(store, self.fleet, clock)
        self.loads = Loads(store, clock, self.reconciler.wake)
        self.fleet.wake = self.reconciler.wake
        doors = Doors(store, clock, master)
        guards = placed(settings)
        self.traces = traces_of(settings)
        self.rates = Table.made(settings.gateway_workers) if settings.gateway_workers > 1 else None
        dial = FleetDial(self.fleet, CheckedOutside(reach.of_url))
        self.feed = LlmFeed(store, vault, runtimes)
        self.gateway = make_gateway(
            settings,
            store,
            clock,
            doors.secret,
            dial,
            self.rates,
            guards=guards,
            prompts=prompts,
            traces=self.traces,
            look=self.feed.look,
        )
        self.refreshed: Callable[[], None] = lambda: None  # called when the directory of models has changed
        self.house = House(
            store=store,
            clock=clock,
            ids=ids,
            engine=self.reconciler,
            library=library,
            hosts=self.fleet,
            plugins=plugins,
            addresses=Addresses(store),
            near=Near(store, clock),
            doors=doors,
            gateway=self.gateway,
            upload_limit=settings.upload_limit,
            policies=policies,
            blobs=blobs,
            vault=vault,
            models=FileReader(),
            xorbs=xorbs,
            prompts=prompts,
            runtimes=runtimes,
            guards=guards,
            runtime_settings=settings.runtimes,
            reach=reach,
            upstream=upstream_hub(settings),
            fetch_on_demand=settings.hub_on_demand,
            catalogue=entries(),
            recipes={name: recipe.user for name, recipe in RECIPES.items()},
        )

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[list[asyncio.Task[None]]]:
        """Everything that stands beside the doors, from before they open until after they are closed."""
        gateway = "gateway" in self.settings.roles
        if gateway:
            await hand_in_left(self.settings, self.store, self.clock)
            await self.gateway.start()
            await self.feed.start(self._refresh)
        tasks = self._standing()
        try:
            yield tasks
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if gateway:
                await self.gateway.stop()
            if self.traces is not None:
                await asyncio.to_thread(self.traces.close)

    async def dial(self, wanted: Dial) -> Streams:
        """A stream to a port of a run, for a worker. Raises `OSError` or `DriverError`."""
        driver = await self.fleet.tasks(wanted.provider, wanted.stack)
        return await driver.dial(wanted.handle, wanted.port)

    def _refresh(self, directory: Directory) -> None:
        self.gateway.refresh(directory)
        self.refreshed()

    def close(self) -> None:
        if self.rates is not None:
            self.rates.close()

    def _standing(self) -> list[asyncio.Task[None]]:
        """The standing tasks of this process's roles."""
        tasks = {"fleet": self.fleet.run()}
        if "engine" in self.settings.roles:
            tasks |= {
                "placer": self.placer.run(),
                "reconciler": self.reconciler.run(),
                "forwards": self.forwards.run(),
                "tidy": self.tidy.run(),
                "orphans": self.orphans.run(),
                "samples": self.samples.run(),
                "ailments": self.ailments.run(),
                "loads": self.loads.run(),
            }
        if "gateway" in self.settings.roles:
            tasks |= {"gateway": self.gateway.run(), "directory": self.feed.run()}
        return [asyncio.create_task(task, name=name) for name, task in tasks.items()]


def _tools(runtimes: Mapping[str, RuntimePlugin], settings: Settings) -> dict[str, Tool]:
    """What this machine can run of them itself. Raises `Invalid` naming the setting."""
    found = {name: runtime.tool(settings.runtimes.get(name, {})) for name, runtime in runtimes.items()}
    return {name: tool for name, tool in found.items() if tool is not None}


def upstream_hub(settings: Settings) -> Hub | None:
    """The hub to import models from. Raises `Invalid` for a token that cannot be read."""
    if not settings.hub_upstream:
        return None
    return Hub(settings.hub_upstream, Reach(allow_private=settings.allow_private_urls), hub_token(settings))


def _queues(plugins: Mapping[str, DriverPlugin]) -> dict[str, bool]:
    """Stack → whether it has a queue of its own."""
    return {plugin.stack: plugin.queues for plugin in plugins.values() if plugin.tasks is not None}


@asynccontextmanager
async def open_factory(
    settings: Settings,
    plugins: Mapping[str, DriverPlugin],
    clock: Clock | None = None,
    runtimes: Mapping[str, RuntimePlugin] | None = None,
) -> AsyncIterator[Factory]:
    """A factory with its database open and migrated; nothing works yet."""
    known = discovery.runtimes().plugins if runtimes is None else runtimes
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    os.chmod(settings.data_dir, 0o711)  # noqa: S103 - hypervisors must pass through; every secret in it is 600
    store = Store(settings.database_url)
    await store.start()
    try:
        factory = Factory(settings, store, plugins, master_key(settings), clock or SystemClock(), known)
        try:
            yield factory
        finally:
            factory.close()
    finally:
        await store.close()
