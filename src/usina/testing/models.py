"""Models for tests: kept through the house's own operations, from files or bytes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from usina.app import model_commits, models
from usina.app.context import Context
from usina.app.model_commits import Put
from usina.app.models import ModelOrder
from usina.core.repository import Repository
from usina.core.units import MiB


async def stored(
    context: Context, name: str, files: Mapping[str, Path | bytes], project: str | None = None
) -> Repository:
    """A model "namespace/name" of `project` with `files`: path in the repository → where it lies, or its content."""
    repository = await models.create(context, ModelOrder(name, project))
    changes = []
    for path, source in files.items():
        digest, _ = await model_commits.receive(context, repository, None, _chunks(source))
        changes.append(Put(path, digest))
    await model_commits.commit(context, repository, changes, title="files of a test")
    return await models.find(context, repository.id)


async def _chunks(source: Path | bytes) -> AsyncIterator[bytes]:
    if isinstance(source, bytes):
        yield source
        return
    with source.open("rb") as file:
        while chunk := await asyncio.to_thread(file.read, MiB):
            yield chunk
