"""What can go wrong between a client and a site. All are `UsinaError`s, so one ``except`` catches them.

UsinaError
├── ApiError        the site answered with a problem (RFC 9457); has the status, code, field and data
├── CannotConnect   the site does not answer
├── WaitedTooLong   what was waited for did not come in time
└── ResourceFailed  what was waited for failed; has the resource
"""

from __future__ import annotations

from typing import Any

import msgspec

from usina.client.models import Resource
from usina.core.errors import UsinaError


class ApiError(UsinaError):
    """A refusal, in the site's own words."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str = "http",
        field: str | None = None,
        data: dict[str, Any] | None = None,
        errors: tuple[dict[str, str], ...] = (),
        request_id: str | None = None,
    ) -> None:
        super().__init__(message, field=field, code=code, data=data)
        self.status = status
        self.errors = errors  # every wrong field, each with a message
        self.request_id = request_id  # ties an inner fault to the operator's log


class CannotConnect(UsinaError):
    code = "cannot-connect"


class WaitedTooLong(UsinaError):
    code = "waited-too-long"


class ResourceFailed(UsinaError):
    code = "failed"

    def __init__(self, resource: Resource) -> None:
        reason = resource.trouble or "its story says why"
        super().__init__(f"{resource.title} failed: {reason}")
        self.resource = resource


class _Problem(msgspec.Struct, frozen=True):
    detail: str = ""
    title: str = ""
    code: str = "http"
    field: str | None = None
    errors: tuple[dict[str, str], ...] = ()
    data: dict[str, Any] = {}
    request_id: str | None = None


def read_problem(status: int, content: bytes) -> ApiError:
    """An answer that is not a success, as an error; copes with answers of proxies, which are not problem+json."""
    try:
        problem = msgspec.json.decode(content, type=_Problem)
    except msgspec.MsgspecError:
        return ApiError(status, f"the site answered {status}")
    return ApiError(
        status,
        problem.detail or problem.title or f"the site answered {status}",
        code=problem.code,
        field=problem.field,
        data=problem.data,
        errors=problem.errors,
        request_id=problem.request_id,
    )
