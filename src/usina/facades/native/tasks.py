"""Tasks at the native door, and the content that they are given."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import FileResponse, Response, StreamingResponse

from usina.app import blobs, resources, task_access, tasks
from usina.app.resources import Filter
from usina.app.task_orders import TaskOrder
from usina.core.capacity import DeviceRequest
from usina.core.resource import Kind, Phase
from usina.core.task import Dependency, File, Health, Mount
from usina.facades.native.answers import BlobList, BlobOut, ResourceOut, ResourcePage, UsageList
from usina.facades.native.door import Caller, Cursor, IfMatch, Limit, ProjectQuery, Reader, RefPath, problems
from usina.facades.native.models import DIGEST, NAME, DigestsIn, HealthIn, TaskDeviceIn, TaskIn
from usina.facades.native.views import one, page, reply, resource_view, usage_view

router = APIRouter(prefix="/tasks", tags=["tasks"], responses=problems(401, 403, 404, 409, 413, 422, 503))
blobs_router = APIRouter(prefix="/blobs", tags=["tasks"], responses=problems(401, 403, 404, 409, 413, 422))

DigestPath = Annotated[str, Path(pattern=DIGEST)]
IndexQuery = Annotated[int | None, Query(ge=0, lt=1 << 31, description="A part of an array or gang.")]
MAX_BODY = 1 << 40  # the operation has a limit of its own


@router.post("", status_code=201, response_model=ResourceOut, summary="Order a task")
async def create(context: Caller, body: TaskIn) -> Response:
    """Answers at once with phase `pending`; follow the events or the logs, or read it again, until it is over."""
    return one(await tasks.create(context, _order(body)), 201)


def _order(body: TaskIn) -> TaskOrder:
    apart = {
        "files",
        "volumes",
        "devices",
        "health",
        "after",
        "command",
        "ports",
        "indices",
        "outputs",
        "security_groups",
    }
    plain = body.model_dump(exclude=apart)
    return TaskOrder(
        **plain,
        command=tuple(body.command),
        ports=tuple(body.ports),
        indices=tuple(body.indices),
        outputs=tuple(body.outputs),
        security_groups=None if body.security_groups is None else tuple(body.security_groups),
        volumes=tuple(Mount(one.volume, one.path, one.read_only) for one in body.volumes),
        files=tuple(File(f.digest, f.path, f.unpack, f.mode) for f in body.files),
        devices=tuple(_device(device) for device in body.devices),
        health=_health(body.health) if body.health is not None else None,
        after=tuple(Dependency(one.task, one.on) for one in body.after),
    )


def _device(device: TaskDeviceIn) -> DeviceRequest:
    return DeviceRequest(
        kind=device.kind,
        count=device.count,
        model=device.model,
        mdev_type=device.mdev_type,
        memory=device.memory,
        linked=device.linked,
        share=device.share,
        profile=device.profile,
        traits=frozenset(device.traits),
    )


def _health(health: HealthIn) -> Health:
    return Health(**health.model_dump(exclude={"command"}), command=tuple(health.command))


@router.get("", response_model=ResourcePage, summary="List tasks")
async def list_tasks(
    context: Reader,
    project: ProjectQuery = None,
    phase: Phase | None = None,
    name: Annotated[str | None, Query(pattern=NAME, max_length=63)] = None,
    cursor: Cursor = "",
    limit: Limit = 100,
) -> Response:
    """Parts of arrays and gangs are listed with their whole."""
    found = await resources.list_page(context, Kind.TASK, Filter(project, phase, name, None, cursor, limit, whole=True))
    return page([resource_view(task) for task in found], limit)


@router.get("/{ref}", response_model=ResourceOut, summary="Show a task")
async def show(context: Reader, ref: RefPath, project: ProjectQuery = None) -> Response:
    return one(await resources.get(context, Kind.TASK, ref, project))


@router.get("/{ref}/parts", response_model=ResourcePage, summary="The parts of an array or gang")
async def parts(context: Reader, ref: RefPath, project: ProjectQuery = None) -> Response:
    """None where the stack runs it as a whole: then `status.units` has them."""
    found = await task_access.parts(context, ref, project)
    return reply({"items": [resource_view(part) for part in found], "next": None})


@router.delete("/{ref}", status_code=202, response_model=ResourceOut, summary="Delete a task")
async def delete(context: Reader, ref: RefPath, if_match: IfMatch, project: ProjectQuery = None) -> Response:
    """With its log and its outputs; one that runs is ended."""
    return one(await tasks.delete(context, ref, project, if_match), 202)


@router.post("/{ref}/stop", status_code=202, response_model=ResourceOut, summary="Stop a task")
async def stop(context: Reader, ref: RefPath, if_match: IfMatch, project: ProjectQuery = None) -> Response:
    """Asks it to end; kills it after its grace."""
    return one(await tasks.stop(context, ref, project, if_match), 202)


@router.post("/{ref}/rerun", status_code=202, response_model=ResourceOut, summary="Run a task again")
async def rerun(context: Reader, ref: RefPath, if_match: IfMatch, project: ProjectQuery = None) -> Response:
    return one(await tasks.rerun(context, ref, project, if_match), 202)


_TEXT: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Lines `<milliseconds since the epoch> <o|e|s> <text>`: output, errors, words of the stack",
        "content": {"text/plain": {"schema": {"type": "string"}}},
    }
}
Moment = Annotated[int, Query(ge=0, le=1 << 53, description="Milliseconds since the epoch; 0: no bound.")]


@router.get("/{ref}/logs", summary="What a task said", response_class=Response, responses=_TEXT)
async def logs(
    context: Reader,
    ref: RefPath,
    project: ProjectQuery = None,
    index: IndexQuery = None,
    run: Annotated[int, Query(ge=0, le=1 << 31, description="0: the newest.")] = 0,
    after: Annotated[int, Query(ge=0, le=1 << 60, description="Bytes of the log that are known already.")] = 0,
    since: Moment = 0,
    until: Moment = 0,
    follow: bool = False,
) -> Response:
    """With `follow`, goes on until the task is over. A log is kept as long as its task is not deleted."""
    wish = task_access.LogWish(run, after, since, until, follow)
    lines = await task_access.logs(context, ref, project, index, wish)
    return StreamingResponse(lines, media_type="text/plain; charset=utf-8", headers={"Cache-Control": "no-store"})


@router.get("/{ref}/usage", response_model=UsageList, summary="What a task has used, over time")
async def usage(context: Reader, ref: RefPath, project: ProjectQuery = None) -> Response:
    found = await task_access.usage(context, ref, project)
    return reply({"items": [usage_view(sample) for sample in found], "next": None})


@router.get(
    "/{ref}/artifacts/{name}",
    summary="Fetch what a task left",
    response_class=Response,
    responses={
        200: {
            "description": "A tar",
            "content": {"application/x-tar": {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
async def artifact(
    context: Reader,
    ref: RefPath,
    name: Annotated[str, Path(pattern=r"^[a-z0-9._-]{1,64}$")],
    project: ProjectQuery = None,
) -> Response:
    path, _ = await task_access.artifact(context, ref, name, project)
    return FileResponse(path, media_type="application/x-tar", filename=name)


# --- content


@blobs_router.put(
    "/{digest}",
    status_code=201,
    response_model=BlobOut,
    summary="Give the project content",
    max_body_size=MAX_BODY,
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
async def put(context: Reader, digest: DigestPath, request: Request, project: ProjectQuery = None) -> Response:
    """Called by its sha256. What no task uses is forgotten after a day."""
    size = await blobs.put(context, digest, request.stream(), project)
    return reply({"digest": digest, "size": size}, 201)


@blobs_router.post("/known", response_model=BlobList, summary="Which of these the project has")
async def known(context: Reader, body: DigestsIn, project: ProjectQuery = None) -> Response:
    """What is known need not be sent again."""
    found = await blobs.have(context, body.digests, project)
    return reply({"items": [{"digest": digest, "size": size} for digest, size in found.items()], "next": None})
