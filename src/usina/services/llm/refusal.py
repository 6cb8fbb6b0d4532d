"""Refusals, in the words of the protocol that was spoken: OpenAI's errors, or Anthropic's on their paths.

https://platform.openai.com/docs/guides/error-codes and https://docs.anthropic.com/en/api/errors
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

Headers = Sequence[tuple[bytes, bytes]]


class Refusal(Exception):
    """A request that is not served. `status` is HTTP's; `kind` and `code` are OpenAI's ``type`` and ``code``."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind, self.code, self.param = status, message, kind, code, param
        self.retry_after = retry_after

    def headers(self) -> list[tuple[bytes, bytes]]:
        if self.retry_after is None:
            return []
        seconds = max(0.001, self.retry_after)
        return [(b"retry-after", b"%d" % max(1, round(seconds + 0.499))), (b"retry-after-ms", b"%d" % (seconds * 1000))]

    def body(self, *, anthropic: bool) -> bytes:
        if anthropic:
            return msgspec.json.encode({"type": "error", "error": {"type": self._type(), "message": self.message}})
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return msgspec.json.encode({"error": error})

    def _type(self) -> str:
        return _ANTHROPIC.get(self.status, "api_error" if self.status >= 500 else "invalid_request_error")


_ANTHROPIC = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def told_by_replica(status: int, body: bytes, path: str, *, anthropic: bool) -> bytes:
    """An error of a replica as it is, where it has the form that clients of the path expect; else in that form."""
    try:
        said = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        said = None
    error = said.get("error") if isinstance(said, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    if not isinstance(message, str):
        detail = said.get("detail") if isinstance(said, dict) else None  # as FastAPI has it
        message = detail if isinstance(detail, str) and status != 404 else f"the replica answered {status}"
        if status == 404:
            message = f"what serves this model has no {path}"
    elif isinstance(error, dict) and (not anthropic or said.get("type") == "error"):
        return body
    return Refusal(status, message).body(anthropic=anthropic)


class Unknown(Refusal):
    """Of a key or a model that the directory does not have. It may be younger than the directory."""


def unauthenticated() -> Unknown:
    return Unknown(401, "the key is unknown, expired or revoked", code="invalid_api_key")


def unknown_model(name: str) -> Unknown:
    shown = name if name.isprintable() and len(name) <= 128 else "…"
    return Unknown(
        404, f"The model '{shown}' does not exist or this key may not use it.", code="model_not_found", param="model"
    )


def invalid(message: str, param: str | None = None, code: str | None = None) -> Refusal:
    return Refusal(400, message, param=param, code=code)


def too_many(message: str, retry_after: float, kind: str = "requests") -> Refusal:
    return Refusal(429, message, kind=kind, code="rate_limit_exceeded", retry_after=retry_after)


def over_budget(scope: str, free: int, most: int, ends_in: float) -> Refusal:
    """`free`: tokens left in the budget of `scope`; `most`: that this may need; `ends_in`: seconds until it begins
    anew."""
    whose = {"key": "key", "prj": "project", "tnt": "tenant"}[scope[:3]]
    told = f"the {whose}'s budget has {max(0, free)} tokens left, and this may need {most}"
    wait = ends_in if ends_in < float("inf") else None
    kind = "insufficient_quota"
    return Refusal(429, f"{told}; ask for fewer with max_tokens", kind=kind, code=kind, retry_after=wait)


def unavailable(message: str, retry_after: float) -> Refusal:
    return Refusal(503, message, kind="server_error", code="unavailable", retry_after=retry_after)


def broken(message: str) -> Refusal:
    return Refusal(502, message, kind="server_error", code="bad_gateway")


def timed_out(message: str) -> Refusal:
    return Refusal(504, message, kind="server_error", code="timeout")


def fault() -> Refusal:
    return Refusal(500, "something went wrong here; the operator finds it by the request id", kind="server_error")
