"""Volumes, networks, security groups, forwards and images at the native door."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from starlette.responses import Response

from usina.app import goods, images, resources
from usina.app.resources import Filter
from usina.core.machine import Rule
from usina.core.resource import Kind, Phase
from usina.facades.native.answers import OffsetOut, ResourceOut, ResourcePage
from usina.facades.native.door import Caller, Cursor, IfMatch, Limit, ProjectQuery, Reader, RefPath, problems
from usina.facades.native.models import (
    NAME,
    ForwardIn,
    GroupIn,
    ImageChange,
    ImageComplete,
    ImageIn,
    NetworkIn,
    RuleIn,
    RulesIn,
    VolumeChange,
    VolumeIn,
)
from usina.facades.native.views import one, page, reply, resource_view

PROBLEMS = problems(401, 403, 404, 409, 413, 422, 503)

volumes = APIRouter(prefix="/volumes", tags=["volumes"], responses=PROBLEMS)
networks = APIRouter(prefix="/networks", tags=["networks"], responses=PROBLEMS)
groups = APIRouter(prefix="/security-groups", tags=["networks"], responses=PROBLEMS)
forwards = APIRouter(prefix="/forwards", tags=["networks"], responses=PROBLEMS)
images_router = APIRouter(prefix="/images", tags=["images"], responses=PROBLEMS)

NameQuery = Annotated[str | None, Query(pattern=NAME, max_length=63)]


def _readers(router: APIRouter, kind: Kind, what: str) -> None:
    """The three routes that every kind has alike: list, show, delete."""

    @router.get("", response_model=ResourcePage, summary=f"List {what}s", operation_id=f"list_{kind.value}s")
    async def list_them(
        context: Reader,
        project: ProjectQuery = None,
        phase: Phase | None = None,
        name: NameQuery = None,
        cursor: Cursor = "",
        limit: Limit = 100,
    ) -> Response:
        wanted = Filter(project, phase, name, None, cursor, limit)
        if kind is Kind.IMAGE:
            found = await resources.list_images(context, wanted)
        else:
            found = await resources.list_page(context, kind, wanted)
        return page([resource_view(one) for one in found], limit)

    @router.get("/{ref}", response_model=ResourceOut, summary=f"Show a {what}", operation_id=f"show_{kind.value}")
    async def show(context: Reader, ref: RefPath, project: ProjectQuery = None) -> Response:
        return one(await resources.get(context, kind, ref, project))

    @router.delete(
        "/{ref}",
        status_code=202,
        response_model=ResourceOut,
        summary=f"Delete a {what}",
        operation_id=f"delete_{kind.value}",
    )
    async def delete(context: Reader, ref: RefPath, if_match: IfMatch, project: ProjectQuery = None) -> Response:
        """Refused while it is in use."""
        return one(await goods.delete(context, kind, ref, project, if_match), 202)


for _router, _kind, _what in (
    (volumes, Kind.VOLUME, "volume"),
    (networks, Kind.NETWORK, "network"),
    (groups, Kind.SECURITY_GROUP, "security group"),
    (forwards, Kind.FORWARD, "forward"),
    (images_router, Kind.IMAGE, "image"),
):
    _readers(_router, _kind, _what)


@volumes.post("", status_code=201, response_model=ResourceOut, summary="Order a volume")
async def create_volume(context: Caller, body: VolumeIn) -> Response:
    order = goods.VolumeOrder(body.name, body.size, body.project, body.host, body.form, body.labels)
    return one(await goods.create_volume(context, order), 201)


@volumes.patch("/{ref}", response_model=ResourceOut, summary="Grow a volume")
async def grow_volume(
    context: Reader, ref: RefPath, body: VolumeChange, if_match: IfMatch, project: ProjectQuery = None
) -> Response:
    return one(await goods.grow_volume(context, ref, body.size, project, if_match))


@networks.post("", status_code=201, response_model=ResourceOut, summary="Order a network")
async def create_network(context: Caller, body: NetworkIn) -> Response:
    order = goods.NetworkOrder(body.name, body.project, body.cidr, body.labels)
    return one(await goods.create_network(context, order), 201)


@groups.post("", status_code=201, response_model=ResourceOut, summary="Make a security group")
async def create_group(context: Caller, body: GroupIn) -> Response:
    order = goods.GroupOrder(body.name, _rules(body.rules), body.project, body.labels)
    return one(await goods.create_group(context, order), 201)


@groups.put("/{ref}/rules", response_model=ResourceOut, summary="Replace the rules")
async def set_rules(
    context: Reader, ref: RefPath, body: RulesIn, if_match: IfMatch, project: ProjectQuery = None
) -> Response:
    """Takes effect on running machines and tasks."""
    return one(await goods.set_rules(context, ref, _rules(body.rules), project, if_match))


def _rules(rules: list[RuleIn]) -> tuple[Rule, ...]:
    def ports(rule: RuleIn) -> tuple[int, int]:
        return (rule.ports[0], rule.ports[1]) if rule.ports else (0, 0)

    return tuple(Rule(rule.direction, rule.protocol, ports(rule), rule.remote) for rule in rules)


@forwards.post("", status_code=201, response_model=ResourceOut, summary="Forward a port to a machine")
async def create_forward(context: Caller, body: ForwardIn) -> Response:
    order = goods.ForwardOrder(body.machine, body.port, body.name, body.listen, body.project)
    return one(await goods.create_forward(context, order), 201)


@images_router.post("", status_code=201, response_model=ResourceOut, summary="Order an image")
async def create_image(context: Caller, body: ImageIn) -> Response:
    """From a recipe, from an address, or to be uploaded."""
    order = images.ImageOrder(**body.model_dump())
    return one(await images.create(context, order), 201)


@images_router.patch("/{ref}", response_model=ResourceOut, summary="Share an image")
async def share_image(
    context: Reader, ref: RefPath, body: ImageChange, if_match: IfMatch, project: ProjectQuery = None
) -> Response:
    return one(await images.share(context, ref, body.visibility, project, if_match))


@images_router.get("/{ref}/content", response_model=OffsetOut, summary="How much of an upload has arrived")
async def upload_offset(context: Reader, ref: RefPath, project: ProjectQuery = None) -> Response:
    return reply({"offset": await images.upload_offset(context, ref, project)})


_BYTES: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


@images_router.put(
    "/{ref}/content",
    response_model=OffsetOut,
    summary="Upload (a part of) an image",
    openapi_extra=_BYTES,
    max_body_size=1 << 50,
)
async def upload(
    context: Reader,
    ref: RefPath,
    request: Request,
    upload_offset: Annotated[int, Header(ge=0, le=1 << 60, description="Where these bytes begin.")] = 0,
    project: ProjectQuery = None,
) -> Response:
    """Send the bytes from `Upload-Offset` on. After a break, ask for the offset and go on from there."""
    offset = await images.append(context, ref, upload_offset, request.stream(), project)
    return reply({"offset": offset})


@images_router.post("/{ref}/complete", status_code=202, response_model=ResourceOut, summary="End an upload")
async def complete(context: Reader, ref: RefPath, body: ImageComplete, project: ProjectQuery = None) -> Response:
    """The image is checked; then it is `ready`, or `failed` with the reason."""
    return one(await images.complete(context, ref, body.sha256, project), 202)
