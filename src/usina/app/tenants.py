"""Operations on tenants, projects, members, roles and quotas."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

from usina.app import goods
from usina.app.context import Context
from usina.core.errors import Conflict, Forbidden, Invalid, NotFound
from usina.core.event import Event
from usina.core.grant import Grant, permit_home, permit_own
from usina.core.ids import is_id
from usina.core.names import check_member_name, check_name, check_ssh_keys
from usina.core.tenancy import MEASURES, SITE, Action, Member, Project, Quota, Role, Scope, Tenant
from usina.core.units import Instant
from usina.ports.llm import Kept
from usina.store import identity as writers
from usina.store.work import Work

LARGEST = 1 << 60
LONGEST_KEPT = 3660  # days


def _tell(context: Context, work: Work, kind: str, subject: str, text: str, scope: Scope) -> None:
    work.emit(
        Event(
            kind,
            subject,
            context.now,
            text,
            tenant=scope.tenant,
            project=scope.project,
            actor=context.actor.member,
        )
    )


# --- tenants


async def find_tenant(context: Context, ref: str, action: Action = Action.TENANT_VIEW) -> tuple[Tenant, Grant]:
    tenant = await context.store.identity.tenant(ref)
    if tenant is None:
        raise NotFound("tenant not found")
    seen = permit_home(context.actor, tenant.id)
    return tenant, seen if action is seen.action else context.require(action, Scope(tenant.id), "tenant")


async def create_tenant(context: Context, name: str) -> Tenant:
    check_name(name)
    grant = context.require(Action.TENANT_CREATE, Scope(), "tenant")
    tenant = Tenant(context.house.ids.new("tenant"), name, context.now)
    work = context.work()
    writers.add_tenant(work, tenant, grant)
    _tell(context, work, "tenant.created", tenant.id, f"tenant {name} created", Scope(tenant.id))
    await context.commit(work)
    return tenant


async def list_tenants(context: Context, after: str = "", limit: int = 100) -> list[Tenant]:
    if context.actor.is_operator:
        return await context.store.identity.tenants(after=after, limit=limit)
    mine = [s for s in context.actor.roles if is_id(s, "tenant")]
    if context.actor.tenant is not None:
        mine.append(context.actor.tenant)
    return await context.store.identity.tenants(ids=mine, after=after, limit=limit)


async def rename_tenant(context: Context, ref: str, name: str) -> Tenant:
    check_name(name)
    tenant, grant = await find_tenant(context, ref, Action.TENANT_CHANGE)
    work = context.work()
    writers.rename(work, tenant, name, grant)
    _tell(context, work, "tenant.changed", tenant.id, f"renamed to {name}", Scope(tenant.id))
    await context.commit(work)
    return replace(tenant, name=name)


async def delete_tenant(context: Context, ref: str) -> None:
    """A tenant without projects goes, with its members and their keys; not while a host is dedicated to it."""
    tenant, grant = await find_tenant(context, ref, Action.TENANT_DELETE)
    kept = [host.name for host in await context.store.hosts.all() if tenant.id in host.provider.terms.tenants]
    if kept:
        raise Conflict(f"tenant {tenant.name} has hosts of its own: {', '.join(kept[:10])}", code="in-use")
    members = await context.store.identity.members(tenant.id, limit=10_000)
    work = context.work()
    writers.drop_tenant(work, tenant, members, grant)
    _tell(context, work, "tenant.deleted", tenant.id, f"tenant {tenant.name} deleted", Scope(tenant.id))
    await context.commit(work)
    context.house.doors.forget()


# --- projects


async def find_project(context: Context, ref: str, action: Action = Action.PROJECT_VIEW) -> tuple[Project, Grant]:
    project = await context.project(ref)
    return project, context.require(action, Scope(project.tenant, project.id), "project")


async def create_project(context: Context, tenant: str, name: str) -> Project:
    """A project, with a network and a security group called ``default``."""
    check_name(name)
    owner, grant = await find_tenant(context, tenant, Action.PROJECT_CREATE)
    for _ in range(8):
        project = Project(context.house.ids.new("project"), owner.id, name, context.now)
        work = context.work()
        writers.add_project(work, project, grant)
        _tell(
            context,
            work,
            "project.created",
            project.id,
            f"project {name} created",
            Scope(owner.id, project.id),
        )
        order = goods.NetworkOrder("default")
        plain = replace(context, request_key=None)
        await goods.add_network(plain, work, project, "default", None, order, grant)
        goods.add_default_group(plain, work, project, grant)
        try:
            await context.commit(work)
        except goods.RangeTaken:
            continue
        context.house.near.forget()
        return project
    raise Conflict("too many networks are being made at once; try again", code="busy")


async def delete_project(context: Context, ref: str) -> None:
    """A project goes when nothing is left in it but its own default network and group."""
    project, grant = await find_project(context, ref, Action.PROJECT_DELETE)
    await goods.delete_defaults(context, project)
    work = context.work()
    writers.drop_project(work, project, grant)
    scope = Scope(project.tenant, project.id)
    _tell(context, work, "project.deleted", project.id, f"project {project.name} deleted", scope)
    await context.commit(work)
    context.house.near.forget()
    context.house.doors.forget()


async def rename_project(context: Context, ref: str, name: str) -> Project:
    check_name(name)
    project, grant = await find_project(context, ref, Action.PROJECT_CHANGE)
    work = context.work()
    writers.rename(work, project, name, grant)
    scope = Scope(project.tenant, project.id)
    _tell(context, work, "project.changed", project.id, f"renamed to {name}", scope)
    await context.commit(work)
    context.house.near.forget()
    return replace(project, name=name)


async def keep_prompts(context: Context, ref: str, days: int) -> Project:
    """Keep prompts and answers at the gateway for so many days from now on; 0: no more, and forget those there are."""
    if not 0 <= days <= LONGEST_KEPT:
        raise Invalid(f"days: must be between 0 and {LONGEST_KEPT}", field="days")
    project, grant = await find_project(context, ref, Action.PROJECT_CHANGE)
    work = context.work()
    writers.keep_prompts(work, project, days, grant)
    scope = Scope(project.tenant, project.id)
    text = f"prompts of project {project.name} are kept for {days} days" if days else "prompts are not kept any more"
    _tell(context, work, "project.keeps-prompts", project.id, text, scope)
    await context.commit(work)
    context.house.near.forget()
    return replace(project, keep_prompts=days)


async def kept_prompts(context: Context, ref: str, since: Instant, cursor: str, limit: int) -> Kept:
    """What a project has kept, the oldest first. For whoever may decide that it is kept."""
    project, _ = await find_project(context, ref, Action.PROJECT_CHANGE)
    return await context.house.prompts.page(project.id, since, cursor, limit)


# --- members


async def find_member(context: Context, ref: str, action: Action) -> tuple[Member, Grant]:
    """Oneself, or a member of a tenant in which the actor may do `action`."""
    member = await context.store.identity.member("" if ref == "me" else ref)
    if ref == "me":
        member = await context.store.identity.member(context.actor.member)
    if member is None:
        raise NotFound("member not found")
    if member.id == context.actor.member and action is Action.MEMBER_VIEW:
        return member, permit_own(context.actor, action, member)
    return member, context.require(action, Scope(member.tenant), "member")


async def create_member(
    context: Context,
    name: str,
    tenant: str | None,
    *,
    email: str = "",
    ssh_keys: tuple[str, ...] = (),
    roles: Mapping[str, str] | None = None,
) -> Member:
    """A member of `tenant` (None: of the site). `roles` maps a scope (tenant or project, or ``*``) to a role."""
    check_member_name(name)
    if len(email) > 254 or not email.isprintable():
        raise Invalid("email: at most 254 printable characters", field="email")
    scope = Scope()
    if tenant is not None:
        owner, _ = await find_tenant(context, tenant)
        scope = Scope(owner.id)
    grant = context.require(Action.MEMBER_CREATE, scope, "tenant")
    given = {}
    for where, word in (roles or {}).items():
        target, role = await _role(context, where, word, scope.tenant)
        given[target] = role
    member = Member(
        id=context.house.ids.new("member"),
        tenant=scope.tenant,
        name=name,
        created_at=context.now,
        email=email,
        ssh_keys=check_ssh_keys(ssh_keys),
        roles=given,
    )
    work = context.work()
    writers.add_member(work, member, grant)
    _tell(context, work, "member.created", member.id, f"member {name} created", scope)
    await context.commit(work)
    return member


async def list_members(context: Context, tenant: str | None, after: str = "", limit: int = 100) -> list[Member]:
    if tenant is not None:
        owner, _ = await find_tenant(context, tenant)
        context.require(Action.MEMBER_VIEW, Scope(owner.id), "tenant")
        return await context.store.identity.members(owner.id, after=after, limit=limit)
    if context.actor.is_operator:
        return await context.store.identity.members(None, everywhere=True, after=after, limit=limit)
    home = context.actor.tenant
    if home is not None and (context.actor.role_in(Scope(home)) or Role.VIEWER) >= Role.ADMIN:
        return await context.store.identity.members(home, after=after, limit=limit)
    me = await context.store.identity.member(context.actor.member)
    return [me] if me is not None and me.id > after else []


async def change_member(
    context: Context,
    ref: str,
    *,
    email: str | None = None,
    ssh_keys: tuple[str, ...] | None = None,
    disabled: bool | None = None,
) -> Member:
    """Members change their own address and keys; disabling is their admin's."""
    member, _ = await find_member(context, ref, Action.MEMBER_VIEW)
    own = member.id == context.actor.member
    if own and disabled is None:
        grant = permit_own(context.actor, Action.MEMBER_CHANGE, member)
    else:
        grant = context.require(Action.MEMBER_CHANGE, Scope(member.tenant), "member")
        _not_above(context, member)
    if email is not None and (len(email) > 254 or not email.isprintable()):
        raise Invalid("email: at most 254 printable characters", field="email")
    if own and disabled:
        raise Conflict("you cannot disable yourself", field="disabled", code="self")
    changed = replace(
        member,
        email=member.email if email is None else email,
        ssh_keys=member.ssh_keys if ssh_keys is None else check_ssh_keys(ssh_keys),
        disabled=member.disabled if disabled is None else disabled,
    )
    work = context.work()
    writers.change_member(work, changed, grant)
    text = "disabled" if changed.disabled and not member.disabled else "changed"
    _tell(context, work, "member.changed", member.id, f"member {member.name} {text}", Scope(member.tenant))
    await context.commit(work)
    context.house.doors.forget()
    context.house.near.forget()
    return changed


async def delete_member(context: Context, ref: str) -> None:
    member, grant = await find_member(context, ref, Action.MEMBER_DELETE)
    _not_above(context, member)
    if member.id == context.actor.member:
        raise Conflict("you cannot delete yourself", code="self")
    work = context.work()
    writers.drop_member(work, member, grant)
    _tell(context, work, "member.deleted", member.id, f"member {member.name} deleted", Scope(member.tenant))
    await context.commit(work)
    context.house.doors.forget()


async def set_role(context: Context, ref: str, where: str, word: str | None) -> Member:
    """Give a member one role in a scope, or take it away with None."""
    found = await context.store.identity.member(ref)
    if found is None:
        raise NotFound("member not found")
    if found.tenant is None or context.actor.role_in(Scope(found.tenant)) is None:
        context.require(Action.TENANT_CHANGE, Scope(), "member")
    target, role = await _role(context, where, word or "viewer", found.tenant)
    grant = context.require(Action.MEMBER_CHANGE, _scope_of(target, found.tenant), "member")
    _not_above(context, found)
    if found.id == context.actor.member and target == SITE:
        raise Conflict("you cannot change your own role on the site", field="scope", code="self")
    work = context.work()
    writers.set_role(work, found.id, target, role if word else None, grant)
    text = f"{found.name} is {word} of {target}" if word else f"{found.name} has no role in {target} any more"
    _tell(context, work, "member.role", found.id, text, Scope(found.tenant))
    await context.commit(work)
    context.house.doors.forget()
    left = {scope: held for scope, held in found.roles.items() if scope != target}
    return replace(found, roles=left | ({target: role} if word else {}))


def _scope_of(target: str, tenant: str | None) -> Scope:
    return Scope() if target == SITE else Scope(tenant)


async def _role(context: Context, where: str, word: str, tenant: str | None) -> tuple[str, Role]:
    """(scope id, role), checked: it exists, lies within the member's tenant, and is not above the giver's own."""
    try:
        role = Role.named(word)
    except KeyError:
        raise Invalid("role: must be viewer, member, admin or operator", field="role") from None
    if where == SITE or role is Role.OPERATOR:
        context.require(Action.TENANT_CREATE, Scope(), "member")
        if where != SITE or role not in (Role.OPERATOR, Role.VIEWER):
            raise Invalid("role: operator (and site-wide viewer) is given in the scope *", field="role")
        return SITE, role
    if is_id(where, "project") or not is_id(where, "tenant"):
        project = await context.project(where) if not await _is_tenant(context, where) else None
        if project is not None:
            if project.tenant != tenant:
                raise NotFound("project not found", field="scope")
            if role is Role.ADMIN:
                raise Invalid("role: admin is a role in a tenant", field="role")
            return project.id, role
    found, _ = await find_tenant(context, where)
    if found.id != tenant:
        raise NotFound("tenant not found", field="scope")
    return found.id, role


async def _is_tenant(context: Context, ref: str) -> bool:
    return not is_id(ref, "project") and await context.store.identity.tenant(ref) is not None


def _not_above(context: Context, member: Member) -> None:
    """Nobody changes somebody who stands higher."""
    if Role.OPERATOR in member.roles.values() and not context.actor.is_operator:
        raise Forbidden("only an operator may change an operator")


# --- quotas


async def find_quota(context: Context, ref: str) -> Quota:
    scope = await scope_of(context, ref)
    context.require(Action.QUOTA_VIEW, scope, "quota")
    return await _quota(context, scope)


async def set_quota(context: Context, ref: str, limits: Mapping[str, int | None]) -> Quota:
    """Set limits; None takes a limit away. Measures not named stay as they are. What exists already stays."""
    scope = await scope_of(context, ref)
    action = Action.QUOTA_PROJECT if scope.project is not None else Action.QUOTA_TENANT
    grant = context.require(action, scope, "quota")
    for measure, limit in limits.items():
        if measure not in MEASURES:
            raise Invalid(f"{measure}: not one of {', '.join(MEASURES)}", field=measure)
        if limit is not None and not 0 <= limit <= LARGEST:
            raise Invalid(f"{measure}: must not be negative", field=measure)
    quota = await _quota(context, scope)
    changed = replace(quota, limits={**quota.limits, **limits})
    work = context.work()
    writers.set_limits(work, changed, grant)
    told = ", ".join(f"{m} {'no limit' if v is None else v}" for m, v in limits.items())
    _tell(context, work, "quota.changed", quota.scope, f"quota set: {told}", scope)
    await context.commit(work)
    return changed


async def scope_of(context: Context, ref: str) -> Scope:
    """The tenant or project that `ref` is the id or name of. Raises `NotFound`."""
    if is_id(ref, "tenant"):
        tenant, _ = await find_tenant(context, ref)
        return Scope(tenant.id)
    if not is_id(ref, "project"):
        with suppress(NotFound):
            found, _ = await find_tenant(context, ref)
            return Scope(found.id)
    project = await context.project(ref)
    return Scope(project.tenant, project.id)


async def _quota(context: Context, scope: Scope) -> Quota:
    quota = await context.store.identity.quota(scope.project or scope.tenant or "")
    if quota is None:
        raise NotFound("quota not found")
    return quota
