"""Rows ↔ nouns. The only place that knows how a dataclass lies in a table."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from typing import Any

import msgspec
from sqlalchemy import Row

from usina.core import goods
from usina.core.capacity import Claim, Holding, HostState, Inventory, Provider, Terms
from usina.core.endpoint import EndpointSpec, EndpointStatus
from usina.core.event import Event
from usina.core.llm import UNLIMITED, Limits
from usina.core.machine import MachineSpec, MachineStatus, group_of
from usina.core.resource import AnyResource, Condition, Kind, Phase, Resource
from usina.core.task import TaskSpec, TaskStatus
from usina.core.tenancy import MEASURES, Amounts, Key, Member, Project, Quota, Role, Tenant

encode = msgspec.json.encode

_SPECS: dict[Kind, tuple[type, type]] = {
    Kind.MACHINE: (MachineSpec, MachineStatus),
    Kind.VOLUME: (goods.VolumeSpec, goods.NoStatus),
    Kind.NETWORK: (goods.NetworkSpec, goods.NoStatus),
    Kind.IMAGE: (goods.ImageSpec, goods.ImageStatus),
    Kind.SECURITY_GROUP: (goods.SecurityGroupSpec, goods.NoStatus),
    Kind.FORWARD: (goods.ForwardSpec, goods.NoStatus),
    Kind.TASK: (TaskSpec, TaskStatus),
    Kind.ENDPOINT: (EndpointSpec, EndpointStatus),
}
_DECODERS: dict[Kind, tuple[msgspec.json.Decoder[Any], msgspec.json.Decoder[Any]]] = {
    kind: (msgspec.json.Decoder(spec), msgspec.json.Decoder(status)) for kind, (spec, status) in _SPECS.items()
}
_CONDITIONS = msgspec.json.Decoder(tuple[Condition, ...])
_LABELS = msgspec.json.Decoder(dict[str, str])
_CLAIM = msgspec.json.Decoder(Claim)
_INVENTORY = msgspec.json.Decoder(Inventory)
_TERMS = msgspec.json.Decoder(Terms)
_STRINGS = msgspec.json.Decoder(tuple[str, ...])
_LIMITS = msgspec.json.Decoder(Limits)
_FREE = msgspec.json.Decoder(dict[str, Any])


def milli(cores: float) -> int:
    """Cores as columns count them."""
    return round(cores * 1000)


def cores(milli: int) -> float:
    """Cores of a column; whole ones as whole numbers."""
    return milli // 1000 if milli % 1000 == 0 else milli / 1000


def measured(measure: str, value: float | None) -> int | None:
    """An amount as columns hold it."""
    return None if value is None else milli(value) if measure == "cores" else int(value)


def _unmeasured(measure: str, value: int | None) -> Any:
    return value if value is None or measure != "cores" else cores(value)


def resource_values(resource: AnyResource) -> dict[str, Any]:
    """Every column of a resource but its lease and due time."""
    return {
        "id": resource.id,
        "kind": resource.kind.value,
        "tenant": resource.tenant,
        "project": resource.project,
        "name": resource.name,
        "spec": encode(resource.spec),
        "status": encode(resource.status),
        "generation": resource.generation,
        "observed": resource.observed,
        "phase": resource.phase.value,
        "conditions": encode(resource.conditions),
        "provider": resource.provider,
        "deleting": resource.deleting,
        "attempts": resource.attempts,
        "labels": encode(resource.labels),
        "created_at": resource.created_at,
        "updated_at": resource.updated_at,
        "parent": resource.parent,
    }


def resource(row: Row[Any]) -> AnyResource:
    kind = Kind(row.kind)
    spec, status = _DECODERS[kind]
    return Resource(
        id=row.id,
        kind=kind,
        tenant=row.tenant,
        project=row.project,
        name=row.name,
        spec=spec.decode(row.spec),
        status=status.decode(row.status),
        created_at=row.created_at,
        updated_at=row.updated_at,
        generation=row.generation,
        observed=row.observed,
        phase=Phase(row.phase),
        conditions=_CONDITIONS.decode(row.conditions) if row.conditions != b"[]" else (),
        provider=row.provider,
        deleting=row.deleting,
        attempts=row.attempts,
        labels=_LABELS.decode(row.labels) if row.labels != b"{}" else {},
        parent=row.parent,
    )


def claim(row: Row[Any]) -> Claim:
    return _CLAIM.decode(row.exact)


@lru_cache(maxsize=4096)
def inventory(document: bytes) -> Inventory:
    return _INVENTORY.decode(document)


@lru_cache(maxsize=4096)
def terms(document: bytes) -> Terms:
    return _TERMS.decode(document)


class _Standing(msgspec.Struct):
    """The part of a machine's spec that says how it stands to others; the rest is skipped unread."""

    group: str = ""
    priority: int = 0
    preemptible: bool = False


_STANDING = msgspec.json.Decoder(_Standing)


def holding(row: Row[Any]) -> Holding:
    """From a row of `exact`, and of `id`, `tenant`, `project` and `spec` of the resource."""
    standing = _STANDING.decode(row.spec)
    return Holding(
        resource=row.id,
        claim=claim(row),
        tenant=row.tenant,
        groups=frozenset([group_of(row.project, standing.group)]) if standing.group else frozenset(),
        priority=standing.priority,
        preemptible=standing.preemptible,
    )


def provider(row: Row[Any], held: list[Claim]) -> Provider:
    """A provider with what the claims `held` on it take; totals come from the row, particulars from the claims."""
    pages: dict[tuple[int, int], int] = {}
    bound: dict[int, int] = {}
    for one in held:
        for node in one.nodes:
            share = one.memory // len(one.nodes)
            if one.hugepage:
                pages[node, one.hugepage] = pages.get((node, one.hugepage), 0) + share // one.hugepage
            else:
                bound[node] = bound.get(node, 0) + share
    return Provider(
        id=row.id,
        name=row.name,
        driver=row.driver,
        state=HostState(row.state),
        generation=row.generation,
        releases=row.releases,
        inventory=inventory(row.inventory),
        cpu_ratio=row.cpu_ratio,
        used_cores=cores(row.used_cores),
        used_memory=row.used_memory,
        used_disk=row.used_disk,
        taken_cpus=frozenset(cpu for one in held for cpu in one.cpus),
        taken_devices=Counter(device for one in held for device in one.devices),
        used_hugepages=pages,
        bound_memory=bound,
        cordoned_devices=frozenset(_STRINGS.decode(row.cordoned_devices)),
        reachable=row.reachable,
        seen_at=row.seen_at,
        terms=terms(row.terms),
    )


def tenant(row: Row[Any]) -> Tenant:
    return Tenant(row.id, row.name, row.created_at)


def project(row: Row[Any]) -> Project:
    return Project(row.id, row.tenant, row.name, row.created_at, row.keep_prompts)


def member(row: Row[Any], roles: dict[str, Role]) -> Member:
    return Member(
        id=row.id,
        tenant=row.tenant,
        name=row.name,
        created_at=row.created_at,
        email=row.email,
        ssh_keys=_STRINGS.decode(row.ssh_keys),
        disabled=row.disabled,
        roles=roles,
    )


def key(row: Row[Any]) -> Key:
    return Key(
        id=row.id,
        member=row.member,
        name=row.name,
        created_at=row.created_at,
        version=row.version,
        project=row.project,
        role=Role(row.role) if row.role is not None else None,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        last_used_at=row.last_used_at,
        limits=_LIMITS.decode(row.limits) if row.limits else UNLIMITED,
    )


def quota(row: Row[Any]) -> Quota:
    mapping = row._mapping
    return Quota(
        scope=row.scope,
        limits={m: _unmeasured(m, mapping[f"limit_{m}"]) for m in MEASURES},
        used=Amounts(**{m: _unmeasured(m, mapping[f"used_{m}"]) or 0 for m in MEASURES}),
    )


def event_values(event: Event) -> dict[str, Any]:
    return {
        "at": event.at,
        "kind": event.kind,
        "subject": event.subject,
        "related": event.related,
        "tenant": event.tenant,
        "project": event.project,
        "actor": event.actor,
        "cause": event.cause,
        "text": event.text,
        "data": encode(event.data),
    }


def event(row: Row[Any]) -> Event:
    return Event(
        kind=row.kind,
        subject=row.subject,
        at=row.at,
        text=row.text,
        related=row.related,
        tenant=row.tenant,
        project=row.project,
        actor=row.actor,
        cause=row.cause,
        data=_FREE.decode(row.data),
        seq=row.seq,
    )
