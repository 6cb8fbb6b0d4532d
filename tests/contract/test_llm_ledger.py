"""One contract for the ledger of gateways, held by SQLite and PostgreSQL alike."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import pytest

from usina.core.endpoint import Load
from usina.core.grant import Grant
from usina.core.llm import Budget, Every, Usage
from usina.core.tenancy import Action, Key, Scope
from usina.engine.llm_ledger import StoreLedger
from usina.ports.llm import Slice, Spend
from usina.store import identity
from usina.store import llm as writers
from usina.store.store import Store

GRANT = Grant(Action.QUOTA_TENANT, Scope("tnt-1"), "mbr-1")
DAY = 86_400.0


class Clock:
    def __init__(self) -> None:
        self.at = 20_000 * DAY + 100

    def now(self) -> float:
        return self.at


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[Store]:
    store = Store(database_url)
    await store.start()
    yield store
    await store.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def gateway(store: Store, clock: Clock, name: str) -> StoreLedger:
    ledger = StoreLedger(store, clock, name)
    await ledger.begin()
    return ledger


async def budget(store: Store, tokens: int, every: Every = Every.NEVER, began_at: float = 0.0) -> None:
    work = store.work()
    writers.add_budget(work, Budget("prj-1", tokens, every, began_at), GRANT)
    await work.commit()


async def stands(store: Store) -> tuple[int, int]:
    """(spent, leased)"""
    [found] = await store.llm.budgets(["prj-1"])
    return found.spent, found.leased


def usage(minute: int, prompt: int, completion: int = 1, key: str = "key-1") -> Usage:
    return Usage(minute, "tnt-1", "prj-1", "mbr-1", key, "ept-1", "lab/m", 1, 0, prompt, 0, completion, 0.5)


async def test_a_batch_is_written_once_however_often_it_is_handed_in(store: Store, clock: Clock) -> None:
    await budget(store, 1000)
    ledger = await gateway(store, clock, "one")
    [slice] = await ledger.lease({"prj-1": 100})
    spent = [Spend("prj-1", slice.began_at, 40)]
    for _ in range(3):
        await ledger.write(1, [usage(5, 30), usage(5, 3, key="key-2")], spent, {"ept-1": Load(in_flight=2)})
    await ledger.write(2, [usage(5, 7)], [], {})
    assert await stands(store) == (40, slice.tokens - 40)
    assert await ledger.begin() == 2
    by_key = await store.llm.usage(0, 10, by=["key"])
    assert [(row["key"], row["requests"], row["prompt"]) for row in by_key] == [("key-1", 2, 37), ("key-2", 1, 3)]


async def test_a_key_is_known_to_be_used_by_the_minute(store: Store, clock: Clock) -> None:
    work = store.work()
    identity.add_key(work, Key("key-1", "mbr-1", "ann", clock.now()), GRANT)
    await work.commit()
    ledger = await gateway(store, clock, "one")
    seen = []
    for batch, later in enumerate((0.0, 59.0, 2.0), 1):
        clock.at += later
        await ledger.write(batch, [usage(5, 1)], [], {})
        key = await store.identity.key("key-1")
        assert key is not None
        seen.append(key.last_used_at)
    assert seen == [clock.at - 61, clock.at - 61, clock.at]


async def test_gateways_together_never_lease_more_than_there_is(store: Store, clock: Clock) -> None:
    await budget(store, 50_000)
    ledgers = [await gateway(store, clock, name) for name in ("one", "two", "three")]
    held: dict[int, list[Slice]] = {n: [] for n in range(3)}
    dice = random.Random(7)
    for batch in range(1, 30):
        wanted = [dice.randrange(1, 3000) for _ in ledgers]
        got = await asyncio.gather(*(ledger.lease({"prj-1": n}) for ledger, n in zip(ledgers, wanted, strict=True)))
        for n, slices in enumerate(got):
            held[n] += slices
        spender = dice.randrange(3)
        free = sum(slice.tokens for slice in held[spender])
        used = dice.randrange(free + 1)
        held[spender] = [Slice("prj-1", 0.0, float("inf"), free - used)]
        await ledgers[spender].write(batch, [], [Spend("prj-1", 0.0, used)], {})
        spent, leased = await stands(store)
        assert leased == sum(slice.tokens for slices in held.values() for slice in slices)
        assert spent + leased <= 50_000
    assert (await stands(store))[0] > 0


async def test_what_is_given_back_can_be_leased_by_others(store: Store, clock: Clock) -> None:
    await budget(store, 5000)
    one, two = await gateway(store, clock, "one"), await gateway(store, clock, "two")
    [mine] = await one.lease({"prj-1": 5000})
    assert [slice.tokens for slice in await two.lease({"prj-1": 1})] == [0]
    await one.give_back([Slice("prj-1", mine.began_at, mine.ends_at, 2000)])
    assert [slice.tokens for slice in await two.lease({"prj-1": 2000})] == [2000]
    await one.write(1, [], [Spend("prj-1", mine.began_at, 1000)], {})
    await one.give_back_all()  # as after a crash: what it held and has not spent
    assert await stands(store) == (1000, 2000)
    await one.give_back_all()
    assert await stands(store) == (1000, 2000)


async def test_a_new_day_begins_with_the_whole_budget(store: Store, clock: Clock) -> None:
    today = 20_000 * DAY
    await budget(store, 5000, Every.DAY, today)
    ledger = await gateway(store, clock, "one")
    [slice] = await ledger.lease({"prj-1": 5000})
    assert (slice.began_at, slice.ends_at, slice.tokens) == (today, today + DAY, 5000)
    clock.at += DAY
    [fresh] = await ledger.lease({"prj-1": 10})
    assert (fresh.began_at, fresh.tokens) == (today + DAY, 4096)
    await ledger.write(1, [], [Spend("prj-1", slice.began_at, 3000)], {})  # a request of yesterday ends
    assert await stands(store) == (0, 4096)


async def test_a_budget_that_is_not_there_leases_nothing(store: Store, clock: Clock) -> None:
    ledger = await gateway(store, clock, "one")
    assert list(await ledger.lease({"prj-9": 5})) == []


async def test_usage_is_told_by_what_is_asked_and_of_whom(store: Store, clock: Clock) -> None:
    ledger = await gateway(store, clock, "one")
    await ledger.write(1, [usage(60, 1), usage(61, 2), usage(125, 4)], [], {})
    hourly = await store.llm.usage(0, 200, by=["model"], bucket=60)
    assert [(row["minute"], row["prompt"]) for row in hourly] == [(60, 3), (120, 4)]
    assert await store.llm.usage(0, 200, projects=["prj-2"], by=["key"]) == []
    assert [row["prompt"] for row in await store.llm.usage(61, 125, tenants=["tnt-1"], by=["key"])] == [2]


async def test_loads_of_gateways_add_up_and_the_silent_count_no_more(store: Store, clock: Clock) -> None:
    one, two = await gateway(store, clock, "one"), await gateway(store, clock, "two")
    await one.write(1, [], [], {"ept-1": Load(in_flight=2, waiting=1, by_replica={"a": 2}, last_at=5.0)})
    await two.write(1, [], [], {"ept-1": Load(in_flight=3, by_replica={"a": 1, "b": 2}, last_at=9.0)})
    load = await store.llm.load("ept-1", clock.now())
    assert (load.in_flight, load.waiting, dict(load.by_replica), load.last_at) == (5, 1, {"a": 3, "b": 2}, 9.0)
    clock.at += 60
    assert (await store.llm.load("ept-1", clock.now())).in_flight == 0


async def test_what_is_dry_is_told_until_somebody_gives_back(store: Store, clock: Clock) -> None:
    await budget(store, 5000)
    one, two = await gateway(store, clock, "one"), await gateway(store, clock, "two")
    assert await one.dry(["prj-1", "prj-none"]) == []
    [slice] = await one.lease({"prj-1": 5000})
    assert await two.dry(["prj-1", "prj-none"]) == ["prj-1"]
    assert [got.tokens for got in await two.lease({"prj-1": 10})] == [0]
    await one.give_back([slice])
    assert await two.dry(["prj-1"]) == []
    assert [got.tokens for got in await two.lease({"prj-1": 10})] == [2500]


async def test_gateways_of_several_processes_lease_no_token_twice(
    store: Store, clock: Clock, database_url: str
) -> None:
    """Each with a connection of its own to the database, all at the same time."""
    await budget(store, 1_000_000)
    others = [Store(database_url) for _ in range(3)]
    for other in others:
        await other.start()
    ledgers = [await gateway(other, clock, f"g{n}") for n, other in enumerate(others)]

    async def draw(ledger: StoreLedger) -> int:
        return sum([(await ledger.lease({"prj-1": 1}))[0].tokens for _ in range(25)])

    drawn = sum(await asyncio.gather(*map(draw, ledgers)))
    assert await stands(store) == (0, drawn)
    assert drawn <= 1_000_000
    for other in others:
        await other.close()
