"""Hosts at the native door: the operator's."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path
from starlette.responses import Response

from usina.app import host_terms, hosts
from usina.core.capacity import HostState, Window
from usina.core.units import parse_instant
from usina.facades.native.answers import ClaimList, HostList, HostOut, IdentityList
from usina.facades.native.door import Reader, RefPath, problems
from usina.facades.native.models import AdoptIn, HostChange, HostIn, IdentityIn, WindowIn
from usina.facades.native.views import claim_view, host_view, reply

router = APIRouter(prefix="/hosts", tags=["hosts"], responses=problems(401, 403, 404, 409, 413, 422, 503))

MemberPath = Annotated[str, Path(pattern=r"^mbr-[0-9a-z]{26}$", description="Member, by id")]
DevicePath = Annotated[str, Path(pattern=r"^[0-9A-Za-z:._-]{1,64}$", description="PCI address")]


@router.post("", status_code=201, response_model=HostOut, summary="Take a host into service")
async def add(context: Reader, body: HostIn) -> Response:
    """It is probed first; one that does not answer is not added."""
    host = await hosts.add(context, body.name, body.driver, body.options, body.cpu_ratio, body.also)
    return reply(host_view(host), 201)


@router.post("/adopt", status_code=201, response_model=HostList, summary="Take all parts of a cluster into service")
async def adopt(context: Reader, body: AdoptIn) -> Response:
    """Each partition becomes a host called `<name>-<partition>`; those that are there already stay as they are."""
    made = await hosts.adopt(context, body.name, body.driver, body.options)
    return reply({"items": [host_view(host) for host in made], "next": None}, 201)


@router.get("", response_model=HostList, summary="List hosts")
async def list_hosts(context: Reader) -> Response:
    return reply({"items": [host_view(h) for h in await hosts.list_hosts(context)], "next": None})


@router.get("/{ref}", response_model=HostOut, summary="Show a host")
async def show(context: Reader, ref: RefPath) -> Response:
    return reply(host_view(await hosts.find(context, ref)))


@router.patch("/{ref}", response_model=HostOut, summary="Say where a host stands, and on what terms")
async def change(context: Reader, ref: RefPath, body: HostChange) -> Response:
    """Holds for what is placed from now on; what runs stays."""
    wanted = host_terms.TermsChange(
        topology=body.topology.model_dump(exclude_none=True) if body.topology else None,
        group=body.group,
        cpu_ratio=body.cpu_ratio,
        memory_ratio=body.memory_ratio,
        tenants=None if body.tenants is None else tuple(body.tenants),
        maintenance=None if body.maintenance is None else _windows(body.maintenance),
        price=body.price,
    )
    if body.also is not None:
        await hosts.set_drivers(context, ref, body.also)
    return reply(host_view(await host_terms.change(context, ref, wanted)))


def _windows(windows: list[WindowIn]) -> tuple[Window, ...]:
    return tuple(
        Window(
            parse_instant(window.begins, f"maintenance[{number}].begins"),
            parse_instant(window.ends, f"maintenance[{number}].ends"),
        )
        for number, window in enumerate(windows)
    )


@router.get("/{ref}/claims", response_model=ClaimList, summary="What is held on a host")
async def claims(context: Reader, ref: RefPath) -> Response:
    held = await hosts.claims_on(context, ref)
    return reply({"items": [claim_view(id, claim) for id, claim in held.items()], "next": None})


@router.get("/{ref}/identities", response_model=IdentityList, summary="Who members are on a host")
async def identities(context: Reader, ref: RefPath) -> Response:
    found = await hosts.identities(context, ref)
    return reply({"items": [{"member": member, "name": name} for member, name in found.items()], "next": None})


@router.put(
    "/{ref}/identities/{member}", status_code=204, response_class=Response, summary="Say who a member is on a host"
)
async def map_identity(context: Reader, ref: RefPath, member: MemberPath, body: IdentityIn) -> Response:
    """On all hosts that share its accounts. Tasks run as that Unix user there; without one they are refused."""
    await hosts.map_identity(context, ref, member, body.name)
    return Response(status_code=204)


@router.post("/{ref}/cordon", response_model=HostOut, summary="Nothing new on this host")
async def cordon(context: Reader, ref: RefPath) -> Response:
    return reply(host_view(await hosts.set_state(context, ref, HostState.CORDONED)))


@router.post("/{ref}/drain", response_model=HostOut, summary="Nothing new, and stop what runs")
async def drain(context: Reader, ref: RefPath) -> Response:
    return reply(host_view(await hosts.set_state(context, ref, HostState.DRAINING)))


@router.post("/{ref}/enable", response_model=HostOut, summary="Back into service")
async def enable(context: Reader, ref: RefPath) -> Response:
    return reply(host_view(await hosts.set_state(context, ref, HostState.ENABLED)))


@router.post("/{ref}/devices/{address}/cordon", response_model=HostOut, summary="One device out of service")
async def cordon_device(context: Reader, ref: RefPath, address: DevicePath) -> Response:
    return reply(host_view(await hosts.cordon_device(context, ref, address, True)))


@router.post("/{ref}/devices/{address}/enable", response_model=HostOut, summary="One device back into service")
async def enable_device(context: Reader, ref: RefPath, address: DevicePath) -> Response:
    return reply(host_view(await hosts.cordon_device(context, ref, address, False)))


@router.delete("/{ref}", status_code=204, response_class=Response, summary="Remove a host")
async def remove(context: Reader, ref: RefPath) -> Response:
    """Refused while anything is on it."""
    await hosts.remove(context, ref)
    return Response(status_code=204)
