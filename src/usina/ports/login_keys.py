"""Login keys: with which tasks get into the machines of a project. Implemented by `server.login_keys`."""

from __future__ import annotations

from typing import Protocol


class LoginKeys(Protocol):
    def private(self, project: str) -> str:
        """In OpenSSH's format, without a passphrase."""
        ...

    def public(self, project: str) -> str:
        """The line of ``authorized_keys``, with a comment that says what it is for."""
        ...
