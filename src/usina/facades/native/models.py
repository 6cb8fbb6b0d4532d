"""What comes in at the native door: request bodies. Unknown fields are refused, sizes are bytes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from usina.core.capacity import DeviceKind, Numa
from usina.core.goods import Form, Visibility
from usina.core.machine import Firmware, Restart
from usina.core.task import Fulfils

NAME = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
REF = r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?$"
TEXT = r"^[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f]*$"

Name = Annotated[str, StringConstraints(pattern=NAME, min_length=1, max_length=63)]
Ref = Annotated[str, StringConstraints(pattern=REF, min_length=1, max_length=64)]
RefOrNone = Annotated[str, StringConstraints(pattern=f"^$|{REF}", max_length=64)]
Size = Annotated[int, Field(ge=0, le=1 << 60)]
Text = Annotated[str, StringConstraints(max_length=8192, pattern=TEXT)]
Labels = Annotated[
    dict[
        Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=r"^[ -~]+$")],
        Annotated[str, StringConstraints(max_length=255, pattern=r"^[ -~]*$")],
    ],
    Field(max_length=32),
]


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class TenantIn(Body):
    name: Name


class ProjectIn(Body):
    name: Name
    tenant: Ref


class Rename(Body):
    name: Name


RoleWord = Literal["viewer", "member", "admin", "operator"]


class MemberIn(Body):
    name: Ref
    tenant: Ref | None = Field(None, description="The tenant the member belongs to; none for an operator of the site.")
    email: Annotated[str, StringConstraints(max_length=254, pattern=r"^[ -~]*$")] = ""
    ssh_keys: list[Text] = Field(default=[], max_length=20)
    roles: dict[str, RoleWord] = Field(
        default={},
        description="Scope (tenant or project, by id or name, or * for the site) to role.",
        max_length=100,
    )


class MemberChange(Body):
    email: Annotated[str, StringConstraints(max_length=254, pattern=r"^[ -~]*$")] | None = None
    ssh_keys: list[Text] | None = Field(None, max_length=20)
    disabled: bool | None = None


class RoleIn(Body):
    scope: Annotated[str, StringConstraints(max_length=64, pattern=r"^(\*|[A-Za-z0-9][A-Za-z0-9._-]*)$")]
    role: RoleWord | None = Field(description="None takes the role away.")


class LimitsIn(Body):
    """Of a key at the gateway of models; 0 or nothing: no limit."""

    models: list[Text] = Field(default=[], max_length=100, description="Names of endpoints.")
    requests: int = Field(0, ge=0, description="Per minute.")
    tokens: int = Field(0, ge=0, description="Per minute, of prompts and answers.")
    concurrency: int = Field(0, ge=0, description="Requests at a time.")
    priority: int = Field(0, ge=-1, le=1, description="Where replicas are full: -1 after all others, 1 before them.")


class PromptsIn(Body):
    days: int = Field(ge=0, le=3660, description="That prompts and answers are kept; 0: not at all.")


class BudgetIn(Body):
    tokens: int = Field(ge=0, le=10**15)
    every: str = Field("never", pattern="^(never|day|month)$", description="When it begins anew, in UTC.")


class KeyIn(Body):
    name: Ref
    member: Ref = "me"
    project: Ref | None = Field(None, description="The key works in this project only.")
    role: RoleWord | None = Field(None, description="The key can do at most this.")
    expires_at: Annotated[str, StringConstraints(max_length=40)] | None = Field(None, description="RFC 3339.")
    limits: LimitsIn | None = Field(None, description="At the gateway of models.")


class KeyRotate(Body):
    expires_at: Annotated[str, StringConstraints(max_length=40)] | None = None


class QuotaIn(Body):
    """Limits; null means no limit, an absent measure stays as it is."""

    machines: Size | None = None
    cores: Size | None = None
    memory: Size | None = None
    disk: Size | None = None
    gpus: Size | None = None
    addresses: Size | None = None
    tasks: Size | None = None


class HostIn(Body):
    name: Name
    driver: Ref
    options: dict[str, Any] = Field(default={}, max_length=50)
    cpu_ratio: float = Field(1.0, ge=0.1, le=64)
    also: dict[Ref, dict[str, Any]] = Field(
        default={}, max_length=8, description="Further drivers of the same host, with their options."
    )


class AdoptIn(Body):
    name: Name
    driver: Ref
    options: dict[str, Any] = Field(default={}, max_length=50)


class TopologyIn(Body):
    """The domain of each level; "" takes it away, an absent level stays as it is."""

    site: RefOrNone | None = None
    block: RefOrNone | None = None
    rack: RefOrNone | None = None
    nvlink: RefOrNone | None = None


class WindowIn(Body):
    begins: Annotated[str, StringConstraints(max_length=40)] = Field(description="RFC 3339.")
    ends: Annotated[str, StringConstraints(max_length=40)] = Field(description="RFC 3339.")


class HostChange(Body):
    """What the operator says of a host. What is absent stays as it is."""

    topology: TopologyIn | None = None
    group: RefOrNone | None = Field(None, description='Provider group; "" takes it out.')
    cpu_ratio: float | None = Field(None, ge=0.1, le=64, description="Shared cores sold per real one.")
    memory_ratio: float | None = Field(None, ge=0.1, le=10, description="Ordinary memory sold per real byte.")
    tenants: list[Ref] | None = Field(
        None, max_length=100, description="Dedicated to these, by name or id; [] makes it everybody's."
    )
    maintenance: list[WindowIn] | None = Field(None, max_length=32, description="Instead of those there are.")
    price: int | None = Field(None, ge=0, le=1 << 53, description="Micro-credits an hour for all of it.")
    also: dict[Ref, dict[str, Any] | None] | None = Field(
        None, max_length=8, description="Further drivers to add or change; null takes one away."
    )


class ImageIn(Body):
    """Exactly one of `recipe`, `url` and `upload`."""

    name: Name
    project: Ref | None = None
    recipe: Ref | None = None
    url: Annotated[str, StringConstraints(max_length=2000, pattern=r"^https?://[!-~]+$")] | None = None
    upload: bool = False
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-fA-F]{64}$")] | None = None
    visibility: Annotated[Visibility, Field(strict=False)] = Visibility.PROJECT
    user: Ref | None = Field(None, description="The name to log in with.")
    labels: Labels = {}


class ImageChange(Body):
    visibility: Annotated[Visibility, Field(strict=False)]


class ImageComplete(Body):
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-fA-F]{64}$")] | None = None


class NetworkIn(Body):
    name: Name
    project: Ref | None = None
    cidr: Annotated[str, StringConstraints(max_length=18, pattern=r"^[0-9./]+$")] | None = None
    labels: Labels = {}


class RuleIn(Body):
    direction: Literal["in", "out"]
    protocol: Literal["tcp", "udp", "icmp", "all"] = "all"
    ports: Annotated[list[Annotated[int, Field(ge=1, le=65535)]], Field(min_length=2, max_length=2)] | None = Field(
        None, description="First and last port, for tcp and udp; all when absent."
    )
    remote: Annotated[str, StringConstraints(max_length=18, pattern=r"^[0-9./]+$")] = "0.0.0.0/0"


class GroupIn(Body):
    name: Name
    project: Ref | None = None
    rules: list[RuleIn] = Field(default=[], max_length=100)
    labels: Labels = {}


class RulesIn(Body):
    rules: list[RuleIn] = Field(max_length=100)


class ForwardIn(Body):
    machine: Ref
    port: int = Field(ge=1, le=65535)
    listen: int | None = Field(None, ge=1, le=65535)
    name: Name | None = None
    project: Ref | None = None


class VolumeIn(Body):
    name: Name
    size: Size
    project: Ref | None = None
    host: Ref | None = Field(None, description="Operators may name the host.")
    form: Annotated[Form, Field(strict=False)] = Field(
        Form.DISK, description="`disk`: a block device for one machine; `folder`: files, for many tasks at a time."
    )
    labels: Labels = {}


class VolumeChange(Body):
    size: Size


class CardIn(Body):
    network: Ref = "default"
    security_groups: list[Ref] = Field(default=["default"], max_length=8)
    address: Annotated[str, StringConstraints(max_length=15, pattern=r"^[0-9.]+$")] | None = None


Level = Literal["site", "block", "rack", "nvlink", "host"]


class DeviceIn(Body):
    kind: Annotated[DeviceKind, Field(strict=False)] = DeviceKind.GPU
    count: int = Field(1, ge=1, le=16)
    model: Annotated[str, StringConstraints(max_length=100, pattern=r"^[ -~]+$")] | None = Field(
        None, description='Part of the model\'s name, or "vendor:device"; several are put as "A|B".'
    )
    memory: Size = Field(0, description="Bytes that each has at least.")
    linked: bool = Field(False, description="All of them joined by NVLink.")
    traits: list[Ref] = Field(default=[], max_length=16, description="What each must have.")
    mdev_type: Annotated[str, StringConstraints(max_length=100, pattern=r"^[A-Za-z0-9._-]+$")] | None = None


class MachineIn(Body):
    name: Name
    image: Ref
    project: Ref | None = None
    cores: int = Field(1, ge=1, le=1024)
    memory: Size = Field(1 << 30, description="Bytes; whole MiB.")
    disk: Size = Field(10 << 30, description="Bytes of the root disk.")
    interfaces: list[CardIn] = Field(default=[CardIn()], max_length=8)
    volumes: list[Ref] = Field(default=[], max_length=16)
    ssh_keys: list[Text] | None = Field(None, max_length=20, description="Absent: the member's own.")
    user_data: Annotated[str, StringConstraints(max_length=1 << 20)] | None = Field(
        None, description="cloud-init user-data, 64 KiB at most."
    )
    hostname: Name | None = None
    pinned: bool = Field(False, description="Whole host cores of its own.")
    numa_nodes: int = Field(0, ge=0, le=16, description="Spread evenly over so many NUMA nodes; 0: anywhere.")
    hugepage: Size = Field(0, description="Page size in bytes: 0, 2 MiB or 1 GiB.")
    firmware: Annotated[Firmware, Field(strict=False)] = Firmware.BIOS
    queues: int = Field(1, ge=1, le=256, description="Queues of each virtio network card.")
    devices: list[DeviceIn] = Field(default=[], max_length=16)
    restart: Annotated[Restart, Field(strict=False)] = Restart.NEVER
    host: Ref | None = Field(None, description="Operators may name the host.")
    labels: Labels = {}
    numa: Annotated[Numa, Field(strict=False)] = Field(
        Numa.NONE, description="Cores, memory and devices on one NUMA node; instead of `numa_nodes`."
    )
    whole_cores: bool = Field(False, description="Pinned, and no hardware thread of its cores is anybody else's.")
    near: list[Ref] = Field(
        default=[], max_length=16, description="On the host of these: machines, or groups of the project."
    )
    apart: list[Ref] = Field(
        default=[], max_length=16, description="Not on the host of any of these: machines, or groups of the project."
    )
    group: Name | None = Field(None, description="A label that `near`, `apart` and `spread_over` go by.")
    spread_over: Level | None = Field(None, description="No two members of `group` in one of these.")
    priority: int = Field(0, ge=-100, le=100, description="Higher may push lower aside; above 0 for operators.")
    preemptible: bool = Field(False, description="May be pushed aside.")
    tasks: bool = Field(True, description="Tasks of the project may be run in it; it lets in a key for them.")


class MachinesIn(MachineIn):
    """Several alike: `name` gets a number for each, from `name-1` on. All or none."""

    count: int = Field(ge=1, le=500)


class MachineChange(Body):
    """A new size. Cores and memory take effect by a stop and a start."""

    cores: int | None = Field(None, ge=1, le=1024)
    memory: Size | None = None
    disk: Size | None = None
    labels: Labels | None = None


class RebuildIn(Body):
    image: Ref | None = None


class SnapshotIn(Body):
    name: Name


class AttachIn(Body):
    volume: Ref


Variables = Annotated[dict[str, Annotated[str, StringConstraints(max_length=1 << 17)]], Field(max_length=256)]
PathText = Annotated[str, StringConstraints(max_length=1024)]
DIGEST = r"^[0-9a-f]{64}$"
Digest = Annotated[str, StringConstraints(pattern=DIGEST)]


class FileIn(Body):
    digest: Digest = Field(description="sha256 of content that was given to the project (`PUT /blobs/{digest}`).")
    path: PathText = Field("", description="In the working directory, or absolute; empty with `unpack`: all of it.")
    unpack: bool = Field(False, description="A tar.gz, unpacked there.")
    mode: int = Field(0o644, ge=0, le=0o777)


class HealthIn(Body):
    """A command that exits 0, or a port that answers; with `path`, a page that is found."""

    command: list[Annotated[str, StringConstraints(max_length=8192)]] = Field(default=[], max_length=256)
    port: int = Field(0, ge=0, le=65535)
    path: PathText = ""
    every: float = Field(10.0, ge=1, le=3600, description="Seconds.")
    limit: float = Field(5.0, gt=0, le=60, description="Seconds that an answer may take.")
    failures: int = Field(3, ge=1, le=100, description="In a row, until it is unwell.")
    patience: float = Field(60.0, ge=0, le=86400, description="Seconds after the start without consequences.")


class DependencyIn(Body):
    task: Ref
    on: Annotated[Fulfils, Field(strict=False)] = Fulfils.SUCCESS


class TaskDeviceIn(DeviceIn):
    share: int = Field(0, ge=0, le=999, description="Thousandths of one device; 0: all of it.")
    profile: Annotated[str, StringConstraints(max_length=40, pattern=r"^[A-Za-z0-9.+_-]+$")] | None = Field(
        None, description='A partition: a MIG profile ("1g.10gb") or a mode ("cpx").'
    )


class MountIn(Body):
    volume: Ref
    path: Annotated[str, StringConstraints(min_length=1, max_length=1024)] = Field(
        description="Absolute, or relative to the working directory."
    )
    read_only: bool = False


class TaskIn(Body):
    name: Name | None = Field(None, description="Absent: one is made up.")
    on: Ref = Field("local", description="The stack, as the hosts' drivers name theirs: local, container, slurm.")
    command: list[Annotated[str, StringConstraints(max_length=1 << 17)]] = Field(default=[], max_length=4096)
    project: Ref | None = None
    image: Annotated[str, StringConstraints(max_length=512, pattern=r"^[!-~]*$")] = Field(
        "", description="Reference of a container image."
    )
    archive: Annotated[str, StringConstraints(pattern=f"^$|{DIGEST}")] = Field(
        "", description="Digest of an OCI archive to be the image."
    )
    environment: Variables = {}
    secrets: Variables = Field(default={}, description="Environment too; sealed at rest, never shown.")
    files: list[FileIn] = Field(default=[], max_length=64)
    workdir: PathText = ""
    volumes: list[MountIn] = Field(default=[], max_length=16, description="Volumes of the form `folder`.")
    outputs: list[PathText] = Field(
        default=[], max_length=32, description="Patterns in the working directory, kept when it has ended."
    )
    ports: list[Annotated[int, Field(ge=1, le=65535)]] = Field(default=[], max_length=64)
    network: Ref = Field("none", description="none, outbound, host, or a network of the project.")
    security_groups: Annotated[list[Ref], Field(max_length=16)] | None = Field(
        None, description="On a network of the project; absent: the project's default."
    )
    cores: float = Field(1.0, gt=0, le=1024)
    memory: Size = Field(1 << 30, description="Bytes.")
    disk: Size = Field(0, description="Bytes.")
    devices: list[TaskDeviceIn] = Field(default=[], max_length=16)
    time_limit: float = Field(0.0, ge=0, le=366 * 86400, description="Seconds; 0: none.")
    grace: float = Field(10.0, ge=0, le=3600, description="Seconds between being asked to end and being killed.")
    restart: Annotated[Restart, Field(strict=False)] = Restart.NEVER
    retries: int = Field(3, ge=0, le=1000)
    health: HealthIn | None = None
    after: list[DependencyIn] = Field(default=[], max_length=64, description="Begins when these are over.")
    indices: list[Annotated[int, Field(ge=0, lt=1 << 31)]] = Field(
        default=[], max_length=2000, description="An array: once for each of these, in USINA_INDEX."
    )
    at_once: int = Field(0, ge=0, le=2000, description="Of an array, so many at a time; 0: as many as fit.")
    replicas: int = Field(1, ge=1, le=256, description="A gang: all at the same time, or none; rank in USINA_RANK.")
    dialect: Annotated[dict[str, Annotated[str, StringConstraints(max_length=255)]], Field(max_length=32)] = Field(
        default={}, description="What only one stack understands, such as `partition` and `qos` of Slurm."
    )
    idle_limit: float = Field(
        0.0, ge=0, le=366 * 86400, description="Ended after so many seconds without anybody at a terminal; 0: never."
    )
    host: Ref | None = Field(None, description="Operators may name the host.")
    machine: Annotated[str, StringConstraints(max_length=64)] = Field(
        "", description="On the stack `machine`: the machine of the project that it runs in, by name or id."
    )
    labels: Labels = {}
    priority: int = Field(0, ge=-100, le=100)
    preemptible: bool = False


class DigestsIn(Body):
    digests: list[Digest] = Field(max_length=1000)


class IdentityIn(Body):
    name: Annotated[str, StringConstraints(pattern=r"^([a-z_][a-z0-9_-]{0,31})?$")] = Field(
        description='The Unix name there; "" takes it away.'
    )
