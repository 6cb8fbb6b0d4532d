"""From a task's wish to a driver's plan: secrets opened, content found, devices named, and who to be."""

from __future__ import annotations

from collections.abc import Mapping

from usina.core.capacity import Claim, DeviceKind
from usina.core.errors import NotFound, UsinaError
from usina.core.machine import Card
from usina.core.task import FilePlan, GivenDevice, MountPlan, TaskPlan, TaskSpec, handle_of
from usina.core.task_decide import Task
from usina.engine.plans import Plans
from usina.engine.task_machines import inside_of
from usina.ports.blobs import Blobs
from usina.ports.driver import DriverError, DriverPlugin
from usina.ports.vault import Vault
from usina.store.store import Store


class TaskPlans:
    def __init__(
        self, store: Store, blobs: Blobs, vault: Vault, plugins: Mapping[str, DriverPlugin], networks: Plans
    ) -> None:
        self._networks = networks
        self._store, self._blobs, self._vault, self._plugins = store, blobs, vault, plugins

    async def of(self, task: Task, claim: Claim | None) -> TaskPlan:
        """The plan of the run under way. Raises `DriverError` where something it needs is missing for good."""
        spec: TaskSpec = task.spec
        try:
            files = tuple(
                FilePlan(str(self._blobs.path(f.digest)), f.path, f.unpack, f.mode, f.shared) for f in spec.files
            )
            archive = str(self._blobs.path(spec.archive)) if spec.archive else ""
            secrets = {name: self._vault.open(sealed, self._sealed_for(task)) for name, sealed in spec.secrets.items()}
        except UsinaError as error:
            raise DriverError(error.message, lasting=isinstance(error, NotFound)) from error
        queues = spec.parent == ""
        return TaskPlan(
            handle=handle_of(task.id, task.status.run),
            project=task.project,
            title=f"{task.project}/{task.name}",
            command=spec.command,
            image=spec.image,
            archive=archive,
            tool=spec.tool,
            environment={**_given(task), **spec.environment, **secrets},
            secret=frozenset(secrets),
            files=files,
            workdir=spec.workdir,
            volumes=tuple(MountPlan(mount.volume, mount.path, mount.read_only) for mount in spec.volumes),
            ports=spec.ports,
            network=spec.network,
            card=await self._card(task),
            cores=spec.cores,
            memory=spec.memory,
            disk=spec.disk,
            devices=tuple(GivenDevice(name, _kind(spec)) for name in claim.devices) if claim else (),
            cpus=claim.cpus if claim else (),
            nodes=claim.nodes if claim else (),
            time_limit=spec.time_limit,
            grace=spec.grace,
            requests=spec.devices,
            indices=spec.indices if queues else (),
            at_once=spec.at_once if queues else 0,
            replicas=spec.replicas if queues else 1,
            identity=await self._identity(task, claim),
            dialect=spec.dialect,
            inside=await inside_of(self._store, task),
        )

    async def _card(self, task: Task) -> Card | None:
        interface = task.spec.interface
        if interface is None:
            return None
        network = await self._networks.network(interface.network, (interface, task.name))
        return Card(await self._networks.interface(interface), network)

    @staticmethod
    def _sealed_for(task: Task) -> str:
        """Secrets of an array are sealed once, for the whole."""
        return task.spec.parent or task.id

    async def _identity(self, task: Task, claim: Claim | None) -> str:
        """Who the member is on the stack; "" where the stack does not know people, or does not know this one."""
        knowing = {name: plugin for name, plugin in self._plugins.items() if plugin.people}
        if claim is None or all(plugin.stack != task.spec.on for plugin in knowing.values()):
            return ""
        host = await self._store.hosts.get(claim.provider)
        for name, options in (host.drivers if host else {}).items():
            if name in knowing and knowing[name].stack == task.spec.on:
                return await self._store.tasks.identity(knowing[name].realm_of(options), task.spec.member) or ""
        return ""


def _given(task: Task) -> dict[str, str]:
    """What every task finds in its environment."""
    found = {"USINA_TASK": task.id, "USINA_RUN": str(task.status.run)}
    if task.spec.parent:
        found["USINA_INDEX"] = found["USINA_RANK"] = str(task.spec.index)
    if task.spec.interface is not None:
        found["USINA_ADDRESS"] = task.spec.interface.address
    return found


def _kind(spec: TaskSpec) -> DeviceKind:
    return spec.devices[0].kind if spec.devices else DeviceKind.GPU
