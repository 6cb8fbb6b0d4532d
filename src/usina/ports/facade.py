"""Facade: a door that speaks one protocol. A new door is one folder that exports `PLUGIN`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from usina.ports.llm import Gateway


@dataclass(frozen=True, slots=True)
class FacadePlugin:
    """What a facade folder exports as `PLUGIN`."""

    name: str
    summary: str
    mount: str  # path prefix, for example "/api/v1"
    app: Callable[[Any], Any]  # app.context.House -> ASGI application
    lane: Callable[[Gateway], Callable[[], Any]] | None = None
    """Gateway of models -> what makes an `asyncio.Protocol` for a connection that is only for this facade, where it has
    a quicker way than ASGI. The protocol tells by `busy` whether it is within a request, and ends by `shutdown`."""
