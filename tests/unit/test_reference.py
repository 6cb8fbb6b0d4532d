"""The reference pages in ``docs/reference`` say what the code says today."""

from __future__ import annotations

from pathlib import Path

from usina.server import reference

FOLDER = Path(__file__).parents[2] / "docs/reference"


def test_the_pages_are_current() -> None:
    for name, page in reference.PAGES.items():
        assert (FOLDER / name).read_text() == page(), "renew them: python -m usina.server.reference"
