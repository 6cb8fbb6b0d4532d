"""What a member asks for in a task, and whether it makes sense: everything about an order that needs no look at the
house, but which stacks it has."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from usina.app.machines import LARGEST_PRIORITY, check_device
from usina.core.capacity import DeviceRequest
from usina.core.errors import Invalid
from usina.core.machine import Restart
from usina.core.mounts import check_mounts
from usina.core.names import check_labels, check_name, check_range, check_ref
from usina.core.task import Dependency, File, Health, Mount, Network
from usina.core.units import KiB, MiB, TiB
from usina.ports.driver import DriverPlugin

LARGEST_ARRAY = 2000
LARGEST_GANG = 256
LONGEST = 366 * 86_400.0
ENVIRONMENT = 256 * KiB  # bytes of names and values together
ARGUMENTS = 128 * KiB
_NETWORKS = (Network.NONE.value, Network.OUTBOUND.value, Network.HOST.value)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}\Z")
_DIALECT = re.compile(r"[a-z][a-z_-]{0,31}\Z")


@dataclass(frozen=True, slots=True)
class TaskOrder:
    """What a member asks for; sizes in bytes, times in seconds."""

    command: tuple[str, ...] = ()
    name: str | None = None
    on: str = "local"
    project: str | None = None
    image: str = ""
    archive: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict)
    files: tuple[File, ...] = ()
    workdir: str = ""
    volumes: tuple[Mount, ...] = ()  # by name or id
    outputs: tuple[str, ...] = ()
    ports: tuple[int, ...] = ()
    network: str = Network.NONE.value  # or the name or id of a network of the project
    security_groups: tuple[str, ...] | None = None  # on that; None: the project's default
    cores: float = 1.0
    memory: int = 1 << 30
    disk: int = 0
    devices: tuple[DeviceRequest, ...] = ()
    time_limit: float = 0.0
    grace: float = 10.0
    restart: Restart = Restart.NEVER
    retries: int = 3
    health: Health | None = None
    after: tuple[Dependency, ...] = ()  # by name or id
    indices: tuple[int, ...] = ()
    at_once: int = 0
    replicas: int = 1
    dialect: Mapping[str, str] = field(default_factory=dict)
    idle_limit: float = 0.0
    host: str | None = None
    machine: str = ""  # by name or id
    labels: dict[str, str] = field(default_factory=dict)
    priority: int = 0
    preemptible: bool = False


def check_order(order: TaskOrder, plugins: Mapping[str, DriverPlugin]) -> DriverPlugin:
    """The plugin of the order's stack. `plugins` by stack. Raises `Invalid` naming the field."""
    if order.on not in plugins:
        raise Invalid(f"on: {order.on!r} is not one of {', '.join(sorted(plugins))}", field="on")
    if order.name is not None:
        check_name(order.name)
    if not order.command and not (order.image or order.archive):
        raise Invalid("command: say what to run", field="command")
    _check_words(order)
    _check_sizes(order)
    _check_files(order)
    check_labels(order.labels)
    _check_network(order, plugins[order.on])
    _check_machine(order, plugins[order.on])
    _check_volumes(order, plugins[order.on])
    for number, device in enumerate(order.devices):
        check_device(device, f"devices[{number}]")
    if order.indices and order.replicas > 1:
        raise Invalid("replicas: an array of gangs cannot be ordered yet", field="replicas")
    if order.replicas > 1 and order.restart is not Restart.NEVER:
        raise Invalid("restart: a gang is run once", field="restart")
    if order.health is not None:
        _check_health(order.health)
    return plugins[order.on]


def network_of(order: TaskOrder) -> Network:
    """The kind of network that it asks for."""
    return Network(order.network) if order.network in _NETWORKS else Network.PROJECT


def _check_network(order: TaskOrder, plugin: DriverPlugin) -> None:
    if network_of(order) is not Network.PROJECT:
        if order.security_groups is not None:
            raise Invalid("security_groups: only on a network of the project", field="security_groups")
        return
    check_ref(order.network, "network")
    check_range(len(order.security_groups or ()), 0, 16, "security_groups")
    if not plugin.networks:
        raise Invalid(f"network: on {order.on} it is one of {', '.join(_NETWORKS)}", field="network")


def _check_machine(order: TaskOrder, plugin: DriverPlugin) -> None:
    if not plugin.inside:
        if order.machine:
            raise Invalid(f"machine: on {order.on}, tasks run in no machine of the project", field="machine")
        return
    if not order.machine:
        raise Invalid("machine: say in which machine of the project", field="machine")
    check_ref(order.machine, "machine")
    for name in ("image", "archive", "devices", "disk", "host"):
        if getattr(order, name):
            raise Invalid(f"{name}: a task in a machine has what the machine has", field=name)
    if order.replicas > 1:
        raise Invalid("replicas: a gang cannot be run in one machine; order an array", field="replicas")


def _check_volumes(order: TaskOrder, plugin: DriverPlugin) -> None:
    for number, mount in enumerate(order.volumes):
        check_ref(mount.volume, f"volumes[{number}].volume")
    if order.volumes and not plugin.volumes:
        raise Invalid(f"volumes: tasks on {order.on} have no volumes", field="volumes")
    check_mounts(order.volumes, order.workdir, order.files)


def _check_words(order: TaskOrder) -> None:
    """What becomes an argument, a variable, or a word of a stack."""
    if sum(len(word.encode()) + 1 for word in order.command) > ARGUMENTS:
        raise Invalid(f"command: at most {ARGUMENTS // KiB} KiB", field="command")
    if any("\0" in word for word in order.command):
        raise Invalid("command: no zero bytes", field="command")
    if set(order.environment) & set(order.secrets):
        raise Invalid("secrets: a variable is secret or it is not", field="secrets")
    for where, variables in (("environment", order.environment), ("secrets", order.secrets)):
        if sum(len(k) + len(v.encode()) for k, v in variables.items()) > ENVIRONMENT:
            raise Invalid(f"{where}: at most {ENVIRONMENT // KiB} KiB", field=where)
        for name, value in variables.items():
            if not _VARIABLE.match(name) or "\0" in value:
                raise Invalid(f"{where}: {name[:40]!r} is not a variable's name, or its value no text", field=where)
    for name, value in order.dialect.items():
        if not _DIALECT.match(name) or len(value) > 255 or not value.isprintable():
            raise Invalid(f"dialect.{name[:32]}: a short word and a printable value", field="dialect")
    check_range(len(order.dialect), 0, 32, "dialect")


def _check_sizes(order: TaskOrder) -> None:
    if not 0.001 <= order.cores <= 1024 or round(order.cores, 3) != order.cores:
        raise Invalid("cores: must be between 0.001 and 1024, in thousandths", field="cores")
    check_range(order.memory, 4 * MiB, 64 * TiB, "memory")
    check_range(order.disk, 0, 1024 * TiB, "disk")
    check_range(len(order.devices), 0, 16, "devices")
    check_range(len(order.ports), 0, 64, "ports")
    for number, port in enumerate(order.ports):
        check_range(port, 1, 65535, f"ports[{number}]")
    for name in ("time_limit", "idle_limit"):
        if not 0 <= getattr(order, name) <= LONGEST:
            raise Invalid(f"{name}: must be between 0 and {LONGEST:g} seconds", field=name)
    if not 0 <= order.grace <= 3600:
        raise Invalid("grace: must be between 0 and 3600 seconds", field="grace")
    check_range(order.retries, 0, 1000, "retries")
    check_range(order.replicas, 1, LARGEST_GANG, "replicas")
    check_range(order.at_once, 0, LARGEST_ARRAY, "at_once")
    check_range(len(order.indices), 0, LARGEST_ARRAY, "indices")
    if len(set(order.indices)) != len(order.indices) or any(not 0 <= i < 1 << 31 for i in order.indices):
        raise Invalid("indices: each once, not negative", field="indices")
    if order.at_once and not order.indices:
        raise Invalid("at_once: only an array has parts", field="at_once")
    check_range(order.priority, -LARGEST_PRIORITY, LARGEST_PRIORITY, "priority")


def _check_files(order: TaskOrder) -> None:
    check_range(len(order.files), 0, 64, "files")
    check_range(len(order.outputs), 0, 32, "outputs")
    for number, file in enumerate(order.files):
        _check_path(file.path, f"files[{number}].path", empty=file.unpack)
    for number, pattern in enumerate(order.outputs):
        _check_path(pattern, f"outputs[{number}]", absolute=False)
    _check_path(order.workdir, "workdir", empty=True)


def _check_path(path: str, field: str, *, empty: bool = False, absolute: bool = True) -> None:
    parts = PurePosixPath(path).parts
    bad = ".." in parts or not path.isprintable() or len(path) > 1024 or (not absolute and path.startswith("/"))
    if bad or (not path and not empty):
        raise Invalid(
            f"{field}: a path without '..'" + ("" if absolute else ", within the working directory"), field=field
        )


def _check_health(health: Health) -> None:
    if bool(health.command) == bool(health.port):
        raise Invalid("health: a command or a port", field="health")
    if health.path and (not health.port or not health.path.startswith("/") or not health.path.isprintable()):
        raise Invalid("health.path: begins with '/', and needs a port", field="health.path")
    if health.every < 1 or not 0 < health.limit <= 60 or not 1 <= health.failures <= 100 or health.patience < 0:
        raise Invalid("health: every >= 1 s, limit up to 60 s, failures from 1 to 100", field="health")
