"""Operations on machines: order, change, and the deeds of a day (start, stop, snapshot, attach …)."""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

from usina.app.context import Context
from usina.core import network as net
from usina.core.capacity import DeviceKind, DeviceRequest
from usina.core.cloudinit import USER_DATA_LIMIT
from usina.core.errors import Conflict, Invalid, NotFound, Refused, Stale, TooLarge
from usina.core.goods import Image
from usina.core.grant import Grant
from usina.core.machine import (
    Firmware,
    Interface,
    MachineSpec,
    MachineStatus,
    Power,
    Restart,
    RestoreWish,
)
from usina.core.machine_decide import Machine, needs_of
from usina.core.names import check_labels, check_name, check_range, check_ssh_keys
from usina.core.quota import amounts_of
from usina.core.resource import Kind, Phase, Resource
from usina.core.tenancy import Action, Project, Scope
from usina.core.units import GiB, KiB, MiB, TiB
from usina.placement import Refusal, place
from usina.store.work import Work, missing

DEFAULT = "default"
_HUGEPAGES = {2 * MiB, GiB, 0}


@dataclass(frozen=True, slots=True)
class CardOrder:
    network: str = DEFAULT
    security_groups: tuple[str, ...] = (DEFAULT,)
    address: str | None = None


@dataclass(frozen=True, slots=True)
class MachineOrder:
    """What a member asks for; sizes in bytes."""

    name: str
    image: str
    project: str | None = None
    cores: int = 1
    memory: int = GiB
    disk: int = 10 * GiB
    interfaces: tuple[CardOrder, ...] = (CardOrder(),)
    volumes: tuple[str, ...] = ()
    ssh_keys: tuple[str, ...] | None = None  # None: the member's own
    user_data: str | None = None
    hostname: str | None = None
    pinned: bool = False
    numa_nodes: int = 0
    hugepage: int = 0
    firmware: Firmware = Firmware.BIOS
    queues: int = 1
    devices: tuple[DeviceRequest, ...] = ()
    restart: Restart = Restart.NEVER
    host: str | None = None
    labels: dict[str, str] = field(default_factory=dict)


async def create(context: Context, order: MachineOrder) -> Machine:
    """Order a machine. Answers at once, phase ``pending``."""
    _check(order)
    project = await context.project(order.project)
    grant = context.require(Action.RESOURCE_CREATE, Scope(project.tenant, project.id), "project")
    if order.host is not None:
        context.require(Action.MACHINE_PIN_HOST, Scope(), "host")
    earlier = await context.repeated(order)
    if earlier is not None:
        return earlier
    for attempt in range(8):
        machine, work = await _ordered(context, project, order, grant)
        try:
            return await context.commit_order(work, machine, order)
        except AddressTaken as error:  # another control plane was quicker; look again
            context.house.addresses.forget(error.network)
            if attempt == 7 or error.asked:
                raise
    raise AssertionError("unreachable")


class AddressTaken(Conflict):
    code = "address-taken"

    def __init__(self, network: str, address: str, asked: bool) -> None:
        super().__init__(f"address {address} is taken", field="interfaces")
        self.network, self.asked = network, asked


def _check(order: MachineOrder) -> None:
    """Everything about an order that needs no look at the house. Raises `Invalid` naming the field."""
    check_name(order.name)
    check_name(order.hostname or order.name, "hostname")
    check_range(order.cores, 1, 1024, "cores")
    check_range(order.memory, 64 * MiB, 64 * TiB, "memory")
    check_range(order.disk, 16 * MiB, 1024 * TiB, "disk")
    check_range(order.queues, 1, 256, "queues")
    check_range(order.numa_nodes, 0, 16, "numa_nodes")
    check_range(len(order.interfaces), 0, 8, "interfaces")
    check_range(len(order.volumes), 0, 16, "volumes")
    check_range(len(order.devices), 0, 16, "devices")
    check_labels(order.labels)
    if order.queues > order.cores:
        raise Invalid("queues: at most one per core", field="queues")
    if order.memory % MiB:
        raise Invalid("memory: must be whole MiB", field="memory")
    if order.disk % (64 * KiB):
        raise Invalid("disk: must be a multiple of 64 KiB", field="disk")
    if order.hugepage not in _HUGEPAGES:
        raise Invalid("hugepage: must be 2 MiB or 1 GiB", field="hugepage")
    if order.hugepage and order.memory % (order.hugepage * max(1, order.numa_nodes)):
        raise Invalid("memory: must be whole huge pages on every NUMA node", field="memory")
    if order.numa_nodes and (order.cores % order.numa_nodes or order.memory % (order.numa_nodes * MiB)):
        raise Invalid("numa_nodes: cores and memory must divide evenly over them", field="numa_nodes")
    if order.user_data is not None and len(order.user_data.encode()) > USER_DATA_LIMIT:
        raise TooLarge(f"user_data: at most {USER_DATA_LIMIT // KiB} KiB", field="user_data")
    for number, device in enumerate(order.devices):
        check_range(device.count, 1, 16, f"devices[{number}].count")
        if device.kind is DeviceKind.MDEV and not device.mdev_type:
            raise Invalid(f"devices[{number}].mdev_type: name the type", field=f"devices[{number}].mdev_type")
    if len({d.kind for d in order.devices if d.kind is not DeviceKind.MDEV}) > 1:
        raise Invalid("devices: GPUs and virtual functions cannot be mixed in one machine yet", field="devices")


async def _ordered(context: Context, project: Project, order: MachineOrder, grant: Grant) -> tuple[Machine, Work]:
    """The machine as ordered, and everything that must be written for it."""
    work = context.work()
    id = context.house.ids.new(Kind.MACHINE.value)
    image = await _image(context, project, order.image)
    hostname = order.hostname or order.name
    cards = [
        await _card(context, work, project, grant, id, hostname, n, card) for n, card in enumerate(order.interfaces)
    ]
    volumes, home = await _volumes(context, work, project, grant, id, order.volumes)
    spec = MachineSpec(
        image=image.id,
        cores=order.cores,
        memory=order.memory,
        disk=order.disk,
        hostname=hostname,
        ssh_keys=await _ssh_keys(context, order),
        user_data=order.user_data,
        interfaces=tuple(cards),
        volumes=volumes,
        pinned=order.pinned,
        numa_nodes=order.numa_nodes,
        hugepage=order.hugepage,
        firmware=order.firmware,
        queues=order.queues,
        devices=order.devices,
        restart=order.restart,
        host=home or order.host,
    )
    if image.status.files is not None and order.disk < image.status.files.virtual_size:
        least = image.status.files.virtual_size
        raise Invalid(f"disk: the image needs at least {least} bytes", field="disk")
    await _check_possible(context, spec)
    machine: Machine = Resource(
        id=id,
        kind=Kind.MACHINE,
        tenant=project.tenant,
        project=project.id,
        name=order.name,
        spec=spec,
        status=MachineStatus(),
        created_at=context.now,
        updated_at=context.now,
        labels=order.labels,
    )
    work.reserve(f"use:{image.id}", id, id, grant, missing("image", "image"), alive=image.id)
    context.order(work, machine, order, grant)
    return machine, work


async def _image(context: Context, project: Project, ref: str) -> Image:
    """An image this project may use: its own, its tenant's shared ones, public ones."""
    image = await context.house.near.image(project, ref)
    if image is None or image.deleting:
        raise NotFound("image not found", field="image")
    if image.phase is Phase.FAILED:
        raise Conflict(f"image {image.name} could not be made", field="image", code="image-failed")
    return image


async def _card(
    context: Context,
    work: Work,
    project: Project,
    grant: Grant,
    machine: str,
    hostname: str,
    number: int,
    card: CardOrder,
) -> Interface:
    where = f"interfaces[{number}]"
    network = await context.house.near.of(project, Kind.NETWORK, card.network, f"{where}.network")
    cidr = network.spec.cidr
    if card.address is None:
        address = await context.house.addresses.pick(network.id, cidr)
    else:
        address = _own_address(cidr, card.address, f"{where}.address")
    groups = []
    for position, ref in enumerate(card.security_groups):
        group = await context.house.near.of(project, Kind.SECURITY_GROUP, ref, f"{where}.security_groups[{position}]")
        groups.append(group.id)
    mac = net.mac_of(machine, number)
    taken = AddressTaken(network.id, address, asked=card.address is not None)
    work.reserve(f"use:{network.id}", address, machine, grant, lambda: taken, alive=network.id)
    known = Conflict(f"hostname: {hostname!r} is in use on this network", field="hostname", code="name-taken")
    work.reserve(f"dns:{network.id}", hostname, machine, grant, lambda: known)
    for group_id in dict.fromkeys(groups):
        work.reserve(
            f"use:{group_id}",
            f"{machine}/{mac}",
            machine,
            grant,
            missing("security group", f"{where}.security_groups"),
            alive=group_id,
        )
    return Interface(network.id, mac, address, tuple(dict.fromkeys(groups)))


def _own_address(cidr: str, address: str, field: str) -> str:
    try:
        wanted = ipaddress.IPv4Address(address)
    except ValueError:
        raise Invalid(f"{field}: {address!r} is not an IPv4 address", field=field) from None
    network = ipaddress.IPv4Network(cidr)
    if wanted not in network or wanted in (network[0], network[1], network[-1]):
        raise Invalid(f"{field}: must be a free address of {cidr} (not the gateway)", field=field)
    return str(wanted)


async def _volumes(
    context: Context, work: Work, project: Project, grant: Grant, machine: str, refs: tuple[str, ...]
) -> tuple[tuple[str, ...], str | None]:
    """The volumes by id, reserved for the machine, and the host they lie on."""
    ids: list[str] = []
    home: str | None = None
    for number, ref in enumerate(refs):
        where = f"volumes[{number}]"
        volume = await context.house.near.of(project, Kind.VOLUME, ref, where)
        if volume.provider is None or volume.phase is not Phase.READY:
            raise Conflict(f"{where}: volume {volume.name} is not ready yet", field=where, code="not-ready")
        if home not in (None, volume.provider):
            raise Conflict(f"{where}: the volumes lie on different hosts", field=where, code="apart")
        home = volume.provider
        _attach(work, volume.id, machine, grant, where)
        ids.append(volume.id)
    if len(set(ids)) != len(ids):
        raise Invalid("volumes: named twice", field="volumes")
    return tuple(ids), home


def _attach(work: Work, volume: str, machine: str, grant: Grant, field: str = "volume") -> None:
    taken = Conflict(f"{field}: the volume is attached already", field=field, code="attached")
    work.reserve(f"use:{volume}", "attached", machine, grant, lambda: taken, alive=volume)


async def _ssh_keys(context: Context, order: MachineOrder) -> tuple[str, ...]:
    if order.ssh_keys is not None:
        return check_ssh_keys(order.ssh_keys)
    member = await context.house.near.member(context.actor.member)
    return member.ssh_keys if member else ()


async def _check_possible(context: Context, spec: MachineSpec) -> None:
    """Refuse now what no host could ever hold, even empty. What is only full now waits its turn instead."""
    needs = needs_of(spec)
    empty = await context.house.near.empty_hosts(spec.host)
    if not empty and spec.host is not None:
        raise NotFound("host not found", field="host")
    if empty:
        found = place(empty, needs)
        if isinstance(found, Refusal):
            raise Refused(f"no host can ever hold this: {found.message}", data={"reasons": dict(found.reasons)})


# --- changes


async def change(
    context: Context,
    ref: str,
    project: str | None = None,
    *,
    if_match: int | None = None,
    action: Action = Action.RESOURCE_CHANGE,
    edit: Callable[[Machine, Work, Grant], Awaitable[tuple[MachineSpec, str]]],
    labels: dict[str, str] | None = None,
) -> Machine:
    """One guarded change of a machine's wish. `edit` gives the new spec and a sentence for the story."""
    machine, grant = await context.find(Kind.MACHINE, ref, action, project)
    expect(machine, if_match)
    work = context.work()
    spec, text = await edit(machine, work, grant)
    more = amounts_of(Kind.MACHINE, spec).minus(amounts_of(Kind.MACHINE, machine.spec))
    for scope in (machine.tenant, machine.project):
        work.charge(scope, more, grant)
    changed: Machine = machine.wishing(spec, context.now)
    if labels is not None:
        changed = replace(changed, labels=check_labels(labels))
    work.wish(changed, grant)
    context.tell(work, changed, "changed", f"{text}, by {context.actor.name}")
    await context.commit(work, more)
    return changed


def expect(resource: Resource[object, object], if_match: int | None) -> None:
    """Raises `Stale` unless the client has seen the newest wish, `Conflict` when it is going already."""
    if if_match is not None and if_match != resource.generation:
        raise Stale(f"it is at generation {resource.generation} now", field="If-Match")
    if resource.deleting:
        raise Conflict("it is being deleted", code="deleting")


async def power(
    context: Context, ref: str, wanted: Power, project: str | None = None, if_match: int | None = None
) -> Machine:
    """Start, stop, suspend or resume: wish for a power state."""

    async def edit(machine: Machine, work: Work, grant: Grant) -> tuple[MachineSpec, str]:
        if wanted is Power.SUSPENDED and machine.phase is not Phase.RUNNING:
            raise Conflict(
                f"the machine is {machine.phase.value}; only a running one can be suspended",
                code="not-running",
            )
        word = {Power.ON: "start", Power.OFF: "stop", Power.SUSPENDED: "suspend"}[wanted]
        return replace(machine.spec, power=wanted), f"asked to {word}"

    return await change(context, ref, project, if_match=if_match, edit=edit)


async def reboot(context: Context, ref: str, project: str | None = None, if_match: int | None = None) -> Machine:
    async def edit(machine: Machine, work: Work, grant: Grant) -> tuple[MachineSpec, str]:
        if machine.phase is not Phase.RUNNING:
            raise Conflict(f"the machine is {machine.phase.value}; only a running one can reboot", code="not-running")
        return replace(machine.spec, reboots=machine.spec.reboots + 1), "asked to reboot"

    return await change(context, ref, project, if_match=if_match, edit=edit)


async def resize(
    context: Context,
    ref: str,
    project: str | None = None,
    *,
    cores: int | None = None,
    memory: int | None = None,
    disk: int | None = None,
    labels: dict[str, str] | None = None,
    if_match: int | None = None,
) -> Machine:
    """Change the size; a running machine is stopped and started for it."""

    async def edit(machine: Machine, work: Work, grant: Grant) -> tuple[MachineSpec, str]:
        old = machine.spec
        spec = replace(old, cores=cores or old.cores, memory=memory or old.memory, disk=disk or old.disk)
        check_range(spec.cores, 1, 1024, "cores")
        check_range(spec.memory, 64 * MiB, 64 * TiB, "memory")
        check_range(spec.disk, 16 * MiB, 1024 * TiB, "disk")
        if spec.memory % MiB:
            raise Invalid("memory: must be whole MiB", field="memory")
        if spec.disk < old.disk:
            raise Invalid("disk: can only grow", field="disk")
        if (old.pinned or old.numa_nodes or old.hugepage) and (spec.cores, spec.memory) != (
            old.cores,
            old.memory,
        ):
            raise Conflict("a pinned or NUMA-bound machine cannot be resized; make a new one", code="bound")
        await _check_possible(context, replace(spec, host=machine.provider or spec.host))
        return spec, f"asked for {spec.cores} cores, {spec.memory // MiB} MiB, disk {spec.disk // MiB} MiB"

    return await change(context, ref, project, if_match=if_match, edit=edit, labels=labels)


async def rebuild(
    context: Context,
    ref: str,
    project: str | None = None,
    image: str | None = None,
    if_match: int | None = None,
) -> Machine:
    """A fresh root disk, of the same or another image. Snapshots go with the old disk."""

    async def edit(machine: Machine, work: Work, grant: Grant) -> tuple[MachineSpec, str]:
        owner = await context.project(machine.project)
        fresh = await _image(context, owner, image or machine.spec.image)
        if fresh.id != machine.spec.image:
            work.release(f"use:{machine.spec.image}", machine.id, machine.id, grant)
            work.reserve(f"use:{fresh.id}", machine.id, machine.id, grant, missing("image", "image"), alive=fresh.id)
        spec = replace(
            machine.spec,
            image=fresh.id,
            rebuilds=machine.spec.rebuilds + 1,
            snapshots=(),
            restore=None,
            power=Power.ON,
        )
        return spec, f"asked to be rebuilt from {fresh.name}"

    return await change(context, ref, project, if_match=if_match, edit=edit)


async def snapshot(
    context: Context, ref: str, name: str, project: str | None = None, if_match: int | None = None
) -> Machine:
    check_name(name)

    async def edit(machine: Machine, work: Work, grant: Grant) -> tuple[MachineSpec, str]:
        if name in machine.spec.snapshots:
            raise Conflict(f"snapshot {name!r} exists already", field="name", code="name-taken")
        check_range(len(machine.spec.snapshots) + 1, 1, 16, "snapshots")
        return replace(machine.spec, snapshots=(*machine.spec.snapshots, name)), f"asked for snapshot {name}"

    return await change(context, ref, project, if_match=if_match, edit=edit)


async def restore(
    context: Context, ref: str, name: str, project: str | None = None, if_match: int | None = None
) -> Machine:
    async def edit(machine: Machine, work: Work, grant: Grant) -> tuple[MachineSpec, str]:
        _own_snapshot(machine, name)
        token = (machine.spec.restore.token if machine.spec.restore else 0) + 1
        return replace(machine.spec, restore=RestoreWish(name, token)), f"asked to go back to snapshot {name}"

    return await change(context, ref, project, if_match=if_match, edit=edit)


async def drop_snapshot(
    context: Context, ref: str, name: str, project: str | None = None, if_match: int | None = None
) -> Machine:
    async def edit(machine: Machine, work: Work, grant: Grant) -> tuple[MachineSpec, str]:
        _own_snapshot(machine, name)
        left = tuple(one for one in machine.spec.snapshots if one != name)
        return replace(machine.spec, snapshots=left), f"snapshot {name} given up"

    return await change(context, ref, project, if_match=if_match, edit=edit)


def _own_snapshot(machine: Machine, name: str) -> None:
    if name not in machine.spec.snapshots:
        raise NotFound("snapshot not found", field="name")


async def attach_volume(
    context: Context, ref: str, volume: str, project: str | None = None, if_match: int | None = None
) -> Machine:
    async def edit(machine: Machine, work: Work, grant: Grant) -> tuple[MachineSpec, str]:
        owner = await context.project(machine.project)
        thing = await context.house.near.of(owner, Kind.VOLUME, volume, "volume")
        if thing.provider is None or thing.phase is not Phase.READY:
            raise Conflict(f"volume {thing.name} is not ready yet", field="volume", code="not-ready")
        if machine.provider is not None and thing.provider != machine.provider:
            raise Conflict("the volume lies on another host than the machine", field="volume", code="apart")
        check_range(len(machine.spec.volumes) + 1, 1, 16, "volumes")
        _attach(work, thing.id, machine.id, grant)
        spec = replace(machine.spec, volumes=(*machine.spec.volumes, thing.id), host=thing.provider)
        return spec, f"asked to attach volume {thing.name}"

    return await change(context, ref, project, if_match=if_match, edit=edit)


async def detach_volume(
    context: Context, ref: str, volume: str, project: str | None = None, if_match: int | None = None
) -> Machine:
    async def edit(machine: Machine, work: Work, grant: Grant) -> tuple[MachineSpec, str]:
        owner = await context.project(machine.project)
        thing = await context.house.near.of(owner, Kind.VOLUME, volume, "volume")
        if thing.id not in machine.spec.volumes:
            raise NotFound("volume not found", field="volume")
        _give_up(work, machine, f"use:{thing.id}", "attached", grant)
        left = tuple(one for one in machine.spec.volumes if one != thing.id)
        return replace(machine.spec, volumes=left), f"asked to detach volume {thing.name}"

    return await change(context, ref, project, if_match=if_match, edit=edit)


def _give_up(work: Work, machine: Machine, scope: str, key: str, grant: Grant) -> None:
    work.give_up(scope, key, machine.id, grant, lambda: Conflict("it is being let go of already", code="leaving"))


async def attach_interface(
    context: Context, ref: str, card: CardOrder, project: str | None = None, if_match: int | None = None
) -> Machine:
    async def edit(machine: Machine, work: Work, grant: Grant) -> tuple[MachineSpec, str]:
        owner = await context.project(machine.project)
        cards = machine.spec.interfaces
        check_range(len(cards) + 1, 1, 8, "interfaces")
        taken = {one.mac for one in cards}
        number = next(n for n in range(64) if net.mac_of(machine.id, n) not in taken)
        fresh = await _card(context, work, owner, grant, machine.id, machine.spec.hostname, number, card)
        return replace(machine.spec, interfaces=(*cards, fresh)), f"asked for an interface with {fresh.address}"

    return await change(context, ref, project, if_match=if_match, edit=edit)


async def detach_interface(
    context: Context, ref: str, mac: str, project: str | None = None, if_match: int | None = None
) -> Machine:
    async def edit(machine: Machine, work: Work, grant: Grant) -> tuple[MachineSpec, str]:
        card = next((one for one in machine.spec.interfaces if one.mac == mac.lower()), None)
        if card is None:
            raise NotFound("interface not found", field="mac")
        _give_up(work, machine, f"use:{card.network}", card.address, grant)
        _give_up(work, machine, f"dns:{card.network}", machine.spec.hostname, grant)
        for group in card.security_groups:
            _give_up(work, machine, f"use:{group}", f"{machine.id}/{card.mac}", grant)
        left = tuple(one for one in machine.spec.interfaces if one is not card)
        return replace(machine.spec, interfaces=left), f"asked to give up the interface with {card.address}"

    return await change(context, ref, project, if_match=if_match, edit=edit)


async def delete(context: Context, ref: str, project: str | None = None, if_match: int | None = None) -> Machine:
    """Ask a machine to go, with its port forwards. Volumes stay."""
    machine, grant = await context.find(Kind.MACHINE, ref, Action.RESOURCE_DELETE, project)
    if machine.deleting:
        return machine
    expect(machine, if_match)
    work = context.work()
    for id in (await context.store.resources.users_of(machine.id)).values():
        forward = await context.store.resources.get(id)
        if forward is not None and not forward.deleting:
            work.release(f"use:{machine.id}", forward.id, forward.id, grant)
            work.leave(forward, grant, context.now)
    work.leave(machine, grant, context.now)
    context.tell(work, machine, "deleting", f"asked to go, by {context.actor.name}")
    await context.commit(work)
    leaving: Machine = machine.leaving(context.now)
    return leaving
