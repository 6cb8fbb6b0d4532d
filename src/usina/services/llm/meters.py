"""Prometheus metrics of the gateway, with the names that OpenTelemetry gives to generative AI
(https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-metrics/), dots turned into underscores as its exporters do.

Labels are endpoints and not keys or members: their number is bounded, and metrics are not a place for names of people.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from prometheus_client import Counter, Gauge, Histogram

from usina.core.llm import Usage

if TYPE_CHECKING:
    from usina.services.llm.call import OneCall

_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160)
_TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576)
_OF = ("project", "endpoint", "gen_ai_request_model")

DURATION = Histogram(
    "gen_ai_client_operation_duration_seconds", "From the request to the end of the answer.", (*_OF, "status"),
    buckets=_SECONDS,
)  # fmt: skip
FIRST = Histogram(
    "gen_ai_server_time_to_first_token_seconds", "To the first byte of the answer.", _OF, buckets=_SECONDS
)
EACH = Histogram(
    "gen_ai_server_time_per_output_token_seconds", "After the first, per token of the answer.", _OF,
    buckets=tuple(bound / 20 for bound in _SECONDS),
)  # fmt: skip
TOKENS = Histogram("gen_ai_client_token_usage", "Tokens of one request.", (*_OF, "gen_ai_token_type"), buckets=_TOKENS)
ADDED = Histogram(
    "usina_gateway_wait_seconds", "Before a request was sent to a replica: checks, and the line.", _OF,
    buckets=(0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.25, 1, 5, 30, 120),
)  # fmt: skip
IN_FLIGHT = Gauge("usina_gateway_in_flight", "Requests that replicas work on.", ("endpoint",))
WAITING = Gauge("usina_gateway_waiting", "Requests in line.", ("endpoint",))
REFUSED = Counter("usina_gateway_refused_total", "Requests that were let in nowhere.", ("status",))
ALL = (DURATION, FIRST, EACH, TOKENS, ADDED, IN_FLIGHT, WAITING, REFUSED)


@lru_cache(maxsize=4096)
def _observers(project: str, endpoint: str, model: str) -> tuple[Any, ...]:
    of = (project, endpoint, model)
    return (
        FIRST.labels(*of).observe,
        EACH.labels(*of).observe,
        TOKENS.labels(*of, "input").observe,
        TOKENS.labels(*of, "output").observe,
        ADDED.labels(*of).observe,
    )


@lru_cache(maxsize=16384)
def _duration(project: str, endpoint: str, model: str, status: int) -> Any:
    return DURATION.labels(project, endpoint, model, str(status)).observe


class Meters:
    """What is measured of each request that was let in."""

    def note(self, call: OneCall, usage: Usage, status: int) -> None:
        end = call.since + usage.seconds
        first, each, prompt, completion, added = _observers(usage.project, usage.endpoint, usage.model)
        _duration(usage.project, usage.endpoint, usage.model, status)(usage.seconds)
        if call.upstream_at:
            added(call.upstream_at - call.since)
        if usage.failed or not call.first_at:
            return
        first(call.first_at - call.since)
        prompt(usage.prompt)
        if usage.completion:
            completion(usage.completion)
            if call.events is not None and usage.completion > 1:
                each((end - call.first_at) / (usage.completion - 1))
