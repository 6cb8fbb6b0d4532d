"""Machines at the native door."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query
from starlette.responses import Response

from usina.app import access, machine_changes, machines, resources
from usina.app.machine_parts import CardOrder
from usina.app.resources import Filter
from usina.core.capacity import DeviceRequest
from usina.core.machine import Power
from usina.core.resource import Kind, Phase
from usina.facades.native.answers import ResourceOut, ResourcePage
from usina.facades.native.door import Caller, Cursor, IfMatch, Limit, ProjectQuery, Reader, RefPath, problems
from usina.facades.native.models import (
    NAME,
    REF,
    AttachIn,
    CardIn,
    DeviceIn,
    MachineChange,
    MachineIn,
    MachinesIn,
    RebuildIn,
    SnapshotIn,
)
from usina.facades.native.views import one, page, reply, resource_view

router = APIRouter(prefix="/machines", tags=["machines"], responses=problems(401, 403, 404, 409, 413, 422, 503))

SnapshotPath = Annotated[str, Path(pattern=NAME, max_length=63)]
MacPath = Annotated[str, Path(pattern=r"^[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}$")]
VolumePath = Annotated[str, Path(pattern=REF, max_length=64)]


@router.post("", status_code=201, response_model=ResourceOut, summary="Order a machine")
async def create(context: Caller, body: MachineIn) -> Response:
    """Answers at once with phase `pending`; follow the events, or read it again, until it is `running`."""
    return one(await machines.create(context, _order(body)), 201)


@router.post("/batch", status_code=201, response_model=ResourcePage, summary="Order several machines alike")
async def create_many(context: Caller, body: MachinesIn) -> Response:
    """All of them or none: one commit, one answer."""
    made = await machines.create_many(context, _order(body), body.count)
    return reply({"items": [resource_view(machine) for machine in made], "next": None}, 201)


def _order(body: MachineIn) -> machines.MachineOrder:
    return machines.MachineOrder(
        name=body.name,
        image=body.image,
        project=body.project,
        cores=body.cores,
        memory=body.memory,
        disk=body.disk,
        interfaces=tuple(_card(card) for card in body.interfaces),
        volumes=tuple(body.volumes),
        ssh_keys=None if body.ssh_keys is None else tuple(body.ssh_keys),
        user_data=body.user_data,
        hostname=body.hostname,
        pinned=body.pinned,
        numa_nodes=body.numa_nodes,
        hugepage=body.hugepage,
        firmware=body.firmware,
        queues=body.queues,
        devices=tuple(_device(device) for device in body.devices),
        restart=body.restart,
        host=body.host,
        labels=body.labels,
        numa=body.numa,
        whole_cores=body.whole_cores,
        near=tuple(body.near),
        apart=tuple(body.apart),
        group=body.group or "",
        spread_over=body.spread_over or "",
        priority=body.priority,
        preemptible=body.preemptible,
        tasks=body.tasks,
    )


def _device(device: DeviceIn) -> DeviceRequest:
    return DeviceRequest(
        kind=device.kind,
        count=device.count,
        model=device.model,
        mdev_type=device.mdev_type,
        memory=device.memory,
        linked=device.linked,
        traits=frozenset(device.traits),
    )


def _card(card: CardIn) -> CardOrder:
    return CardOrder(card.network, tuple(card.security_groups), card.address)


@router.get("", response_model=ResourcePage, summary="List machines")
async def list_machines(
    context: Reader,
    project: ProjectQuery = None,
    phase: Phase | None = None,
    name: Annotated[str | None, Query(pattern=NAME, max_length=63)] = None,
    host: Annotated[str | None, Query(pattern=REF, max_length=64, description="For operators.")] = None,
    cursor: Cursor = "",
    limit: Limit = 100,
) -> Response:
    found = await resources.list_page(context, Kind.MACHINE, Filter(project, phase, name, host, cursor, limit))
    return page([resource_view(machine) for machine in found], limit)


@router.get("/{ref}", response_model=ResourceOut, summary="Show a machine")
async def show(context: Reader, ref: RefPath, project: ProjectQuery = None) -> Response:
    return one(await resources.get(context, Kind.MACHINE, ref, project))


@router.patch("/{ref}", response_model=ResourceOut, summary="Resize a machine")
async def change(
    context: Reader, ref: RefPath, body: MachineChange, if_match: IfMatch, project: ProjectQuery = None
) -> Response:
    changed = await machine_changes.resize(
        context,
        ref,
        project,
        cores=body.cores,
        memory=body.memory,
        disk=body.disk,
        labels=body.labels,
        if_match=if_match,
    )
    return one(changed)


@router.delete("/{ref}", status_code=202, response_model=ResourceOut, summary="Delete a machine")
async def delete(context: Reader, ref: RefPath, if_match: IfMatch, project: ProjectQuery = None) -> Response:
    """Its forwards go with it, its volumes stay."""
    return one(await machines.delete(context, ref, project, if_match), 202)


@router.post("/{ref}/start", status_code=202, response_model=ResourceOut, summary="Start")
async def start(context: Reader, ref: RefPath, if_match: IfMatch, project: ProjectQuery = None) -> Response:
    return one(await machine_changes.power(context, ref, Power.ON, project, if_match), 202)


@router.post("/{ref}/stop", status_code=202, response_model=ResourceOut, summary="Stop")
async def stop(context: Reader, ref: RefPath, if_match: IfMatch, project: ProjectQuery = None) -> Response:
    """Asks the guest to power off; pulls the plug after 30 seconds."""
    return one(await machine_changes.power(context, ref, Power.OFF, project, if_match), 202)


@router.post("/{ref}/suspend", status_code=202, response_model=ResourceOut, summary="Suspend")
async def suspend(context: Reader, ref: RefPath, if_match: IfMatch, project: ProjectQuery = None) -> Response:
    return one(await machine_changes.power(context, ref, Power.SUSPENDED, project, if_match), 202)


@router.post("/{ref}/resume", status_code=202, response_model=ResourceOut, summary="Resume")
async def resume(context: Reader, ref: RefPath, if_match: IfMatch, project: ProjectQuery = None) -> Response:
    return one(await machine_changes.power(context, ref, Power.ON, project, if_match), 202)


@router.post("/{ref}/reboot", status_code=202, response_model=ResourceOut, summary="Reboot")
async def reboot(context: Reader, ref: RefPath, if_match: IfMatch, project: ProjectQuery = None) -> Response:
    return one(await machine_changes.reboot(context, ref, project, if_match), 202)


@router.post("/{ref}/rebuild", status_code=202, response_model=ResourceOut, summary="Rebuild from an image")
async def rebuild(
    context: Reader, ref: RefPath, body: RebuildIn, if_match: IfMatch, project: ProjectQuery = None
) -> Response:
    """A fresh root disk. What was on the old one, and its snapshots, are lost."""
    return one(await machine_changes.rebuild(context, ref, project, body.image, if_match), 202)


@router.post("/{ref}/snapshots", status_code=202, response_model=ResourceOut, summary="Take a snapshot")
async def snapshot(
    context: Reader, ref: RefPath, body: SnapshotIn, if_match: IfMatch, project: ProjectQuery = None
) -> Response:
    return one(await machine_changes.snapshot(context, ref, body.name, project, if_match), 202)


@router.post(
    "/{ref}/snapshots/{snapshot}/restore",
    status_code=202,
    response_model=ResourceOut,
    summary="Go back to a snapshot",
)
async def restore(
    context: Reader, ref: RefPath, snapshot: SnapshotPath, if_match: IfMatch, project: ProjectQuery = None
) -> Response:
    return one(await machine_changes.restore(context, ref, snapshot, project, if_match), 202)


@router.delete("/{ref}/snapshots/{snapshot}", status_code=202, response_model=ResourceOut, summary="Give up a snapshot")
async def drop_snapshot(
    context: Reader, ref: RefPath, snapshot: SnapshotPath, if_match: IfMatch, project: ProjectQuery = None
) -> Response:
    return one(await machine_changes.drop_snapshot(context, ref, snapshot, project, if_match), 202)


@router.post("/{ref}/volumes", status_code=202, response_model=ResourceOut, summary="Attach a volume")
async def attach_volume(
    context: Reader, ref: RefPath, body: AttachIn, if_match: IfMatch, project: ProjectQuery = None
) -> Response:
    return one(await machine_changes.attach_volume(context, ref, body.volume, project, if_match), 202)


@router.delete("/{ref}/volumes/{volume}", status_code=202, response_model=ResourceOut, summary="Detach a volume")
async def detach_volume(
    context: Reader, ref: RefPath, volume: VolumePath, if_match: IfMatch, project: ProjectQuery = None
) -> Response:
    return one(await machine_changes.detach_volume(context, ref, volume, project, if_match), 202)


@router.post("/{ref}/interfaces", status_code=202, response_model=ResourceOut, summary="Attach an interface")
async def attach_interface(
    context: Reader, ref: RefPath, body: CardIn, if_match: IfMatch, project: ProjectQuery = None
) -> Response:
    return one(await machine_changes.attach_interface(context, ref, _card(body), project, if_match), 202)


@router.delete("/{ref}/interfaces/{mac}", status_code=202, response_model=ResourceOut, summary="Detach an interface")
async def detach_interface(
    context: Reader, ref: RefPath, mac: MacPath, if_match: IfMatch, project: ProjectQuery = None
) -> Response:
    return one(await machine_changes.detach_interface(context, ref, mac, project, if_match), 202)


@router.get(
    "/{ref}/console-log",
    summary="What the guest wrote to its console",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "The newest MiB"}},
)
async def console_log(context: Reader, ref: RefPath, project: ProjectQuery = None) -> Response:
    text = await access.console_log(context, ref, project)
    return Response(text.decode(errors="replace"), media_type="text/plain; charset=utf-8")
