"""Models at the native door. Their files are read at the Hugging Face door, which is made for that."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import Response, StreamingResponse

from usina.app import model_commits, model_files, model_imports, models
from usina.app.model_commits import Change, Put
from usina.app.model_imports import ImportOrder, Progress
from usina.app.models import ModelOrder
from usina.core.catalogue import CatalogueEntry
from usina.core.errors import NotFound, UsinaError
from usina.core.repository import MAIN, Drop, Repository, Revision, Summary
from usina.core.units import iso
from usina.facades.native.answers import BlobList, BlobOut
from usina.facades.native.door import Cursor, Limit, ProjectQuery, Reader, problems
from usina.facades.native.model_answers import (
    FULL,
    MODEL,
    REVISION,
    AcceptanceList,
    CatalogueList,
    CommitIn,
    ImportIn,
    ModelChange,
    ModelDetailOut,
    ModelIn,
    ModelOut,
    ModelPage,
    ModelRevisionList,
    ModelRevisionOut,
)
from usina.facades.native.models import DIGEST, DigestsIn
from usina.facades.native.views import encode, page, reply

router = APIRouter(prefix="/models", tags=["models"], responses=problems(401, 403, 404, 409, 413, 422, 503))

ModelPath = Annotated[str, Path(pattern=MODEL, max_length=96, description="Id, or a name without its namespace.")]
RevisionQuery = Annotated[str, Query(pattern=REVISION, max_length=128, description="A branch, tag or commit.")]
MAX_BODY = 1 << 50  # the operation has a limit of its own


# --- views


def model_view(repository: Repository, at: Summary | None = None) -> dict[str, Any]:
    at = at or repository.main
    card = at.card
    return {
        "id": repository.id,
        "tenant": repository.tenant,
        "project": repository.project,
        "name": repository.name,
        "visibility": repository.visibility.value,
        "gated": repository.gated,
        "licence": repository.licence,
        "origin": repository.origin,
        "revision": at.commit,
        "size": at.size,
        "files": at.files,
        "facts": at.facts,
        "card": {
            "licence": card.licence,
            "tags": card.tags,
            "languages": card.languages,
            "library": card.library,
            "task": card.task,
            "base_models": card.base_models,
        },
        "created_at": iso(repository.created_at),
        "updated_at": iso(repository.updated_at),
    }


def _revision_view(revision: Revision) -> dict[str, Any]:
    return {
        "revision": revision.commit,
        "parent": revision.parent,
        "at": iso(revision.at),
        "author": revision.author,
        "title": revision.title,
        "message": revision.message,
    }


def _entry_view(entry: CatalogueEntry, present: Repository | None) -> dict[str, Any]:
    return {
        "name": entry.name,
        "maker": entry.maker,
        "about": entry.about,
        "hub": entry.hub,
        "parameters": entry.parameters,
        "licence": entry.licence,
        "languages": entry.languages,
        "runtimes": entry.runtimes,
        "task": entry.task,
        "context": entry.context,
        "memory": entry.memory,
        "model": present.id if present is not None else None,
    }


def _all(items: Sequence[Any]) -> Response:
    return reply({"items": items, "next": None})


# --- routes


@router.get("", response_model=ModelPage, summary="List models")
async def list_models(
    context: Reader,
    project: ProjectQuery = None,
    search: Annotated[str, Query(max_length=200, description="A part of the name.")] = "",
    name: Annotated[str | None, Query(pattern=FULL, max_length=193, description="The one that it means.")] = None,
    cursor: Cursor = "",
    limit: Limit = 100,
) -> Response:
    """The project's own and those that are shared with it; without a project, all that the key may see."""
    if name is not None:
        try:
            return _all([model_view(await models.find(context, name, project))])
        except NotFound as error:
            if error.field != "model":
                raise
            return _all([])
    found = await models.list_models(context, project=project, search=search, after=cursor, limit=limit)
    return page([model_view(one) for one in found], limit)


@router.post("", status_code=201, response_model=ModelOut, summary="Make a model repository")
async def create(context: Reader, body: ModelIn) -> Response:
    """Empty; fill it by commits, or with any client of the Hugging Face hub at `/hf`."""
    order = ModelOrder(body.name, body.project, body.visibility, body.gated, body.licence)
    return reply(model_view(await models.create(context, order)), 201)


@router.get("/catalogue", response_model=CatalogueList, summary="Models that one may want")
async def catalogue(context: Reader) -> Response:
    """As their makers describe them; `model` says what is here of each."""
    return _all([_entry_view(entry, present) for entry, present in await models.catalogue(context)])


@router.post(
    "/import",
    summary="Import a model from the upstream hub",
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "Lines of JSON: `done` of `total` bytes, the `file` they are of; then `model` or `problem`",
            "content": {"application/x-ndjson": {"schema": {"type": "string"}}},
        }
    },
)
async def import_model(context: Reader, body: ImportIn) -> Response:
    """Goes on as long as the answer is read. After a break, ask again: what has come is not fetched twice."""
    order = ImportOrder(body.model, body.revision, body.name or "", body.project, body.licence)
    await model_imports.upstream_of(context, order)  # what is refused is refused before the answer begins
    return StreamingResponse(
        _lines(model_imports.import_model(context, order)),
        media_type="application/x-ndjson",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


async def _lines(steps: AsyncIterator[Progress]) -> AsyncIterator[bytes]:
    try:
        async for step in steps:
            told: dict[str, Any] = {"done": step.done, "total": step.total, "file": step.file}
            if step.imported is not None:
                told["model"] = model_view(step.imported)
            yield encode(told) + b"\n"
    except UsinaError as error:
        problem = {"code": error.code, "detail": error.message, "field": error.field}
        yield encode({"problem": problem}) + b"\n"


@router.get("/{model}", response_model=ModelDetailOut, summary="Show a model")
async def show(
    context: Reader, model: ModelPath, project: ProjectQuery = None, revision: RevisionQuery = MAIN
) -> Response:
    repository = await models.find(context, model, project)
    found = await models.revision_of(context, repository, revision)
    detail = await model_files.detail(context, repository, found)
    more = {
        "entries": [{"path": e.path, "size": e.size, "digest": e.digest} for e in found.entries],
        "refs": [{"kind": ref.kind.value, "name": ref.name, "revision": ref.commit} for ref in detail.refs],
        "readme": detail.readme,
        "accepted": detail.accepted,
    }
    return reply(model_view(repository, Summary.of(found)) | more)


@router.patch("/{model}", response_model=ModelOut, summary="Share or gate a model")
async def change(context: Reader, model: ModelPath, body: ModelChange, project: ProjectQuery = None) -> Response:
    """Who may use it, and whether its licence must be accepted first."""
    changed = await models.change(
        context, model, visibility=body.visibility, gated=body.gated, licence=body.licence, project=project
    )
    return reply(model_view(changed))


@router.delete("/{model}", status_code=204, response_class=Response, summary="Delete a model")
async def delete(context: Reader, model: ModelPath, project: ProjectQuery = None) -> Response:
    """With all its revisions. Refused while it is in use."""
    await models.delete(context, model, project)
    return Response(status_code=204)


@router.post("/{model}/accept", response_model=ModelOut, summary="Accept a model's licence")
async def accept(context: Reader, model: ModelPath, project: ProjectQuery = None) -> Response:
    """For oneself; recorded with the time."""
    return reply(model_view(await models.accept(context, model, project)))


@router.get("/{model}/acceptances", response_model=AcceptanceList, summary="Who accepted a model's licence")
async def acceptances(context: Reader, model: ModelPath, project: ProjectQuery = None) -> Response:
    found = await models.acceptances(context, model, project)
    return _all([{"member": a.member, "name": a.name, "licence": a.licence, "at": iso(a.at)} for a in found])


@router.get("/{model}/commits", response_model=ModelRevisionList, summary="The commits of a model")
async def commits(
    context: Reader,
    model: ModelPath,
    project: ProjectQuery = None,
    revision: RevisionQuery = MAIN,
    limit: Limit = 100,
) -> Response:
    """From `revision` backwards."""
    repository = await models.find(context, model, project)
    at = await models.revision_of(context, repository, revision)
    return _all([_revision_view(one) for one in await model_files.log(context, repository, at, limit)])


@router.post("/{model}/commits", status_code=201, response_model=ModelRevisionOut, summary="Commit to a model")
async def commit(context: Reader, model: ModelPath, body: CommitIn, project: ProjectQuery = None) -> Response:
    """Files whose content was sent before, and files to delete. Nothing else of the branch changes."""
    repository = await models.find(context, model, project)
    changes: list[Change] = [Drop(path) for path in body.delete]
    changes += [Put(file.path, file.digest) for file in body.files]
    made = await model_commits.commit(
        context, repository, changes, branch=body.branch, title=body.title, message=body.message, parent=body.parent
    )
    return reply(_revision_view(made), 201)


@router.post("/{model}/content/known", response_model=BlobList, summary="Which content need not be sent")
async def known(context: Reader, model: ModelPath, body: DigestsIn, project: ProjectQuery = None) -> Response:
    repository = await models.find(context, model, project)
    found = await model_commits.present(context, repository, body.digests)
    return _all([{"digest": digest, "size": size} for digest, size in found.items()])


@router.put(
    "/{model}/content/{digest}",
    status_code=201,
    response_model=BlobOut,
    summary="Send content for a commit",
    max_body_size=MAX_BODY,
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
async def send(
    context: Reader,
    model: ModelPath,
    digest: Annotated[str, Path(pattern=DIGEST)],
    request: Request,
    project: ProjectQuery = None,
) -> Response:
    """Called by its sha256. What no commit names is forgotten after a day."""
    repository = await models.find(context, model, project)
    _, size = await model_commits.receive(context, repository, digest, request.stream())
    return reply({"digest": digest, "size": size}, 201)
