"""The one error type of the house, drawn as a tree.

    UsinaError
    ├── Invalid           a field of the request is wrong (names the field)
    ├── Unauthenticated   no key, or one that does not hold
    ├── NotFound          not there, or not to be seen: both look alike
    ├── Forbidden         seen, but this role may not do this
    ├── Conflict          the state of things does not allow it
    │   └── Stale         the object changed since it was read
    ├── QuotaExceeded     would pass a tenant's or project's quota
    ├── Refused           no provider can take it (placement; says why with counts)
    ├── TooLarge          the body or a part of it passes a limit
    └── Unavailable       a provider or a part of the house does not answer now

Each has a stable ``code`` (for programs), a public ``message`` (for people) and, optionally, the ``field`` at
fault and private ``detail`` that only the operator's log sees. Facades turn them into their own dialect.
"""

from __future__ import annotations

from typing import Any


class UsinaError(Exception):
    """Root of every error that Usina raises on purpose."""

    code = "error"

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        code: str | None = None,
        detail: str | None = None,
        data: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.detail = detail
        self.data = data or {}
        if code is not None:
            self.code = code


class Invalid(UsinaError):
    code = "invalid"


class Unauthenticated(UsinaError):
    code = "unauthenticated"


class NotFound(UsinaError):
    code = "not-found"


class Forbidden(UsinaError):
    code = "forbidden"


class Conflict(UsinaError):
    code = "conflict"


class Stale(Conflict):
    code = "stale"

    @classmethod
    def meanwhile(cls) -> Stale:
        return cls("it changed meanwhile; read it again")


class QuotaExceeded(UsinaError):
    code = "quota-exceeded"


class Refused(UsinaError):
    code = "refused"


class TooLarge(UsinaError):
    code = "too-large"


class Unavailable(UsinaError):
    code = "unavailable"
