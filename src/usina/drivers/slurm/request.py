"""A plan → what is asked of Slurm. Pure: names, resources and limits; each wire writes it in its own way.

A task of several replicas is one job with as many tasks, spread as Slurm likes unless the dialect says `nodes`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from usina.core.capacity import DeviceKind, DeviceRequest
from usina.core.task import TaskPlan
from usina.core.units import MiB, show_size
from usina.drivers.slurm.records import Gres, NodeRecord, gres_of
from usina.drivers.slurm.script import whole_cores
from usina.drivers.slurm.settings import WORD, Settings
from usina.ports.driver import DriverError

DIALECT: Final = {
    "partition": WORD,
    "account": WORD,
    "qos": WORD,
    "reservation": WORD,
    "constraint": re.compile(r"[A-Za-z0-9_(\[][A-Za-z0-9_.:&|*,()\[\]-]{0,255}\Z", re.ASCII),
    "dependency": re.compile(r"[a-z][A-Za-z0-9_:,?+-]{0,255}\Z", re.ASCII),
    "requeue": re.compile(r"(true|false)\Z"),
    "exclusive": re.compile(r"(true|false)\Z"),
    "nodes": re.compile(r"[1-9]\d{0,5}(-[1-9]\d{0,5})?\Z", re.ASCII),
}
PROFILE: Final = re.compile(r"\d+g\.\d+gb", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class JobRequest:
    name: str
    script: str
    partition: str
    cpus: int  # for each task
    tasks: int = 1
    memory: int = 0  # MiB for each task; 0: the partition's own measure
    gres: tuple[Gres, ...] = ()  # for each task
    nodes: str = ""  # "2" or "1-4"; "" lets Slurm choose
    minutes: int = 0  # 0: the partition's own limit
    array: str = ""
    output: str = "/dev/null"
    environment: Mapping[str, str] = field(default_factory=dict)
    account: str = ""
    qos: str = ""
    reservation: str = ""
    constraint: str = ""
    dependency: str = ""
    requeue: bool = False
    exclusive: bool = False

    @property
    def memory_per_cpu(self) -> int:
        return -(-self.memory // self.cpus)


def job_name(factory: str, handle: str) -> str:
    return f"usina-{factory}:{handle}"


def handle_in(factory: str, name: str) -> str:
    """The handle that a job's name says; "" where the job is not ours."""
    prefix = job_name(factory, "")
    return name[len(prefix) :] if name.startswith(prefix) and re.fullmatch(r"[\w.-]+", name[len(prefix) :]) else ""


def job_request(
    plan: TaskPlan,
    settings: Settings,
    nodes: Sequence[NodeRecord],
    script: str,
    output: str,
    environment: Mapping[str, str],
) -> JobRequest:
    """What is asked for `plan`. `nodes` are the partition's. Raises a lasting `DriverError` naming what cannot be."""
    dialect = checked_dialect(plan, settings)
    gres = tuple(gres_for(request, nodes) for request in plan.requests)
    check_fits(plan, gres, settings.partition, nodes)
    return JobRequest(
        name=job_name(settings.factory, plan.handle),
        script=script,
        partition=settings.partition,
        cpus=whole_cores(plan),
        tasks=plan.replicas,
        memory=-(-plan.memory // MiB),
        gres=gres,
        nodes=dialect.get("nodes", "1" if plan.replicas == 1 else ""),
        minutes=math.ceil(plan.time_limit / 60),
        array=spans(plan.indices) + (f"%{plan.at_once}" if plan.indices and plan.at_once else ""),
        output=output,
        environment=environment,
        account=dialect.get("account", settings.account),
        qos=dialect.get("qos", settings.qos),
        reservation=dialect.get("reservation", ""),
        constraint=dialect.get("constraint", ""),
        dependency=dialect.get("dependency", ""),
        requeue=dialect.get("requeue") == "true",
        exclusive=dialect.get("exclusive") == "true",
    )


def checked_dialect(plan: TaskPlan, settings: Settings) -> Mapping[str, str]:
    """Raises a lasting `DriverError` that names the word."""
    for name, value in plan.dialect.items():
        if name not in DIALECT:
            raise DriverError(f"slurm knows no {name[:40]!r}; it knows {', '.join(DIALECT)}", lasting=True)
        if not DIALECT[name].match(value):
            raise DriverError(f"{name}: {value[:80]!r} is not what Slurm takes there", lasting=True)
    wanted = plan.dialect.get("partition", settings.partition)
    if wanted != settings.partition:
        raise DriverError(f"partition: {wanted} is wanted, and this is {settings.partition}", lasting=True)
    return plan.dialect


def gres_for(request: DeviceRequest, nodes: Iterable[NodeRecord]) -> Gres:
    """The generic resource that fits a request, of those that the partition's nodes have."""
    if request.kind is not DeviceKind.GPU or request.mdev_type or request.share:
        raise DriverError("Slurm gives whole GPUs and MIG parts only", lasting=True)
    kinds = {(gres.name, gres.type) for node in nodes for gres in gres_of(node.gres) if gres.name == "gpu"}
    fitting = sorted(type_ for _, type_ in kinds if _fits(request, type_))
    if not fitting:
        what = request.profile or request.model or "any"
        raise DriverError(f"the partition has no GPU such as {what}; it has {_names(kinds)}", lasting=True)
    whichever = not request.profile and not request.model and not any(PROFILE.search(type_) for _, type_ in kinds)
    return Gres("gpu", "" if whichever else fitting[0], request.count)


def check_fits(plan: TaskPlan, gres: Sequence[Gres], partition: str, nodes: Sequence[NodeRecord]) -> None:
    """Refuse what no node could ever run: many clusters would keep it in their queue for good."""
    cores, memory = whole_cores(plan), plan.memory
    if all(node.cpus < cores or node.memory < memory for node in nodes):
        most = f"{max(n.cpus for n in nodes)} cores and {show_size(max(n.memory for n in nodes))}" if nodes else "none"
        wanted = f"{cores} cores and {show_size(memory)}"
        raise DriverError(f"no node of partition {partition} has {wanted}; the largest has {most}", lasting=True)
    for one in gres:
        if not any(_has(node, one) for node in nodes):
            name = one.type or one.name
            raise DriverError(f"no node of partition {partition} has {one.count} x {name}", lasting=True)
    wanted_nodes = int(plan.dialect.get("nodes", "1").partition("-")[0])
    if wanted_nodes > len(nodes):
        raise DriverError(f"nodes: partition {partition} has {len(nodes)}, not {wanted_nodes}", lasting=True)


def _has(node: NodeRecord, wanted: Gres) -> bool:
    return wanted.count <= sum(
        gres.count for gres in gres_of(node.gres) if gres.name == wanted.name and wanted.type in ("", gres.type)
    )


def _fits(request: DeviceRequest, type_: str) -> bool:
    profile = PROFILE.search(type_)
    if request.profile:
        return profile is not None and profile[0].lower() == request.profile.lower()
    if profile:
        return False  # a part is not a whole
    models = (request.model or "").lower().split("|")
    return any(model in type_.lower() for model in models) if request.model else True


def _names(kinds: Iterable[tuple[str, str]]) -> str:
    return ", ".join(sorted(type_ or name for name, type_ in kinds)) or "none"


def spans(indices: Sequence[int]) -> str:
    """(0, 1, 2, 5) → ``0-2,5``."""
    found: list[list[int]] = []
    for index in sorted(set(indices)):
        if found and index == found[-1][1] + 1:
            found[-1][1] = index
        else:
            found.append([index, index])
    return ",".join(f"{first}-{last}" if last > first else str(first) for first, last in found)
