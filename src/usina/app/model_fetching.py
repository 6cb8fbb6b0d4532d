"""Models fetched from the upstream hub when somebody asks for them, where the operator allows it.

A fetch goes on when whoever asked for it is gone, and serves all who ask for the same meanwhile; it ends with the
process, and the next question begins it again where it was.
"""

from __future__ import annotations

import asyncio

import structlog

from usina.app.context import Context
from usina.app.model_imports import ImportOrder, import_model
from usina.app.models import find
from usina.core.errors import Forbidden, NotFound, Unavailable, UsinaError
from usina.core.repository import Repository
from usina.core.tenancy import Action, Scope
from usina.core.units import show_size

log = structlog.get_logger()

PATIENCE = 8.0  # seconds; clients of the hub give up after ten
AT_ONCE = 4
_fetches: dict[tuple[int, str, str], Fetch] = {}


class Fetch:
    """One import that goes on by itself."""

    def __init__(self, context: Context, order: ImportOrder) -> None:
        self.said = "it has just begun"
        self.task = asyncio.create_task(self._run(context, order))

    async def _run(self, context: Context, order: ImportOrder) -> None:
        async for step in import_model(context, order):
            self.said = f"{show_size(step.done)} of {show_size(step.total)} are here"


async def find_or_fetch(context: Context, name: str) -> Repository:
    """A model that the actor may see; one that is not here is fetched into the key's project. Raises `NotFound`, and
    `Unavailable` while it is on its way."""
    try:
        return await find(context, name)
    except NotFound:
        if context.house.upstream is None or not context.house.fetch_on_demand:
            raise
    try:
        owner = await context.project(None)
        context.require(Action.RESOURCE_CREATE, Scope(owner.tenant, owner.id))
    except (NotFound, Forbidden):
        raise NotFound("model not found", field="model") from None
    await _fetched(context, owner.id, name)
    return await find(context, name)


async def _fetched(context: Context, project: str, name: str) -> None:
    key = (id(context.house), project, name.lower())
    fetch = _fetches.get(key)
    if fetch is None:
        if len(_fetches) >= AT_ONCE:
            raise Unavailable("too many models are being fetched from the upstream hub; ask again later")
        fetch = _fetches[key] = Fetch(context, ImportOrder(name, project=project))
        fetch.task.add_done_callback(lambda task: _ended(key, task))
    await asyncio.wait([fetch.task], timeout=PATIENCE)
    if not fetch.task.done():
        raise Unavailable(f"model: {name} is being fetched from the upstream hub ({fetch.said}); ask again")
    fetch.task.result()


def _ended(key: tuple[int, str, str], task: asyncio.Task[None]) -> None:
    _fetches.pop(key, None)
    error = None if task.cancelled() else task.exception()
    if error is not None and not isinstance(error, UsinaError):
        log.error("a model could not be fetched", exc_info=error)
