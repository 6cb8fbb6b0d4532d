"""Terms: what the operator says of a host beside what it has. Given in part; what is not given stays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from usina.app.context import Context
from usina.app.hosts import find
from usina.core.capacity import LEVELS, Host, Provider, Window
from usina.core.errors import Invalid, NotFound, Stale
from usina.core.event import Event
from usina.core.names import check_ref
from usina.core.tenancy import Action, Scope
from usina.core.units import iso
from usina.store import hosts as writers

WINDOWS = 32
TENANTS = 100
DEAREST = 1 << 53  # micro-credits an hour; whole numbers up to here are exact in every JSON reader
TRIES = 20


@dataclass(frozen=True, slots=True)
class TermsChange:
    """What is None stays as it is."""

    topology: Mapping[str, str] | None = None  # level -> domain, "" takes it away; levels not named stay
    group: str | None = None  # "" takes it out of its group
    cpu_ratio: float | None = None
    memory_ratio: float | None = None
    tenants: tuple[str, ...] | None = None  # by name or id; () makes it everybody's
    maintenance: tuple[Window, ...] | None = None
    price: int | None = None


async def change(context: Context, ref: str, wanted: TermsChange) -> Host:
    """Change the terms of a host; they hold for what is placed from now on. Raises `Invalid` naming the field."""
    grant = context.require(Action.HOST_OPERATE, Scope(), "host")
    _check(wanted)
    host = await find(context, ref)
    if wanted.tenants is not None:
        wanted = replace(wanted, tenants=await _ids(context, wanted.tenants))
    for attempt in range(TRIES):
        changed = _changed(host.provider, wanted)
        before = _told(host.provider)
        told = {name: value for name, value in _told(changed).items() if value != before[name]}
        if not told:
            return host
        work = context.work()
        writers.set_terms(work, changed, grant)
        work.emit(_event(context, host, told))
        try:
            await context.commit(work)
            break
        except Stale:  # claims and sights count generations too
            if attempt == TRIES - 1:
                raise
            host = await find(context, host.id)
    context.house.near.forget()
    return await find(context, host.id)


def _check(wanted: TermsChange) -> None:
    for level, domain in (wanted.topology or {}).items():
        if level not in LEVELS[:-1]:
            known = ", ".join(LEVELS[:-1])
            raise Invalid(f"topology.{level}: must be one of {known}", field=f"topology.{level}")
        if domain:
            check_ref(domain, f"topology.{level}")
    if wanted.group:
        check_ref(wanted.group, "group")
    for field, ratio, most in (("cpu_ratio", wanted.cpu_ratio, 64), ("memory_ratio", wanted.memory_ratio, 10)):
        if ratio is not None and not 0.1 <= ratio <= most:
            raise Invalid(f"{field}: must be between 0.1 and {most}", field=field)
    if wanted.price is not None and not 0 <= wanted.price <= DEAREST:
        raise Invalid(f"price: must be between 0 and {DEAREST}", field="price")
    _check_windows(wanted.maintenance or ())


def _check_windows(windows: tuple[Window, ...]) -> None:
    if len(windows) > WINDOWS:
        raise Invalid(f"maintenance: at most {WINDOWS} windows", field="maintenance")
    for number, window in enumerate(windows):
        if not window.begins < window.ends:
            field = f"maintenance[{number}].ends"
            raise Invalid(f"{field}: must be later than it begins", field=field)


async def _ids(context: Context, refs: tuple[str, ...]) -> tuple[str, ...]:
    if len(refs) > TENANTS:
        raise Invalid(f"tenants: at most {TENANTS}", field="tenants")
    found = []
    for number, ref in enumerate(refs):
        tenant = await context.store.identity.tenant(ref)
        if tenant is None:
            raise NotFound(f"tenants[{number}]: tenant not found", field=f"tenants[{number}]")
        found.append(tenant.id)
    return tuple(found)


def _changed(provider: Provider, wanted: TermsChange) -> Provider:
    old = provider.terms
    topology = {**old.topology, **(wanted.topology or {})}
    given: dict[str, Any] = {name: getattr(wanted, name) for name in ("group", "memory_ratio", "price")}
    if wanted.tenants is not None:
        given["tenants"] = frozenset(wanted.tenants)
    if wanted.maintenance is not None:
        given["maintenance"] = tuple(sorted(wanted.maintenance, key=lambda window: (window.begins, window.ends)))
    terms = replace(
        old,
        topology={level: topology[level] for level in LEVELS if topology.get(level)},
        **{name: value for name, value in given.items() if value is not None},
    )
    ratio = provider.cpu_ratio if wanted.cpu_ratio is None else wanted.cpu_ratio
    return replace(provider, terms=terms, cpu_ratio=ratio)


def _told(provider: Provider) -> dict[str, Any]:
    """Every term by its name in the story."""
    terms = provider.terms
    return {
        **{level: terms.topology.get(level, "") for level in LEVELS[:-1]},
        "group": terms.group,
        "cpu_ratio": provider.cpu_ratio,
        "memory_ratio": terms.memory_ratio,
        "tenants": sorted(terms.tenants),
        "maintenance": [f"{iso(window.begins)}/{iso(window.ends)}" for window in terms.maintenance],
        "price": terms.price,
    }


def _event(context: Context, host: Host, told: Mapping[str, Any]) -> Event:
    words = ", ".join(f"{name} {_shown(value)}" for name, value in told.items())
    text = f"host {host.name} has {words}, by {context.actor.name}"
    return Event("host.changed", host.id, context.now, text, actor=context.actor.member, data=told)


def _shown(value: Any) -> str:
    if isinstance(value, list):
        value = " ".join(value)
    return "none" if value == "" else str(value)
