"""Making and changing repositories: create, settings, commits (NDJSON), branches and tags."""

from __future__ import annotations

import base64
import binascii
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from usina.app import model_commits, models
from usina.app.context import Context
from usina.app.model_commits import Change, Put
from usina.app.models import ModelOrder
from usina.core.errors import Conflict, Forbidden, Invalid, NotFound, TooLarge
from usina.core.goods import Visibility
from usina.core.repository import LARGE, MAIN, Drop, DropFolder, RefKind
from usina.core.tenancy import Action
from usina.core.units import KiB
from usina.facades.huggingface import wire
from usina.facades.huggingface.address import Address
from usina.facades.huggingface.wire import reply

LONGEST_LINE = LARGE * 4 // 3 + 64 * KiB  # of a commit: the largest small file in base64, and its path


class _Repo(msgspec.Struct):
    name: str
    organization: str | None = None
    type: str | None = None
    private: bool | None = None
    visibility: str | None = None


async def create(request: Request, context: Context, at: Address) -> Response:
    """Private to its project, unless an operator makes it public. "project/name" goes to that project, other names to
    the key's own."""
    sent = await wire.body(request, _Repo)
    _require_model(sent)
    name = _whole(sent, context)
    visibility = Visibility.PUBLIC if sent.visibility == "public" else Visibility.PROJECT
    url = wire.page(request, name)
    try:
        made = await models.create(context, ModelOrder(name, await _project(context, name), visibility))
    except Conflict as error:
        if error.code == "name-taken":
            error.data = {"url": url}
        raise
    return reply({"url": url, "id": made.id, "name": made.name, "private": made.visibility is not Visibility.PUBLIC})


def _require_model(sent: _Repo) -> None:
    if sent.type not in (None, "model"):
        raise Invalid("type: this hub keeps models only", field="type")


def _whole(sent: _Repo, context: Context) -> str:
    return sent.name if "/" in sent.name else f"{sent.organization or context.actor.name}/{sent.name}"


async def _project(context: Context, name: str) -> str | None:
    """The project that a new repository is for; None where it is the only one."""
    namespace = name.partition("/")[0]
    mine = await context.visible_projects(namespace)
    return mine[0].id if len(mine) == 1 else None


async def delete(request: Request, context: Context, at: Address) -> Response:
    sent = await wire.body(request, _Repo)
    _require_model(sent)
    await models.delete(context, _whole(sent, context))
    return reply({})


class _Settings(msgspec.Struct):
    private: bool | None = None
    visibility: str | None = None
    gated: bool | str | None = None


async def settings(request: Request, context: Context, at: Address) -> Response:
    sent = await wire.body(request, _Settings)
    private = sent.private if sent.visibility is None else sent.visibility != "public"
    visibility = None if private is None else Visibility.PROJECT if private else Visibility.PUBLIC
    if sent.gated == "manual":
        raise Invalid("gated: licences are accepted by members themselves; use auto", field="gated")
    gated = None if sent.gated is None else bool(sent.gated)
    changed = await models.change(context, at.name, visibility=visibility, gated=gated)
    return reply({"private": changed.visibility is not Visibility.PUBLIC, "gated": "auto" if changed.gated else False})


class _Yaml(msgspec.Struct):
    content: str


async def validate_yaml(request: Request, context: Context, at: Address) -> Response:
    sent = await wire.body(request, _Yaml)
    try:
        context.house.models.card(sent.content)
    except Invalid as error:
        return reply({"errors": [{"message": error.message}], "warnings": []}, 400)
    return reply({"errors": [], "warnings": []})


# --- commits


class _File(msgspec.Struct):
    path: str
    size: int = 0


class _Files(msgspec.Struct):
    files: list[_File]


async def preupload(request: Request, context: Context, at: Address) -> Response:
    """How each file shall come: inside the commit, or beforehand by LFS. It decides by size alone: clients with another
    protocol for large files shall need it for large files only."""
    sent = await wire.body(request, _Files)
    repository = await models.find(context, at.name)
    models.allow(context, repository, Action.RESOURCE_CHANGE)
    revision = await models.revision_of(context, repository, at.revision)
    entries = {entry.path: entry for entry in revision.entries}
    said = []
    for file in sent.files:
        mode = "lfs" if file.size >= LARGE else "regular"
        told: dict[str, Any] = {"path": file.path, "uploadMode": mode, "shouldIgnore": False}
        entry = entries.get(file.path)
        if entry is not None and entry.large == (mode == "lfs"):
            told["oid"] = entry.etag
        said.append(told)
    return reply({"files": said})


class _Value(msgspec.Struct):
    summary: str = ""
    description: str = ""
    parentCommit: str | None = None
    path: str = ""
    content: str = ""
    encoding: str = "base64"
    algo: str = "sha256"
    oid: str = ""
    srcPath: str | None = None
    srcRevision: str | None = None


class _Line(msgspec.Struct):
    key: str
    value: _Value


_LINE = msgspec.json.Decoder(_Line)


async def commit(request: Request, context: Context, at: Address) -> Response:
    """A header line, then a line for each change. Small files are in their lines; large ones came before."""
    if wire.flag(request.query_params.get("create_pr")):
        raise Forbidden("this hub has no pull requests; commit to a branch")
    repository = await models.find(context, at.name)
    models.allow(context, repository, Action.RESOURCE_CHANGE)
    header, changes, came = _Value(), list[Change](), dict[str, int]()
    async for line in _lines(request):
        if line.key == "header":
            header = line.value
        elif line.key == "file":
            digest, size = await model_commits.keep(context, repository, None, _content(line.value))
            came[digest] = size
            changes.append(Put(line.value.path, digest))
        else:
            changes.append(_change(line))
        if len(changes) > model_commits.MOST_CHANGES:
            raise TooLarge(f"at most {model_commits.MOST_CHANGES:,} changes in a commit", field="files")
    await model_commits.own(context, repository, came)
    revision = await model_commits.commit(
        context,
        repository,
        changes,
        branch=at.revision.removeprefix("refs/heads/"),
        title=header.summary,
        message=header.description,
        parent=header.parentCommit,
    )
    url = f"{wire.page(request, repository.name)}/commit/{revision.commit}"
    return reply({"success": True, "commitOid": revision.commit, "commitUrl": url, "hookOutput": ""})


async def _lines(request: Request) -> AsyncIterator[_Line]:
    """The body line by line, never more than one of them at a time. Raises `TooLarge`, `msgspec.MsgspecError`."""
    rest = bytearray()
    async for chunk in request.stream():
        begun = len(rest)
        rest += chunk
        while (end := rest.find(b"\n", begun)) >= 0:
            line, begun = bytes(rest[:end]), 0
            del rest[: end + 1]
            if line.strip():
                yield _LINE.decode(line)
        if len(rest) > LONGEST_LINE:
            raise TooLarge("a file in a commit: at most 10 MiB; send larger ones by LFS", field="files")
    if rest.strip():
        yield _LINE.decode(bytes(rest))


def _change(line: _Line) -> Change:
    value = line.value
    match line.key:
        case "lfsFile":
            return Put(value.path, value.oid)
        case "deletedFile":
            return Drop(value.path)
        case "deletedFolder":
            return DropFolder(value.path)
        case "copyFile":
            return model_commits.Copy(value.path, value.srcPath or "", value.srcRevision)
    raise Invalid(f"files: {line.key!r} is not a change that is known", field="files")


async def _content(value: _Value) -> AsyncIterator[bytes]:
    if value.encoding == "base64":
        try:
            yield base64.b64decode(value.content, validate=True)
        except binascii.Error:
            raise Invalid(f"files: {value.path}: its content is not base64", field="files") from None
    elif value.encoding == "utf-8":
        yield value.content.encode()
    else:
        raise Invalid("files: encoding must be base64 or utf-8", field="files")


# --- branches and tags


class _Start(msgspec.Struct):
    startingPoint: str | None = None


async def add_branch(request: Request, context: Context, at: Address) -> Response:
    sent = await wire.body(request, _Start)
    repository = await models.find(context, at.name)
    await model_commits.add_ref(context, repository, RefKind.BRANCH, at.revision, sent.startingPoint or MAIN)
    return reply({})


async def drop_branch(request: Request, context: Context, at: Address) -> Response:
    return await _drop(context, at, RefKind.BRANCH)


class _Tag(msgspec.Struct):
    tag: str


async def add_tag(request: Request, context: Context, at: Address) -> Response:
    sent = await wire.body(request, _Tag)
    repository = await models.find(context, at.name)
    await model_commits.add_ref(context, repository, RefKind.TAG, sent.tag, at.revision)
    return reply({})


async def drop_tag(request: Request, context: Context, at: Address) -> Response:
    return await _drop(context, at, RefKind.TAG)


async def _drop(context: Context, at: Address, kind: RefKind) -> Response:
    repository = await models.find(context, at.name)
    try:
        await model_commits.drop_ref(context, repository, kind, at.revision)
    except NotFound:
        raise NotFound(f"there is no {kind.value} {at.revision!r}", code="revision-not-found") from None
    return reply({})
