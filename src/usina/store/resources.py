"""Reading resources: one, a page, what uses what."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Select, bindparam, delete, func, select

from usina.core.resource import AnyResource, Kind, Phase
from usina.core.units import Instant
from usina.store import rows
from usina.store.database import Database
from usina.store.tables import requests, reservations, resources

_NAMED = select(resources).where(
    resources.c.project == bindparam("b_project"),
    resources.c.kind == bindparam("b_kind"),
    resources.c.name == bindparam("b_name"),
)
_ONE = select(resources).where(resources.c.id == bindparam("b_id"))


class Resources:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, id: str) -> AnyResource | None:
        row = await self._database.first(_ONE, {"b_id": id})
        return rows.resource(row) if row else None

    async def get_many(self, ids: Iterable[str]) -> dict[str, AnyResource]:
        wanted = list(ids)
        if not wanted:
            return {}
        found = await self._database.fetch(select(resources).where(resources.c.id.in_(wanted)))
        return {row.id: rows.resource(row) for row in found}

    async def named(self, kind: Kind, project: str, name: str) -> AnyResource | None:
        row = await self._database.first(_NAMED, {"b_project": project, "b_kind": kind.value, "b_name": name})
        return rows.resource(row) if row else None

    async def page(
        self,
        kind: Kind,
        *,
        projects: list[str] | None = None,
        tenant: str | None = None,
        after: str = "",
        limit: int = 100,
        phase: Phase | None = None,
        name: str | None = None,
        provider: str | None = None,
        whole: bool = False,
    ) -> list[AnyResource]:
        """Up to `limit` resources of `kind` in order of id, past `after`. `projects` None means every project; `whole`
        leaves parts of others out."""
        query: Select[Any] = select(resources).where(resources.c.kind == kind.value, resources.c.id > after)
        if projects is not None:
            query = query.where(resources.c.project.in_(projects))
        if whole:
            query = query.where(resources.c.parent.is_(None))
        if tenant is not None:
            query = query.where(resources.c.tenant == tenant)
        if phase is not None:
            query = query.where(resources.c.phase == phase.value)
        if name is not None:
            query = query.where(resources.c.name == name)
        if provider is not None:
            query = query.where(resources.c.provider == provider)
        found = await self._database.fetch(query.order_by(resources.c.id).limit(limit))
        return [rows.resource(row) for row in found]

    async def every(self, kind: Kind) -> list[AnyResource]:
        found = await self._database.fetch(select(resources).where(resources.c.kind == kind.value))
        return [rows.resource(row) for row in found]

    async def on_provider(self, provider: str) -> dict[str, str]:
        """Machines and tasks on a provider: id → phase."""
        query = select(resources.c.id, resources.c.phase).where(
            resources.c.provider == provider, resources.c.kind.in_([Kind.MACHINE.value, Kind.TASK.value])
        )
        return {row.id: row.phase for row in await self._database.fetch(query)}

    async def count(self, project: str) -> int:
        query = select(func.count()).select_from(resources).where(resources.c.project == project)
        row = await self._database.first(query)
        return int(row[0]) if row else 0

    async def users_of(self, id: str) -> dict[str, str]:
        """Who uses a resource: key → owner, as reserved in ``use:<id>``."""
        return await self.reserved(f"use:{id}")

    async def reserved(self, scope: str) -> dict[str, str]:
        query = select(reservations.c.key, reservations.c.owner).where(reservations.c.scope == scope)
        return {row.key: row.owner for row in await self._database.fetch(query)}

    async def request(self, member: str, key: str) -> tuple[str, str] | None:
        """(digest, resource id) of an earlier order with this idempotency key."""
        query = select(requests.c.digest, requests.c.resource).where(requests.c.member == member, requests.c.key == key)
        row = await self._database.first(query)
        return (row.digest, row.resource) if row else None

    async def forget_requests(self, before: Instant) -> None:
        """Forget idempotency keys used before an instant."""
        await self._database.transact(lambda c: c.execute(delete(requests).where(requests.c.at < before)))
