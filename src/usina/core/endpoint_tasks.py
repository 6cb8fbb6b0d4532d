"""Replicas as tasks, both ways: the task of a replica to be, and how a task looks as a replica. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from zlib import crc32

from usina.core.endpoint import Recipe, Variant
from usina.core.endpoint_decide import Endpoint, Instance
from usina.core.resource import Kind, Phase, Resource
from usina.core.task import Health, TaskStatus, handle_of
from usina.core.task_decide import OVER, Task, is_unwell
from usina.core.units import Instant

PORTS = (21_000, 10_000)
"""First, how many: where replicas share their host's network, each has one of its own, from its id. Two of them can
meet there; then the later one cannot start, and another is made."""

_PORT = "{port}"


def port_of(recipe: Recipe, task: str) -> int:
    """The port that a replica listens on."""
    first, count = PORTS
    return recipe.port or first + crc32(task.encode()) % count


def replica_task(endpoint: Endpoint, recipe: Recipe, id: str, secrets: Mapping[str, str], now: Instant) -> Task:
    """A new replica. It is run once: an endpoint replaces what has ended."""
    port = port_of(recipe, id)
    spec, health = recipe.task, recipe.task.health
    return Resource(
        id=id,
        kind=Kind.TASK,
        tenant=endpoint.tenant,
        project=endpoint.project,
        name=f"{endpoint.name[:55]}-{id[-6:]}",
        spec=replace(
            spec,
            command=tuple(word.replace(_PORT, str(port)) for word in spec.command),
            environment={name: value.replace(_PORT, str(port)) for name, value in spec.environment.items()},
            secrets=dict(secrets),
            ports=(port,),
            health=replace(health, port=port) if isinstance(health, Health) and not health.command else health,
            member=endpoint.spec.member,
        ),
        status=TaskStatus(),
        created_at=now,
        updated_at=now,
        labels={
            "endpoint": endpoint.name,
            "recipe": recipe.mark,
            "model": recipe.variant.model,
            "revision": recipe.variant.revision,
            **({"adapters": ",".join(recipe.adapters)} if recipe.adapters else {}),
        },
        parent=endpoint.id,
    )


def instance_of(task: Task, evicted: bool = False) -> Instance:
    """How a task looks as a replica; `evicted`: its host is being drained."""
    runs = task.phase is Phase.RUNNING and not task.deleting
    silent = next((c.since for c in task.conditions if c.kind == "Reachable" and not c.ok), 0.0)
    unplaced = next((c.message for c in task.conditions if c.kind == "Placed" and not c.ok), "")
    return Instance(
        id=task.id,
        mark=task.labels.get("recipe", ""),
        variant=Variant(task.labels.get("model", ""), task.labels.get("revision", "")),
        phase=task.phase if task.phase not in OVER or task.observed == task.generation else Phase.STOPPING,
        healthy=runs and (task.spec.health is None or task.status.healthy is True),
        unwell=runs and is_unwell(task),
        leaving=task.deleting,
        trouble=task.status.message or ("" if task.provider else unplaced),
        provider=task.provider or "",
        stack=task.spec.on,
        handle=handle_of(task.id, task.status.run) if task.status.run else "",
        port=task.spec.ports[0] if task.spec.ports else 0,
        silent_since=silent if task.phase is Phase.UNREACHABLE else 0.0,
        evicted=evicted,
        adapters=tuple(filter(None, task.labels.get("adapters", "").split(","))),
    )
