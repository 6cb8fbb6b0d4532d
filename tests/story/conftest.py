"""A factory at work inside the test's process, and small ways to speak to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from usina.testing.factory import Running, running

Json = dict[str, Any]


@pytest.fixture
async def factory(tmp_path: Path) -> AsyncIterator[Running]:
    """One host with four GPUs on two NUMA nodes, and an image called ``ready``."""
    async with running(tmp_path / "data") as factory:
        async with factory.client() as client:
            options = {"cores": 64, "gpus": 4, "numa_nodes": 2, "hugepages": 8}
            answer = await client.post("/hosts", json={"name": "h1", "driver": "fake", "options": options})
            assert answer.status_code == 201, answer.text
        await factory.ready_image()
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
