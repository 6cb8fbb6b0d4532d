"""Operations on keys: make, list, rotate, revoke. A secret is shown once, when it is made."""

from __future__ import annotations

from dataclasses import dataclass, replace

from usina.app.context import Context
from usina.app.tenants import find_member
from usina.core.errors import Forbidden, Invalid, NotFound
from usina.core.event import Event
from usina.core.grant import Grant, permit_own
from usina.core.ids import is_id
from usina.core.llm import UNLIMITED, Limits
from usina.core.names import check_member_name
from usina.core.tenancy import Action, Key, Member, Role
from usina.core.units import Instant
from usina.store import identity as writers


@dataclass(frozen=True, slots=True)
class FreshKey:
    """A key with its secret, which can never be asked for again."""

    key: Key
    secret: str
    token: str


async def create(
    context: Context,
    name: str,
    *,
    member: str = "me",
    project: str | None = None,
    role: str | None = None,
    expires_at: Instant | None = None,
    limits: Limits = UNLIMITED,
) -> FreshKey:
    """A new key. It can do at most what its member can, and no more than the key that makes it."""
    check_member_name(name)
    owner, grant = await _of(context, member)
    await must_be_free(context)
    ceiling = _role(role)
    if expires_at is not None and expires_at <= context.now:
        raise Invalid("expires_at: lies in the past", field="expires_at")
    only = (await context.project(project)).id if project is not None else None
    if owner.id == context.actor.member:
        only = only or context.actor.only_project
        if context.actor.only_project is not None and only != context.actor.only_project:
            raise NotFound("project not found", field="project")
        ceiling = min(ceiling or Role.OPERATOR, context.actor.ceiling)
    key = Key(
        id=context.house.ids.new("key"),
        member=owner.id,
        name=name,
        created_at=context.now,
        project=only,
        role=None if ceiling is Role.OPERATOR else ceiling,
        expires_at=expires_at,
        limits=limits,
    )
    work = context.work()
    writers.add_key(work, key, grant)
    work.emit(_event(context, "key.created", key, owner, f"key {name} made for {owner.name}"))
    await context.commit(work)
    return _fresh(context, key)


async def list_keys(context: Context, member: str | None, after: str = "", limit: int = 100) -> list[Key]:
    """Keys of one member; without a name, one's own, and for an operator everybody's."""
    if member is None and context.actor.is_operator:
        return await context.store.identity.keys(None, after, limit)
    owner, _ = await _of(context, member or "me")
    return await context.store.identity.keys([owner.id], after, limit)


async def find(context: Context, id: str) -> tuple[Key, Member, Grant]:
    key = await context.store.identity.key(id) if is_id(id, "key") else None
    if key is None:
        raise NotFound("key not found")
    try:
        owner, grant = await _of(context, key.member)
    except (NotFound, Forbidden):
        raise NotFound("key not found") from None
    return key, owner, grant


async def rotate(context: Context, id: str, expires_at: Instant | None = None) -> FreshKey:
    """A new secret for the same key; the old one stops at once."""
    key, owner, grant = await find(context, id)
    if key.revoked_at is not None:
        raise NotFound("key not found")
    _within(context, key)
    await must_be_free(context)
    changed = replace(key, version=key.version + 1, expires_at=expires_at or key.expires_at)
    work = context.work()
    writers.change_key(work, changed, grant)
    work.emit(_event(context, "key.rotated", key, owner, f"key {key.name} given a new secret"))
    await context.commit(work)
    context.house.doors.forget()
    return _fresh(context, changed)


async def revoke(context: Context, id: str) -> None:
    key, owner, grant = await find(context, id)
    if key.revoked_at is not None:
        return
    work = context.work()
    writers.change_key(work, replace(key, revoked_at=context.now), grant)
    work.emit(_event(context, "key.revoked", key, owner, f"key {key.name} revoked"))
    await context.commit(work)
    context.house.doors.forget()


async def _of(context: Context, ref: str) -> tuple[Member, Grant]:
    """The member whose keys are meant: oneself, or one whose keys the actor may manage."""
    if ref in ("me", context.actor.member, context.actor.name):
        member, _ = await find_member(context, "me", Action.MEMBER_VIEW)
        return member, permit_own(context.actor, Action.KEY_MANAGE, member)
    member, grant = await find_member(context, ref, Action.KEY_MANAGE)
    if Role.OPERATOR in member.roles.values() and not context.actor.is_operator:
        raise Forbidden("only an operator may manage an operator's keys")
    return member, grant


async def must_be_free(context: Context) -> None:
    """A key with limits or a budget at the gateway must not get round them by way of another key, nor change them."""
    key = await context.store.identity.key(context.actor.key)
    if key is not None and (key.limits != UNLIMITED or await context.store.llm.budgets([key.id])):
        raise Forbidden("a key with limits or a budget can neither make nor change keys")


def _within(context: Context, key: Key) -> None:
    """A narrow key must not widen itself by rotating a wider one of the same member."""
    actor = context.actor
    wider = (key.role or Role.OPERATOR) > actor.ceiling or (actor.only_project and key.project != actor.only_project)
    if key.member == actor.member and wider:
        raise NotFound("key not found")


def _role(word: str | None) -> Role | None:
    if word is None:
        return None
    try:
        return Role.named(word)
    except KeyError:
        raise Invalid("role: must be viewer, member, admin or operator", field="role") from None


def _fresh(context: Context, key: Key) -> FreshKey:
    return FreshKey(key, context.house.doors.secret(key), context.house.doors.token(key))


def _event(context: Context, kind: str, key: Key, owner: Member, text: str) -> Event:
    return Event(kind, key.id, context.now, text, related=owner.id, tenant=owner.tenant, actor=context.actor.member)
