"""Operations on hosts: add, look at, cordon, drain, enable, remove. The operator's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from usina.app.context import Context
from usina.core.capacity import Claim, Host, HostState, Provider
from usina.core.errors import Conflict, Invalid, NotFound, Unavailable
from usina.core.event import Event
from usina.core.grant import Grant
from usina.core.machine import Power
from usina.core.names import check_name
from usina.core.resource import Kind
from usina.core.tenancy import Action, Scope
from usina.ports.driver import DriverError
from usina.store import hosts as writers


def _require(context: Context, action: Action) -> Grant:
    return context.require(action, Scope(), "host")


async def add(
    context: Context, name: str, driver: str, options: Mapping[str, Any] | None = None, cpu_ratio: float = 1.0
) -> Host:
    """Take a host into service. It is probed first; one that does not answer is not added."""
    grant = _require(context, Action.HOST_OPERATE)
    check_name(name)
    if driver not in context.house.plugins:
        known = ", ".join(sorted(context.house.plugins))
        raise Invalid(f"driver: {driver!r} is not one of {known}", field="driver")
    if not 0.1 <= cpu_ratio <= 64:
        raise Invalid("cpu_ratio: must be between 0.1 and 64", field="cpu_ratio")
    options = dict(options or {})
    try:
        context.house.plugins[driver].check(options)
    except Invalid as error:
        field = f"options.{error.field}" if error.field else "options"
        raise Invalid(f"options.{error.message}", field=field, detail=error.detail) from error
    id = context.house.ids.new("host")
    try:
        inventory = await context.house.hosts.probe(id, name, driver, options)
    except DriverError as error:
        raise Unavailable(f"the host cannot be used: {error.public}", field="options", detail=error.detail) from error
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
    host = Host(provider, context.now, options)
    work = context.work()
    writers.add(work, host, grant)
    work.emit(_event(context, "host.added", host, f"host {name} added ({driver})"))
    await context.commit(work)
    context.house.near.forget()
    return host


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
    """Cordon, drain or enable. Draining stops every machine there, gracefully; they stay and can be started again."""
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
