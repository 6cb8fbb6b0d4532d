"""Who may do what. Tenants own projects, members play roles in them, keys carry a member through every door.

Four roles, each able to do what the one before it may: viewer < member < admin (of a tenant) < operator (of the site).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum

from usina.core.llm import UNLIMITED, Limits
from usina.core.units import Instant

SITE = "*"
"""The scope of an operator's role: everything."""


class Role(IntEnum):
    VIEWER = 1
    MEMBER = 2
    ADMIN = 3
    OPERATOR = 4

    @property
    def word(self) -> str:
        return self.name.lower()

    @classmethod
    def named(cls, word: str) -> Role:
        return cls[word.upper()]


class Action(StrEnum):
    """Everything that can be asked for. The part after the dot says what it does; `least_role` who may."""

    RESOURCE_VIEW = "resource.view"
    RESOURCE_CREATE = "resource.create"
    RESOURCE_CHANGE = "resource.change"
    RESOURCE_DELETE = "resource.delete"
    MACHINE_ACCESS = "machine.access"  # console, tunnel: inside the guest
    TASK_ACCESS = "task.access"  # exec, tunnel: inside the run
    MACHINE_PIN_HOST = "machine.pin-host"
    IMAGE_SHARE = "image.share"  # with the whole tenant
    IMAGE_PUBLISH = "image.publish"  # to every tenant
    MODEL_SHARE = "model.share"  # with the whole tenant
    MODEL_PUBLISH = "model.publish"  # to every tenant
    MODEL_ACCEPT = "model.accept"  # its licence, for oneself
    PROJECT_VIEW = "project.view"
    PROJECT_CREATE = "project.create"
    PROJECT_CHANGE = "project.change"
    PROJECT_DELETE = "project.delete"
    TENANT_VIEW = "tenant.view"
    TENANT_CREATE = "tenant.create"
    TENANT_CHANGE = "tenant.change"
    TENANT_DELETE = "tenant.delete"
    MEMBER_VIEW = "member.view"
    MEMBER_CREATE = "member.create"
    MEMBER_CHANGE = "member.change"
    MEMBER_DELETE = "member.delete"
    KEY_MANAGE = "key.manage"  # of another member
    QUOTA_VIEW = "quota.view"
    QUOTA_PROJECT = "quota.project"
    QUOTA_TENANT = "quota.tenant"
    HOST_VIEW = "host.view"
    HOST_OPERATE = "host.operate"


_LEAST = {
    Role.VIEWER: {"resource.view", "project.view", "quota.view", "model.accept"},
    Role.MEMBER: {
        "resource.create",
        "resource.change",
        "resource.delete",
        "machine.access",
        "task.access",
        "tenant.view",
    },
    Role.ADMIN: {
        "image.share",
        "model.share",
        "project.create",
        "project.change",
        "project.delete",
        "tenant.view",
        "member.view",
        "member.create",
        "member.change",
        "member.delete",
        "key.manage",
        "quota.project",
    },
}
_LEAST_ROLE: dict[str, Role] = {}
for _role in sorted(_LEAST, reverse=True):
    for _action in _LEAST[_role]:
        _LEAST_ROLE[_action] = _role


def least_role(action: Action) -> Role:
    """The lowest role that may do `action`; what is not listed is the operator's."""
    return _LEAST_ROLE.get(action.value, Role.OPERATOR)


@dataclass(frozen=True, slots=True)
class Tenant:
    id: str
    name: str
    created_at: Instant


@dataclass(frozen=True, slots=True)
class Project:
    id: str
    tenant: str
    name: str
    created_at: Instant
    keep_prompts: int = 0  # days that prompts and answers at the gateway of models are kept; 0: never


@dataclass(frozen=True, slots=True)
class Member:
    id: str
    tenant: str | None  # None: belongs to the site itself
    name: str
    created_at: Instant
    email: str = ""
    ssh_keys: tuple[str, ...] = ()
    disabled: bool = False
    roles: Mapping[str, Role] = field(default_factory=dict)  # scope (SITE, tenant id or project id) -> role


@dataclass(frozen=True, slots=True)
class Key:
    """A way in. The secret is derived from the master key, the id and the version; it is never stored."""

    id: str
    member: str
    name: str
    created_at: Instant
    version: int = 1
    project: str | None = None  # only there
    role: Role | None = None  # at most this
    expires_at: Instant | None = None
    revoked_at: Instant | None = None
    last_used_at: Instant | None = None
    limits: Limits = UNLIMITED  # at the gateway of models


@dataclass(frozen=True, slots=True)
class Scope:
    """Where an action takes place. Both None: the site."""

    tenant: str | None = None
    project: str | None = None


@dataclass(frozen=True, slots=True)
class Actor:
    """Who is asking: a member through a key."""

    member: str
    name: str
    roles: Mapping[str, Role]
    tenant: str | None = None
    key: str = ""
    only_project: str | None = None
    ceiling: Role = Role.OPERATOR

    def role_in(self, scope: Scope) -> Role | None:
        """The actor's role in `scope`, None if it has none there."""
        if self.only_project is not None and scope.project != self.only_project:
            return None
        held = [self.roles[s] for s in (SITE, scope.tenant, scope.project) if s is not None and s in self.roles]
        return min(max(held), self.ceiling) if held else None

    @property
    def is_operator(self) -> bool:
        return self.role_in(Scope()) is Role.OPERATOR


MEASURES = ("machines", "cores", "memory", "disk", "gpus", "addresses", "tasks")


@dataclass(frozen=True, slots=True)
class Amounts:
    """An amount of each thing that quotas count. Memory and disk in bytes."""

    machines: int = 0
    cores: float = 0  # in thousandths at the finest
    memory: int = 0
    disk: int = 0
    gpus: int = 0
    addresses: int = 0
    tasks: int = 0

    def minus(self, other: Amounts) -> Amounts:
        return Amounts(*(getattr(self, m) - getattr(other, m) for m in MEASURES))

    def plus(self, other: Amounts) -> Amounts:
        return Amounts(*(getattr(self, m) + getattr(other, m) for m in MEASURES))

    def negative(self) -> Amounts:
        return Amounts().minus(self)

    def __bool__(self) -> bool:
        return any(getattr(self, m) for m in MEASURES)


@dataclass(frozen=True, slots=True)
class Quota:
    """What may exist at once in a tenant or project; a limit of None is no limit."""

    scope: str
    limits: Mapping[str, float | None]
    used: Amounts
