"""A factory at work inside the test's process, and small ways to speak to it; and to one in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from usina.testing import images
from usina.testing.factory import Running, furnished
from usina.testing.process import FactoryProcess

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


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A small image for containers."""
    path = images.archive(tmp_path_factory.mktemp("image"))
    yield path
    images.drop(path)


@pytest.fixture
def usina(factory: FactoryProcess, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The command, as a person would use it, for modules whose factory is a process."""
    environment = {
        **os.environ,
        "USINA_ENDPOINT": f"http://127.0.0.1:{factory.port}",
        "USINA_TOKEN": factory.token,
        "USINA_PROJECT": "main",
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
    }

    def usina(*words: str, input: str = "") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "usina.cli", *words]
        return subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, input=input, timeout=120
        )

    return usina
