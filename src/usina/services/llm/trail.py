"""The trace of one call: a span for it, and one for each time that it is sent to a replica.

Attributes are those of OpenTelemetry's conventions for generative AI
(https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans), and ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from usina.core.llm import Usage
from usina.ports.traces import Span
from usina.services.llm.ask import Verb

if TYPE_CHECKING:
    from usina.services.llm.call import OneCall

_OPERATIONS = {
    Verb.COMPLETION: "text_completion",
    Verb.EMBEDDINGS: "embeddings",
    Verb.COUNT: "count_tokens",
}


class Trail:
    __slots__ = ("_attempt", "_call", "_span", "usage")

    def __init__(self, span: Span, call: OneCall) -> None:
        self._span, self._call = span, call
        self._attempt: Span | None = None
        self.usage: Usage | None = None

    def sent(self) -> Sequence[tuple[bytes, bytes]]:
        """To the replica of the call's seat; the headers by which that goes on."""
        self.missed("sent-again")  # where the connection was closed meanwhile
        self._attempt = self._span.child(f"{operation(self._call.ask.verb)} {self._call.model}")
        return self._attempt.headers()

    def missed(self, why: str) -> None:
        """That was in vain."""
        attempt, self._attempt = self._attempt, None
        if attempt is not None:
            attempt.end(self._about(), why)

    def over(self, status: int) -> None:
        call, usage = self._call, self.usage
        error = str(status) if status >= 400 else ""
        attempt, self._attempt = self._attempt, None
        if attempt is not None:
            attempt.end(self._about(), error)
        told = self._about() | {"http.response.status_code": status}
        if call.upstream_at:
            told["usina.wait"] = call.upstream_at - call.since
        if call.first_at and call.ask.stream:
            told["gen_ai.response.time_to_first_chunk"] = call.first_at - call.since
        if usage is not None and not error:
            told["gen_ai.usage.input_tokens"] = usage.prompt
            told["gen_ai.usage.output_tokens"] = usage.completion
            told["gen_ai.usage.cache_read.input_tokens"] = usage.cached
        self._span.end(told, error)

    def _about(self) -> dict[str, str | int | float]:
        call = self._call
        offered = call.live.offered
        told: dict[str, str | int | float] = {
            "gen_ai.operation.name": operation(call.ask.verb),
            "gen_ai.provider.name": offered.spec.runtime,
            "gen_ai.request.model": call.ask.model,
            "gen_ai.response.model": call.model,
            "usina.endpoint": offered.id,
            "usina.project": offered.project,
            "usina.request": call.request_id.decode(),
        }
        if call.seat is not None:
            told["usina.replica"] = call.seat.id
        return told


def operation(verb: Verb) -> str:
    return _OPERATIONS.get(verb, "chat")
