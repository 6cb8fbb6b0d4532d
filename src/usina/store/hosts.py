"""Hosts as providers: rows, snapshots for placement, and their writers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, bindparam, delete, insert, select, update

from usina.core.capacity import Claim, Holding, Host, HostState, Inventory, Provider
from usina.core.errors import Conflict, Stale
from usina.core.grant import Grant
from usina.core.units import Instant
from usina.store import rows
from usina.store.database import Database
from usina.store.tables import claims, providers, resources
from usina.store.work import CHANGE, TAKE, Work, missing

_b = bindparam


_ADD = insert(providers).inline()
_STATE = (
    update(providers)
    .where(providers.c.id == _b("b_id"))
    .values(state=_b("b_state"), generation=providers.c.generation + 1)
)
_DEVICES = (
    update(providers)
    .where(providers.c.id == _b("b_id"))
    .values(cordoned_devices=_b("b_devices"), generation=providers.c.generation + 1)
)
_TERMS = (
    update(providers)
    .where(providers.c.id == _b("b_id"), providers.c.generation == _b("b_generation"))
    .values(terms=_b("b_terms"), cpu_ratio=_b("b_cpu_ratio"), generation=providers.c.generation + 1)
)
_ALSO = (
    update(providers)
    .where(providers.c.id == _b("b_id"))
    .values(
        also=_b("b_also"),
        options=_b("b_options"),
        inventory=_b("b_inventory"),
        generation=providers.c.generation + 1,
    )
)
_SEEN = (
    update(providers)
    .where(providers.c.id == _b("b_id"))
    .values(
        reachable=_b("b_reachable"),
        message=_b("b_message"),
        seen_at=_b("b_at"),
        generation=providers.c.generation + 1,
    )
)
_INVENTORY = (
    update(providers)
    .where(providers.c.id == _b("b_id"))
    .values(inventory=_b("b_inventory"), seen_at=_b("b_at"), generation=providers.c.generation + 1)
)
_DROP = delete(providers).where(
    providers.c.id == _b("b_id"), ~select(claims.c.resource).where(claims.c.provider == _b("b_id")).exists()
)


_HOLDINGS = (
    select(claims.c.exact, resources.c.id, resources.c.tenant, resources.c.project, resources.c.spec)
    .join(resources, resources.c.id == claims.c.resource)
    .where((claims.c.cores > 0) | (claims.c.memory > 0) | (claims.c.disk > 0) | claims.c.particular)
    .order_by(claims.c.provider, claims.c.resource)
)


class Hosts:
    """Reads."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def all(self) -> list[Host]:
        """Every host with what is held on it, from one consistent read."""

        def read(connection: Connection) -> tuple[Sequence[Row[Any]], Sequence[Row[Any]]]:
            # The totals are in the row; only claims that name CPUs, nodes or devices say more. Read after the rows:
            # a claim that slipped in between belongs to a newer generation, and the compare-and-set will notice.
            found = connection.execute(select(providers).order_by(providers.c.id)).all()
            return found, connection.execute(select(claims).where(claims.c.particular)).all()

        found, particular = await self._database.read(read)
        held: dict[str, list[Claim]] = {}
        for row in particular:
            held.setdefault(row.provider, []).append(rows.claim(row))
        return [_host(row, held.get(row.id, [])) for row in found]

    async def get(self, ref: str) -> Host | None:
        """By id or name."""
        row = await self._database.first(select(providers).where((providers.c.id == ref) | (providers.c.name == ref)))
        if row is None:
            return None
        held = await self._database.fetch(select(claims).where(claims.c.provider == row.id))
        return _host(row, [rows.claim(one) for one in held])

    async def draining(self, ids: Collection[str]) -> set[str]:
        """Of these, the hosts that are being drained."""
        query = select(providers.c.id).where(providers.c.id.in_(ids), providers.c.state == HostState.DRAINING.value)
        return {row.id for row in await self._database.fetch(query)} if ids else set()

    async def claims_on(self, provider: str) -> dict[str, Claim]:
        """Resource id → what it holds there."""
        found = await self._database.fetch(select(claims).where(claims.c.provider == provider))
        return {row.resource: rows.claim(row) for row in found}

    async def holdings(self) -> list[Holding]:
        """Everything that is held, and by whom; what is merely present somewhere holds nothing."""
        return [rows.holding(row) for row in await self._database.fetch(_HOLDINGS)]


def _host(row: Any, held: list[Claim]) -> Host:
    return Host(
        rows.provider(row, held),
        row.created_at,
        msgspec.json.decode(row.options),
        row.message,
        msgspec.json.decode(row.also),
    )


def add(work: Work, host: Host, grant: Grant) -> None:
    provider = host.provider
    row = {
        "id": provider.id,
        "name": provider.name,
        "driver": provider.driver,
        "options": rows.encode(host.options),
        "also": rows.encode(host.also),
        "state": provider.state.value,
        "generation": provider.generation,
        "releases": 0,
        "inventory": rows.encode(provider.inventory),
        "cordoned_devices": b"[]",
        "cpu_ratio": provider.cpu_ratio,
        "terms": rows.encode(provider.terms),
        "used_cores": 0,
        "used_memory": 0,
        "used_disk": 0,
        "reachable": provider.reachable,
        "message": host.message,
        "seen_at": provider.seen_at,
        "created_at": host.created_at,
    }
    work.write(
        TAKE,
        _ADD,
        row,
        1,
        lambda: Conflict(f"host {provider.name!r} exists already", field="name", code="name-taken"),
    )


def set_state(work: Work, host: str, state: HostState, grant: Grant) -> None:
    work.write(CHANGE, _STATE, {"b_id": host, "b_state": state.value}, 1, missing("host"))


def set_cordoned_devices(work: Work, host: str, devices: frozenset[str], grant: Grant) -> None:
    work.write(CHANGE, _DEVICES, {"b_id": host, "b_devices": rows.encode(sorted(devices))}, 1, missing("host"))


def set_drivers(work: Work, host: Host, grant: Grant) -> None:
    """The further drivers of a host, its options, and what it has with all of them."""
    values = {
        "b_id": host.id,
        "b_also": rows.encode(host.also),
        "b_options": rows.encode(host.options),
        "b_inventory": rows.encode(host.provider.inventory),
    }
    work.write(CHANGE, _ALSO, values, 1, missing("host"))


def cordon_found(work: Work, host: str, devices: frozenset[str]) -> None:
    """Devices that are found unfit; a sight of the engine, so it needs no grant."""
    work.write(CHANGE, _DEVICES, {"b_id": host, "b_devices": rows.encode(sorted(devices))}, 1, missing("host"))


def set_terms(work: Work, provider: Provider, grant: Grant) -> None:
    """The terms and core ratio of `provider`. Raises `Stale` unless its generation is still the one it was read at."""
    values = {
        "b_id": provider.id,
        "b_generation": provider.generation,
        "b_terms": rows.encode(provider.terms),
        "b_cpu_ratio": provider.cpu_ratio,
    }
    work.write(CHANGE, _TERMS, values, 1, Stale.meanwhile)


def drop(work: Work, host: Host, grant: Grant) -> None:
    failure = Conflict(f"host {host.name} still holds claims; drain it first", code="in-use")
    work.write(CHANGE, _DROP, {"b_id": host.id}, 1, lambda: failure)


def seen(work: Work, host: str, *, reachable: bool, message: str, at: Instant) -> None:
    """Whether the host answered; a sight of the engine, so it needs no grant."""
    values = {"b_id": host, "b_reachable": reachable, "b_message": message, "b_at": at}
    work.write(CHANGE, _SEEN, values)


def stock(work: Work, host: str, inventory: Inventory, at: Instant) -> None:
    """What the host has, newly counted."""
    work.write(CHANGE, _INVENTORY, {"b_id": host, "b_inventory": rows.encode(inventory), "b_at": at})
