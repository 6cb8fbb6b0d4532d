"""What a key may do at the gateway, and what is counted there: limits, budgets, usage."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from usina.core.units import Instant


class Every(StrEnum):
    """When a budget begins anew, in UTC."""

    NEVER = "never"
    DAY = "day"
    MONTH = "month"


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one key; 0 or nothing: no limit."""

    models: tuple[str, ...] = ()  # names of endpoints
    requests: int = 0  # per minute
    tokens: int = 0  # per minute, of prompt and answer
    concurrency: int = 0  # requests at a time
    priority: int = 0  # -1: after all others, 1: before them, where replicas are full


UNLIMITED = Limits()


@dataclass(frozen=True, slots=True)
class Budget:
    """Tokens that a key, project or tenant may use up, in all or anew in each period."""

    scope: str  # id of a key, project or tenant
    tokens: int
    every: Every = Every.NEVER
    began_at: Instant = 0.0  # the period under way
    spent: int = 0  # in it, as the ledger knows
    leased: int = 0  # that gateways hold to give out


@dataclass(frozen=True, slots=True)
class Usage:
    """What one key used of one endpoint within one minute."""

    minute: int  # since the epoch
    tenant: str  # that pays
    project: str
    member: str
    key: str
    endpoint: str
    model: str  # "namespace/name"
    requests: int = 0
    failed: int = 0
    prompt: int = 0  # tokens
    cached: int = 0  # of the prompt, found in the upstream's cache
    completion: int = 0
    seconds: float = 0.0  # from the request to the end of the answer, summed


def period(every: Every, now: Instant) -> tuple[Instant, Instant]:
    """(begin, end) of the period of a budget that `now` lies in, in UTC; (0, inf) where it has none."""
    if every is Every.NEVER:
        return 0.0, float("inf")
    at = datetime.fromtimestamp(now, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if every is Every.DAY:
        return at.timestamp(), (at + timedelta(days=1)).timestamp()
    first = at.replace(day=1)
    return first.timestamp(), (first + timedelta(days=32)).replace(day=1).timestamp()
