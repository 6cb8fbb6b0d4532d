"""A factory on a pretended host, started quickly and as often as it dies."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from usina.testing.nursery import Nursery
from usina.testing.process import FactoryProcess


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as nursery:
        yield nursery


@pytest.fixture
def factory(tmp_path: Path, nursery: Nursery) -> Iterator[FactoryProcess]:
    with FactoryProcess(tmp_path / "data", local_host=False, nursery=nursery).start() as process:
        process.call("POST", "/hosts", {"name": "h1", "driver": "fake"})
        yield process
