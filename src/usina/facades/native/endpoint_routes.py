"""Endpoints of models at the native door, and the runtimes that serve them."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.responses import Response

from usina.app import endpoints, resources
from usina.app.endpoints import EndpointOrder
from usina.app.resources import Filter
from usina.core.capacity import DeviceRequest
from usina.core.resource import Kind, Phase
from usina.facades.native.answers import ResourceOut, ResourcePage
from usina.facades.native.door import Caller, Cursor, IfMatch, Limit, ProjectQuery, Reader, RefPath, problems
from usina.facades.native.endpoint_models import CanaryIn, EndpointChange, EndpointIn, RuntimeList
from usina.facades.native.endpoint_views import runtime_view
from usina.facades.native.models import NAME, TaskDeviceIn
from usina.facades.native.views import one, page, reply, resource_view

router = APIRouter(prefix="/endpoints", tags=["endpoints"], responses=problems(401, 403, 404, 409, 413, 422, 503))
runtimes = APIRouter(prefix="/runtimes", tags=["endpoints"], responses=problems(401))


@router.post("", status_code=201, response_model=ResourceOut, summary="Order an endpoint")
async def create(context: Caller, body: EndpointIn) -> Response:
    """Answers at once with phase `pending`; it is `ready` when a replica can take requests, or, scaled to none, when
    one would be made for them."""
    plain = body.model_dump(exclude={"devices", "fallback"})
    devices = tuple(_device(device) for device in body.devices)
    order = EndpointOrder(**plain, devices=devices, fallback=tuple(body.fallback))
    return one(await endpoints.create(context, order), 201)


def _device(device: TaskDeviceIn) -> DeviceRequest:
    return DeviceRequest(**device.model_dump(exclude={"traits"}), traits=frozenset(device.traits))


@router.get("", response_model=ResourcePage, summary="List endpoints")
async def list_endpoints(
    context: Reader,
    project: ProjectQuery = None,
    phase: Phase | None = None,
    name: Annotated[str | None, Query(pattern=NAME, max_length=63)] = None,
    cursor: Cursor = "",
    limit: Limit = 100,
) -> Response:
    found = await resources.list_page(context, Kind.ENDPOINT, Filter(project, phase, name, None, cursor, limit))
    return page([resource_view(endpoint) for endpoint in found], limit)


@router.get("/{ref}", response_model=ResourceOut, summary="Show an endpoint")
async def show(context: Reader, ref: RefPath, project: ProjectQuery = None) -> Response:
    return one(await resources.get(context, Kind.ENDPOINT, ref, project))


@router.get("/{ref}/replicas", response_model=ResourcePage, summary="The tasks of an endpoint")
async def replicas(context: Reader, ref: RefPath, project: ProjectQuery = None) -> Response:
    """The oldest first. The last one that failed is kept, for its log."""
    found = await endpoints.replicas(context, ref, project)
    return reply({"items": [resource_view(task) for task in found], "next": None})


@router.patch("/{ref}", response_model=ResourceOut, summary="Change an endpoint")
async def change(
    context: Reader, ref: RefPath, body: EndpointChange, if_match: IfMatch, project: ProjectQuery = None
) -> Response:
    """Another model, revision, or what replicas are made of: new replicas come up first, then the old ones drain."""
    wishes: dict[str, Any] = body.model_dump(exclude_unset=True)
    if wishes.get("fallback") is not None:
        wishes["fallback"] = tuple(wishes["fallback"])
    return one(await endpoints.change(context, ref, wishes, project, if_match))


@router.post("/{ref}/canary", response_model=ResourceOut, summary="Put a variant on trial")
async def canary(
    context: Reader, ref: RefPath, body: CanaryIn, if_match: IfMatch, project: ProjectQuery = None
) -> Response:
    """Beside what it serves, with a share of the requests and at least one replica of its own."""
    found = await endpoints.try_variant(context, ref, body.model, body.revision, body.weight, project, if_match)
    return one(found)


@router.post("/{ref}/promote", response_model=ResourceOut, summary="Promote the variant on trial")
async def promote(context: Reader, ref: RefPath, if_match: IfMatch, project: ProjectQuery = None) -> Response:
    return one(await endpoints.promote(context, ref, project, if_match))


@router.post("/{ref}/rollback", response_model=ResourceOut, summary="Roll back")
async def roll_back(context: Reader, ref: RefPath, if_match: IfMatch, project: ProjectQuery = None) -> Response:
    """Ends the trial; where there is none, goes back to what it served before."""
    return one(await endpoints.roll_back(context, ref, project, if_match))


@router.delete("/{ref}", status_code=202, response_model=ResourceOut, summary="Delete an endpoint")
async def delete(context: Reader, ref: RefPath, if_match: IfMatch, project: ProjectQuery = None) -> Response:
    """With its replicas."""
    return one(await endpoints.delete(context, ref, project, if_match), 202)


@runtimes.get("", response_model=RuntimeList, summary="What serves models here")
async def list_runtimes(context: Reader) -> Response:
    found = [runtime_view(plugin) for _, plugin in sorted(context.house.runtimes.items())]
    return reply({"items": found, "next": None})
