"""Shapes of the native door's answers, as OpenAPI shows them. `views` writes them; a test compares the two."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


class ConditionOut(BaseModel):
    kind: str
    ok: bool
    reason: str
    message: str
    since: str


class ResourceOut(BaseModel):
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
    conditions: list[ConditionOut]
    labels: dict[str, str]
    created_at: str
    updated_at: str


class ResourcePage(BaseModel):
    items: list[ResourceOut]
    next: str | None


class TenantOut(BaseModel):
    id: str
    name: str
    created_at: str


class TenantPage(BaseModel):
    items: list[TenantOut]
    next: str | None


class ProjectOut(BaseModel):
    id: str
    tenant: str
    name: str
    created_at: str
    keep_prompts: int


class ProjectPage(BaseModel):
    items: list[ProjectOut]
    next: str | None


class MemberOut(BaseModel):
    id: str
    tenant: str | None
    name: str
    email: str
    ssh_keys: list[str]
    disabled: bool
    roles: dict[str, str]
    created_at: str


class MemberPage(BaseModel):
    items: list[MemberOut]
    next: str | None


class LimitsOut(BaseModel):
    models: list[str]
    requests: int
    tokens: int
    concurrency: int
    priority: int


class KeyOut(BaseModel):
    id: str
    member: str
    name: str
    version: int
    project: str | None
    role: str | None
    created_at: str
    expires_at: str | None
    revoked_at: str | None
    last_used_at: str | None
    limits: LimitsOut


class KeyPage(BaseModel):
    items: list[KeyOut]
    next: str | None


class FreshKeyOut(KeyOut):
    """Shown once."""

    secret: str
    token: str


class QuotaOut(BaseModel):
    scope: str
    limits: dict[str, float | None]
    used: dict[str, float]


class DeviceOut(BaseModel):
    address: str
    kind: str
    model: str
    vendor: str
    node: int | None
    memory: int
    parent: str | None
    link: str | None
    traits: list[str]
    cordoned: bool
    taken: bool


class WindowOut(BaseModel):
    begins: str
    ends: str


class ScoreOut(BaseModel):
    """A host that fits: less cost is better; `parts` are what each scorer of the policy gave, weighted."""

    host: str
    name: str
    cost: float
    parts: dict[str, float]


class VictimOut(BaseModel):
    resource: str
    why: str


class ExplanationOut(BaseModel):
    """What placement says now. `reasons` counts the hosts that cannot have it; with those in `fits` they are all."""

    placed: bool
    fits: int
    hosts: int
    policy: str
    best: list[ScoreOut]
    reasons: dict[str, int]
    nearest: str
    nearest_host: str
    largest: str
    victims: list[VictimOut]


class HostOut(BaseModel):
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
    tenants: list[str]
    maintenance: list[WindowOut]
    price: int
    cores: int
    memory: int
    disk: int
    used: dict[str, float]
    nodes: list[dict[str, Any]]
    devices: list[DeviceOut]
    traits: list[str]
    facts: dict[str, str]
    options: dict[str, Any]
    created_at: str


class HostList(BaseModel):
    items: list[HostOut]
    next: str | None


class ClaimOut(BaseModel):
    resource: str
    cores: float
    memory: int
    disk: int
    cpus: list[int]
    nodes: list[int]
    hugepage: int
    devices: list[str]


class ClaimList(BaseModel):
    items: list[ClaimOut]
    next: str | None


class Named(BaseModel):
    member: str
    name: str


class IdentityList(BaseModel):
    items: list[Named]
    next: str | None


class EventOut(BaseModel):
    seq: int
    at: str
    kind: str
    subject: str
    related: str | None
    tenant: str | None
    project: str | None
    actor: str
    cause: str
    text: str
    data: dict[str, Any]


class EventPage(BaseModel):
    items: list[EventOut]
    next: str | None


class WhoAmI(BaseModel):
    member: str
    name: str
    tenant: str | None
    key: str
    project: str | None
    roles: dict[str, str]


class BlobOut(BaseModel):
    digest: str
    size: int


class BlobList(BaseModel):
    items: list[BlobOut]
    next: str | None


class DeviceUseOut(BaseModel):
    address: str
    busy: float
    memory: int


class UsageOut(BaseModel):
    """Seconds of one core so far; bytes of memory now, and at most."""

    at: str
    cpu: float
    memory: int
    peak: int
    devices: list[DeviceUseOut]


class UsageList(BaseModel):
    items: list[UsageOut]
    next: str | None


class OffsetOut(BaseModel):
    offset: int


class SiteOut(BaseModel):
    """What this site offers: drivers and image recipes."""

    version: str
    drivers: dict[str, Any]
    recipes: list[str]


class FieldProblem(BaseModel):
    field: str
    message: str


class Problem(BaseModel):
    """RFC 9457. `code` is stable; `field` names what is wrong in the request."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    field: str | None = None
    errors: list[FieldProblem] = []
    data: dict[str, Any] = {}
    request_id: str | None = None
