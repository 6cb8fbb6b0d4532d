"""Shapes and views of what may be used of models, and what was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from usina.app.llm import MEASURED_BY, check_limits
from usina.core.llm import Budget, Limits, period
from usina.core.units import iso
from usina.facades.native.models import LimitsIn


class BudgetOut(BaseModel):
    scope: str
    tokens: int
    every: str
    spent: int
    reserved: int
    left: int
    began_at: str | None
    ends_at: str | None


class BudgetList(BaseModel):
    items: list[BudgetOut]


class ModelUsageOut(BaseModel):
    at: str | None
    tenant: str | None
    project: str | None
    member: str | None
    key: str | None
    endpoint: str | None
    model: str | None
    requests: int
    failed: int
    prompt: int
    cached: int
    completion: int
    seconds: float


class ExchangeOut(BaseModel):
    at: str
    request: str
    member: str
    key: str
    endpoint: str
    model: str
    path: str
    status: int
    prompt: int
    completion: int
    asked: str
    answered: str
    cut: bool


class ExchangePage(BaseModel):
    items: list[ExchangeOut]
    next: str | None


class UsageReport(BaseModel):
    since: str
    until: str
    items: list[ModelUsageOut]


def limits_of(body: LimitsIn) -> Limits:
    return check_limits(Limits(tuple(body.models), body.requests, body.tokens, body.concurrency, body.priority))


def budget_view(budget: Budget) -> dict[str, Any]:
    ends_at = period(budget.every, budget.began_at)[1]
    return {
        "scope": budget.scope,
        "tokens": budget.tokens,
        "every": budget.every.value,
        "spent": budget.spent,
        "reserved": budget.leased,
        "left": budget.tokens - budget.spent,
        "began_at": iso(budget.began_at or None),
        "ends_at": iso(ends_at if ends_at < float("inf") else None),
    }


def report_view(since: float, until: float, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    said = [dict.fromkeys(MEASURED_BY) | dict(row) | {"at": iso(row["minute"] * 60) if "minute" in row else None}
            for row in rows]  # fmt: skip
    for row in said:
        row.pop("minute", None)
    return {"since": iso(since), "until": iso(until), "items": said}
