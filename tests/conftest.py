"""Fixtures that more than one suite needs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from usina.testing import postgres


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """One PostgreSQL for the whole run."""
    with postgres.server() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database of each kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'test.db'}"
        return
    with postgres.database(request.getfixturevalue("postgres_server")) as url:
        yield url
