"""Tenants, projects, members, roles, keys and quotas: reading them, and the writers that demand a grant."""

from __future__ import annotations

from typing import Any

from sqlalchemy import bindparam, delete, insert, select, update

from usina.core.errors import Conflict
from usina.core.grant import Grant
from usina.core.llm import UNLIMITED
from usina.core.tenancy import MEASURES, Amounts, Key, Member, Project, Quota, Role, Tenant
from usina.core.units import Instant
from usina.store import rows
from usina.store.database import Database
from usina.store.tables import (
    budget_leases,
    budgets,
    keys,
    members,
    models,
    projects,
    quotas,
    resources,
    roles,
    tenants,
)
from usina.store.work import CHANGE, FREE, TAKE, Work, missing

_b = bindparam
_ADD_TENANT, _ADD_PROJECT, _ADD_MEMBER = (insert(table).inline() for table in (tenants, projects, members))
_ADD_ROLE, _ADD_KEY, _ADD_QUOTA = (insert(table).inline() for table in (roles, keys, quotas))
_DROP_TENANT = delete(tenants).where(
    tenants.c.id == _b("b_id"),
    ~select(projects.c.id).where(projects.c.tenant == _b("b_id")).exists(),
)
_DROP_PROJECT = delete(projects).where(
    projects.c.id == _b("b_id"),
    ~select(resources.c.id).where(resources.c.project == _b("b_id")).exists(),
    ~select(models.c.id).where(models.c.project == _b("b_id")).exists(),
)
_DROP_QUOTA = delete(quotas).where(quotas.c.scope == _b("b_scope"))
_DROP_BUDGET = [delete(table).where(table.c.scope == _b("b_scope")) for table in (budgets, budget_leases)]
_DROP_SCOPE = delete(roles).where(roles.c.scope == _b("b_scope"))
_DROP_ROLE = delete(roles).where(roles.c.member == _b("b_member"), roles.c.scope == _b("b_scope"))
_DROP_MEMBER = delete(members).where(members.c.id == _b("b_id"))
_DROP_ROLES = delete(roles).where(roles.c.member == _b("b_id"))
_DROP_KEYS = delete(keys).where(keys.c.member == _b("b_id"))
_CHANGE_MEMBER = (
    update(members)
    .where(members.c.id == _b("b_id"))
    .values(email=_b("b_email"), ssh_keys=_b("b_ssh_keys"), disabled=_b("b_disabled"))
)
_RENAME = {t: update(t).where(t.c.id == _b("b_id")).values(name=_b("b_name")) for t in (tenants, projects)}
_CHANGE_KEY = (
    update(keys)
    .where(keys.c.id == _b("b_id"), keys.c.revoked_at.is_(None))
    .values(
        version=_b("b_version"), expires_at=_b("b_expires_at"), revoked_at=_b("b_revoked_at"), limits=_b("b_limits")
    )
)
_USED = update(keys).where(keys.c.id == _b("b_id")).values(last_used_at=_b("b_at"))
_LIMIT = update(quotas).where(quotas.c.scope == _b("b_scope")).values({f"limit_{m}": _b(f"b_{m}") for m in MEASURES})


_KEEP = update(projects).where(projects.c.id == _b("b_id")).values(keep_prompts=_b("b_days"))
_PROJECT = select(projects).where(projects.c.id == _b("b_id"))
_MEMBER = select(members).where((members.c.id == _b("b_ref")) | (members.c.name == _b("b_ref")))
_KEY = select(keys).where(keys.c.id == _b("b_id"))


class Identity:
    """Reads. Writers are the functions below; they gather into a `Work`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def tenant(self, ref: str) -> Tenant | None:
        """By id or name."""
        row = await self._first(select(tenants).where((tenants.c.id == ref) | (tenants.c.name == ref)))
        return rows.tenant(row) if row else None

    async def tenants(self, ids: list[str] | None = None, after: str = "", limit: int = 100) -> list[Tenant]:
        query = select(tenants).where(tenants.c.id > after).order_by(tenants.c.id).limit(limit)
        if ids is not None:
            query = query.where(tenants.c.id.in_(ids))
        return [rows.tenant(row) for row in await self._all(query)]

    async def project(self, ref: str) -> Project | None:
        row = await self._database.first(_PROJECT, {"b_id": ref})
        return rows.project(row) if row else None

    async def projects(
        self,
        *,
        tenants: list[str] | None = None,
        ids: list[str] | None = None,
        name: str | None = None,
        after: str = "",
        limit: int = 100,
    ) -> list[Project]:
        """Projects in any of `tenants` or among `ids` (both None: all)."""
        query = select(projects).where(projects.c.id > after).order_by(projects.c.id).limit(limit)
        if tenants is not None or ids is not None:
            query = query.where(projects.c.tenant.in_(tenants or []) | projects.c.id.in_(ids or []))
        if name is not None:
            query = query.where(projects.c.name == name)
        return [rows.project(row) for row in await self._all(query)]

    async def member(self, ref: str) -> Member | None:
        """By id or name."""
        row = await self._database.first(_MEMBER, {"b_ref": ref})
        return rows.member(row, (await self._roles([row.id]))[row.id]) if row else None

    async def members(
        self, tenant: str | None, *, everywhere: bool = False, after: str = "", limit: int = 100
    ) -> list[Member]:
        query = select(members).where(members.c.id > after).order_by(members.c.id).limit(limit)
        if not everywhere:
            query = query.where(members.c.tenant == tenant)
        found = await self._all(query)
        held = await self._roles([row.id for row in found])
        return [rows.member(row, held[row.id]) for row in found]

    async def key(self, id: str) -> Key | None:
        row = await self._database.first(_KEY, {"b_id": id})
        return rows.key(row) if row else None

    async def keys(self, owners: list[str] | None, after: str = "", limit: int = 100) -> list[Key]:
        query = select(keys).where(keys.c.id > after).order_by(keys.c.id).limit(limit)
        if owners is not None:
            query = query.where(keys.c.member.in_(owners))
        return [rows.key(row) for row in await self._all(query)]

    async def everybody(self) -> tuple[list[Key], list[Member], list[Project]]:
        """Keys that are not revoked, members with their roles, and projects: all there are."""
        held: dict[str, dict[str, Role]] = {}
        for row in await self._all(select(roles)):
            held.setdefault(row.member, {})[row.scope] = Role(row.role)
        return (
            [rows.key(row) for row in await self._all(select(keys).where(keys.c.revoked_at.is_(None)))],
            [rows.member(row, held.get(row.id, {})) for row in await self._all(select(members))],
            [rows.project(row) for row in await self._all(select(projects))],
        )

    async def quota(self, scope: str) -> Quota | None:
        row = await self._first(select(quotas).where(quotas.c.scope == scope))
        return rows.quota(row) if row else None

    async def _roles(self, ids: list[str]) -> dict[str, dict[str, Role]]:
        held: dict[str, dict[str, Role]] = {one: {} for one in ids}
        for row in await self._all(select(roles).where(roles.c.member.in_(ids))):
            held[row.member][row.scope] = Role(row.role)
        return held

    async def _first(self, query: Any) -> Any:
        return await self._database.first(query)

    async def _all(self, query: Any) -> list[Any]:
        return list(await self._database.fetch(query))


def add_tenant(work: Work, tenant: Tenant, grant: Grant) -> None:
    row = {"id": tenant.id, "name": tenant.name, "created_at": tenant.created_at}
    work.write(TAKE, _ADD_TENANT, row, 1, _taken("tenant", tenant.name))
    work.write(TAKE, _ADD_QUOTA, _quota_row(tenant.id), 1)


def add_project(work: Work, project: Project, grant: Grant) -> None:
    row = {
        "id": project.id,
        "tenant": project.tenant,
        "name": project.name,
        "created_at": project.created_at,
        "keep_prompts": project.keep_prompts,
    }
    work.write(TAKE, _ADD_PROJECT, row, 1, _taken("project", project.name))
    work.write(TAKE, _ADD_QUOTA, _quota_row(project.id), 1)


def rename(work: Work, thing: Tenant | Project, name: str, grant: Grant) -> None:
    table = tenants if isinstance(thing, Tenant) else projects
    work.write(CHANGE, _RENAME[table], {"b_id": thing.id, "b_name": name}, 1, _taken("name", name))


def drop_tenant(work: Work, tenant: Tenant, owners: list[Member], grant: Grant) -> None:
    failure = _busy(f"tenant {tenant.name} still has projects")
    work.write(CHANGE, _DROP_TENANT, {"b_id": tenant.id}, 1, failure)
    for member in owners:
        drop_member(work, member, grant)
    _drop_scope(work, tenant.id)


def keep_prompts(work: Work, project: Project, days: int, grant: Grant) -> None:
    work.write(CHANGE, _KEEP, {"b_id": project.id, "b_days": days}, 1, missing("project"))


def drop_project(work: Work, project: Project, grant: Grant) -> None:
    failure = _busy(f"project {project.name} still has resources or models")
    work.write(CHANGE, _DROP_PROJECT, {"b_id": project.id}, 1, failure)
    _drop_scope(work, project.id)


def add_member(work: Work, member: Member, grant: Grant) -> None:
    row = {
        "id": member.id,
        "tenant": member.tenant,
        "name": member.name,
        "email": member.email,
        "ssh_keys": rows.encode(member.ssh_keys),
        "disabled": member.disabled,
        "created_at": member.created_at,
    }
    work.write(TAKE, _ADD_MEMBER, row, 1, _taken("member", member.name))
    for scope, role in member.roles.items():
        set_role(work, member.id, scope, role, grant, fresh=True)


def change_member(work: Work, member: Member, grant: Grant) -> None:
    values = {
        "b_id": member.id,
        "b_email": member.email,
        "b_ssh_keys": rows.encode(member.ssh_keys),
        "b_disabled": member.disabled,
    }
    work.write(CHANGE, _CHANGE_MEMBER, values, 1, missing("member"))


def drop_member(work: Work, member: Member, grant: Grant) -> None:
    for statement in (_DROP_ROLES, _DROP_KEYS):
        work.write(FREE, statement, {"b_id": member.id})
    work.write(CHANGE, _DROP_MEMBER, {"b_id": member.id}, 1, missing("member"))


def set_role(work: Work, member: str, scope: str, role: Role | None, grant: Grant, *, fresh: bool = False) -> None:
    """Give `member` exactly `role` in `scope`; None takes it away."""
    if not fresh:
        work.write(FREE, _DROP_ROLE, {"b_member": member, "b_scope": scope})
    if role is not None:
        work.write(TAKE, _ADD_ROLE, {"member": member, "scope": scope, "role": int(role)}, 1)


def add_key(work: Work, key: Key, grant: Grant) -> None:
    row = {
        "id": key.id,
        "member": key.member,
        "name": key.name,
        "version": key.version,
        "project": key.project,
        "role": int(key.role) if key.role is not None else None,
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "revoked_at": None,
        "last_used_at": None,
        "limits": rows.encode(key.limits) if key.limits != UNLIMITED else None,
    }
    work.write(TAKE, _ADD_KEY, row, 1)


def change_key(work: Work, key: Key, grant: Grant) -> None:
    """Record a rotation, a new expiry or a revocation. A revoked key cannot change any more."""
    values = {
        "b_id": key.id,
        "b_version": key.version,
        "b_expires_at": key.expires_at,
        "b_revoked_at": key.revoked_at,
        "b_limits": rows.encode(key.limits) if key.limits != UNLIMITED else None,
    }
    work.write(CHANGE, _CHANGE_KEY, values, 1, missing("key"))


def note_use(work: Work, key: str, at: Instant) -> None:
    """The last use of a key; needs no grant, as it follows from authentication itself."""
    work.write(CHANGE, _USED, {"b_id": key, "b_at": at})


def set_limits(work: Work, quota: Quota, grant: Grant) -> None:
    values: dict[str, Any] = {f"b_{m}": rows.measured(m, quota.limits.get(m)) for m in MEASURES}
    work.write(CHANGE, _LIMIT, {"b_scope": quota.scope} | values, 1, missing("quota"))


def _quota_row(scope: str) -> dict[str, Any]:
    nothing = Amounts()
    return (
        {"scope": scope} | {f"limit_{m}": None for m in MEASURES} | {f"used_{m}": getattr(nothing, m) for m in MEASURES}
    )


def _drop_scope(work: Work, scope: str) -> None:
    work.write(FREE, _DROP_QUOTA, {"b_scope": scope})
    work.write(FREE, _DROP_SCOPE, {"b_scope": scope})
    for statement in _DROP_BUDGET:
        work.write(FREE, statement, {"b_scope": scope})


def _taken(kind: str, name: str) -> Any:
    return lambda: Conflict(f"{kind} {name!r} exists already", field="name", code="name-taken")


def _busy(message: str) -> Any:
    return lambda: Conflict(message, code="in-use")
