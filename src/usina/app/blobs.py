"""Content that members give to their projects, by its digest: given once, used by as many tasks as like."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from usina.app.context import Context
from usina.core.tenancy import Action, Scope
from usina.core.units import GiB
from usina.store import tasks as writers

LARGEST = 8 * GiB


async def put(context: Context, digest: str, chunks: AsyncIterator[bytes], project: str | None = None) -> int:
    """Give the project content; its size. What is not used by any task within a day is forgotten."""
    owner = await context.project(project)
    grant = context.require(Action.RESOURCE_CREATE, Scope(owner.tenant, owner.id), "project")
    found, size = await context.house.blobs.receive(chunks, limit=LARGEST, digest=digest)
    work = context.work()
    writers.own_blob(work, owner.id, found, size, context.now, grant)
    await context.commit(work)
    return size


async def have(context: Context, digests: Sequence[str], project: str | None = None) -> dict[str, int]:
    """Of these, what the project has already: digest → size. They stay for another day."""
    owner = await context.project(project)
    grant = context.require(Action.RESOURCE_CREATE, Scope(owner.tenant, owner.id), "project")
    known = await context.store.tasks.blobs(owner.id, digests)
    work = context.work()
    for digest, size in known.items():
        writers.own_blob(work, owner.id, digest, size, context.now, grant)
    if known:
        await context.commit(work)
    return known
