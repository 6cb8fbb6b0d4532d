"""What is in a model repository: content comes in by digest, commits name it, branches and tags name commits.

A commit says what changes against the newest one on its branch, so that two at a time are both kept where they do not
contradict each other.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from usina.app.context import Context
from usina.app.models import allow, revision_of, tell
from usina.core import git
from usina.core.errors import Forbidden, Invalid, NotFound, Stale
from usina.core.grant import Grant
from usina.core.model import ModelFacts
from usina.core.repository import (
    MAIN,
    Card,
    Drop,
    DropFolder,
    Entry,
    Ref,
    RefKind,
    Repository,
    Revision,
    TreeChange,
    changed,
    check_digest,
    check_path,
    check_ref_name,
    is_large,
)
from usina.core.tenancy import Action
from usina.core.units import MiB
from usina.store import models as writers
from usina.store import tasks as blob_writers

README = "README.md"
LARGEST_README = 2 * MiB
MOST_CHANGES = 20_000
LONGEST_TITLE, LONGEST_MESSAGE = 500, 20_000
_TRIES = 8
_PIECE = MiB


@dataclass(frozen=True, slots=True)
class Put:
    """A file whose content the project has already."""

    path: str
    digest: str


@dataclass(frozen=True, slots=True)
class Copy:
    """A file of this repository under another path."""

    path: str
    source: str
    revision: str | None = None  # None: the newest of the branch


Change = Put | Copy | Drop | DropFolder


# --- content


async def receive(
    context: Context, repository: Repository, digest: str | None, chunks: AsyncIterator[bytes]
) -> tuple[str, int]:
    """Give a repository's project content for a commit to come; its sha256 and size. Forgotten after a day without."""
    found, size = await keep(context, repository, digest, chunks)
    await own(context, repository, {found: size})
    return found, size


async def keep(
    context: Context, repository: Repository, digest: str | None, chunks: AsyncIterator[bytes]
) -> tuple[str, int]:
    """The same without saying whose it is; `own` must follow within the hour."""
    allow(context, repository, Action.RESOURCE_CHANGE)
    if digest is not None:
        check_digest(digest)
    return await context.house.blobs.receive(chunks, limit=context.house.upload_limit, digest=digest)


async def own(context: Context, repository: Repository, sizes: Mapping[str, int]) -> None:
    """The repository's project has all of this (again): digest → size."""
    grant = allow(context, repository, Action.RESOURCE_CHANGE)
    work = context.work()
    for digest, size in sizes.items():
        blob_writers.own_blob(work, repository.project, digest, size, context.now, grant)
    await context.commit(work)


async def present(context: Context, repository: Repository, digests: Sequence[str]) -> dict[str, int]:
    """Of these, what the repository's project has: digest → size. What others have is not told."""
    allow(context, repository, Action.RESOURCE_CHANGE)
    found: dict[str, int] = {}
    for start in range(0, len(digests), 500):  # databases take so many parameters
        found |= await context.store.tasks.blobs(repository.project, digests[start : start + 500])
    if found:
        await own(context, repository, found)
    return found


# --- commits


async def commit(
    context: Context,
    repository: Repository,
    changes: Sequence[Change],
    *,
    branch: str = MAIN,
    title: str,
    message: str = "",
    parent: str | None = None,
    foreign: bool = False,
) -> Revision:
    """The branch's new revision; the one it has where nothing changes. `foreign`: a card that cannot be read is let be.

    Raises `Invalid` naming ``files``, `NotFound` for a branch or content that is not there, `Stale` where `parent` is
    not the newest commit.
    """
    grant = allow(context, repository, Action.RESOURCE_CHANGE)
    _check(changes, title, message)
    for _ in range(_TRIES):
        head = await _head(context, repository, branch)
        if parent is not None and parent != head.commit:
            raise Stale(f"branch {branch} has moved on from {parent[:12]}; it is at {head.commit[:12]}")
        wanted = await _entries(context, repository, head, changes)
        entries = await asyncio.to_thread(changed, head.entries, wanted)
        if entries == head.entries:
            return head
        revision = await _revision(context, head, entries, title, message, foreign)
        try:
            return await _record(context, repository, branch, head, revision, grant)
        except Stale:
            continue
    raise Stale(f"branch {branch} moves too quickly; try again")


async def _record(
    context: Context, repository: Repository, branch: str, head: Revision, revision: Revision, grant: Grant
) -> Revision:
    work = context.work()
    known = {entry.digest for entry in head.entries}
    for entry in {entry.digest: entry for entry in revision.entries if entry.digest not in known}.values():
        writers.hold(work, repository, entry, context.now, grant)
    writers.commit(work, repository, branch, revision, context.now, grant)
    text = f"{revision.title} ({revision.commit[:12]} on {branch}, {len(revision.entries)} files) by {revision.author}"
    tell(context, work, repository, "committed", text)
    await context.commit(work)
    return revision


def _check(changes: Sequence[Change], title: str, message: str) -> None:
    if len(changes) > MOST_CHANGES:
        raise Invalid(f"files: at most {MOST_CHANGES:,} in a commit", field="files")
    for text, longest, field in ((title, LONGEST_TITLE, "title"), (message, LONGEST_MESSAGE, "message")):
        if len(text) > longest or "\0" in text:
            raise Invalid(f"{field}: at most {longest:,} characters", field=field)
    for change in changes:
        check_path(change.path.rstrip("/") if isinstance(change, DropFolder) else change.path, "files")
        if isinstance(change, Put):
            check_digest(change.digest, "files")


async def _head(context: Context, repository: Repository, branch: str) -> Revision:
    refs = await context.store.models.refs(repository.id)
    commit = next((ref.commit for ref in refs if (ref.kind, ref.name) == (RefKind.BRANCH, branch)), None)
    if commit is None:
        raise NotFound(f"model: it has no branch {branch!r}", field="revision", code="revision-not-found")
    return await revision_of(context, repository, commit)


async def _entries(
    context: Context, repository: Repository, head: Revision, changes: Sequence[Change]
) -> list[TreeChange]:
    """Changes of the tree, with the size and git's id of each file that comes."""
    digests = [change.digest for change in changes if isinstance(change, Put)]
    sizes = await present(context, repository, list(dict.fromkeys(digests)))
    made: list[TreeChange] = []
    for change in changes:
        match change:
            case Put():
                if change.digest not in sizes:
                    raise NotFound(f"files: {change.path}: its content was not sent", field="files")
                made.append(await _entry(context, change.path, change.digest, sizes[change.digest]))
            case Copy():
                source = await _source(context, repository, head, change)
                made.append(await _entry(context, change.path, source.digest, source.size))
            case _:
                made.append(change)
    return made


async def _source(context: Context, repository: Repository, head: Revision, change: Copy) -> Entry:
    revision = head if change.revision is None else await revision_of(context, repository, change.revision)
    found = revision.entry(change.source)
    if found is None:
        raise Invalid(f"files: there is no file {change.source!r} to copy", field="files")
    return found


async def _entry(context: Context, path: str, digest: str, size: int) -> Entry:
    if is_large(path, size):
        return Entry(path, size, digest, git.pointer_id(digest, size), large=True)
    place = context.house.blobs.path(digest)
    return Entry(path, size, digest, await asyncio.to_thread(_git_id, place, size))


def _git_id(place: Path, size: int) -> str:
    hasher = git.blob_hash(size)
    with place.open("rb") as file:
        while piece := file.read(_PIECE):
            hasher.update(piece)
    return hasher.hexdigest()


async def _revision(
    context: Context, head: Revision, entries: tuple[Entry, ...], title: str, message: str, foreign: bool
) -> Revision:
    at, author = int(context.now), context.actor.name
    words = f"{title}\n\n{message}" if message else title
    tree = await asyncio.to_thread(git.tree_ids, entries)
    commit = git.commit_id(tree[""], head.commit, author, at, words)
    try:
        card = await _card(context, head, entries)
    except Invalid:
        if not foreign:
            raise
        card = Card()
    facts = await _facts(context, head, entries)
    return Revision(commit, head.commit, at, author, title, message, entries, facts, card)


async def _facts(context: Context, head: Revision, entries: tuple[Entry, ...]) -> ModelFacts:
    """Read anew only where a file that tells any has changed."""
    reader = context.house.models
    before = {(entry.path, entry.digest) for entry in head.entries if reader.tells(entry.path)}
    after = {(entry.path, entry.digest) for entry in entries if reader.tells(entry.path)}
    if before == after:
        return head.facts
    return await reader.facts({path: context.house.blobs.path(digest) for path, digest in after})


async def _card(context: Context, head: Revision, entries: tuple[Entry, ...]) -> Card:
    readme = next((entry for entry in entries if entry.path == README), None)
    before = head.entry(README)
    if readme is None or readme.size > LARGEST_README:
        return Card()
    if before is not None and before.digest == readme.digest:
        return head.card
    text = await asyncio.to_thread(context.house.blobs.path(readme.digest).read_text, "utf-8", "replace")
    return await asyncio.to_thread(context.house.models.card, text)


# --- names of commits


async def add_ref(context: Context, repository: Repository, kind: RefKind, name: str, revision: str = MAIN) -> Ref:
    """A branch or tag at `revision`. Raises `Conflict` if there is one; a tag never moves."""
    grant = allow(context, repository, Action.RESOURCE_CHANGE)
    check_ref_name(name)
    ref = Ref(kind, name, (await revision_of(context, repository, revision)).commit)
    work = context.work()
    writers.add_ref(work, repository.id, ref, grant)
    tell(context, work, repository, "named", f"{kind.value} {name} put at {ref.commit[:12]} by {context.actor.name}")
    await context.commit(work)
    return ref


async def drop_ref(context: Context, repository: Repository, kind: RefKind, name: str) -> None:
    """Its commits stay."""
    grant = allow(context, repository, Action.RESOURCE_CHANGE)
    if (kind, name) == (RefKind.BRANCH, MAIN):
        raise Forbidden("model: the branch main stays", field="revision")
    work = context.work()
    writers.drop_ref(work, repository.id, kind, name, grant)
    tell(context, work, repository, "named", f"{kind.value} {name} removed by {context.actor.name}")
    await context.commit(work)
