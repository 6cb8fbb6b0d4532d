"""What a machine is made of, looked up for an order and reserved with it: image, cards, volumes, a place to be."""

from __future__ import annotations

import ipaddress
from collections import Counter
from dataclasses import dataclass, replace
from functools import partial

from usina.app.context import Context
from usina.app.near import Near
from usina.core import network as net
from usina.core.capacity import Claim, Needs
from usina.core.errors import Conflict, Invalid, NotFound, Refused
from usina.core.goods import Form, Image, Volume
from usina.core.grant import Grant
from usina.core.machine import Interface
from usina.core.machine_decide import Machine, needs_of
from usina.core.resource import Kind, Phase
from usina.core.tenancy import Project
from usina.placement import Refusal, place
from usina.store.work import Work, missing

DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class CardOrder:
    network: str = DEFAULT
    security_groups: tuple[str, ...] = (DEFAULT,)
    address: str | None = None


@dataclass(frozen=True, slots=True)
class CardFields:
    """What the fields of an order for a card are called, so that refusals name them."""

    prefix: str = ""
    all: str = "network"
    name: str = "name"

    @classmethod
    def of_machine(cls, number: int) -> CardFields:
        return cls(f"interfaces[{number}].", "interfaces", "hostname")


TASK_CARD = CardFields()


class AddressTaken(Conflict):
    code = "address-taken"

    def __init__(self, network: str, address: str, asked: bool, field: str = "interfaces") -> None:
        super().__init__(f"address {address} is taken", field=field)
        self.network, self.asked = network, asked


async def image_for(context: Context, project: Project, ref: str) -> Image:
    """An image this project may use: its own, its tenant's shared ones, public ones."""
    image = await context.house.near.image(project, ref)
    if image is None or image.deleting:
        raise NotFound("image not found", field="image")
    if image.phase is Phase.FAILED:
        raise Conflict(f"image {image.name} could not be made", field="image", code="image-failed")
    return image


async def card_for(
    context: Context,
    work: Work,
    project: Project,
    grant: Grant,
    owner: str,
    hostname: str,
    card: CardOrder,
    at: CardFields = TASK_CARD,
) -> Interface:
    """An interface of a machine or task `owner`, with its address, name and groups reserved for it."""
    network = await context.house.near.of(project, Kind.NETWORK, card.network, f"{at.prefix}network")
    cidr = network.spec.cidr
    if card.address is None:
        address = await context.house.addresses.pick(network.id, cidr, at.all)
    else:
        address = _own_address(cidr, card.address, f"{at.prefix}address")
    groups = []
    for position, ref in enumerate(card.security_groups):
        where = f"{at.prefix}security_groups[{position}]"
        groups.append((await context.house.near.of(project, Kind.SECURITY_GROUP, ref, where)).id)
    mac = net.mac_of(address)
    asked = card.address is not None
    taken = partial(AddressTaken, network.id, address, asked, at.all)
    work.reserve(f"use:{network.id}", address, owner, grant, taken, network.id)
    work.reserve(f"dns:{network.id}", hostname, owner, grant, partial(_hostname_taken, hostname, at.name))
    for group_id in dict.fromkeys(groups):
        gone = missing("security group", f"{at.prefix}security_groups")
        work.reserve(f"use:{group_id}", f"{owner}/{mac}", owner, grant, gone, alive=group_id)
    return Interface(network.id, mac, address, tuple(dict.fromkeys(groups)))


def _hostname_taken(hostname: str, field: str) -> Conflict:
    return Conflict(f"{field}: {hostname!r} is in use on this network", field=field, code="name-taken")


def _own_address(cidr: str, address: str, field: str) -> str:
    try:
        wanted = ipaddress.IPv4Address(address)
    except ValueError:
        raise Invalid(f"{field}: {address!r} is not an IPv4 address", field=field) from None
    network = ipaddress.IPv4Network(cidr)
    if wanted not in network or wanted in (network[0], network[1], network[-1]):
        raise Invalid(f"{field}: must be a free address of {cidr} (not the gateway)", field=field)
    return str(wanted)


async def volumes_for(
    context: Context, work: Work, project: Project, grant: Grant, machine: str, refs: tuple[str, ...]
) -> tuple[tuple[str, ...], str | None]:
    """The volumes by id, reserved for the machine, and the host they lie on."""
    ids: list[str] = []
    home: str | None = None
    for number, ref in enumerate(refs):
        where = f"volumes[{number}]"
        volume: Volume = await context.house.near.of(project, Kind.VOLUME, ref, where)
        refuse_folder(volume, where)
        if volume.provider is None or volume.phase is not Phase.READY:
            raise Conflict(f"{where}: volume {volume.name} is not ready yet", field=where, code="not-ready")
        if home not in (None, volume.provider):
            raise Conflict(f"{where}: the volumes lie on different hosts", field=where, code="apart")
        home = volume.provider
        attach(work, volume.id, machine, grant, where)
        ids.append(volume.id)
    if len(set(ids)) != len(ids):
        raise Invalid("volumes: named twice", field="volumes")
    return tuple(ids), home


def refuse_folder(volume: Volume, field: str) -> None:
    if volume.spec.form is Form.FOLDER:
        raise Invalid(f"{field}: volume {volume.name} is a folder for tasks; machines use disks", field=field)


def attach(work: Work, volume: str, machine: str, grant: Grant, field: str = "volume") -> None:
    taken = Conflict(f"{field}: the volume is attached already", field=field, code="attached")
    work.reserve(f"use:{volume}", "attached", machine, grant, lambda: taken, alive=volume)


async def check_possible(context: Context, machine: Machine) -> None:
    """As `check_needs`, for a machine."""
    await check_needs(context, needs_of(machine))


async def check_needs(context: Context, needs: Needs) -> None:
    """Refuse now what no host could ever hold, even empty. What is only full now waits its turn instead."""
    near = context.house.near
    alone = replace(needs, affinities=(), groups=frozenset(), priority=0, preemptible=False)
    found = await near.remembered(("possible", alone), lambda: _possible(near, alone))
    if isinstance(found, Refusal):
        raise Refused(f"no host can ever hold this: {found.message}", data={"reasons": dict(found.reasons)})


async def _possible(near: Near, needs: Needs) -> Claim | Refusal | None:
    """What an empty house would answer; None where there are no hosts yet."""
    empty = await near.empty_hosts(needs.host)
    if not empty and needs.host is not None:
        raise NotFound("host not found", field="host")
    if not empty:
        return None
    counted: Counter[str] = Counter()
    for host, alike in empty:
        answer = place([host], needs)
        if isinstance(answer, Claim):
            return answer
        counted.update({reason: number * alike for reason, number in answer.reasons.items()})
    return Refusal(counted)
