"""What the hub tells of repositories: lists, trees, refs, commits; and who is asking."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from usina.app import model_fetching, model_files, models
from usina.app.context import Context
from usina.core import git
from usina.core.errors import NotFound, TooLarge
from usina.core.repository import MAIN, Repository, Revision
from usina.core.tenancy import Action
from usina.facades.huggingface import answers, wire
from usina.facades.huggingface.address import Address
from usina.facades.huggingface.wire import flag, next_page, own_path, reply

PAGE = 1000
MOST_PATHS = 10_000
_BATCH = 500


async def whoami(request: Request, context: Context, at: Address) -> Response:
    return reply(answers.user(context.actor, await context.visible_projects()))


async def models_page(request: Request, context: Context, at: Address) -> Response:
    """By `search`, `author` and tags (`filter`), in order of creation; paged by ``Link``."""
    asked = request.query_params
    limit = wire.number(request, "limit", PAGE, PAGE) or 1
    wanted = set(asked.getlist("filter")) | ({asked["pipeline_tag"]} if "pipeline_tag" in asked else set())
    cursor = asked.get("cursor", "")
    found: list[Repository] = []
    while len(found) < limit:
        page = await models.list_models(
            context, search=asked.get("search", ""), author=asked.get("author", ""), after=cursor, limit=_BATCH
        )
        for one in page:
            cursor = one.id
            if wanted <= set(answers.tags(one, one.main)):
                found.append(one)
            if len(found) == limit:
                break
        if len(page) < _BATCH:
            break
    said = [answers.model(one) for one in found]
    return reply(said, headers=next_page(request, "/api/models", {"cursor": cursor}) if len(found) == limit else {})


async def info(request: Request, context: Context, at: Address) -> Response:
    repository, revision = await _at(context, at)
    return reply(answers.model(repository, revision, blobs=flag(request.query_params.get("blobs"))))


async def _at(context: Context, at: Address) -> tuple[Repository, Revision]:
    repository = await model_fetching.find_or_fetch(context, at.name)
    return repository, await models.revision_of(context, repository, at.revision or MAIN)


async def tree(request: Request, context: Context, at: Address) -> Response:
    """A folder's files and folders; with `recursive`, all that is below it."""
    repository, revision = await _at(context, at)
    asked, path = request.query_params, at.path.strip("/")
    paths = answers.tree(revision, path, flag(asked.get("recursive")))
    if path and not paths:
        raise NotFound(f"{path} does not exist on this revision", code="entry-not-found")
    cursor = asked.get("cursor", "")
    page = [one for one in paths if one > cursor][: PAGE + 1]
    said = await _told(context, repository, revision, page[:PAGE], flag(asked.get("expand")))
    more = next_page(request, own_path(request), {"cursor": page[PAGE - 1]}) if len(page) > PAGE else {}
    return reply(said, headers=more)


async def _told(
    context: Context, repository: Repository, revision: Revision, paths: list[str], expand: bool
) -> list[dict[str, Any]]:
    """Files and folders at `paths`; what is not there is left out."""
    ids = await asyncio.to_thread(git.tree_ids, revision.entries)
    entries = {entry.path: entry for entry in revision.entries}
    last: Mapping[str, Revision] = {}
    if expand:
        last = await model_files.last_changes(context, repository, revision, paths)
    return [
        answers.file(entries[path], last.get(path))
        if path in entries
        else answers.folder(path, ids[path], last.get(path))
        for path in paths
        if path in entries or (path and path in ids)
    ]


class _Paths(msgspec.Struct):
    paths: list[str] | str
    expand: bool = False


async def paths_info(request: Request, context: Context, at: Address) -> Response:
    """Asked by a form, or by JSON."""
    repository, revision = await _at(context, at)
    if "json" in request.headers.get("content-type", ""):
        sent = await wire.body(request, _Paths)
        paths = [sent.paths] if isinstance(sent.paths, str) else sent.paths
        expand = sent.expand
    else:
        form = await _form(request)
        paths, expand = form.get("paths", []), flag(form.get("expand", [""])[0])
    if len(paths) > MOST_PATHS:
        raise TooLarge(f"at most {MOST_PATHS:,} paths at a time", field="paths")
    plain = [path.strip("/") for path in paths]
    return reply(await _told(context, repository, revision, list(dict.fromkeys(plain)), expand))


async def _form(request: Request) -> dict[str, list[str]]:
    gathered = bytearray()
    async for chunk in request.stream():
        gathered += chunk
        if len(gathered) > wire.LARGEST:
            raise TooLarge("the request is too large", field="body")
    return parse_qs(gathered.decode(errors="replace"), max_num_fields=MOST_PATHS + 2)


async def refs(request: Request, context: Context, at: Address) -> Response:
    repository = await models.find(context, at.name)
    return reply(answers.refs(await model_files.refs(context, repository)))


async def commits(request: Request, context: Context, at: Address) -> Response:
    repository, revision = await _at(context, at)
    limit = wire.number(request, "limit", PAGE, PAGE) or 1
    skipped = wire.number(request, "p", 0, 10_000) * limit
    log = await model_files.log(context, repository, revision, skipped + limit + 1)
    page = log[skipped : skipped + limit]
    more = {}
    if len(log) > skipped + limit:
        more = next_page(request, own_path(request), {"p": str(skipped // limit + 1), "limit": str(limit)})
    return reply([answers.commit(one) for one in page], headers=more)


async def auth_check(request: Request, context: Context, at: Address) -> Response:
    """Whether the files may be read; with ``/write``, whether they may be changed."""
    repository = await models.find(context, at.name)
    await models.require_accepted(context, repository)
    if at.revision == "write":
        models.allow(context, repository, Action.RESOURCE_CHANGE)
    return reply({})
