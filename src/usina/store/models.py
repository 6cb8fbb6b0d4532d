"""Model repositories: reading them, and the writers that demand a grant. Content is in the blob store, by digest.

A revision is written once and never again; a branch moves by compare-and-set. What a revision names is held by the
repository from the commit on, so that no sweep takes it, and let go when the repository is deleted.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import msgspec
from sqlalchemy import Row, Select, bindparam, delete, exists, insert, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from usina.core.errors import Conflict, NotFound
from usina.core.goods import Visibility
from usina.core.grant import Grant
from usina.core.repository import Acceptance, Entry, Ref, RefKind, Repository, Revision, Summary, taken
from usina.core.tenancy import Project
from usina.core.units import Instant
from usina.store.database import Database
from usina.store.tables import blobs, model_acceptances, model_refs, model_revisions, models, reservations
from usina.store.work import CHANGE, COUNT, TAKE, Work, missing

_b = bindparam
_ONE = select(models).where(models.c.id == _b("b_id"))
_REVISION = select(model_revisions).where(
    model_revisions.c.model == _b("b_model"), model_revisions.c.id == _b("b_commit")
)
_REFS = select(model_refs).where(model_refs.c.model == _b("b_model"))
_SUMMARY = msgspec.json.Decoder(Summary)
_DOCUMENT = msgspec.json.Decoder(Revision)
MOST_COMMITS = 10_000


class Models:
    """Reads."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._read = lru_cache(maxsize=32)(_revision)  # they never change, and may be large

    async def get(self, id: str) -> Repository | None:
        row = await self._database.first(_ONE, {"b_id": id})
        return _repository(row) if row else None

    async def named(self, name: str) -> list[Repository]:
        """All of this name, "namespace/name" or without its namespace, whatever its case."""
        column = models.c.folded if "/" in name else models.c.short
        found = await self._database.fetch(select(models).where(column == name.lower()).order_by(models.c.id))
        return [_repository(row) for row in found]

    async def page(
        self,
        projects: Sequence[Project] | None,
        *,
        only: str | None = None,
        search: str = "",
        author: str = "",
        after: str = "",
        limit: int = 100,
    ) -> list[Repository]:
        """Up to `limit` in order of id, past `after`, that some of `projects` may use (None: all there are), or, with
        `only`, of that one project."""
        query: Select[Any] = select(models).where(models.c.id > after).order_by(models.c.id).limit(limit)
        if projects is not None:
            query = query.where(
                or_(
                    models.c.visibility == Visibility.PUBLIC.value,
                    models.c.project.in_([one.id for one in projects]),
                    (models.c.visibility == Visibility.TENANT.value)
                    & models.c.tenant.in_(sorted({one.tenant for one in projects})),
                )
            )
        if only is not None:
            query = query.where(models.c.project == only)
        if search:
            query = query.where(models.c.folded.contains(search.lower(), autoescape=True))
        if author:
            query = query.where(models.c.folded.startswith(author.lower() + "/", autoescape=True))
        return [_repository(row) for row in await self._database.fetch(query)]

    async def revision(self, model: str, commit: str) -> Revision | None:
        row = await self._database.first(_REVISION, {"b_model": model, "b_commit": commit})
        return self._read(row.document) if row else None

    async def log(self, model: str, commit: str, limit: int = 1000) -> list[Revision]:
        """A commit and those before it, the newest first, without their trees."""
        columns = [column for column in model_revisions.c if column.name != "document"]
        query = select(*columns).where(model_revisions.c.model == model).limit(MOST_COMMITS)
        by_id = {row.id: row for row in await self._database.fetch(query)}
        found: list[Revision] = []
        row = by_id.get(commit)
        while row is not None and len(found) < limit:
            found.append(Revision(row.id, row.parent, row.at, row.author, row.title, row.message))
            row = by_id.get(row.parent)
        return found

    async def refs(self, model: str) -> list[Ref]:
        """Branches and tags, by name."""
        found = await self._database.fetch(_REFS.order_by(model_refs.c.kind, model_refs.c.name), {"b_model": model})
        return [Ref(RefKind(row.kind), row.name, row.revision) for row in found]

    async def accepted(self, model: str, member: str, licence: str) -> bool:
        table = model_acceptances.c
        query = select(table.at).where(table.model == model, table.member == member, table.licence == licence)
        return await self._database.first(query) is not None

    async def acceptances(self, model: str, limit: int = 1000) -> list[Acceptance]:
        """Who took which licence, and when; the newest first."""
        table = model_acceptances
        query = select(table).where(table.c.model == model).order_by(table.c.at.desc()).limit(limit)
        return [Acceptance(row.member, row.name, row.licence, row.at) for row in await self._database.fetch(query)]


def _repository(row: Row[Any]) -> Repository:
    return Repository(
        id=row.id,
        tenant=row.tenant,
        project=row.project,
        name=row.name,
        visibility=Visibility(row.visibility),
        gated=row.gated,
        terms=row.terms,
        origin=row.origin,
        created_at=row.created_at,
        updated_at=row.updated_at,
        main=_SUMMARY.decode(row.main),
    )


def _revision(document: bytes) -> Revision:
    return _DOCUMENT.decode(zlib.decompress(document))


# --- writers

_IN_USE = exists().where(reservations.c.scope == _b("b_scope")).correlate(None)
_ADD = insert(models).inline()
_CHANGE = (
    update(models)
    .where(models.c.id == _b("b_id"))
    .values(visibility=_b("b_visibility"), gated=_b("b_gated"), terms=_b("b_terms"), updated_at=_b("b_at"))
)
_SUMMARIZE = update(models).where(models.c.id == _b("b_id")).values(main=_b("b_main"), updated_at=_b("b_at"))
_DROP = delete(models).where(models.c.id == _b("b_id"), ~_IN_USE)
_DROP_PARTS = [
    delete(table).where(table.c.model == _b("b_id")) for table in (model_revisions, model_refs, model_acceptances)
]
_FREE_OWNED = delete(reservations).where(reservations.c.owner == _b("b_id"))
_ADD_REF = insert(model_refs).inline()
_ref = model_refs.c
_THE_REF = (_ref.model == _b("b_model"), _ref.kind == _b("b_kind"), _ref.name == _b("b_name"))
_MOVE = update(model_refs).where(*_THE_REF, _ref.revision == _b("b_from")).values(revision=_b("b_to"))
_DROP_REF = delete(model_refs).where(*_THE_REF)
_COMMIT = {
    True: sqlite.insert(model_revisions).on_conflict_do_nothing(),
    False: postgresql.insert(model_revisions).on_conflict_do_nothing(),
}
_HOLD = {
    True: sqlite.insert(reservations).on_conflict_do_nothing(),
    False: postgresql.insert(reservations).on_conflict_do_nothing(),
}
_HELD = (
    update(blobs).where(blobs.c.project == _b("b_project"), blobs.c.digest == _b("b_digest")).values(used_at=_b("b_at"))
)
_ACCEPT = {
    True: sqlite.insert(model_acceptances).on_conflict_do_nothing(),
    False: postgresql.insert(model_acceptances).on_conflict_do_nothing(),
}


def add(work: Work, repository: Repository, first: Revision, grant: Grant) -> None:
    """A new repository with its first commit on `main`."""
    row = {
        "id": repository.id,
        "tenant": repository.tenant,
        "project": repository.project,
        "name": repository.name,
        "folded": repository.name.lower(),
        "short": repository.name.lower().partition("/")[2],
        "visibility": repository.visibility.value,
        "gated": repository.gated,
        "terms": repository.terms,
        "origin": repository.origin,
        "main": msgspec.json.encode(repository.main),
        "created_at": repository.created_at,
        "updated_at": repository.updated_at,
    }
    work.write(COUNT, _ADD, row, 1, lambda: taken(repository.name))
    _add_revision(work, repository.id, first)
    add_ref(work, repository.id, Ref(RefKind.BRANCH, "main", first.commit), grant)


def change(work: Work, repository: Repository, grant: Grant) -> None:
    """Who may use it, and on what terms."""
    values = {
        "b_id": repository.id,
        "b_visibility": repository.visibility.value,
        "b_gated": repository.gated,
        "b_terms": repository.terms,
        "b_at": repository.updated_at,
    }
    work.write(CHANGE, _CHANGE, values, 1, missing("model", "model"))


def drop(work: Work, repository: Repository, grant: Grant) -> None:
    """Everything of it. Raises `Conflict` while something uses it: whoever has reserved in ``use:<its id>``."""
    busy = Conflict(f"model {repository.name} is in use", code="in-use")
    work.write(COUNT, _DROP, {"b_id": repository.id, "b_scope": f"use:{repository.id}"}, 1, lambda: busy)
    for statement in (*_DROP_PARTS, _FREE_OWNED):
        work.write(CHANGE, statement, {"b_id": repository.id})


def commit(work: Work, repository: Repository, branch: str, revision: Revision, at: Instant, grant: Grant) -> None:
    """Move `branch` from the revision's parent to it. Raises `Stale` if the branch has moved, `NotFound` where the
    project lacks content."""
    _add_revision(work, repository.id, revision)
    moving = {"b_model": repository.id, "b_kind": RefKind.BRANCH.value, "b_name": branch}
    work.write(CHANGE, _MOVE, moving | {"b_from": revision.parent, "b_to": revision.commit}, 1)
    if branch == "main":
        values = {"b_id": repository.id, "b_main": msgspec.json.encode(Summary.of(revision)), "b_at": at}
        work.write(CHANGE, _SUMMARIZE, values, 1, missing("model", "model"))


def hold(work: Work, repository: Repository, entry: Entry, at: Instant, grant: Grant) -> None:
    """The repository needs this content, which its project must have, until it is deleted."""
    scope = f"blob:{repository.project}:{entry.digest}"
    key = f"{repository.id}/{entry.digest}"
    work.write(TAKE, _HOLD[work.is_sqlite], {"scope": scope, "key": key, "owner": repository.id})
    values = {"b_project": repository.project, "b_digest": entry.digest, "b_at": at}
    work.write(CHANGE, _HELD, values, 1, lambda: NotFound(f"{entry.path}: its content is gone", field="files"))


def _add_revision(work: Work, model: str, revision: Revision) -> None:
    row = {
        "model": model,
        "id": revision.commit,
        "parent": revision.parent,
        "at": revision.at,
        "author": revision.author,
        "title": revision.title,
        "message": revision.message,
        "document": zlib.compress(msgspec.json.encode(revision), 1),
    }
    work.write(TAKE, _COMMIT[work.is_sqlite], row)


def add_ref(work: Work, model: str, ref: Ref, grant: Grant) -> None:
    row = {"model": model, "kind": ref.kind.value, "name": ref.name, "revision": ref.commit}
    there = Conflict(f"{ref.kind.value} {ref.name!r} exists already", field="name", code="name-taken")
    work.write(TAKE, _ADD_REF, row, 1, lambda: there)


def drop_ref(work: Work, model: str, kind: RefKind, name: str, grant: Grant) -> None:
    values = {"b_model": model, "b_kind": kind.value, "b_name": name}
    work.write(CHANGE, _DROP_REF, values, 1, missing(kind.value, "revision"))


def accept(work: Work, model: str, acceptance: Acceptance, grant: Grant) -> None:
    """Once is enough."""
    row = {
        "model": model,
        "member": acceptance.member,
        "name": acceptance.name,
        "licence": acceptance.licence,
        "at": acceptance.at,
    }
    work.write(TAKE, _ACCEPT[work.is_sqlite], row)
