"""Opens the site that this person is logged in to."""

from __future__ import annotations

from usina.cli import config
from usina.client import Client
from usina.core.errors import Unauthenticated


def client(project: str | None = None, timeout: float = 60.0) -> Client:
    """The client for every command. Raises `Unauthenticated` when nobody is logged in."""
    known = config.effective()
    if not known.endpoint or not known.token:
        raise Unauthenticated("you are not logged in", code="not-logged-in")
    return Client(known.endpoint, known.token, timeout, project=project or known.project)
