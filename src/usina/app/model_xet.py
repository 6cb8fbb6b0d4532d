"""Content that comes by Xet: xorbs first, then a shard that says which files they make."""

from __future__ import annotations

from collections.abc import AsyncIterator
from hashlib import sha256

from usina.app.context import Context
from usina.app.model_commits import present, receive
from usina.app.models import allow
from usina.core.errors import TooLarge
from usina.core.repository import Repository
from usina.core.tenancy import Action
from usina.core.units import show_size
from usina.core.xet import XetFile, read_shard


async def keep_xorb(context: Context, repository: Repository, name: str, chunks: AsyncIterator[bytes]) -> bool:
    """Keep a xorb for a shard to come; whether it is new. Forgotten after a day."""
    allow(context, repository, Action.RESOURCE_CHANGE)
    return await context.house.xorbs.receive(context.actor.member, name, chunks)


async def make_files(context: Context, repository: Repository, shard: bytes) -> None:
    """Give a repository's project the files of a shard, for a commit to come. Raises `Invalid` where one does not come
    out as its sha256 says; those before it are kept.

    Large ones may take longer than a client waits: it asks again, and gets the answer of what goes on already."""
    allow(context, repository, Action.RESOURCE_CHANGE)
    asked = ("make-files", repository.id, context.actor.member, sha256(shard).digest())
    await context.house.flights.join(asked, lambda: _make_all(context, repository, shard))


async def _make_all(context: Context, repository: Repository, shard: bytes) -> None:
    files = read_shard(shard)
    limit = context.house.upload_limit
    if any(file.size > limit for file in files):
        raise TooLarge(f"content: at most {show_size(limit)}", field="content")
    there = await present(context, repository, [file.digest for file in files])
    for file in files:
        if there.get(file.digest) != file.size:
            await _make(context, repository, file)
        await context.house.xorbs.remember(context.actor.member, file)


async def _make(context: Context, repository: Repository, file: XetFile) -> None:
    content = context.house.xorbs.content(context.actor.member, file, context.house.blobs.path)
    await receive(context, repository, file.digest, content)
