"""Operations on what may be used of models, and what was: limits of keys, budgets of tokens, usage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from usina.app import keys
from usina.app.context import Context
from usina.app.tenants import scope_of
from usina.core.errors import Forbidden, Invalid, NotFound
from usina.core.event import Event
from usina.core.grant import Grant
from usina.core.ids import is_id
from usina.core.llm import UNLIMITED, Budget, Every, Limits, period
from usina.core.names import check_range
from usina.core.tenancy import Action, Key, Role, Scope
from usina.core.units import Instant
from usina.store import identity as key_writers
from usina.store import llm as writers

LARGEST = 10**15
MEASURED_BY = ("tenant", "project", "member", "key", "endpoint", "model")
LONGEST = 366 * 86_400.0  # seconds of usage in one answer
BUCKETS = 5000  # of time, in one answer


def check_limits(limits: Limits) -> Limits:
    """Raises `Invalid` naming the field."""
    for name in ("requests", "tokens", "concurrency"):
        check_range(getattr(limits, name), 0, LARGEST, f"limits.{name}")
    check_range(limits.priority, -1, 1, "limits.priority")
    check_range(len(limits.models), 0, 100, "limits.models")
    for number, model in enumerate(limits.models):
        if not 1 <= len(model) <= 128 or not model.isprintable():
            raise Invalid(f"limits.models[{number}]: not a name of a model", field=f"limits.models[{number}]")
    return limits


async def set_limits(context: Context, ref: str, limits: Limits) -> Key:
    """Set what a key may do at the gateway; replaces what was set before. Priority above 0 is an admin's to give."""
    check_limits(limits)
    key, owner, grant = await keys.find(context, ref)
    await keys.must_be_free(context)
    check_priority(context, limits, owner.tenant)
    if key.revoked_at is not None:
        raise NotFound("key not found")
    changed = replace(key, limits=limits)
    work = context.work()
    key_writers.change_key(work, changed, grant)
    text = f"limits of key {key.name} set" if limits != UNLIMITED else f"limits of key {key.name} taken away"
    work.emit(Event("key.limited", key.id, context.now, text, related=owner.id, tenant=owner.tenant,
                    actor=context.actor.member))  # fmt: skip
    await context.commit(work)
    context.house.doors.forget()
    return changed


def check_priority(context: Context, limits: Limits, tenant: str | None) -> None:
    """Raises `Forbidden` for a priority that the actor may not give."""
    role = context.actor.role_in(Scope(tenant))
    if limits.priority > 0 and (role is None or role < Role.ADMIN):
        raise Forbidden("limits.priority: only admins give one above 0", field="limits.priority")


# --- budgets


@dataclass(frozen=True, slots=True)
class _Target:
    scope: str
    grant: Grant
    where: Scope


async def budgets(context: Context) -> list[Budget]:
    """The budgets that the actor may see: of its projects and their tenants, and of its own keys."""
    if context.actor.is_operator:
        return [_now(budget, context.now) for budget in await context.store.llm.budgets()]
    projects = await context.visible_projects()
    own = [key.id for key in await context.store.identity.keys([context.actor.member], limit=1000)]
    scopes = {project.id for project in projects} | {project.tenant for project in projects} | set(own)
    return [_now(budget, context.now) for budget in await context.store.llm.budgets(sorted(scopes))]


async def budget(context: Context, ref: str) -> Budget:
    target = await _target(context, ref, change=False)
    found = await context.store.llm.budgets([target.scope])
    if not found:
        raise NotFound("budget not found")
    return _now(found[0], context.now)


async def set_budget(context: Context, ref: str, tokens: int, every: str) -> Budget:
    """How many tokens a key, project or tenant may use up. What is spent in the period under way stays spent."""
    check_range(tokens, 0, LARGEST, "tokens")
    try:
        often = Every(every)
    except ValueError:
        raise Invalid(f"every: must be one of {', '.join(Every)}", field="every") from None
    target = await _target(context, ref, change=True)
    earlier = await context.store.llm.budgets([target.scope])
    wish = Budget(target.scope, tokens, often, period(often, context.now)[0])
    work = context.work()
    if earlier:
        wish = replace(earlier[0], tokens=tokens, every=often)
        writers.change_budget(work, wish, target.grant)
    else:
        writers.add_budget(work, wish, target.grant)
    _tell(context, work, "budget.set", target, f"budget set: {tokens} tokens, {_OFTEN[often]}")
    await context.commit(work)
    return _now(wish, context.now)


async def drop_budget(context: Context, ref: str) -> None:
    target = await _target(context, ref, change=True)
    work = context.work()
    writers.drop_budget(work, target.scope, target.grant)
    _tell(context, work, "budget.dropped", target, "budget taken away")
    await context.commit(work)


_OFTEN = {Every.NEVER: "in all", Every.DAY: "each day", Every.MONTH: "each month"}


async def _target(context: Context, ref: str, *, change: bool) -> _Target:
    """Whose budget is meant, and that the actor may see or change it."""
    if is_id(ref, "key"):
        key, owner, grant = await keys.find(context, ref)
        if change:
            await keys.must_be_free(context)
        return _Target(key.id, grant, Scope(owner.tenant))
    scope = await scope_of(context, ref)
    action = Action.QUOTA_VIEW
    if change:
        action = Action.QUOTA_PROJECT if scope.project is not None else Action.QUOTA_TENANT
    return _Target(scope.project or scope.tenant or "", context.require(action, scope, "budget"), scope)


def _now(budget: Budget, now: Instant) -> Budget:
    """As it stands now: in a period that nobody has spent in yet, nothing is."""
    began_at = period(budget.every, now)[0]
    return budget if began_at == budget.began_at else replace(budget, began_at=began_at, spent=0, leased=0)


def _tell(context: Context, work: Any, kind: str, target: _Target, text: str) -> None:
    where = target.where
    work.emit(Event(kind, target.scope, context.now, text, tenant=where.tenant, project=where.project,
                    actor=context.actor.member))  # fmt: skip


# --- usage


async def usage(
    context: Context, first: Instant, last: Instant, by: Sequence[str], *, project: str | None = None, every: float = 0
) -> list[dict[str, Any]]:
    """What was used between two instants, summed up by `by` and, unless `every` is 0, by so many seconds: of the
    projects that the actor sees, of whole tenants for their admins, of everything for operators."""
    bucket = _bucket(first, last, by, every)
    minutes = int(first // 60), int(-(-last // 60))
    llm = context.store.llm
    if project is not None:
        found = await context.project(project)
        context.require(Action.RESOURCE_VIEW, Scope(found.tenant, found.id), "project")
        return await llm.usage(*minutes, projects=[found.id], by=by, bucket=bucket)
    if context.actor.is_operator:
        return await llm.usage(*minutes, by=by, bucket=bucket)
    tenants = [scope for scope in context.actor.roles if is_id(scope, "tenant") and _is_admin(context, scope)]
    projects = [one.id for one in await context.visible_projects()]
    return await llm.usage(*minutes, tenants=tenants, projects=projects, by=by, bucket=bucket)


def _is_admin(context: Context, tenant: str) -> bool:
    role = context.actor.role_in(Scope(tenant))
    return role is not None and role >= Role.ADMIN


def _bucket(first: Instant, last: Instant, by: Sequence[str], every: float) -> int:
    """Minutes of one step of time; 0: all in one."""
    for number, name in enumerate(by):
        if name not in MEASURED_BY:
            raise Invalid(f"by[{number}]: must be one of {', '.join(MEASURED_BY)}", field=f"by[{number}]")
    if not 0 <= last - first <= LONGEST:
        raise Invalid("until: must be after since, and at most 366 days later", field="until")
    if every and (not 60 <= every <= LONGEST or (last - first) / every > BUCKETS):
        raise Invalid(f"every: from a minute to a year, and at most {BUCKETS} steps", field="every")
    return int(every // 60)
