"""What comes in at the native door: request bodies. Unknown fields are refused, sizes are bytes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from usina.core.capacity import DeviceKind, Numa
from usina.core.goods import Visibility
from usina.core.machine import Firmware, Restart

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


class KeyIn(Body):
    name: Ref
    member: Ref = "me"
    project: Ref | None = Field(None, description="The key works in this project only.")
    role: RoleWord | None = Field(None, description="The key can do at most this.")
    expires_at: Annotated[str, StringConstraints(max_length=40)] | None = Field(None, description="RFC 3339.")


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


class HostIn(Body):
    name: Name
    driver: Ref
    options: dict[str, Any] = Field(default={}, max_length=50)
    cpu_ratio: float = Field(1.0, ge=0.1, le=64)


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
