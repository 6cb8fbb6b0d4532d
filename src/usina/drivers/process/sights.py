"""What the warden says, as `core.task` names it; and a plan, as the warden takes it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from usina.core.machine import Absent, Card
from usina.core.task import End, Ended, Queued, Running, Sight, TaskPlan, Usage, secret_values
from usina.drivers.process.devices import Visible
from usina.hardware import veth


def sight(told: Mapping[str, Any] | None) -> Sight:
    match told:
        case None:
            return Absent()
        case {"state": "running", "since": since}:
            return Running(since)
        case {"state": "ended"}:
            return _ended(told)
        case _:
            return Queued(told.get("reason", ""))


def _ended(told: Mapping[str, Any]) -> Ended:
    use = told.get("usage")
    return Ended(
        at=told["at"],
        how=End(told["how"]),
        code=told["code"],
        message=told["message"],
        since=told["since"],
        usage=usage([*use, told["at"]]) if use else None,
        silent=told.get("silent", False),
    )


def usage(numbers: list[float] | None) -> Usage | None:
    """[processor seconds, memory now, most memory, when]"""
    return None if numbers is None else Usage(numbers[0], int(numbers[1]), int(numbers[2]), at=numbers[3])


def card_order(card: Card, device: str) -> dict[str, str]:
    """A run's network card, as the warden takes it: the device to give it, and what it finds about it."""
    return {
        "device": device,
        "name": veth.NAME,
        "inside": veth.inside(card),
        "address": card.interface.address,
        "hostname": veth.hostname(card),
        "resolv.conf": veth.resolver(card),
        "hosts": veth.hosts(card),
    }


def order(plan: TaskPlan, seen: Visible, images: Sequence[str] = ()) -> dict[str, Any]:
    """`images`: the files of its volumes, in order."""
    return {
        "handle": plan.handle,
        "title": plan.title,
        "command": list(plan.command),
        "environment": dict(plan.environment),
        "forced": dict(seen.environment),
        "secrets": list(secret_values(plan)),
        "files": [
            {"source": f.source, "path": f.path, "unpack": f.unpack, "mode": f.mode, "shared": f.shared}
            for f in plan.files
        ],
        "workdir": plan.workdir,
        "volumes": [
            {"image": image, "path": mount.path, "read_only": mount.read_only}
            for mount, image in zip(plan.volumes, images, strict=True)
        ],
        "network": plan.network.value,
        "cores": plan.cores,
        "memory": plan.memory,
        "disk": plan.disk,
        "devices": list(seen.nodes),
        "cpus": list(plan.cpus),
        "nodes": list(plan.nodes),
        "time_limit": plan.time_limit,
        "grace": plan.grace,
    }
