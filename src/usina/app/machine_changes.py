"""Changes of a machine's wish: power, size, snapshots, what is attached. One guarded change each."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

from usina.app.context import Context
from usina.app.machine_parts import (
    CardFields,
    CardOrder,
    attach,
    card_for,
    check_possible,
    image_for,
    refuse_folder,
)
from usina.core.capacity import Numa
from usina.core.errors import Conflict, Invalid, NotFound, Stale
from usina.core.grant import Grant
from usina.core.machine import (
    MachineSpec,
    Power,
    RestoreWish,
)
from usina.core.machine_decide import Machine
from usina.core.names import check_labels, check_name, check_range
from usina.core.quota import amounts_of
from usina.core.resource import Kind, Phase, Resource
from usina.core.tenancy import Action
from usina.core.units import MiB, TiB
from usina.store.work import Work, missing


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
        bound = old.pinned or old.numa_nodes or old.hugepage or old.numa is not Numa.NONE
        if bound and (spec.cores, spec.memory) != (old.cores, old.memory):
            raise Conflict("a pinned or NUMA-bound machine cannot be resized; make a new one", code="bound")
        await check_possible(context, replace(machine, spec=replace(spec, host=machine.provider or spec.host)))
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
        fresh = await image_for(context, owner, image or machine.spec.image)
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
        refuse_folder(thing, "volume")
        if thing.provider is None or thing.phase is not Phase.READY:
            raise Conflict(f"volume {thing.name} is not ready yet", field="volume", code="not-ready")
        if machine.provider is not None and thing.provider != machine.provider:
            raise Conflict("the volume lies on another host than the machine", field="volume", code="apart")
        check_range(len(machine.spec.volumes) + 1, 1, 16, "volumes")
        attach(work, thing.id, machine.id, grant)
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
        at = CardFields.of_machine(len(cards))
        fresh = await card_for(context, work, owner, grant, machine.id, machine.spec.hostname, card, at)
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
