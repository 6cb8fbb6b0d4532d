"""One control-plane process, wired: the store, the house for operations, the engine, the doors."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from usina.app.addresses import Addresses
from usina.app.context import House
from usina.app.doors import Doors
from usina.app.near import Near
from usina.core.clock import Clock, SystemClock
from usina.core.ids import Ids
from usina.core.resource import Kind
from usina.engine.ailments import Ailments
from usina.engine.fleet import Fleet
from usina.engine.forwards import Forwards
from usina.engine.goods import GoodsHand, NetworkHand, SecurityGroupHand, VolumeHand
from usina.engine.hand import Hand
from usina.engine.images import ImageHand
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
from usina.ports.driver import DriverPlugin
from usina.server.login_keys import DerivedKeys
from usina.server.settings import Settings, factory_id, instance_id, master_key
from usina.server.vault import MasterVault
from usina.services.blobs import BlobFolder
from usina.services.images.cache import default_cache
from usina.services.images.catalogue import RECIPES
from usina.services.images.fetch import Reach
from usina.services.images.library import ImageLibrary
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
    ) -> None:
        self.settings = settings
        self.store = store
        self.master = master
        self.leases = store.leases(f"{instance_id(settings)}:{os.getpid()}:{secrets.token_hex(4)}")
        library = ImageLibrary(
            settings.data_dir / "images", default_cache(), Reach(allow_private=settings.allow_private_urls)
        )
        login_keys = DerivedKeys(master)
        self.fleet = Fleet(store, plugins, clock, settings.data_dir, factory_id(master), login_keys)
        plans = Plans(store, login_keys)
        blobs, vault = BlobFolder(settings.data_dir / "blobs"), MasterVault(master)
        task_plans = TaskPlans(store, blobs, vault, plugins, plans)
        hands: dict[Kind, Hand] = {
            Kind.MACHINE: MachineHand(self.fleet, plans),
            Kind.VOLUME: VolumeHand(store, self.fleet, plans),
            Kind.NETWORK: NetworkHand(store, self.fleet, plans),
            Kind.SECURITY_GROUP: SecurityGroupHand(store, self.fleet, plans),
            Kind.FORWARD: GoodsHand(store, self.fleet, plans),
            Kind.TASK: TaskHand(store, self.fleet, clock, task_plans, blobs, _queues(plugins)),
            Kind.IMAGE: ImageHand(store, self.fleet, plans, library, settings.upload_limit),
        }
        policies = Policies.of(settings.policies)
        self.placer = Placer(store, clock, policies)
        self.reconciler = Reconciler(store, self.leases, clock, self.placer, hands)
        self.forwards = Forwards(store, self.fleet, settings.bind)
        self.tidy = Tidy(store, clock, blobs)
        self.orphans = Orphans(store, self.fleet)
        self.ailments = Ailments(store, self.fleet, clock)
        self.samples = Samples(store, self.fleet, clock)
        self.fleet.wake = self.reconciler.wake
        self.house = House(
            store=store,
            clock=clock,
            ids=Ids(clock.now),
            engine=self.reconciler,
            library=library,
            hosts=self.fleet,
            plugins=plugins,
            addresses=Addresses(store),
            near=Near(store, clock),
            doors=Doors(store, clock, master),
            upload_limit=settings.upload_limit,
            policies=policies,
            blobs=blobs,
            vault=vault,
            recipes={name: recipe.user for name, recipe in RECIPES.items()},
        )

    def work(self) -> list[asyncio.Task[None]]:
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
            }
        return [asyncio.create_task(task, name=name) for name, task in tasks.items()]


def _queues(plugins: Mapping[str, DriverPlugin]) -> dict[str, bool]:
    """Stack → whether it has a queue of its own."""
    return {plugin.stack: plugin.queues for plugin in plugins.values() if plugin.tasks is not None}


@asynccontextmanager
async def open_factory(
    settings: Settings, plugins: Mapping[str, DriverPlugin], clock: Clock | None = None
) -> AsyncIterator[Factory]:
    """A factory with its database open and migrated; nothing works yet."""
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    os.chmod(settings.data_dir, 0o711)  # noqa: S103 - hypervisors must pass through; every secret in it is 600
    store = Store(settings.database_url)
    await store.start()
    try:
        yield Factory(settings, store, plugins, master_key(settings), clock or SystemClock())
    finally:
        await store.close()
