"""Reading the outbox: stories of one object, and the stream of all that a reader may see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Select, func, or_, select

from usina.core.event import Event
from usina.store import rows
from usina.store.database import Database
from usina.store.tables import events


class Events:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def story(self, subject: str, after: int = 0, limit: int = 1000) -> list[Event]:
        """Everything that happened to one object, in order."""
        query = select(events).where(or_(events.c.subject == subject, events.c.related == subject))
        return await self._read(query.where(events.c.seq > after).order_by(events.c.seq).limit(limit))

    async def since(
        self,
        after: int,
        *,
        projects: list[str] | None = None,
        tenants: list[str] | None = None,
        subject: str | None = None,
        kind: str | None = None,
        limit: int = 500,
    ) -> list[Event]:
        """Events past `after`, in order of commit. `projects` and `tenants` None: of the whole site.

        An event of a project is seen through the project, one of a tenant without a project through the tenant.
        """
        query = select(events).where(events.c.seq > after)
        if projects is not None or tenants is not None:
            query = query.where(
                or_(
                    events.c.project.in_(projects or []),
                    (events.c.project.is_(None)) & events.c.tenant.in_(tenants or []),
                )
            )
        if subject is not None:
            query = query.where(or_(events.c.subject == subject, events.c.related == subject))
        if kind is not None:
            query = query.where(events.c.kind == kind)
        return await self._read(query.order_by(events.c.seq).limit(limit))

    async def last(self) -> int:
        """The newest sequence number; 0 when nothing has happened yet."""
        row = await self._database.first(select(func.coalesce(func.max(events.c.seq), 0)))
        return int(row[0]) if row else 0

    async def last_at(self, subject: str, kind: str) -> float:
        """When an event of this kind was last told of an object; 0 when never."""
        query = select(func.coalesce(func.max(events.c.at), 0.0)).where(
            events.c.subject == subject, events.c.kind == kind
        )
        row = await self._database.first(query)
        return float(row[0]) if row else 0.0

    async def last_of(self, prefix: str) -> int:
        """The newest sequence number of events whose kind begins with `prefix`; 0 when there is none."""
        query = select(func.coalesce(func.max(events.c.seq), 0)).where(
            events.c.kind >= prefix, events.c.kind < prefix[:-1] + chr(ord(prefix[-1]) + 1)
        )
        row = await self._database.first(query)
        return int(row[0]) if row else 0

    async def touched(self, after: int, prefixes: Sequence[str]) -> tuple[int, bool]:
        """The newest sequence number, and whether there is an event past `after` whose kind begins with one of
        `prefixes`."""
        last = await self.last()
        if last <= after:
            return last, False
        told = or_(*(events.c.kind.startswith(prefix, autoescape=True) for prefix in prefixes))
        query = select(events.c.seq).where(events.c.seq > after, events.c.seq <= last, told).limit(1)
        return last, await self._database.first(query) is not None

    async def _read(self, query: Select[Any]) -> list[Event]:
        return [rows.event(row) for row in await self._database.fetch(query)]
