"""What goes out at the native door: nouns as plain dictionaries, which msgspec writes. `answers` describes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import msgspec
from starlette.responses import Response

from usina.app.placement import Explanation, Preemption
from usina.core.capacity import Claim, Device, Host
from usina.core.event import Event
from usina.core.resource import AnyResource, Condition, Kind
from usina.core.task import Usage
from usina.core.tenancy import MEASURES, Key, Member, Project, Quota, Tenant
from usina.core.units import iso
from usina.facades.native.endpoint_views import endpoint_spec

encode = msgspec.json.encode


def reply(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(encode(content), status, headers, "application/json")


def one(resource: AnyResource, status: int = 200) -> Response:
    """A resource, with its generation as ETag."""
    return reply(resource_view(resource), status, {"ETag": f'"{resource.generation}"'})


def page(items: Sequence[Any], limit: int) -> Response:
    """A page of views; `next` is the cursor of the following page, None on the last."""
    return reply({"items": items, "next": items[-1]["id"] if len(items) == limit else None})


def resource_view(resource: AnyResource) -> dict[str, Any]:
    return {
        "id": resource.id,
        "kind": resource.kind.value,
        "tenant": resource.tenant,
        "project": resource.project,
        "name": resource.name,
        "phase": resource.phase.value,
        "generation": resource.generation,
        "observed": resource.observed,
        "deleting": resource.deleting,
        "host": resource.provider,
        "parent": resource.parent,
        "spec": _spec(resource),
        "status": _status(resource),
        "conditions": [_condition(c) for c in resource.conditions],
        "labels": resource.labels,
        "created_at": iso(resource.created_at),
        "updated_at": iso(resource.updated_at),
    }


def _spec(resource: AnyResource) -> Any:
    """Of secrets only the names go out."""
    if resource.kind is Kind.ENDPOINT:
        return endpoint_spec(resource.spec)
    if resource.kind is not Kind.TASK or not resource.spec.secrets:
        return resource.spec
    return replace(resource.spec, secrets={name: "***" for name in resource.spec.secrets})


def usage_view(sample: Usage) -> dict[str, Any]:
    devices = [{"address": d.address, "busy": d.busy, "memory": d.memory} for d in sample.devices]
    return {"at": iso(sample.at), "cpu": sample.cpu, "memory": sample.memory, "peak": sample.peak, "devices": devices}


def _status(resource: AnyResource) -> Any:
    """Paths on the control plane's disk are nobody's business."""
    if resource.kind is Kind.MACHINE:
        return {"power": resource.status.power, "accelerator": resource.status.accelerator}
    files = getattr(resource.status, "files", None)
    if files is None:
        return resource.status
    shown = {"sha256": files.digest, "format": files.format, "virtual_size": files.virtual_size}
    return {"progress": resource.status.progress, "message": resource.status.message} | shown


def _condition(condition: Condition) -> dict[str, Any]:
    return {
        "kind": condition.kind,
        "ok": condition.ok,
        "reason": condition.reason,
        "message": condition.message,
        "since": iso(condition.since),
    }


def tenant_view(tenant: Tenant) -> dict[str, Any]:
    return {"id": tenant.id, "name": tenant.name, "created_at": iso(tenant.created_at)}


def project_view(project: Project) -> dict[str, Any]:
    return {
        "id": project.id,
        "tenant": project.tenant,
        "name": project.name,
        "created_at": iso(project.created_at),
        "keep_prompts": project.keep_prompts,
    }


def member_view(member: Member) -> dict[str, Any]:
    return {
        "id": member.id,
        "tenant": member.tenant,
        "name": member.name,
        "email": member.email,
        "ssh_keys": member.ssh_keys,
        "disabled": member.disabled,
        "roles": {scope: role.word for scope, role in member.roles.items()},
        "created_at": iso(member.created_at),
    }


def key_view(key: Key) -> dict[str, Any]:
    return {
        "id": key.id,
        "member": key.member,
        "name": key.name,
        "version": key.version,
        "project": key.project,
        "role": key.role.word if key.role is not None else None,
        "created_at": iso(key.created_at),
        "expires_at": iso(key.expires_at),
        "revoked_at": iso(key.revoked_at),
        "last_used_at": iso(key.last_used_at),
        "limits": asdict(key.limits),
    }


def quota_view(quota: Quota) -> dict[str, Any]:
    used = {measure: getattr(quota.used, measure) for measure in MEASURES}
    return {"scope": quota.scope, "limits": quota.limits, "used": used}


def explanation_view(found: Explanation, preemption: Preemption | None) -> dict[str, Any]:
    return {
        "placed": isinstance(found.answer, Claim),
        "fits": found.hosts - sum(found.reasons.values()),
        "hosts": found.hosts,
        "policy": found.policy,
        "best": [{"host": s.host, "name": s.name, "cost": s.cost, "parts": s.parts} for s in found.best],
        "reasons": found.reasons,
        "nearest": found.nearest,
        "nearest_host": found.nearest_host,
        "largest": found.largest,
        "victims": [{"resource": v.holding.resource, "why": v.why} for v in preemption.victims] if preemption else [],
    }


def host_view(host: Host) -> dict[str, Any]:
    provider = host.provider
    inventory, terms = provider.inventory, provider.terms
    return {
        "id": host.id,
        "name": host.name,
        "driver": provider.driver,
        "also": host.also,
        "state": provider.state.value,
        "reachable": provider.reachable,
        "message": host.message,
        "generation": provider.generation,
        "topology": terms.topology,
        "group": terms.group,
        "cpu_ratio": provider.cpu_ratio,
        "memory_ratio": terms.memory_ratio,
        "tenants": sorted(terms.tenants),
        "maintenance": [{"begins": iso(w.begins), "ends": iso(w.ends)} for w in terms.maintenance],
        "price": terms.price,
        "cores": inventory.cores,
        "memory": inventory.memory,
        "disk": inventory.disk,
        "used": {"cores": provider.used_cores, "memory": provider.used_memory, "disk": provider.used_disk},
        "nodes": [
            {
                "id": n.id,
                "cpus": n.cpus,
                "memory": n.memory,
                "hugepages": {str(k): v for k, v in n.hugepages.items()},
                "siblings": n.siblings,
            }
            for n in inventory.nodes
        ],
        "devices": [_device(d, host) for d in inventory.devices],
        "traits": sorted(inventory.traits),
        "facts": inventory.facts,
        "options": host.options,
        "created_at": iso(host.created_at),
    }


def _device(device: Device, host: Host) -> dict[str, Any]:
    taken = host.provider.taken_devices
    return {
        "address": device.address,
        "kind": device.kind.value,
        "model": device.model,
        "vendor": device.vendor,
        "node": device.node,
        "memory": device.memory,
        "parent": device.parent,
        "link": device.link,
        "traits": sorted(device.traits),
        "cordoned": device.address in host.provider.cordoned_devices,
        "taken": any(one == device.address or one.startswith(device.address + "/") for one in taken),
    }


def claim_view(resource: str, claim: Claim) -> dict[str, Any]:
    return {
        "resource": resource,
        "cores": int(claim.cores) if claim.cores == int(claim.cores) else claim.cores,
        "memory": claim.memory,
        "disk": claim.disk,
        "cpus": claim.cpus,
        "nodes": claim.nodes,
        "hugepage": claim.hugepage,
        "devices": claim.devices,
    }


def event_view(event: Event) -> dict[str, Any]:
    return {
        "seq": event.seq,
        "at": iso(event.at),
        "kind": event.kind,
        "subject": event.subject,
        "related": event.related,
        "tenant": event.tenant,
        "project": event.project,
        "actor": event.actor,
        "cause": event.cause,
        "text": event.text,
        "data": event.data,
    }
