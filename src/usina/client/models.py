"""What the site says and is told, as frozen structs. Sizes are bytes, times are UTC."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

MOVING = frozenset({"pending", "building", "starting", "stopping", "deleting"})
"""Phases on the way to another."""


class Condition(msgspec.Struct, frozen=True):
    """One answered question about a resource, for example ``Placed`` or ``Reachable``."""

    kind: str
    ok: bool
    reason: str
    message: str
    since: datetime


class Resource(msgspec.Struct, frozen=True):
    """What a project owns: `spec` is wanted, `status` is seen, `phase` says how far apart they are."""

    id: str
    kind: str
    tenant: str
    project: str
    name: str
    phase: str
    generation: int
    observed: int
    deleting: bool
    host: str | None
    parent: str | None
    spec: dict[str, Any]
    status: dict[str, Any]
    conditions: tuple[Condition, ...]
    labels: dict[str, str]
    created_at: datetime
    updated_at: datetime

    @property
    def title(self) -> str:
        return f"{self.kind.replace('_', ' ')} {self.name}"

    @property
    def trouble(self) -> str:
        """The newest answer that is not well, in one sentence; empty if all is well."""
        bad = [c for c in self.conditions if not c.ok and c.message]
        return max(bad, key=lambda c: c.since).message if bad else ""

    def settled(self, generation: int) -> bool:
        """Whether the site has nothing left to do for the wish of `generation`."""
        return self.observed >= generation and self.phase not in MOVING


class Tenant(msgspec.Struct, frozen=True):
    id: str
    name: str
    created_at: datetime


class Project(msgspec.Struct, frozen=True):
    id: str
    tenant: str
    name: str
    created_at: datetime
    keep_prompts: int  # days; 0: never


class Member(msgspec.Struct, frozen=True):
    id: str
    tenant: str | None
    name: str
    email: str
    ssh_keys: tuple[str, ...]
    disabled: bool
    roles: dict[str, str]
    created_at: datetime


class Limits(msgspec.Struct, frozen=True):
    """Of a key at the gateway of models; 0 or nothing: no limit. Rates are per minute."""

    models: tuple[str, ...] = ()
    requests: int = 0
    tokens: int = 0
    concurrency: int = 0
    priority: int = 0


class Budget(msgspec.Struct, frozen=True):
    """Tokens that a key, project or tenant may use up; `reserved` is held by gateways for what they let in."""

    scope: str
    tokens: int
    every: str
    spent: int
    reserved: int
    left: int
    began_at: datetime | None
    ends_at: datetime | None


class ModelUsage(msgspec.Struct, frozen=True):
    """Sums; what it was not asked by is None."""

    at: datetime | None
    tenant: str | None
    project: str | None
    member: str | None
    key: str | None
    endpoint: str | None
    model: str | None
    requests: int
    failed: int
    prompt: int
    cached: int
    completion: int
    seconds: float


class UsageReport(msgspec.Struct, frozen=True):
    since: datetime
    until: datetime
    items: tuple[ModelUsage, ...]


class Exchange(msgspec.Struct, frozen=True):
    """A prompt and its answer, where a project keeps them."""

    at: str
    request: str
    member: str
    key: str
    endpoint: str
    model: str
    path: str
    status: int
    prompt: int
    completion: int
    asked: str
    answered: str
    cut: bool


class Key(msgspec.Struct, frozen=True):
    id: str
    member: str
    name: str
    version: int
    project: str | None
    role: str | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    limits: Limits


class FreshKey(Key, frozen=True):
    """A key as it is shown once, with its secret."""

    secret: str
    token: str

    def __repr__(self) -> str:  # a secret never slips into a log by way of a repr
        return f"FreshKey(id={self.id!r}, name={self.name!r})"


class Quota(msgspec.Struct, frozen=True):
    """What may exist at once in a tenant or project; a limit of None is no limit."""

    scope: str
    limits: dict[str, float | None]
    used: dict[str, float]


class Device(msgspec.Struct, frozen=True):
    address: str
    kind: str
    model: str
    vendor: str
    node: int | None
    memory: int
    parent: str | None
    link: str | None
    traits: tuple[str, ...]
    cordoned: bool
    taken: bool


class Window(msgspec.Struct, frozen=True):
    """A time of maintenance; both ends with their time zone."""

    begins: datetime
    ends: datetime


class Score(msgspec.Struct, frozen=True):
    """A host that fits; less cost is better."""

    host: str
    name: str
    cost: float
    parts: dict[str, float]


class Victim(msgspec.Struct, frozen=True):
    resource: str
    why: str


class Explanation(msgspec.Struct, frozen=True):
    """What placement says of a machine now. `reasons` counts the hosts that cannot have it."""

    placed: bool
    fits: int
    hosts: int
    policy: str
    best: list[Score]
    reasons: dict[str, int]
    nearest: str
    nearest_host: str
    largest: str
    victims: list[Victim]


class Host(msgspec.Struct, frozen=True):
    id: str
    name: str
    driver: str
    also: dict[str, Any]
    state: str
    reachable: bool
    message: str
    generation: int
    topology: dict[str, str]
    group: str
    cpu_ratio: float
    memory_ratio: float
    tenants: tuple[str, ...]
    maintenance: tuple[Window, ...]
    price: int
    cores: int
    memory: int
    disk: int
    used: dict[str, float]
    nodes: tuple[dict[str, Any], ...]
    devices: tuple[Device, ...]
    traits: tuple[str, ...]
    facts: dict[str, str]
    options: dict[str, Any]
    created_at: datetime


class DeviceUse(msgspec.Struct, frozen=True):
    address: str
    busy: float
    memory: int


class Usage(msgspec.Struct, frozen=True):
    """What a task has used: seconds of one core so far, bytes of memory now and at most."""

    at: datetime
    cpu: float
    memory: int
    peak: int
    devices: tuple[DeviceUse, ...]


class Blob(msgspec.Struct, frozen=True):
    digest: str
    size: int


class Claim(msgspec.Struct, frozen=True):
    """Capacity held on a host for a resource."""

    resource: str
    cores: float
    memory: int
    disk: int
    cpus: tuple[int, ...]
    nodes: tuple[int, ...]
    hugepage: int
    devices: tuple[str, ...]


class Event(msgspec.Struct, frozen=True):
    seq: int
    at: datetime
    kind: str
    subject: str
    related: str | None
    tenant: str | None
    project: str | None
    actor: str
    cause: str
    text: str
    data: dict[str, Any]


class WhoAmI(msgspec.Struct, frozen=True):
    member: str
    name: str
    tenant: str | None
    key: str
    project: str | None
    roles: dict[str, str]


class Site(msgspec.Struct, frozen=True):
    """What a site offers: drivers and image recipes."""

    version: str
    drivers: dict[str, Any]
    recipes: tuple[str, ...]


# --- what is sent


class Card(msgspec.Struct, frozen=True, omit_defaults=True):
    """A network card of a machine that is ordered."""

    network: str = "default"
    security_groups: tuple[str, ...] = ("default",)
    address: str | None = None


class DeviceWish(msgspec.Struct, frozen=True, omit_defaults=True):
    kind: str = "gpu"
    count: int = 1
    model: str | None = None  # part of the model's name; several as "A|B"
    mdev_type: str | None = None
    memory: int = 0  # bytes that each has at least
    linked: bool = False  # all of them joined by NVLink
    traits: tuple[str, ...] = ()


class Rule(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a security group lets in or out; `ports` is an inclusive range."""

    direction: str
    protocol: str = "all"
    ports: tuple[int, int] | None = None
    remote: str = "0.0.0.0/0"


def given(**fields: Any) -> dict[str, Any]:
    """The fields of a body that were given: those that are not None."""
    return {name: value for name, value in fields.items() if value is not None}
