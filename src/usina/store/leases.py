"""Leases: one control plane at a time works on a resource. Taken by one guarded update, so any number may try."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, bindparam, case, or_, select, update

from usina.core.capacity import Claim
from usina.core.grant import Lease
from usina.core.resource import AnyResource
from usina.core.units import Instant
from usina.store import rows
from usina.store.database import Database
from usina.store.tables import claims, resources

TTL = 30.0

_DUE = (
    select(resources.c.id)
    .where(
        resources.c.due_at <= bindparam("b_now"),
        or_(resources.c.lease_until.is_(None), resources.c.lease_until < bindparam("b_now")),
    )
    .order_by(resources.c.due_at)
    .limit(bindparam("b_limit"))
)
_LEASE = (
    update(resources)
    .where(resources.c.id.in_(_DUE))
    .values(lease_owner=bindparam("b_owner"), lease_until=bindparam("b_until"), due_at=bindparam("b_until"))
    .returning(*resources.c)
)
_ANY_DUE = (
    select(resources.c.id)
    .where(
        resources.c.due_at <= bindparam("b_now"),
        or_(resources.c.lease_until.is_(None), resources.c.lease_until < bindparam("b_now")),
    )
    .limit(1)
)
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
    """A resource under lease, with the claims it holds."""

    resource: AnyResource
    lease: Lease
    claims: tuple[Claim, ...]


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
            taken = [rows.resource(row) for row in connection.execute(_LEASE, values)]
            held: dict[str, list[Claim]] = {resource.id: [] for resource in taken}
            if taken:
                found = connection.execute(select(claims).where(claims.c.resource.in_(held)))
                for row in found:
                    held[row.resource].append(rows.claim(row))
            return [Leased(r, Lease(r.id, self.owner, until), tuple(held[r.id])) for r in taken]

        return await self._database.transact(work)

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
