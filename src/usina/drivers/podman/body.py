"""From a plan to the body of a create request (libpod's SpecGenerator). Pure."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

from usina.core.capacity import DeviceKind, Part
from usina.core.task import WORK, FilePlan, MountPlan, Network, TaskPlan
from usina.drivers.podman.settings import Settings
from usina.hardware import veth
from usina.ports.driver import DriverError

LABEL_FACTORY, LABEL_HANDLE = "usina.factory", "usina.handle"
_PERIOD = 100_000  # microseconds


def container(settings: Settings, handle: str) -> str:
    """What a run's container and volume are called."""
    return f"usina-{settings.factory}-{handle}"


def build(plan: TaskPlan, settings: Settings, image: str, volumes: Sequence[str], *, root: bool) -> dict[str, Any]:
    """Everything about the container. `volumes`: where those of the plan are mounted. `root`: Podman runs as root, so
    that its users are mapped to ours."""
    name = container(settings, plan.handle)
    body: dict[str, Any] = {
        "name": name,
        "image": image,
        "env": {"HOME": WORK, **plan.environment},
        "labels": {LABEL_FACTORY: settings.factory, LABEL_HANDLE: plan.handle, "usina.title": plan.title},
        "hostname": veth.hostname(plan.card) if plan.card else plan.handle.replace(".", "-")[:63],
        "work_dir": plan.workdir if plan.workdir.startswith("/") else f"{WORK}/{plan.workdir}".rstrip("/"),
        "volumes": [{"Name": name, "Dest": WORK, "Options": ["U"]}],
        "mounts": [_bound(mount, path) for mount, path in zip(plan.volumes, volumes, strict=True)]
        + [_seen(file) for file in plan.files if is_bound(file)],
        "no_new_privileges": True,
        "restart_policy": "no",
        "stop_timeout": math.ceil(plan.grace),
        "log_configuration": {"driver": "k8s-file", "size": settings.log_limit},
        "r_limits": [
            {"type": "nofile", "soft": settings.files, "hard": settings.files},
            {"type": "nproc", "soft": settings.pids, "hard": settings.pids},
        ],
        "resource_limits": _limits(plan, settings),
        **_network(plan, settings),
    }
    if plan.command:
        body["entrypoint"] = list(plan.command)  # exactly this, whatever the image would put before it
        body["command"] = []
    if plan.time_limit:
        body["timeout"] = max(1, math.ceil(plan.time_limit + plan.grace))  # kept by conmon, whoever is there or not
    if root:
        first, count = settings.uids
        mapping = [{"container_id": 0, "host_id": first, "size": count}]
        body["userns"] = {"nsmode": "private"}
        body["idmappings"] = {"HostUIDMapping": False, "HostGIDMapping": False, "UIDMap": mapping, "GIDMap": mapping}
    devices = [_cdi(device.part) for device in plan.devices if device.kind is DeviceKind.GPU]
    if devices:
        body["cdi_devices"] = devices
    return body


def _bound(mount: MountPlan, source: str) -> dict[str, Any]:
    options = ["bind", "rprivate", "nosuid", "nodev", "ro" if mount.read_only else "rw"]
    return {"type": "bind", "source": source, "destination": mount.path, "options": options}


def is_bound(file: FilePlan) -> bool:
    """Whether a file is seen in place, not copied."""
    return file.shared and not file.unpack


def _seen(file: FilePlan) -> dict[str, Any]:
    options = ["bind", "rprivate", "nosuid", "nodev", "ro"]
    destination = os.path.normpath(os.path.join(WORK, file.path))
    return {"type": "bind", "source": os.path.realpath(file.source), "destination": destination, "options": options}


def _limits(plan: TaskPlan, settings: Settings) -> dict[str, Any]:
    limits: dict[str, Any] = {"pids": {"limit": settings.pids}}
    if plan.memory:
        limits["memory"] = {"limit": plan.memory, "swap": plan.memory}
    if plan.cpus:
        limits["cpu"] = {"cpus": ",".join(map(str, plan.cpus)), "mems": ",".join(map(str, plan.nodes))}
    else:
        limits["cpu"] = {"quota": max(1000, round(plan.cores * _PERIOD)), "period": _PERIOD}
    return limits


def _network(plan: TaskPlan, settings: Settings) -> dict[str, Any]:
    match plan.network:
        case Network.HOST:
            if not settings.host_network:
                raise DriverError("the operator does not give tasks this host's own network", lasting=True)
            return {"netns": {"nsmode": "host"}}
        case Network.OUTBOUND:
            options = {"slirp4netns": ["allow_host_loopback=false", "enable_ipv6=false"]}
            return {"netns": {"nsmode": "slirp4netns"}, "network_options": options}
        case Network.PROJECT if plan.card is not None:
            name, address = veth.hostname(plan.card), plan.card.interface.address
            names = [f"{name}.{plan.card.network.domain}:{address}", f"{name}:{address}"]
            return {"netns": {"nsmode": "none"}, "hostadd": names}  # its card is put in before it starts
        case _:
            return {"netns": {"nsmode": "none"}}


def _cdi(name: str) -> str:
    """A claimed device by its CDI name (Container Device Interface, as `nvidia-ctk cdi generate` writes them)."""
    part = Part.parse(name)
    if part.share or part.profile or part.mdev_type:
        raise DriverError(f"{name}: parts of devices cannot be given to containers yet", lasting=True)
    return f"nvidia.com/gpu={part.address}"
