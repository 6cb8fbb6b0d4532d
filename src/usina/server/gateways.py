"""The gateways of one factory: the main process has one, numbered 0, and each of its workers has one. Each has a name
in the ledger and a journal of its own."""

from __future__ import annotations

import shutil
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from usina.core.clock import Clock
from usina.core.errors import Invalid
from usina.core.tenancy import Key
from usina.engine.llm_ledger import StoreLedger
from usina.ports.guard import Placed
from usina.ports.llm import Dial, Prompts
from usina.ports.traces import Traces
from usina.server.process import soon_alone
from usina.server.settings import Settings, instance_id
from usina.services.llm.gateway import LlmGateway
from usina.services.llm.journal import Journal, hand_in
from usina.services.llm.prompts import PromptFolder
from usina.services.llm.shared import Table
from usina.store.store import Store

if TYPE_CHECKING:
    from usina.services.traces import OtlpTraces


def make_gateway(
    settings: Settings,
    store: Store,
    clock: Clock,
    secret: Callable[[Key], str],
    dial: Dial,
    table: Table | None,
    *,
    guards: Mapping[str, Placed],
    prompts: Prompts,
    traces: Traces | None,
    look: Callable[[], Awaitable[None]],
) -> LlmGateway:
    """The one of this process; `table`: what it shares with others of the factory."""
    number = table.mine if table is not None else 0
    return LlmGateway(
        _ledger(settings, store, clock, number),
        dial,
        secret,
        journal_folder(settings, number),
        guards=guards,
        prompts=prompts,
        traces=traces,
        wall=clock.now,
        alone=table is None and not settings.database,
        table=table,
        look=look,
    )


def prompt_folder(settings: Settings) -> PromptFolder:
    return PromptFolder(settings.data_dir / "prompts")


def traces_of(settings: Settings, number: int = 0) -> OtlpTraces | None:
    """Of a gateway's process. Raises `Invalid` where the library for them is not installed."""
    if not settings.traces:
        return None
    try:
        from usina.services.traces import OtlpTraces
    except ImportError as error:
        raise Invalid(f"traces: install usina[traces] ({error.name} is missing)", field="traces") from None
    return OtlpTraces(settings.traces, settings.traces_share, _name(settings, number))


def journal_folder(settings: Settings, number: int) -> Path:
    folder = settings.data_dir / "gateway"
    return folder / f"{number}" if number else folder


def _ledger(settings: Settings, store: Store, clock: Clock, number: int) -> StoreLedger:
    return StoreLedger(store, clock, _name(settings, number))


def _name(settings: Settings, number: int) -> str:
    name = instance_id(settings)
    return f"{name}#{number}" if number else name


async def hand_in_left(settings: Settings, store: Store, clock: Clock) -> None:
    """What workers have left that are no more, as there are fewer than there were."""
    for folder in sorted((settings.data_dir / "gateway").glob("[0-9]*")):
        number = int(folder.name) if folder.name.isdigit() else 0
        if number >= settings.gateway_workers:
            async with soon_alone(folder):
                await hand_in(Journal(folder), _ledger(settings, store, clock, number))
                shutil.rmtree(folder)
