"""Proof of permission. Store writers demand one, so that a forgotten check is a type error.

A `Grant` comes only out of `permit` and its like below, for a member's deeds. A `Lease` comes only out of the store,
for the reconciler's. `found` is for the founding of the site, before any member exists.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from usina.core.errors import Forbidden, NotFound
from usina.core.repository import Repository, may_use
from usina.core.tenancy import Action, Actor, Member, Project, Role, Scope, least_role
from usina.core.units import Instant


@dataclass(frozen=True, slots=True)
class Grant:
    """`actor` may do `action` in `scope`."""

    action: Action
    scope: Scope
    actor: str


@dataclass(frozen=True, slots=True)
class Lease:
    """`owner` alone works on `resource` until `until`."""

    resource: str
    owner: str
    until: Instant


Proof = Grant | Lease


def permit(actor: Actor, action: Action, scope: Scope, what: str = "object") -> Grant:
    """The grant for `action`, or the refusal: `NotFound` where the actor sees nothing, else `Forbidden`."""
    role = actor.role_in(scope)
    if role is None or (role < Role.OPERATOR and scope == Scope()):
        raise NotFound(f"{what} not found")
    if role < least_role(action):
        if _sees(action, role):
            raise Forbidden(f"a {role.word} may not do {action.value}; it takes a {least_role(action).word}")
        raise NotFound(f"{what} not found")
    return Grant(action, scope, actor.member)


def permit_own(actor: Actor, action: Action, member: Member) -> Grant:
    """The grant of a member over itself: to see itself, and to change its address and its keys. Else `NotFound`."""
    if member.id != actor.member or action not in _OWN:
        raise NotFound("member not found")
    return Grant(action, Scope(member.tenant), actor.member)


def permit_home(actor: Actor, tenant: str) -> Grant:
    """Who belongs to a tenant, or has a role in it, may see it. Else `NotFound`."""
    if actor.tenant != tenant and actor.role_in(Scope(tenant)) is None:
        raise NotFound("tenant not found")
    return Grant(Action.TENANT_VIEW, Scope(tenant), actor.member)


def permit_accept(actor: Actor, repository: Repository, projects: Sequence[Project]) -> Grant:
    """Who may use a model from one of its `projects` may accept its licence, for itself. Else `NotFound`."""
    if not actor.is_operator and not any(may_use(repository, one.tenant, one.id) for one in projects):
        raise NotFound("model not found", field="model")
    return Grant(Action.MODEL_ACCEPT, Scope(repository.tenant, repository.project), actor.member)


def _sees(action: Action, role: Role) -> bool:
    view = _VIEW.get(action.value.split(".")[0])
    return view is not None and role >= least_role(view)


_OWN = {Action.MEMBER_VIEW, Action.MEMBER_CHANGE, Action.KEY_MANAGE}
_VIEW = {action.value.split(".")[0]: action for action in Action if action.value.endswith(".view")}
_VIEW |= {
    "machine": Action.RESOURCE_VIEW,
    "task": Action.RESOURCE_VIEW,
    "image": Action.RESOURCE_VIEW,
    "model": Action.RESOURCE_VIEW,
    "key": Action.MEMBER_VIEW,
}


def found(name: str) -> Grant:
    """The grant under which a site is founded: first operator, first tenant. Used once, by the server."""
    return Grant(Action.TENANT_CREATE, Scope(), name)
