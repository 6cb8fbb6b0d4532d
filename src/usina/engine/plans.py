"""From a machine's wish to a driver's plan: every name resolved. Reads through a short memory, as bursts repeat."""

from __future__ import annotations

import time

from usina.core import cloudinit
from usina.core.capacity import Claim, DeviceKind
from usina.core.goods import ImageStatus, NetworkSpec, SecurityGroupSpec
from usina.core.machine import (
    DevicePlan,
    ImageFiles,
    Interface,
    InterfacePlan,
    MachinePlan,
    NetworkPlan,
    Rule,
)
from usina.core.machine_decide import Machine
from usina.core.network import gateway_of
from usina.core.resource import AnyResource
from usina.ports.driver import DriverError
from usina.ports.login_keys import LoginKeys
from usina.store.flights import Flights
from usina.store.store import Store

FRESH = 1.0  # seconds that a read may be reused; a changed security group is applied again after twice that


class Plans:
    def __init__(self, store: Store, login_keys: LoginKeys) -> None:
        self._store, self._login_keys = store, login_keys
        self._memory: dict[str, tuple[float, AnyResource]] = {}
        self._flights = Flights()

    def forget(self, id: str) -> None:
        self._memory.pop(id, None)

    async def of(self, machine: Machine, claim: Claim) -> MachinePlan:
        """The plan of `machine` under `claim`. Raises `DriverError` while something it is made of is missing."""
        spec = machine.spec
        image = await self._image(spec.image)
        networks = [await self.network(i.network, (i, spec.hostname)) for i in spec.interfaces]
        # A rebuilt guest is a new instance to cloud-init, so that keys and user-data are applied again.
        instance = f"{machine.id}.{spec.rebuilds}" if spec.rebuilds else machine.id
        return MachinePlan(
            handle=machine.id,
            hostname=spec.hostname,
            cores=spec.cores,
            memory=spec.memory,
            disk=spec.disk,
            image=image,
            meta_data=cloudinit.meta_data(instance, spec.hostname, self._let_in(machine)),
            user_data=spec.user_data or cloudinit.EMPTY_USER_DATA,
            network_config=cloudinit.network_config(spec.interfaces),
            interfaces=tuple([await self.interface(i) for i in spec.interfaces]),
            networks=tuple(networks),
            volumes=spec.volumes,
            cpus=claim.cpus[: spec.cores],  # those to use; the rest only make up whole physical cores
            nodes=claim.nodes,
            hugepage=claim.hugepage,
            firmware=spec.firmware,
            queues=spec.queues,
            devices=tuple(DevicePlan(d, _kind(d, machine)) for d in claim.devices),
            marks=machine.status.marks,
            title=f"{machine.project}/{machine.name}",
        )

    def _let_in(self, machine: Machine) -> tuple[str, ...]:
        """The keys of its people, and the one with which tasks get into it."""
        keys: tuple[str, ...] = machine.spec.ssh_keys
        return (*keys, self._login_keys.public(machine.project)) if machine.spec.tasks else keys

    async def network(self, id: str, *hosts: tuple[Interface, str]) -> NetworkPlan:
        network = await self._get(id)
        spec: NetworkSpec = network.spec
        known = tuple((card.mac, card.address, name) for card, name in hosts)
        return NetworkPlan(network.id, spec.cidr, gateway_of(spec.cidr), spec.domain, known)

    async def rules(self, groups: tuple[str, ...]) -> tuple[Rule, ...]:
        """The union of security groups."""
        rules: list[Rule] = []
        for id in groups:
            spec: SecurityGroupSpec = (await self._get(id)).spec
            rules += [rule for rule in spec.rules if rule not in rules]
        return tuple(rules)

    async def interface(self, card: Interface) -> InterfacePlan:
        return InterfacePlan(card.mac, card.address, card.network, await self.rules(card.security_groups))

    async def _image(self, id: str) -> ImageFiles:
        status: ImageStatus = (await self._get(id)).status
        if status.files is None:
            self.forget(id)
            raise NotReadyYet("the image is not ready yet")
        return status.files

    async def _get(self, id: str) -> AnyResource:
        known = self._memory.get(id)
        if known and time.monotonic() - known[0] < FRESH:
            return known[1]
        return await self._flights.join(id, lambda: self._read(id))

    async def _read(self, id: str) -> AnyResource:
        now = time.monotonic()
        found = await self._store.resources.get(id)
        if found is None:
            raise DriverError(f"{id} is gone", lasting=True)
        self._memory[id] = (now, found)
        if len(self._memory) > 10_000:
            self._memory.clear()
        return found


class NotReadyYet(DriverError):
    """Something this is made of is still being made; not a failure, only a wait."""


def _kind(device: str, machine: Machine) -> DeviceKind:
    if "/" in device:
        return DeviceKind.MDEV
    kinds = [request.kind for request in machine.spec.devices if request.kind is not DeviceKind.MDEV]
    return DeviceKind.VF if kinds and all(kind is DeviceKind.VF for kind in kinds) else kinds[0]
