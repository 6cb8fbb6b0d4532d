"""Imports from the upstream hub: a model at one commit there becomes a commit here, each file checked against what the
hub says of it. What is here already is not fetched again, so that an import that broke off goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass

from usina.app import model_commits, models
from usina.app.context import Context
from usina.app.model_commits import Change, Put
from usina.app.models import ModelOrder
from usina.core import git
from usina.core.errors import Conflict, TooLarge, Unavailable
from usina.core.repository import MAIN, Drop, Ref, RefKind, Repository, Revision, check_model_name
from usina.core.tenancy import Action, Scope
from usina.core.units import show_size
from usina.ports.models import RemoteFile, RemoteModel, Upstream
from usina.store import models as writers

PACE = 0.5  # seconds between two words of progress


@dataclass(frozen=True, slots=True)
class ImportOrder:
    model: str  # its name at the upstream hub
    revision: str = MAIN
    name: str = ""  # here; "": the same
    project: str | None = None
    licence: str = ""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an import is; `imported` at its end."""

    done: int  # bytes
    total: int
    file: str = ""
    imported: Repository | None = None


async def upstream_of(context: Context, order: ImportOrder) -> Upstream:
    """The hub to import from, for those who may. Raises what `import_model` would refuse before it begins."""
    check_model_name(order.model, "model")
    check_model_name(order.name or order.model)
    owner = await context.project(order.project)
    context.require(Action.RESOURCE_CREATE, Scope(owner.tenant, owner.id), "project")
    upstream = context.house.upstream
    if upstream is None:
        message = "this site has no upstream hub; its operator can name one: usina up --hub-upstream URL"
        raise Conflict(message, code="no-upstream")
    return upstream


async def import_model(context: Context, order: ImportOrder) -> AsyncIterator[Progress]:
    """Import, telling how far it is; what is raised ends it. Leaving the iteration ends it too."""
    upstream = await upstream_of(context, order)
    told: list[Progress] = []
    work = asyncio.create_task(_import(context, upstream, order, told.append))
    try:
        while not work.done():
            await asyncio.wait([work], timeout=PACE)
            if told:
                yield told[-1]
                told.clear()
        repository, total = work.result()
        yield Progress(total, total, imported=repository)
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)


async def _import(
    context: Context, upstream: Upstream, order: ImportOrder, tell: Callable[[Progress], None]
) -> tuple[Repository, int]:
    remote = await upstream.describe(order.model, order.revision)
    _check_sizes(context, remote)
    repository = await _target(context, order, remote, upstream)
    head = await models.revision_of(context, repository, MAIN)
    total, done = sum(file.size for file in remote.files), 0
    changes: list[Change] = [Drop(e.path) for e in head.entries if e.path not in {f.path for f in remote.files}]
    digests = list({file.digest for file in remote.files if file.digest})
    here = await model_commits.present(context, repository, digests)
    for file in remote.files:
        entry = head.entry(file.path)
        if entry is None or entry.size != file.size or (file.digest or file.oid) not in (entry.digest, entry.oid):
            begun = done

            def came(size: int, begun: int = begun, path: str = file.path) -> None:
                tell(Progress(begun + size, total, path))

            changes.append(Put(file.path, await _fetched(context, upstream, repository, remote, file, here, came)))
        done += file.size
        tell(Progress(done, total, file.path))
    revision = await model_commits.commit(
        context,
        repository,
        changes,
        title=f"import of {remote.name}",
        message=f"commit {remote.commit} of {upstream.address}",
        foreign=True,
    )
    await _name_origin(context, repository, remote, revision)
    return await models.find(context, repository.id), total


def _check_sizes(context: Context, remote: RemoteModel) -> None:
    limit = context.house.upload_limit
    large = next((file for file in remote.files if file.size > limit), None)
    if large is not None:
        raise TooLarge(f"model: {large.path} is larger than {show_size(limit)}", field="model")


async def _target(context: Context, order: ImportOrder, remote: RemoteModel, upstream: Upstream) -> Repository:
    """The repository to import into: a new one, or the one that an earlier import made."""
    name, owner = order.name or order.model, await context.project(order.project)
    origin = f"{upstream.address}/{remote.name}"
    known = [one for one in await context.store.models.named(name) if one.project == owner.id]
    if known:
        if known[0].origin != origin:
            raise Conflict(f"model {name!r} exists already in this project, from elsewhere", field="name")
        models.allow(context, known[0], Action.RESOURCE_CHANGE)
        return known[0]
    licence = order.licence or remote.licence
    made = ModelOrder(name, owner.id, gated=remote.gated, licence=licence, origin=origin)
    return await models.create(context, made)


async def _fetched(
    context: Context,
    upstream: Upstream,
    repository: Repository,
    remote: RemoteModel,
    file: RemoteFile,
    here: dict[str, int],
    came: Callable[[int], None],
) -> str:
    """The digest of a file's content, which the project has then."""
    if here.get(file.digest) == file.size:
        return file.digest
    count = _Counted(file, came)
    digest, size = await model_commits.keep(context, repository, None, count.through(upstream.content(remote, file)))
    told = (digest == file.digest) if file.digest else (count.oid == file.oid)
    if size != file.size or not told:  # it stays nobody's, and is swept
        raise Unavailable(f"{file.path}: what came from the upstream hub is not what it says it is")
    await model_commits.own(context, repository, {digest: size})
    return digest


class _Counted:
    """Counts bytes on their way, and git's id of them."""

    def __init__(self, file: RemoteFile, came: Callable[[int], None]) -> None:
        self._hash, self._came, self._size = git.blob_hash(file.size), came, 0

    async def through(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for chunk in chunks:
            self._size += len(chunk)
            self._hash.update(chunk)
            self._came(self._size)
            yield chunk

    @property
    def oid(self) -> str:
        return self._hash.hexdigest()


async def _name_origin(context: Context, repository: Repository, remote: RemoteModel, revision: Revision) -> None:
    """Whoever asks for the commit by its id at the other hub finds it."""
    work = context.work()
    grant = models.allow(context, repository, Action.RESOURCE_CHANGE)
    writers.add_ref(work, repository.id, Ref(RefKind.ORIGIN, remote.commit, revision.commit), grant)
    with suppress(Conflict):  # it was imported before
        await context.commit(work)
