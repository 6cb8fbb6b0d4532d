"""Operations on volumes, networks, security groups and port forwards."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from usina.app.context import Context
from usina.app.machine_changes import expect
from usina.app.machine_parts import check_needs
from usina.app.task_volumes import refuse_used
from usina.core import network as net
from usina.core.errors import Conflict, Invalid
from usina.core.goods import (
    Form,
    Forward,
    ForwardSpec,
    Network,
    NetworkSpec,
    NoStatus,
    SecurityGroup,
    SecurityGroupSpec,
    Volume,
    VolumeSpec,
    volume_needs,
)
from usina.core.grant import Grant
from usina.core.machine import Rule
from usina.core.names import check_labels, check_name, check_range
from usina.core.quota import amounts_of
from usina.core.resource import AnyResource, Kind, Resource
from usina.core.tenancy import Action, Project, Scope
from usina.core.units import KiB, MiB, TiB
from usina.store.work import Work, missing

PORTS = (20000, 29999)
"""TCP ports of the control plane that port forwards are given from."""

SMALLEST_FOLDER = 16 * MiB
LARGEST_FOLDER = 16 * TiB
"""Of a volume that is files: what its file system, and files of ext4 hosts, can be."""

DEFAULT_RULES = (
    Rule("out", "all"),
    Rule("in", "icmp"),
    Rule("in", "tcp", (22, 22)),
)
"""A project's first security group: everything out; ping and SSH in."""


@dataclass(frozen=True, slots=True)
class VolumeOrder:
    name: str
    size: int
    project: str | None = None
    host: str | None = None
    form: Form = Form.DISK
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NetworkOrder:
    name: str
    project: str | None = None
    cidr: str | None = None
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GroupOrder:
    name: str
    rules: tuple[Rule, ...] = ()
    project: str | None = None
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ForwardOrder:
    machine: str
    port: int
    name: str | None = None
    listen: int | None = None
    project: str | None = None


async def _opening(context: Context, project: str | None) -> tuple[Project, Grant]:
    owner = await context.project(project)
    return owner, context.require(Action.RESOURCE_CREATE, Scope(owner.tenant, owner.id), "project")


def _new(context: Context, kind: Kind, owner: Project, name: str, spec: object, labels: dict[str, str]) -> AnyResource:
    return Resource(
        id=context.house.ids.new(kind.value),
        kind=kind,
        tenant=owner.tenant,
        project=owner.id,
        name=check_name(name),
        spec=spec,
        status=NoStatus(),
        created_at=context.now,
        updated_at=context.now,
        labels=check_labels(labels),
    )


# --- volumes


async def create_volume(context: Context, order: VolumeOrder) -> Volume:
    folder = order.form is Form.FOLDER
    check_range(order.size, SMALLEST_FOLDER if folder else MiB, LARGEST_FOLDER if folder else 1024 * TiB, "size")
    if order.size % (64 * KiB):
        raise Invalid("size: must be a multiple of 64 KiB", field="size")
    owner, grant = await _opening(context, order.project)
    if order.host is not None:
        context.require(Action.MACHINE_PIN_HOST, Scope(), "host")
    earlier = await context.repeated(order)
    if earlier is not None:
        return earlier[0]
    spec = VolumeSpec(order.size, order.host, order.form)
    volume: Volume = _new(context, Kind.VOLUME, owner, order.name, spec, order.labels)
    if folder:
        await check_needs(context, volume_needs(volume))
    work = context.work()
    context.order(work, volume, grant)
    return await context.commit_order(work, volume, order, grant)


async def grow_volume(
    context: Context, ref: str, size: int, project: str | None = None, if_match: int | None = None
) -> Volume:
    """A larger volume; it never shrinks. Refused while attached, as the guest would not see it, and while tasks use
    it."""
    volume, grant = await context.find(Kind.VOLUME, ref, Action.RESOURCE_CHANGE, project)
    expect(volume, if_match)
    folder = volume.spec.form is Form.FOLDER
    check_range(size, MiB, LARGEST_FOLDER if folder else 1024 * TiB, "size")
    if size < volume.spec.size or size % (64 * KiB):
        raise Invalid("size: can only grow, by multiples of 64 KiB", field="size")
    if folder:
        await refuse_used(context, volume, "grow")
    elif await context.store.resources.users_of(volume.id):
        raise Conflict("the volume is attached; detach it first", code="in-use")
    work = context.work()
    changed: Volume = volume.wishing(replace(volume.spec, size=size), context.now)
    more = amounts_of(Kind.VOLUME, changed.spec).minus(amounts_of(Kind.VOLUME, volume.spec))
    for scope in (volume.tenant, volume.project):
        work.charge(scope, more, grant)
    work.wish(changed, grant)
    context.tell(work, changed, "changed", f"asked to grow to {size // MiB} MiB, by {context.actor.name}")
    await context.commit(work, more)
    return changed


# --- networks


async def create_network(context: Context, order: NetworkOrder) -> Network:
    """A network of the project's own. Without `cidr` it is given a free /24."""
    wanted = net.parse_range(order.cidr) if order.cidr is not None else None
    owner, grant = await _opening(context, order.project)
    earlier = await context.repeated(order)
    if earlier is not None:
        return earlier[0]
    for _ in range(8):
        work = context.work()
        network = await add_network(context, work, owner, order.name, wanted, order, grant)
        try:
            return await context.commit_order(work, network, order, grant)
        except RangeTaken:
            if wanted is not None:
                raise
    raise Conflict("too many networks are being made at once; try again", code="busy")


class RangeTaken(Conflict):
    code = "range-taken"


async def add_network(
    context: Context,
    work: Work,
    owner: Project,
    name: str,
    cidr: str | None,
    order: NetworkOrder,
    grant: Grant,
) -> Network:
    """Write an order for a network with a range that overlaps no other. Ranges are unique on a site, because NAT
    networks of all projects meet on a host."""
    taken = await context.store.resources.reserved("range")
    if cidr is None:
        cidr = net.free_range(taken, f"{owner.id}/{name}/{len(taken)}")
        if cidr is None:
            raise Conflict("no free network range is left", code="ranges-used-up")
    spec = NetworkSpec(cidr, f"{owner.name}.internal")
    network = _new(context, Kind.NETWORK, owner, name, spec, order.labels)
    failure = RangeTaken(f"cidr: {cidr} overlaps a range that is in use", field="cidr")
    for block in net.blocks(cidr):
        work.reserve("range", block, network.id, grant, lambda: failure)
    context.order(work, network, grant)
    return network


# --- security groups


async def create_group(context: Context, order: GroupOrder) -> SecurityGroup:
    rules = check_rules(order.rules)
    owner, grant = await _opening(context, order.project)
    earlier = await context.repeated(order)
    if earlier is not None:
        return earlier[0]
    group = _new(context, Kind.SECURITY_GROUP, owner, order.name, SecurityGroupSpec(rules), order.labels)
    work = context.work()
    context.order(work, group, grant)
    return await context.commit_order(work, group, order, grant)


def add_default_group(context: Context, work: Work, owner: Project, grant: Grant) -> None:
    """Write an order for a project's first security group."""
    group = _new(context, Kind.SECURITY_GROUP, owner, "default", SecurityGroupSpec(DEFAULT_RULES), {})
    context.order(work, group, grant)


async def delete_defaults(context: Context, owner: Project) -> None:
    """Ask the default network and group to go, and wait a moment until they have. Raises `Conflict` if more is left."""
    if await context.store.resources.count(owner.id) > 2:
        raise Conflict(f"project {owner.name} still has resources", code="in-use")
    if await context.store.models.page(None, only=owner.id, limit=1):
        raise Conflict(f"project {owner.name} still has models", code="in-use")
    for kind in (Kind.NETWORK, Kind.SECURITY_GROUP):
        if await context.store.resources.named(kind, owner.id, "default"):
            await delete(context, kind, "default", owner.id)
    for _ in range(100):
        if not await context.store.resources.count(owner.id):
            return
        await asyncio.sleep(0.05)
    raise Conflict("the project's network is still being taken off its hosts; try again", code="in-use")


def check_rules(rules: Sequence[Rule], where: str = "rules") -> tuple[Rule, ...]:
    """Raises `Invalid` naming the rule and its field."""
    check_range(len(rules), 0, 100, where)
    checked = []
    for number, rule in enumerate(rules):
        spot = f"{where}[{number}]"
        if rule.direction not in ("in", "out"):
            raise Invalid(f"{spot}.direction: must be in or out", field=f"{spot}.direction")
        if rule.protocol not in ("tcp", "udp", "icmp", "all"):
            raise Invalid(f"{spot}.protocol: must be tcp, udp, icmp or all", field=f"{spot}.protocol")
        low, high = rule.ports
        if (low, high) != (0, 0):
            if rule.protocol not in ("tcp", "udp"):
                raise Invalid(f"{spot}.ports: only tcp and udp have ports", field=f"{spot}.ports")
            check_range(low, 1, 65535, f"{spot}.ports")
            check_range(high, low, 65535, f"{spot}.ports")
        checked.append(replace(rule, remote=net.parse_remote(rule.remote, f"{spot}.remote")))
    return tuple(checked)


async def set_rules(
    context: Context, ref: str, rules: Sequence[Rule], project: str | None = None, if_match: int | None = None
) -> SecurityGroup:
    group, grant = await context.find(Kind.SECURITY_GROUP, ref, Action.RESOURCE_CHANGE, project)
    expect(group, if_match)
    work = context.work()
    changed: SecurityGroup = group.wishing(SecurityGroupSpec(check_rules(rules)), context.now)
    work.wish(changed, grant)
    context.tell(work, changed, "changed", f"given {len(rules)} rules by {context.actor.name}")
    await context.commit(work)
    return changed


# --- forwards


async def create_forward(context: Context, order: ForwardOrder) -> Forward:
    """A TCP port of the control plane that leads to a port of a machine."""
    check_range(order.port, 1, 65535, "port")
    if order.listen is not None:
        check_range(order.listen, *PORTS, "listen")
    machine, _ = await context.find(Kind.MACHINE, order.machine, Action.RESOURCE_CHANGE, order.project)
    owner, grant = await _opening(context, machine.project)
    earlier = await context.repeated(order)
    if earlier is not None:
        return earlier[0]
    if not machine.spec.interfaces:
        raise Conflict("the machine has no network", field="machine", code="no-network")
    for _ in range(8):
        listen = order.listen or await _free_port(context, machine.id, order.port)
        name = order.name or f"{machine.name[:50]}-{order.port}-{listen}"
        forward: Forward = _new(context, Kind.FORWARD, owner, name, ForwardSpec(machine.id, order.port, listen), {})
        work = context.work()
        work.reserve("port", str(listen), forward.id, grant, partial(PortTaken.at, listen))
        work.reserve(
            f"use:{machine.id}", forward.id, forward.id, grant, missing("machine", "machine"), alive=machine.id
        )
        context.order(work, forward, grant)
        try:
            return await context.commit_order(work, forward, order, grant)
        except PortTaken:
            if order.listen is not None:
                raise
    raise Conflict("too many forwards are being made at once; try again", code="busy")


class PortTaken(Conflict):
    code = "port-taken"

    @classmethod
    def at(cls, port: int) -> PortTaken:
        return cls(f"listen: port {port} is in use", field="listen")


async def _free_port(context: Context, machine: str, port: int) -> int:
    taken = set(await context.store.resources.reserved("port"))
    low, high = PORTS
    start = int.from_bytes(f"{machine}{port}".encode()[-6:], "big")
    for step in range(high - low + 1):
        candidate = low + (start + step) % (high - low + 1)
        if str(candidate) not in taken:
            return candidate
    raise Conflict("no free port is left", code="ports-used-up")


# --- all of them


async def delete(
    context: Context, kind: Kind, ref: str, project: str | None = None, if_match: int | None = None
) -> AnyResource:
    """Ask a volume, network, image, security group or forward to go. Raises `Conflict` while it is in use."""
    thing, grant = await context.find(kind, ref, Action.RESOURCE_DELETE, project)
    if thing.deleting:
        return thing
    expect(thing, if_match)
    if kind is Kind.VOLUME:
        await refuse_used(context, thing, "be deleted")
    work = context.work()
    if kind is Kind.FORWARD:
        work.release(f"use:{thing.spec.machine}", thing.id, thing.id, grant)
    work.leave(thing, grant, context.now)
    context.tell(work, thing, "deleting", f"asked to go, by {context.actor.name}")
    await context.commit(work)
    context.house.near.forget()
    return thing.leaving(context.now)
