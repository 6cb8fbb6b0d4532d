"""Leases: one control plane at a time works on a resource. Taken by one guarded update, so any number may try."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, bindparam, case, or_, select, update

from usina.core.capacity import Claim
from usina.core.grant import Lease
from usina.core.resource import AnyResource
from usina.core.units import Instant
from usina.store import rows
from usina.store.database import Database
from usina.store.tables import claims, resources

TTL = 30.0

_FREE = or_(resources.c.lease_until.is_(None), resources.c.lease_until < bindparam("b_now"))
_DUE = (
    select(resources.c.id)
    .where(resources.c.due_at <= bindparam("b_now"), _FREE)
    .order_by(resources.c.due_at)
    .limit(bindparam("b_limit"))
)
_MINE: dict[str, Any] = {
    "lease_owner": bindparam("b_owner"),
    "lease_until": bindparam("b_until"),
    "due_at": bindparam("b_until"),
}
_LEASE = update(resources).where(resources.c.id.in_(_DUE)).values(_MINE).returning(*resources.c)
_LEASE_THESE = (
    update(resources)
    .where(resources.c.id.in_(bindparam("b_ids", expanding=True)), _FREE)
    .values(_MINE)
    .returning(*resources.c)
)
_ANY_DUE = select(resources.c.id).where(resources.c.due_at <= bindparam("b_now"), _FREE).limit(1)
_RENEW = (
    update(resources)
    .where(resources.c.lease_owner == bindparam("b_owner"), resources.c.lease_until >= bindparam("b_now"))
    .values(
        lease_until=bindparam("b_until"),
        due_at=case((resources.c.due_at == resources.c.lease_until, bindparam("b_until")), else_=resources.c.due_at),
    )
)
_WAKE = (
    update(resources)
    .where(
        resources.c.id == bindparam("b_id"),
        or_(resources.c.due_at.is_(None), resources.c.due_at > bindparam("b_now")),
    )
    .values(due_at=bindparam("b_now"))
)
_INHERIT = (
    update(resources)
    .where(resources.c.lease_owner.like(bindparam("b_lives")))
    .values(lease_owner=None, lease_until=None, due_at=0.0)
)
_LET_GO = (
    update(resources)
    .where(resources.c.lease_owner == bindparam("b_owner"))
    .values(lease_owner=None, lease_until=None, due_at=0.0)
)


@dataclass(frozen=True, slots=True)
class Leased:
    """A resource under lease, with the claims it holds, and what it is a part of. Changes of that wake its parts."""

    resource: AnyResource
    lease: Lease
    claims: tuple[Claim, ...] = ()
    whole: AnyResource | None = None


class Leases:
    """Takes, renews and returns leases for one owner."""

    def __init__(self, database: Database, owner: str) -> None:
        self._database = database
        self.owner = owner

    async def take(self, now: Instant, limit: int) -> list[Leased]:
        """Lease up to `limit` resources that are due and free, the longest waiting first."""
        if await self._database.first(_ANY_DUE, {"b_now": now}) is None:
            return []
        until = now + TTL

        def work(connection: Connection) -> list[Leased]:
            values = {"b_now": now, "b_limit": limit, "b_owner": self.owner, "b_until": until}
            return self._leased(connection, connection.execute(_LEASE, values), until)

        return await self._database.transact(work)

    async def take_these(self, ids: list[str], now: Instant, limit: int) -> list[Leased]:
        """Lease those that are free, up to `limit`, due or not; make the others due now."""
        until = now + TTL

        def work(connection: Connection) -> list[Leased]:
            values = {"b_now": now, "b_ids": ids[:limit], "b_owner": self.owner, "b_until": until}
            leased = self._leased(connection, connection.execute(_LEASE_THESE, values), until) if limit > 0 else []
            others = set(ids).difference(one.resource.id for one in leased)
            if others:
                connection.execute(_WAKE, [{"b_id": one, "b_now": now} for one in others])
            return leased

        return await self._database.transact(work)

    def _leased(self, connection: Connection, found: Iterable[Row[Any]], until: Instant) -> list[Leased]:
        """Leased rows with all that belongs to them."""
        taken = [rows.resource(row) for row in found]
        held: dict[str, list[Claim]] = {resource.id: [] for resource in taken}
        if taken:
            for row in connection.execute(select(claims).where(claims.c.resource.in_(held))):
                held[row.resource].append(rows.claim(row))
        parents = {resource.parent for resource in taken if resource.parent}
        wholes: dict[str | None, AnyResource] = {}
        if parents:
            for row in connection.execute(select(resources).where(resources.c.id.in_(parents))):
                wholes[row.id] = rows.resource(row)
        return [Leased(r, self.of(r.id, until), tuple(held[r.id]), wholes.get(r.parent)) for r in taken]

    def of(self, id: str, until: Instant) -> Lease:
        """A lease of this owner, for who writes it."""
        return Lease(id, self.owner, until)

    async def renew(self, now: Instant) -> None:
        """Keep everything this owner still holds."""
        await self._run(_RENEW, {"b_owner": self.owner, "b_now": now, "b_until": now + TTL})

    async def wake(self, ids: list[str], now: Instant) -> None:
        """Make resources due now (a sight from outside)."""
        if ids:
            await self._run(_WAKE, [{"b_id": one, "b_now": now} for one in ids])

    async def inherit(self) -> None:
        """Free at once what earlier lives of this owner held when they were killed. Only for who is sure to be the only
        one alive: owners are ``<instance>:<process>``, and one process at a time runs an instance."""
        await self._run(_INHERIT, {"b_lives": self.owner.partition(":")[0] + ":%"})

    async def let_go(self) -> None:
        """Return every lease of this owner, at a clean stop."""
        await self._run(_LET_GO, {"b_owner": self.owner})

    async def _run(self, statement: object, values: object) -> None:
        def work(connection: Connection) -> None:
            connection.execute(statement, values)  # type: ignore[call-overload]

        await self._database.transact(work)
