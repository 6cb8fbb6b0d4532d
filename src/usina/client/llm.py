"""Budgets of tokens, and what was used of models."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from usina.client.models import Budget, UsageReport
from usina.client.wire import Wire, segment


class _Budgets(msgspec.Struct):
    items: tuple[Budget, ...]


class Budgets:
    """Of a key by id, or a project or tenant by id or name."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def list(self) -> list[Budget]:
        return list(self._wire.one(_Budgets, "GET", "/budgets").items)

    def get(self, ref: str) -> Budget:
        return self._wire.one(Budget, "GET", f"/budgets/{segment(ref)}")

    def set(self, ref: str, tokens: int, every: str = "never") -> Budget:
        return self._wire.one(Budget, "PUT", f"/budgets/{segment(ref)}", body={"tokens": tokens, "every": every})

    def delete(self, ref: str) -> None:
        self._wire.call("DELETE", f"/budgets/{segment(ref)}")


class UsageReports:
    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def get(
        self, by: Sequence[str], *, since: str | None, until: str | None, every: float, project: str | None
    ) -> UsageReport:
        query = {"by": tuple(by), "since": since, "until": until, "every": str(every) if every else None}
        return self._wire.one(UsageReport, "GET", "/usage", query=query | {"project": project})
