"""What a machine is made of besides itself: volumes, networks, images, security groups and forwards.

These have no power switch. Their `decide` is one rule: until the wish is fulfilled, apply it; once asked to go,
remove and forget.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from usina.core.capacity import FOLDERS, MACHINES, Claim, Needs
from usina.core.lifecycle import Apply, Decision, Forget, Place, Remove
from usina.core.machine import ImageFiles, Rule
from usina.core.resource import Kind, Phase, Resource
from usina.core.units import Instant


class Form(StrEnum):
    """What a volume is to those that use it."""

    DISK = "disk"  # a block device, for one machine
    FOLDER = "folder"  # files, for many tasks of its project at a time


@dataclass(frozen=True, slots=True)
class VolumeSpec:
    size: int
    host: str | None = None
    form: Form = Form.DISK


@dataclass(frozen=True, slots=True)
class NetworkSpec:
    cidr: str
    domain: str


@dataclass(frozen=True, slots=True)
class SecurityGroupSpec:
    rules: tuple[Rule, ...] = ()


@dataclass(frozen=True, slots=True)
class ForwardSpec:
    machine: str
    port: int  # of the guest
    listen: int  # TCP port on the control plane


class Visibility(StrEnum):
    PROJECT = "project"
    TENANT = "tenant"
    PUBLIC = "public"


class Source(StrEnum):
    RECIPE = "recipe"
    URL = "url"
    UPLOAD = "upload"


@dataclass(frozen=True, slots=True)
class ImageSpec:
    source: Source
    recipe: str = ""
    url: str = ""
    sha256: str = ""
    visibility: Visibility = Visibility.PROJECT
    user: str = "debian"  # the name to log in with
    uploaded: bool = False  # an upload was declared complete


@dataclass(frozen=True, slots=True)
class ImageStatus:
    files: ImageFiles | None = None
    progress: float = 0.0
    message: str = ""


@dataclass(frozen=True, slots=True)
class NoStatus:
    """For what has nothing to tell beyond its phase."""


Volume = Resource[VolumeSpec, NoStatus]
Network = Resource[NetworkSpec, NoStatus]
SecurityGroup = Resource[SecurityGroupSpec, NoStatus]
Forward = Resource[ForwardSpec, NoStatus]
Image = Resource[ImageSpec, ImageStatus]


def may_use(image: Image, tenant: str, project: str) -> bool:
    """Whether a project may make machines of an image: its own, its tenant's shared ones, public ones."""
    spec: ImageSpec = image.spec
    return (
        image.project == project
        or spec.visibility is Visibility.PUBLIC
        or (spec.visibility is Visibility.TENANT and image.tenant == tenant)
    )


def volume_needs(volume: Volume) -> Needs:
    return Needs(
        cores=0,
        memory=0,
        disk=volume.spec.size,
        host=volume.spec.host,
        tenant=volume.tenant,
        traits=frozenset({MACHINES if volume.spec.form is Form.DISK else FOLDERS}),
    )


def decide(thing: Resource[Any, Any], claim: Claim | None, now: Instant) -> Decision:
    """The next steps of a volume, network, image, security group or forward."""
    if thing.deleting:
        return Decision(Phase.DELETING, steps=(Remove(), Forget()))
    if thing.kind is Kind.VOLUME and (claim is None or claim.disk != thing.spec.size):
        return Decision(thing.phase, steps=(Place(volume_needs(thing)),))
    if thing.kind is Kind.IMAGE and thing.spec.source is Source.UPLOAD and not thing.spec.uploaded:
        return Decision(Phase.PENDING, settled=False)  # waits for its content
    if thing.observed != thing.generation:
        return Decision(Phase.BUILDING, steps=(Apply(),))
    return Decision(Phase.READY, settled=True)
