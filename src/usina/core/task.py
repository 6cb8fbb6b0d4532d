"""Task: a command or a container, run to its end or kept running. The wish, the sight, and what a driver is told.

`TaskSpec` is what the member wants and is stored. A task is carried out in *runs*, one after the other (a restart, a
rerun); `Queued`, `Running` and `Ended` are how a run looks on its stack. `TaskPlan` is the wish for one run with every
name resolved: the one thing a driver needs. The same spec runs on any stack.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from usina.core.capacity import DeviceKind, DeviceRequest
from usina.core.machine import Absent, Card, Interface, Restart, Unreachable
from usina.core.units import Instant


class Network(StrEnum):
    """What a task reaches."""

    NONE = "none"  # only itself
    OUTBOUND = "outbound"  # the world outside, by way of its host; nobody reaches it but through Usina
    HOST = "host"  # its host's own network; for stacks that have nothing else, and where the operator allows it
    PROJECT = "project"  # a network of its project, on which it has an interface


class End(StrEnum):
    """How a run ended."""

    EXITED = "exited"  # by itself; the exit code says how well
    TIME_LIMIT = "time-limit"
    MEMORY = "out-of-memory"
    STOPPED = "stopped"  # because Usina was asked to
    CANCELLED = "cancelled-outside"  # by somebody else, on its stack
    NODE_FAILED = "node-failed"  # with what it ran on; nobody knows how far it came
    NOT_STARTED = "could-not-start"  # nothing of it ever ran: no such command, no such image


class Fulfils(StrEnum):
    """What a task waits for in another."""

    SUCCESS = "success"
    END = "end"


@dataclass(frozen=True, slots=True)
class File:
    """Content put into a task's working directory (or elsewhere) before it starts."""

    digest: str  # sha256 of the blob, hex
    path: str = ""  # relative to the working directory, or absolute; "" with `unpack`: the working directory itself
    unpack: bool = False  # a tar.gz, unpacked at `path`
    mode: int = 0o644
    shared: bool = False  # read-only, and seen in place where the stack can: not copied for each run


@dataclass(frozen=True, slots=True)
class Mount:
    """A volume of its project, seen at a path while a task runs."""

    volume: str  # id
    path: str  # absolute; below `WORK` it lies over the working directory
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class Health:
    """Asked again and again while a task runs: a command that exits 0, a port that answers, or a page that is found."""

    command: tuple[str, ...] = ()
    port: int = 0
    path: str = ""  # HTTP GET on `port`; 2xx and 3xx are well
    every: float = 10.0  # seconds
    limit: float = 5.0  # seconds that an answer may take
    failures: int = 3  # in a row, until it is unwell
    patience: float = 60.0  # seconds after the start in which failures do not count


@dataclass(frozen=True, slots=True)
class Dependency:
    task: str
    on: Fulfils = Fulfils.SUCCESS


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """Sizes in bytes, times in seconds."""

    on: str  # the stack, as drivers name theirs: "local", "container", "slurm"
    command: tuple[str, ...] = ()
    image: str = ""  # a reference, for stacks that have images
    archive: str = ""  # digest of an OCI or Docker archive to be the image
    tool: str = ""  # a program that hosts of its stack have by this name; `command` is what it is told
    environment: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict)  # name -> sealed value; in the environment when it runs
    files: tuple[File, ...] = ()
    workdir: str = ""
    volumes: tuple[Mount, ...] = ()
    outputs: tuple[str, ...] = ()  # patterns in the working directory, kept as artifacts when it has ended
    ports: tuple[int, ...] = ()
    network: Network = Network.NONE
    interface: Interface | None = None  # on a network of its project
    cores: float = 1.0
    memory: int = 0
    disk: int = 0
    devices: tuple[DeviceRequest, ...] = ()
    time_limit: float = 0.0  # 0: none
    grace: float = 10.0  # between being asked to end and being killed
    restart: Restart = Restart.NEVER
    retries: int = 3  # restarts after failures; not counted where `restart` is "always"
    health: Health | None = None
    after: tuple[Dependency, ...] = ()
    indices: tuple[int, ...] = ()  # an array: the same command once for each
    at_once: int = 0  # of an array, so many run at a time; 0: as many as fit
    replicas: int = 1  # a gang: so many at the same time, or none
    parent: str = ""  # the array or gang that this task is a part of
    index: int = 0  # in the array, or rank in the gang
    dialect: Mapping[str, str] = field(default_factory=dict)  # what only one stack understands: "partition", "qos" …
    traits: frozenset[str] = frozenset()  # that its provider must have besides
    member: str = ""  # who ordered it; stacks that know people run it as the same person
    idle_limit: float = 0.0  # seconds without anybody at its terminal after which it is ended; 0: never
    host: str | None = None
    machine: str = ""  # id of the machine of its project that it runs in, on the stack of machines
    # Deeds wished for are counters: a rerun is asked for by one more than there were.
    reruns: int = 0
    stopped: bool = False
    priority: int = 0
    preemptible: bool = False


@dataclass(frozen=True, slots=True)
class Usage:
    """What a run has used so far."""

    cpu: float = 0.0  # seconds of one core
    memory: int = 0  # now
    peak: int = 0  # most memory ever
    devices: tuple[DeviceUse, ...] = ()
    at: Instant = 0.0


@dataclass(frozen=True, slots=True)
class DeviceUse:
    address: str
    busy: float = 0.0  # share of time, 0 to 1
    memory: int = 0


@dataclass(frozen=True, slots=True)
class Unit:
    """One element of an array, or one rank of a gang, on a stack that runs them as a whole."""

    index: int
    state: str  # "queued" | "running" | "ended"
    code: int | None = None
    how: End | None = None
    node: str = ""
    since: Instant = 0.0
    at: Instant = 0.0


@dataclass(frozen=True, slots=True)
class Queued:
    """Its stack has it and has not begun."""

    reason: str = ""
    job: str = ""  # what the stack calls it
    estimate: Instant | None = None  # when the stack thinks it will begin
    units: tuple[Unit, ...] = ()


@dataclass(frozen=True, slots=True)
class Running:
    since: Instant
    job: str = ""
    nodes: tuple[str, ...] = ()
    units: tuple[Unit, ...] = ()


@dataclass(frozen=True, slots=True)
class Ended:
    """A run that is over; it stays visible until `remove`."""

    at: Instant
    how: End
    code: int | None = None  # exit code; 128 + signal for one that was killed; None where nothing ever ran
    message: str = ""  # one sentence for people, where `how` and `code` do not say it
    since: Instant = 0.0  # 0: it never began
    usage: Usage | None = None
    job: str = ""
    nodes: tuple[str, ...] = ()
    units: tuple[Unit, ...] = ()
    silent: bool = False  # it is known to have no log


Sight = Absent | Unreachable | Queued | Running | Ended


@dataclass(frozen=True, slots=True)
class Artifact:
    name: str
    digest: str
    size: int


@dataclass(frozen=True, slots=True)
class TaskStatus:
    """What is known of a task. `run` counts runs from 1; 0: none was begun."""

    run: int = 0
    reruns: int = 0  # of the wish, those that are begun
    failures: int = 0  # failed runs of this wish
    admitted: int = 0  # of the whole of an array: so many parts have had their turn, in order
    in_line: bool = False  # and the last of them stand in line for a place
    job: str = ""
    nodes: tuple[str, ...] = ()
    estimate: Instant | None = None
    began_at: Instant | None = None
    ended_at: Instant | None = None
    how: End | None = None
    code: int | None = None
    message: str = ""
    usage: Usage | None = None
    healthy: bool | None = None
    unwell: int = 0  # answers in a row that were not well
    asked_at: Instant = 0.0  # how it is
    units: tuple[Unit, ...] = ()
    artifacts: tuple[Artifact, ...] = ()
    progress: float = 0.0  # of what comes before the start, such as pulling an image; 0 to 1
    doing: str = ""


@dataclass(frozen=True, slots=True)
class FilePlan:
    source: str  # path on the control plane
    path: str  # as `File.path`
    unpack: bool = False
    mode: int = 0o644
    shared: bool = False  # see `File`; the name of `source` is its sha256


@dataclass(frozen=True, slots=True)
class MountPlan:
    volume: str  # its handle on its host
    path: str  # as `Mount.path`
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class GivenDevice:
    """A device, or a part of one, that a run may see; `part` is its name in the claim (see `core.capacity.Part`)."""

    part: str
    kind: DeviceKind


@dataclass(frozen=True, slots=True)
class Inside:
    """The machine that a run is in, and who it is there."""

    machine: str  # its handle on its host
    address: str  # IPv4
    user: str
    rebuilds: int = 0  # how often it was rebuilt: a rebuilt machine is another one


@dataclass(frozen=True, slots=True)
class TaskPlan:
    """Everything a driver must know to start one run."""

    handle: str  # "tsk-….3": the third run
    project: str  # id; runs of one project may share caches, those of two never anything
    title: str = ""  # for people who look at the host: tenant/project/name
    command: tuple[str, ...] = ()
    image: str = ""
    archive: str = ""  # path of an OCI or Docker archive on the control plane; the file is called by its digest
    tool: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)  # secrets included
    secret: frozenset[str] = frozenset()  # names in `environment` whose values must never be shown
    files: tuple[FilePlan, ...] = ()
    workdir: str = ""
    volumes: tuple[MountPlan, ...] = ()
    ports: tuple[int, ...] = ()
    network: Network = Network.NONE
    card: Card | None = None  # where the network is one of its project
    cores: float = 1.0
    memory: int = 0
    disk: int = 0
    devices: tuple[GivenDevice, ...] = ()
    cpus: tuple[int, ...] = ()
    nodes: tuple[int, ...] = ()  # NUMA nodes
    time_limit: float = 0.0
    grace: float = 10.0
    requests: tuple[DeviceRequest, ...] = ()  # for stacks that choose devices themselves
    indices: tuple[int, ...] = ()  # for stacks that run arrays themselves
    at_once: int = 0
    replicas: int = 1
    identity: str = ""  # the Unix name to be, on stacks that know people
    inside: Inside | None = None  # on the stack of machines
    dialect: Mapping[str, str] = field(default_factory=dict)


WORK = "/work"
"""Where tasks see their working directory, on stacks that have volumes."""

LAUNCH_PORT = "29500"
"""Where launchers of PyTorch and its like meet, unless they are told otherwise."""


def gang_environment(addresses: Sequence[str], rank: int) -> dict[str, str]:
    """What a rank of a gang on a network finds about its peers: `addresses` in order of rank. The upper half as Usina
    calls it, the lower as launchers do (https://pytorch.org/docs/stable/elastic/run.html#environment-variables)."""
    return {
        "USINA_PEERS": ",".join(addresses),
        "USINA_REPLICAS": str(len(addresses)),
        "MASTER_ADDR": addresses[0],
        "MASTER_PORT": LAUNCH_PORT,
        "WORLD_SIZE": str(len(addresses)),
        "RANK": str(rank),
    }


def handle_of(task: str, run: int) -> str:
    """What a run is called on its stack."""
    return f"{task}.{run}"


def task_of(handle: str) -> str:
    """The task that a run belongs to."""
    return handle.partition(".")[0]


def run_of(handle: str) -> int:
    """Which of its task's runs it is."""
    return int(handle.rpartition(".")[2])


def secret_values(plan: TaskPlan) -> tuple[str, ...]:
    """What must not be shown, the longest first, so that a secret within a secret is hidden whole."""
    values = {plan.environment[name] for name in plan.secret if plan.environment.get(name)}
    return tuple(sorted(values, key=len, reverse=True))
