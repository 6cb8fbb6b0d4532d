"""Operations on machines: order, change, and the deeds of a day (start, stop, snapshot, attach …)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from usina.app.context import Context
from usina.app.machine_changes import expect
from usina.app.machine_parts import (
    AddressTaken,
    CardFields,
    CardOrder,
    card_for,
    check_possible,
    image_for,
    volumes_for,
)
from usina.app.neighbours import Neighbours, check_neighbours, find_neighbours, join
from usina.core.capacity import DeviceKind, DeviceRequest, Numa
from usina.core.cloudinit import USER_DATA_LIMIT
from usina.core.errors import Conflict, Forbidden, Invalid, TooLarge
from usina.core.grant import Grant
from usina.core.machine import (
    Firmware,
    MachineSpec,
    MachineStatus,
    Restart,
)
from usina.core.machine_decide import Machine
from usina.core.names import check_labels, check_name, check_range, check_ref, check_ssh_keys
from usina.core.resource import Kind, Resource
from usina.core.tenancy import Action, Project, Scope
from usina.core.units import GiB, KiB, MiB, TiB
from usina.store.work import Work, missing

LARGEST_BATCH = 500
LARGEST_PRIORITY = 100
_HUGEPAGES = {2 * MiB, GiB, 0}


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
    numa: Numa = Numa.NONE
    whole_cores: bool = False
    near: tuple[str, ...] = ()  # machines by name or id, and groups by name
    apart: tuple[str, ...] = ()
    group: str = ""
    spread_over: str = ""
    priority: int = 0
    preemptible: bool = False
    tasks: bool = True


async def create(context: Context, order: MachineOrder) -> Machine:
    """Order a machine. Answers at once, phase ``pending``."""
    [machine] = await _create(context, (order,))
    return machine


async def create_many(context: Context, order: MachineOrder, count: int) -> list[Machine]:
    """Order `count` machines alike, called ``name-1`` and so on: all of them or none."""
    check_range(count, 1, LARGEST_BATCH, "count")
    if count > 1 and (order.volumes or any(card.address for card in order.interfaces)):
        raise Invalid("count: volumes and fixed addresses are one machine's", field="count")
    return await _create(context, tuple(replace(order, name=f"{order.name}-{n + 1}") for n in range(count)))


async def _create(context: Context, orders: tuple[MachineOrder, ...]) -> list[Machine]:
    """Orders that are alike but for their names."""
    order = orders[-1]  # the one with the longest name
    _check(order)
    project = await context.project(order.project)
    grant = context.require(Action.RESOURCE_CREATE, Scope(project.tenant, project.id), "project")
    if order.host is not None:
        context.require(Action.MACHINE_PIN_HOST, Scope(), "host")
    if order.priority > 0 and not context.actor.is_operator:
        raise Forbidden("priority: only operators give one above 0", field="priority")
    earlier = await context.repeated(orders)
    if earlier is not None:
        return earlier
    neighbours = await find_neighbours(context, project, order.near, order.apart, order.group)
    for attempt in range(8):
        work = context.work()
        machines = [await _ordered(context, work, project, one, grant, neighbours) for one in orders]
        context.remember(work, machines, orders, grant)
        amounts = context.charge(work, machines, grant)
        try:
            await context.commit(work, amounts)
            return machines
        except AddressTaken as error:  # another control plane was quicker; look again
            await context.house.addresses.learn(error.network)
            if attempt == 7 or error.asked:
                raise
        except Conflict:
            earlier = await context.repeated(orders)
            if earlier is None:
                raise
            return earlier
    raise AssertionError("unreachable")


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
    if order.numa is not Numa.NONE and order.numa_nodes:
        raise Invalid("numa: say it, or over how many nodes, not both", field="numa")
    check_range(order.priority, -LARGEST_PRIORITY, LARGEST_PRIORITY, "priority")
    check_neighbours(order.near, order.apart, order.group, order.spread_over)
    for number, device in enumerate(order.devices):
        check_device(device, f"devices[{number}]")
    if len({d.kind for d in order.devices if d.kind is not DeviceKind.MDEV}) > 1:
        raise Invalid("devices: GPUs and virtual functions cannot be mixed in one machine yet", field="devices")


def check_device(device: DeviceRequest, where: str) -> None:
    check_range(device.count, 1, 16, f"{where}.count")
    check_range(device.memory, 0, TiB, f"{where}.memory")
    check_range(len(device.traits), 0, 16, f"{where}.traits")
    for trait in device.traits:
        check_ref(trait, f"{where}.traits")
    if device.model is not None and not all(part.strip() for part in device.model.split("|")):
        raise Invalid(f"{where}.model: name a model on each side of '|'", field=f"{where}.model")
    if device.kind is DeviceKind.MDEV and not device.mdev_type:
        raise Invalid(f"{where}.mdev_type: name the type", field=f"{where}.mdev_type")


async def _ordered(
    context: Context, work: Work, project: Project, order: MachineOrder, grant: Grant, neighbours: Neighbours
) -> Machine:
    """The machine as ordered; everything that must be written for it goes into `work`."""
    id = context.house.ids.new(Kind.MACHINE.value)
    image = await image_for(context, project, order.image)
    hostname = order.hostname or order.name
    cards = [
        await card_for(context, work, project, grant, id, hostname, card, CardFields.of_machine(number))
        for number, card in enumerate(order.interfaces)
    ]
    volumes, home = await volumes_for(context, work, project, grant, id, order.volumes)
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
        numa=order.numa,
        whole_cores=order.whole_cores,
        near=neighbours.near,
        apart=neighbours.apart,
        group=order.group,
        spread_over=order.spread_over,
        priority=order.priority,
        preemptible=order.preemptible,
        tasks=order.tasks,
    )
    if image.status.files is not None and order.disk < image.status.files.virtual_size:
        least = image.status.files.virtual_size
        raise Invalid(f"disk: the image needs at least {least} bytes", field="disk")
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
    await check_possible(context, machine)
    if order.group:
        join(work, project, order.group, id, grant)
    work.reserve(f"use:{image.id}", id, id, grant, missing("image", "image"), alive=image.id)
    context.order(work, machine, grant)
    return machine


async def _ssh_keys(context: Context, order: MachineOrder) -> tuple[str, ...]:
    if order.ssh_keys is not None:
        return check_ssh_keys(order.ssh_keys)
    member = await context.house.near.member(context.actor.member)
    return member.ssh_keys if member else ()


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
