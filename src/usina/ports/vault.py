"""Vault: secrets at rest, sealed with a key that is not in the database. Implemented by `server.vault`."""

from __future__ import annotations

from typing import Protocol


class Vault(Protocol):
    def seal(self, secret: str, owner: str) -> str:
        """Text that can be stored; it opens for the same `owner` (the id of a resource) only."""
        ...

    def open(self, sealed: str, owner: str) -> str:
        """Raises `core.errors.Unavailable` where it was sealed with another key, or for another owner."""
        ...
