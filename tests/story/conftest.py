"""A factory at work inside the test's process, and small ways to speak to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from usina.testing.factory import Running, furnished

Json = dict[str, Any]


@pytest.fixture
async def factory(tmp_path: Path) -> AsyncIterator[Running]:
    """A furnished one, for one test alone."""
    async with furnished(tmp_path / "data") as factory:
        yield factory


@pytest.fixture
def order(factory: Running) -> Callable[..., Awaitable[Json]]:
    """Order a machine; the answer's body. Fails on a refusal."""

    async def order(name: str = "m1", token: str | None = None, **more: Any) -> Json:
        async with factory.client(token) as client:
            answer = await client.post("/machines", json={"name": name, "image": "ready"} | more)
            assert answer.status_code == 201, answer.text
            return dict(answer.json())

    return order
