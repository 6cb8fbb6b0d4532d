"""Operations on hosts: add, look at, cordon, drain, enable, remove. The operator's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from usina.app.context import Context
from usina.core.capacity import Claim, Host, HostState, Provider
from usina.core.errors import Conflict, Invalid, NotFound, Unavailable
from usina.core.event import Event
from usina.core.grant import Grant
from usina.core.ids import is_id
from usina.core.machine import Power
from usina.core.names import check_name
from usina.core.resource import Kind
from usina.core.tenancy import Action, Scope
from usina.ports.driver import DriverError, Part
from usina.store import hosts as writers
from usina.store import tasks


def _require(context: Context, action: Action) -> Grant:
    return context.require(action, Scope(), "host")


async def add(
    context: Context,
    name: str,
    driver: str,
    options: Mapping[str, Any] | None = None,
    cpu_ratio: float = 1.0,
    also: Mapping[str, Mapping[str, Any]] | None = None,
) -> Host:
    """Take a host into service, with all its drivers. It is probed first; one that does not answer is not added."""
    _require(context, Action.HOST_OPERATE)
    check_name(name)
    if not 0.1 <= cpu_ratio <= 64:
        raise Invalid("cpu_ratio: must be between 0.1 and 64", field="cpu_ratio")
    options = _checked(context, driver, options or {}, "driver", "options")
    others = {one: _checked(context, one, its, "also", f"also.{one}") for one, its in (also or {}).items()}
    _check_company(context, [driver, *others])
    parts = await _parts(context, name, driver, options)
    if parts:
        known = ", ".join(part.name for part in parts)
        raise Invalid(f"options: it has several parts ({known}); adopt all of them, or name one", field="options")
    return await _add(context, name, driver, options, cpu_ratio, others)


async def adopt(context: Context, name: str, driver: str, options: Mapping[str, Any]) -> list[Host]:
    """Take all providers behind one connection into service (the partitions of a cluster), each as a host called
    ``<name>-<part>``. Those that are there already stay as they are."""
    _require(context, Action.HOST_OPERATE)
    check_name(name)
    options = _checked(context, driver, options, "driver", "options")
    parts = await _parts(context, name, driver, options)
    if not parts:
        raise Invalid(f"driver: {driver} knows no parts with these options; add it as one host", field="driver")
    hosts = []
    for part in parts:
        known = await context.store.hosts.get(check_name(f"{name}-{part.name}"))
        hosts.append(known or await _add(context, f"{name}-{part.name}", driver, part.options, 1.0, {}))
    return hosts


async def _parts(context: Context, name: str, driver: str, options: Mapping[str, Any]) -> list[Part]:
    with _usable("options"):
        return await context.house.hosts.parts(context.house.ids.new("host"), name, driver, options)


async def _add(
    context: Context,
    name: str,
    driver: str,
    options: Mapping[str, Any],
    cpu_ratio: float,
    also: Mapping[str, Mapping[str, Any]],
) -> Host:
    grant = _require(context, Action.HOST_OPERATE)
    id = context.house.ids.new("host")
    with _usable("options"):
        inventory = await context.house.hosts.probe(id, name, {driver: options, **also})
    provider = Provider(
        id=id,
        name=name,
        driver=driver,
        state=HostState.ENABLED,
        generation=1,
        inventory=inventory,
        cpu_ratio=cpu_ratio,
        seen_at=context.now,
    )
    host = Host(provider, context.now, options, also=also)
    work = context.work()
    writers.add(work, host, grant)
    work.emit(_event(context, "host.added", host, f"host {name} added ({', '.join(host.drivers)})"))
    await context.commit(work)
    context.house.near.forget()
    return host


def _checked(context: Context, driver: str, options: Mapping[str, Any], field: str, where: str) -> Mapping[str, Any]:
    """Options that the driver takes. Raises `Invalid` naming the field."""
    if driver not in context.house.plugins:
        known = ", ".join(sorted(context.house.plugins))
        raise Invalid(f"{field}: {driver!r} is not one of {known}", field=field)
    try:
        context.house.plugins[driver].check(options)
    except Invalid as error:
        spot = f"{where}.{error.field}" if error.field else where
        raise Invalid(f"{where}.{error.message}", field=spot, detail=error.detail) from error
    return dict(options)


def _check_company(context: Context, drivers: Sequence[str]) -> None:
    """A driver for tasks inside machines needs one beside it that makes machines."""
    plugins = [context.house.plugins[name] for name in drivers if name in context.house.plugins]
    for plugin in plugins:
        if plugin.inside and all(other.open is None for other in plugins):
            field = "driver" if plugin.name == drivers[0] else "also"
            raise Invalid(
                f"{field}: {plugin.name} runs tasks in machines, and no driver of this host makes any", field=field
            )


@contextmanager
def _usable(field: str) -> Iterator[None]:
    try:
        yield
    except DriverError as error:
        raise Unavailable(f"the host cannot be used: {error.public}", field=field, detail=error.detail) from error


async def set_drivers(context: Context, ref: str, also: Mapping[str, Mapping[str, Any] | None]) -> Host:
    """Add further drivers to a host, change their options, or take them away (None). Raises `Conflict` while tasks run
    by one that is to go."""
    grant = _require(context, Action.HOST_OPERATE)
    host = await find(context, ref)
    changed = dict(host.also)
    for name, options in also.items():
        if name == host.provider.driver:
            raise Invalid(f"also: {name} is the host's first driver", field="also")
        if options is None:
            changed.pop(name, None)
        else:
            changed[name] = _checked(context, name, options, "also", f"also.{name}")
    gone = set(host.also) - set(changed)
    if gone and await context.store.hosts.claims_on(host.id):
        raise Conflict(f"host {host.name} still holds claims; drain it before {', '.join(gone)} goes", code="in-use")
    _check_company(context, [host.provider.driver, *changed])
    with _usable("also"):
        inventory = await context.house.hosts.probe(host.id, host.name, {host.provider.driver: host.options, **changed})
    host = replace(host, also=changed, provider=replace(host.provider, inventory=inventory))
    work = context.work()
    writers.set_drivers(work, host, grant)
    work.emit(_event(context, "host.changed", host, f"host {host.name} is run by {', '.join(host.drivers)}"))
    await context.commit(work)
    context.house.near.forget()
    return await find(context, host.id)


async def identities(context: Context, ref: str) -> dict[str, str]:
    """Who members are on a host: member id → Unix name. Raises `Conflict` where its stacks do not know people."""
    host = await find(context, ref)
    return await context.store.tasks.identities(_realm(context, host))


async def map_identity(context: Context, ref: str, member: str, name: str) -> None:
    """Say who a member is on a host, and on all that share its accounts; ``""``: nobody."""
    grant = _require(context, Action.HOST_OPERATE)
    host = await find(context, ref)
    if await context.store.identity.member(member) is None:
        raise NotFound("member not found", field="member")
    work = context.work()
    tasks.map_identity(work, _realm(context, host), member, name or None, grant)
    text = f"{member} is {name} there" if name else f"{member} is nobody there any more"
    work.emit(_event(context, "host.identity", host, text))
    await context.commit(work)


def _realm(context: Context, host: Host) -> str:
    for driver, options in host.drivers.items():
        plugin = context.house.plugins.get(driver)
        if plugin is not None and plugin.people:
            return plugin.realm_of(options)
    raise Conflict(f"nothing on host {host.name} knows people", code="no-people")


async def list_hosts(context: Context) -> list[Host]:
    _require(context, Action.HOST_VIEW)
    return await context.store.hosts.all()


async def find(context: Context, ref: str) -> Host:
    _require(context, Action.HOST_VIEW)
    host = await context.store.hosts.get(ref)
    if host is None:
        raise NotFound("host not found")
    return host


async def claims_on(context: Context, ref: str) -> dict[str, Claim]:
    """Resource id → what it holds on the host."""
    host = await find(context, ref)
    return await context.store.hosts.claims_on(host.id)


async def set_state(context: Context, ref: str, state: HostState) -> Host:
    """Cordon, drain or enable. Draining stops every machine there, gracefully; they stay and can be started again.
    Replicas of endpoints go once there are others elsewhere; other tasks run to their end."""
    grant = _require(context, Action.HOST_OPERATE)
    host = await find(context, ref)
    work = context.work()
    writers.set_state(work, host.id, state, grant)
    work.emit(_event(context, f"host.{state.value}", host, f"host {host.name} is {state.value}"))
    await context.commit(work)
    context.house.near.forget()
    if state is HostState.DRAINING:
        await _drain(context, host)
    return await find(context, host.id)


async def _drain(context: Context, host: Host) -> None:
    for id in await context.store.resources.on_provider(host.id):
        machine = await context.store.resources.get(id)
        if machine is not None and machine.parent and is_id(machine.parent, Kind.ENDPOINT.value):
            work = context.work()
            tasks.wake(work, machine.parent, context.now)  # brings up another elsewhere, and then takes this one away
            await work.commit()
        if machine is None or machine.kind is not Kind.MACHINE or machine.deleting or machine.spec.power is Power.OFF:
            continue
        grant = context.require(Action.RESOURCE_CHANGE, Scope(machine.tenant, machine.project), "machine")
        changed = machine.wishing(replace(machine.spec, power=Power.OFF), context.now)
        work = context.work()
        work.wish(changed, grant)
        context.tell(work, changed, "changed", f"asked to stop: host {host.name} is being drained")
        await context.commit(work)


async def cordon_device(context: Context, ref: str, address: str, cordoned: bool) -> Host:
    """Take one device out of service, or back. What holds it keeps it."""
    grant = _require(context, Action.HOST_OPERATE)
    host = await find(context, ref)
    if all(device.address != address for device in host.provider.inventory.devices):
        raise NotFound("device not found", field="address")
    now = host.provider.cordoned_devices
    devices = now | {address} if cordoned else now - {address}
    work = context.work()
    writers.set_cordoned_devices(work, host.id, devices, grant)
    verb = "cordoned" if cordoned else "enabled"
    work.emit(_event(context, f"host.device-{verb}", host, f"device {address} of {host.name} {verb}"))
    await context.commit(work)
    return await find(context, host.id)


async def remove(context: Context, ref: str) -> None:
    """Take a host out of service for good. Raises `Conflict` while anything is on it."""
    grant = _require(context, Action.HOST_OPERATE)
    host = await find(context, ref)
    held = await context.store.hosts.claims_on(host.id)
    if any(claim.cores or claim.memory or claim.disk for claim in held.values()):
        raise Conflict(f"host {host.name} still holds {len(held)} claims; delete or move what is on it", code="in-use")
    if held:
        await _clear_presences(context, host, list(held))
    work = context.work()
    writers.drop(work, host, grant)
    work.emit(_event(context, "host.removed", host, f"host {host.name} removed"))
    await context.commit(work)
    context.house.near.forget()


async def _clear_presences(context: Context, host: Host, ids: list[str]) -> None:
    """Take networks and images that merely are present off the host, and forget that they were."""
    grant = _require(context, Action.HOST_OPERATE)
    driver = await context.house.hosts.driver(host.id)
    things = await context.store.resources.get_many(ids)
    work = context.work()
    for id in ids:
        thing = things.get(id)
        if thing is not None and thing.kind is Kind.NETWORK:
            await driver.remove_network(id)
        if thing is not None and thing.kind is Kind.IMAGE and thing.status.files is not None:
            await driver.remove_image(thing.status.files.digest)
        work.drop_claim(id, host.id, grant)
    await context.commit(work)


def _event(context: Context, kind: str, host: Host, text: str) -> Event:
    return Event(kind, host.id, context.now, text, actor=context.actor.member)
