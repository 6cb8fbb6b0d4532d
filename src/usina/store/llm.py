"""Budgets, usage and load of models, as gateways write and all others read them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection, bindparam, delete, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from usina.core.endpoint import Load
from usina.core.errors import UsinaError
from usina.core.grant import Grant
from usina.core.llm import Budget, Every, Usage, period
from usina.core.units import Instant
from usina.store.database import Database
from usina.store.tables import budget_leases, budgets, gateways, keys, llm_usage
from usina.store.work import CHANGE, FREE, TAKE, Work, missing

SILENT = 10.0  # seconds after which what a gateway has measured counts no more
MINUTE = 60.0  # seconds between two notes that a key is used
SMALLEST = 4096  # tokens of a lease, where there are so many for each gateway

_LOADS = msgspec.json.Decoder(dict[str, Load])
_b = bindparam
_KEYS = ("minute", "key", "endpoint", "model", "project")
_SUMS = ("requests", "failed", "prompt", "cached", "completion", "seconds")

_BATCH = (
    update(gateways)
    .where(gateways.c.id == _b("b_id"), gateways.c.batch < _b("b_batch"))
    .values(batch=_b("b_batch"), seen_at=_b("b_at"), loads=_b("b_loads"))
)
_SPEND = (
    update(budgets)
    .where(budgets.c.scope == _b("b_scope"), budgets.c.began_at == _b("b_began"))
    .values(spent=budgets.c.spent + _b("b_tokens"), leased=budgets.c.leased - _b("b_tokens"))
)
_USE_UP = (
    update(budget_leases)
    .where(
        budget_leases.c.scope == _b("b_scope"),
        budget_leases.c.gateway == _b("b_id"),
        budget_leases.c.began_at == _b("b_began"),
    )
    .values(tokens=budget_leases.c.tokens - _b("b_tokens"))
)
_RETURN = (
    update(budgets)
    .where(budgets.c.scope == _b("b_scope"), budgets.c.began_at == _b("b_began"))
    .values(leased=budgets.c.leased - _b("b_tokens"))
)


def _upsert(dialect: Any) -> Any:
    new = dialect.insert(llm_usage)
    added = {name: llm_usage.c[name] + new.excluded[name] for name in _SUMS}
    return new.on_conflict_do_update(index_elements=list(_KEYS), set_=added)


_ADD = {True: _upsert(sqlite), False: _upsert(postgresql)}
_NEW_BUDGET = insert(budgets).inline()
_SET_BUDGET = update(budgets).where(budgets.c.scope == _b("b_scope")).values(tokens=_b("b_tokens"), every=_b("b_every"))
_KEY_USED = (
    update(keys)
    .where(keys.c.id == _b("b_id"), keys.c.last_used_at.is_(None) | (keys.c.last_used_at < _b("b_at") - MINUTE))
    .values(last_used_at=_b("b_at"))
)
_DROP_BUDGET = delete(budgets).where(budgets.c.scope == _b("b_scope"))
_DROP_LEASES = delete(budget_leases).where(budget_leases.c.scope == _b("b_scope"))


class WrittenAlready(UsinaError):
    """The ledger has this batch."""

    code = "written-already"

    def __init__(self) -> None:
        super().__init__("the batch is written already")


class Llm:
    def __init__(self, database: Database) -> None:
        self._database = database

    # --- reading

    async def load(self, endpoint: str, now: Instant) -> Load:
        """What all gateways that are alive have measured of an endpoint."""
        return (await self.loads(now)).get(endpoint, Load())

    async def loads(self, now: Instant) -> dict[str, Load]:
        """The same of every endpoint that any of them has measured anything of."""
        rows = await self._database.fetch(select(gateways.c.seen_at, gateways.c.loads))
        found: dict[str, list[tuple[bool, Load]]] = {}
        for row in rows:
            for endpoint, load in _LOADS.decode(row.loads).items():
                found.setdefault(endpoint, []).append((now - row.seen_at < SILENT, load))
        return {endpoint: _together(loads) for endpoint, loads in found.items()}

    async def budgets(self, scopes: Sequence[str] | None = None) -> list[Budget]:
        """Those of `scopes`, or all."""
        query = select(budgets).order_by(budgets.c.scope)
        if scopes is not None:
            query = query.where(budgets.c.scope.in_(scopes))
        return [_budget(row) for row in await self._database.fetch(query)]

    async def usage(
        self,
        first: int,
        last: int,
        *,
        tenants: Sequence[str] | None = None,
        projects: Sequence[str] | None = None,
        by: Sequence[str] = ("key", "endpoint", "model"),
        bucket: int = 0,
    ) -> list[dict[str, Any]]:
        """Sums of the minutes from `first` to before `last`, one for each value of `by`, and for each `bucket` minutes
        where that is not 0. `tenants` and `projects` None: of the whole site; else what is in any of them."""
        columns: list[Any] = [llm_usage.c[name] for name in by]
        if bucket:
            columns.append((llm_usage.c.minute - llm_usage.c.minute % bucket).label("minute"))
        sums = [func.sum(llm_usage.c[name]).label(name) for name in _SUMS]
        query = select(*columns, *sums).where(llm_usage.c.minute >= first, llm_usage.c.minute < last)
        if tenants is not None or projects is not None:
            query = query.where(llm_usage.c.tenant.in_(tenants or []) | llm_usage.c.project.in_(projects or []))
        query = query.group_by(*columns).order_by(*columns)
        return [dict(row._mapping) for row in await self._database.fetch(query)]

    # --- what gateways write

    async def begin(self, gateway: str, now: Instant) -> int:
        """The last batch of this gateway; a new one is made known."""

        def begin(connection: Connection) -> int:
            row = connection.execute(select(gateways.c.batch).where(gateways.c.id == gateway)).first()
            if row is None:
                values = {"id": gateway, "batch": 0, "seen_at": now, "loads": b"{}"}
                connection.execute(insert(gateways).values(values))
                return 0
            return int(row.batch)

        return await self._database.transact(begin)

    async def alive(self, now: Instant) -> int:
        """Gateways that have been heard of lately."""
        query = select(func.count()).select_from(gateways).where(gateways.c.seen_at > now - SILENT)
        row = await self._database.first(query)
        return int(row[0]) if row else 0

    def write(
        self,
        work: Work,
        gateway: str,
        batch: int,
        usage: Sequence[Usage],
        spent: Sequence[tuple[str, Instant, int]],
        loads: Mapping[str, Load],
        now: Instant,
    ) -> None:
        """A batch of a gateway, once; `spent`: (scope, began_at, tokens). Raises `WrittenAlready`."""
        values = {"b_id": gateway, "b_batch": batch, "b_at": now, "b_loads": msgspec.json.encode(loads)}
        work.write(FREE, _BATCH, values, 1, WrittenAlready)
        for one in usage:
            work.write(TAKE, _ADD[self._database.is_sqlite], _row(one))
        for key in sorted({one.key for one in usage}):
            work.write(CHANGE, _KEY_USED, {"b_id": key, "b_at": now})
        for scope, began_at, tokens in sorted(spent):  # in one order, so that gateways do not wait for each other
            row = {"b_scope": scope, "b_began": began_at, "b_tokens": tokens}
            work.write(CHANGE, _SPEND, row)
            work.write(CHANGE, _USE_UP, row | {"b_id": gateway})

    async def lease(
        self, gateway: str, wanted: Mapping[str, int], now: Instant
    ) -> list[tuple[str, Instant, Instant, int]]:
        """(scope, begin and end of the period, tokens) for each budget of `wanted` that exists."""
        others = max(1, await self.alive(now))

        def lease(connection: Connection) -> list[tuple[str, Instant, Instant, int]]:
            rows = connection.execute(
                select(budgets).where(budgets.c.scope.in_(wanted)).order_by(budgets.c.scope)
            ).all()
            return [_leased(connection, gateway, _budget(row), wanted[row.scope], others, now) for row in rows]

        return await self._database.transact(lease)

    async def dry(self, scopes: Sequence[str]) -> list[str]:
        """Those of `scopes` of whose budget hardly anything is left to lease."""
        gone = budgets.c.tokens - budgets.c.spent - budgets.c.leased < SMALLEST
        query = select(budgets.c.scope).where(budgets.c.scope.in_(scopes), gone)
        return [row.scope for row in await self._database.fetch(query)]

    async def give_back(self, gateway: str, slices: Sequence[tuple[str, Instant, int]]) -> None:
        """(scope, began_at, tokens) that are leased no more."""

        def give_back(connection: Connection) -> None:
            for scope, began_at, tokens in slices:
                row = {"b_scope": scope, "b_began": began_at, "b_tokens": tokens}
                connection.execute(_RETURN, row)
                connection.execute(_USE_UP, row | {"b_id": gateway})

        await self._database.transact(give_back)

    async def give_back_all(self, gateway: str) -> None:
        """Everything that this gateway has leased."""

        def give_back(connection: Connection) -> None:
            mine = budget_leases.c.gateway == gateway
            for row in connection.execute(select(budget_leases).where(mine)).all():
                connection.execute(
                    _RETURN, {"b_scope": row.scope, "b_began": row.began_at, "b_tokens": row.tokens}
                )  # fmt: skip
            connection.execute(delete(budget_leases).where(mine))

        await self._database.transact(give_back)


def _together(loads: list[tuple[bool, Load]]) -> Load:
    """Of gateways that are alive, and of the others when the last request was."""
    live = [load for alive, load in loads if alive]
    by_replica: Counter[str] = Counter()
    for load in live:
        by_replica.update(load.by_replica)
    return Load(
        in_flight=sum(load.in_flight for load in live),
        waiting=sum(load.waiting for load in live),
        oldest=max((load.oldest for load in live), default=0.0),
        tokens=sum(load.tokens for load in live),
        last_at=max((load.last_at for _, load in loads), default=0.0),
        by_replica=by_replica,
    )


def _leased(
    connection: Connection, gateway: str, budget: Budget, wanted: int, gateways: int, now: Instant
) -> tuple[str, Instant, Instant, int]:
    """Lease out of one budget: what is wanted, and half of a fair share of the rest."""
    began_at, ends_at = period(budget.every, now)
    spent, leased = (budget.spent, budget.leased) if began_at == budget.began_at else (0, 0)
    left = max(0, budget.tokens - spent - leased)
    tokens = min(left, max(wanted, left // (2 * gateways), min(SMALLEST, left // gateways)))
    values = {"began_at": began_at, "spent": spent, "leased": leased + tokens}
    connection.execute(update(budgets).where(budgets.c.scope == budget.scope).values(values))
    mine = (budget_leases.c.scope == budget.scope) & (budget_leases.c.gateway == gateway)
    this = mine & (budget_leases.c.began_at == began_at)
    connection.execute(delete(budget_leases).where(mine, budget_leases.c.began_at < began_at))
    more = update(budget_leases).where(this).values(tokens=budget_leases.c.tokens + tokens)
    if not connection.execute(more).rowcount:
        row = {"scope": budget.scope, "gateway": gateway, "began_at": began_at, "tokens": tokens}
        connection.execute(insert(budget_leases).values(row))
    return budget.scope, began_at, ends_at, tokens


def add_budget(work: Work, budget: Budget, grant: Grant) -> None:
    work.write(TAKE, _NEW_BUDGET, _values(budget), 1, missing("budget"))


def change_budget(work: Work, budget: Budget, grant: Grant) -> None:
    """Set how much and how often. What is spent and leased in the period under way stays so."""
    work.write(
        CHANGE, _SET_BUDGET, {"b_scope": budget.scope, "b_tokens": budget.tokens, "b_every": budget.every.value}, 1,
        missing("budget"),
    )  # fmt: skip


def drop_budget(work: Work, scope: str, grant: Grant) -> None:
    work.write(FREE, _DROP_BUDGET, {"b_scope": scope})
    work.write(FREE, _DROP_LEASES, {"b_scope": scope})


def _values(budget: Budget) -> dict[str, Any]:
    return {
        "scope": budget.scope,
        "tokens": budget.tokens,
        "every": budget.every.value,
        "began_at": budget.began_at,
        "spent": budget.spent,
        "leased": budget.leased,
    }


def _budget(row: Any) -> Budget:
    return Budget(row.scope, row.tokens, Every(row.every), row.began_at, row.spent, row.leased)


def _row(usage: Usage) -> dict[str, Any]:
    names = (*_KEYS, "tenant", "member", *_SUMS)
    return {name: getattr(usage, name) for name in names}
