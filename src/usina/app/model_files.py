"""Reading what is in a model repository: a file, the log of commits, when each path was last changed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from usina.app.context import Context
from usina.app.model_commits import README
from usina.app.model_fetching import find_or_fetch
from usina.app.models import require_accepted, revision_of
from usina.core import git
from usina.core.errors import Forbidden, NotFound
from usina.core.repository import Entry, Ref, Repository, Revision
from usina.core.units import KiB

LONGEST_README = 64 * KiB
FURTHEST = 200
"""Commits that are looked at to find when a path was last changed."""


async def open_file(context: Context, ref: str, revision: str, path: str) -> tuple[Revision, Entry, Path]:
    """A file of a revision, and where its bytes lie. Raises `NotFound` (``entry-not-found``), and `Forbidden`
    (``gated``) before the licence was accepted."""
    repository = await find_or_fetch(context, ref)
    await require_accepted(context, repository)
    found = await revision_of(context, repository, revision)
    entry = found.entry(path)
    if entry is None:
        raise NotFound("Entry not found", code="entry-not-found", data={"commit": found.commit})
    return found, entry, context.house.blobs.path(entry.digest)


@dataclass(frozen=True, slots=True)
class Detail:
    """What is shown of one model besides its files."""

    refs: list[Ref]
    readme: str  # as far as it is shown
    accepted: bool  # or need not be


async def detail(context: Context, repository: Repository, revision: Revision) -> Detail:
    """The card is shown before the licence is accepted: it is what says what one would accept."""
    entry = revision.entry(README)
    readme = ""
    if entry is not None:
        readme = await asyncio.to_thread(_beginning, context.house.blobs.path(entry.digest))
    try:
        await require_accepted(context, repository)
        accepted = True
    except Forbidden:
        accepted = False
    return Detail(await refs(context, repository), readme, accepted)


def _beginning(place: Path) -> str:
    with place.open("rb") as file:
        return file.read(LONGEST_README).decode(errors="replace")


async def refs(context: Context, repository: Repository) -> list[Ref]:
    return await context.store.models.refs(repository.id)


async def log(context: Context, repository: Repository, revision: Revision, limit: int) -> list[Revision]:
    """A revision and those before it, without their trees."""
    return await context.store.models.log(repository.id, revision.commit, limit)


async def last_changes(
    context: Context, repository: Repository, revision: Revision, paths: Iterable[str]
) -> dict[str, Revision]:
    """The commit that made each file or folder what it is at `revision`; of very old ones, the oldest looked at."""
    ids = await asyncio.to_thread(_ids, revision)
    open_ = {path for path in paths if path in ids}
    found: dict[str, Revision] = {}
    at = revision
    for _ in range(FURTHEST):
        before = await context.store.models.revision(repository.id, at.parent) if at.parent and open_ else None
        if before is None:
            break
        earlier = await asyncio.to_thread(_ids, before)
        done = {path for path in open_ if earlier.get(path) != ids[path]}
        found |= dict.fromkeys(done, at)
        open_ -= done
        at = before
    return found | dict.fromkeys(open_, at)


def _ids(revision: Revision) -> dict[str, str]:
    return git.tree_ids(revision.entries) | {entry.path: entry.oid for entry in revision.entries}
