"""One contract for the store, held by SQLite and PostgreSQL alike."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from sqlalchemy import inspect

from usina.core.capacity import Claim, Host, HostState, Inventory, NumaNode, Provider
from usina.core.errors import Conflict, QuotaExceeded, Stale
from usina.core.event import Event
from usina.core.goods import NoStatus, VolumeSpec
from usina.core.grant import Grant, Lease
from usina.core.resource import Kind, Phase, Resource
from usina.core.tenancy import Action, Amounts, Project, Quota, Scope, Tenant
from usina.store import hosts as host_writers
from usina.store import identity as identity_writers
from usina.store.migrate import alembic_config, migrate, newest
from usina.store.store import Store
from usina.store.tables import metadata
from usina.store.work import LeaseLost

GRANT = Grant(Action.RESOURCE_CREATE, Scope("tnt-1", "prj-1"), "mbr-1")


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[Store]:
    store = Store(database_url)
    await store.start()
    work = store.work()
    identity_writers.add_tenant(work, Tenant("tnt-1", "acme", 1.0), GRANT)
    identity_writers.add_project(work, Project("prj-1", "tnt-1", "research", 1.0), GRANT)
    await work.commit()
    yield store
    await store.close()


def volume(id: str, name: str = "", size: int = 100) -> Resource[VolumeSpec, NoStatus]:
    return Resource(id, Kind.VOLUME, "tnt-1", "prj-1", name or id, VolumeSpec(size), NoStatus(), 1.0, 1.0)


async def order(store: Store, thing: Resource[VolumeSpec, NoStatus]) -> None:
    work = store.work()
    work.order(thing, GRANT, due=1.0)
    await work.commit()


async def test_a_resource_comes_back_as_it_was_written(store: Store) -> None:
    thing = replace(volume("vol-1"), labels={"team": "blue"})
    await order(store, thing)
    assert await store.resources.get("vol-1") == thing
    assert await store.resources.named(Kind.VOLUME, "prj-1", "vol-1") == thing
    assert await store.resources.get("vol-2") is None


async def test_pages_are_complete_and_in_order(store: Store) -> None:
    for number in range(7):
        await order(store, volume(f"vol-{number}"))
    seen: list[str] = []
    after = ""
    while page := await store.resources.page(Kind.VOLUME, projects=["prj-1"], after=after, limit=3):
        seen += [one.id for one in page]
        after = seen[-1]
    assert seen == [f"vol-{n}" for n in range(7)]
    assert await store.resources.page(Kind.VOLUME, projects=["prj-other"]) == []


async def test_of_two_wishes_on_one_sight_one_is_stale(store: Store) -> None:
    await order(store, volume("vol-1"))
    seen = await store.resources.get("vol-1")
    assert seen is not None

    async def wish(size: int) -> None:
        work = store.work()
        work.wish(seen.wishing(VolumeSpec(size), 2.0), GRANT)
        await work.commit()

    results = await asyncio.gather(*(wish(n) for n in range(200, 210)), return_exceptions=True)
    assert sum(isinstance(r, Stale) for r in results) == 9
    assert sum(r is None for r in results) == 1


async def test_a_unit_whose_guard_fails_writes_nothing_and_harms_no_other(store: Store) -> None:
    await order(store, volume("vol-1", "taken"))

    async def reserve(id: str, key: str) -> None:
        work = store.work()
        work.order(volume(id), GRANT, due=None)
        work.reserve("name", key, id, GRANT, lambda: Conflict("taken"))
        await work.commit()

    results = await asyncio.gather(
        reserve("vol-a", "x"), reserve("vol-b", "x"), reserve("vol-c", "y"), return_exceptions=True
    )
    assert [isinstance(r, Conflict) for r in results].count(True) == 1
    there = [id for id in ("vol-a", "vol-b", "vol-c") if await store.resources.get(id)]
    assert len(there) == 2
    assert "vol-c" in there


async def test_a_reservation_bound_to_a_resource_fails_once_that_is_leaving(store: Store) -> None:
    await order(store, volume("vol-1"))
    thing = await store.resources.get("vol-1")
    assert thing is not None
    work = store.work()
    work.reserve("use:vol-1", "attached", "mch-1", GRANT, lambda: Conflict("gone"), alive="vol-1")
    await work.commit()
    work = store.work()
    work.leave(thing, GRANT, 2.0)
    with pytest.raises(Conflict):
        await work.commit()
    work = store.work()
    work.release("use:vol-1", "attached", "mch-1", GRANT)
    work.leave(thing, GRANT, 2.0)
    await work.commit()
    work = store.work()
    work.reserve("use:vol-1", "attached", "mch-2", GRANT, lambda: Conflict("gone"), alive="vol-1")
    with pytest.raises(Conflict, match="gone"):
        await work.commit()


async def test_200_parallel_charges_against_a_quota_of_50_give_exactly_50(store: Store) -> None:
    work = store.work()
    identity_writers.set_limits(work, Quota("prj-1", {"machines": 50}, Amounts()), GRANT)
    await work.commit()

    async def charge() -> None:
        work = store.work()
        for scope in ("tnt-1", "prj-1"):
            work.charge(scope, Amounts(machines=1, cores=2), GRANT)
        await work.commit()

    results = await asyncio.gather(*(charge() for _ in range(200)), return_exceptions=True)
    assert sum(r is None for r in results) == 50
    assert all(isinstance(r, QuotaExceeded) for r in results if r is not None)
    for scope in ("tnt-1", "prj-1"):
        quota = await store.identity.quota(scope)
        assert quota is not None
        assert (quota.used.machines, quota.used.cores) == (50, 100)


async def test_what_is_over_a_lowered_quota_may_still_be_given_back(store: Store) -> None:
    work = store.work()
    work.charge("prj-1", Amounts(machines=5), GRANT)
    await work.commit()
    work = store.work()
    identity_writers.set_limits(work, Quota("prj-1", {"machines": 2}, Amounts()), GRANT)
    await work.commit()
    work = store.work()
    work.charge("prj-1", Amounts(machines=-1), GRANT)
    await work.commit()
    quota = await store.identity.quota("prj-1")
    assert quota is not None and quota.used.machines == 4


async def test_a_lease_is_one_owners_until_it_ends(store: Store) -> None:
    for number in range(10):
        await order(store, volume(f"vol-{number}"))
    ours, theirs = store.leases("ours"), store.leases("theirs")
    taken = await asyncio.gather(ours.take(10.0, 6), theirs.take(10.0, 6))
    ids = [leased.resource.id for batch in taken for leased in batch]
    assert len(ids) == len(set(ids)) == 10
    assert await ours.take(11.0, 10) == []
    later = await theirs.take(10.0 + 31, 10)
    assert len(later) == 10


async def test_a_record_after_the_lease_was_lost_is_refused(store: Store) -> None:
    await order(store, volume("vol-1"))
    [leased] = await store.leases("ours").take(10.0, 1)
    await store.leases("theirs").take(10.0 + 31, 1)
    work = store.work()
    work.observe(replace(leased.resource, phase=Phase.READY), leased.lease, due=None)
    with pytest.raises(LeaseLost):
        await work.commit()


async def test_a_wish_that_arrives_during_the_work_is_not_lost(store: Store) -> None:
    await order(store, volume("vol-1"))
    leases = store.leases("ours")
    [leased] = await leases.take(10.0, 1)
    work = store.work()
    work.wish(leased.resource.wishing(VolumeSpec(200), 11.0), GRANT)
    await work.commit()
    work = store.work()
    done = replace(leased.resource, phase=Phase.READY, observed=1, updated_at=12.0)
    work.observe(done, leased.lease, due=None)
    await work.commit()
    [again] = await leases.take(13.0, 1)
    assert again.resource.spec.size == 200
    assert (again.resource.generation, again.resource.observed) == (2, 1)


def host(id: str) -> Host:
    inventory = Inventory((NumaNode(0, tuple(range(8)), 1000),), 1000)
    return Host(Provider(id, id, "fake", HostState.ENABLED, 1, inventory), 1.0)


async def test_claims_compare_and_set_the_providers_generation(store: Store) -> None:
    work = store.work()
    host_writers.add(work, host("hst-1"), GRANT)
    await work.commit()

    [seen] = await store.hosts.all()  # all of them have seen the same
    held = Claim("hst-1", cores=2, memory=10, disk=10, cpus=(0, 1))

    async def claim(resource: str) -> None:
        work = store.work()
        work.claim(held, resource, GRANT)
        work.take("hst-1", seen.provider.generation, held)
        await work.commit()

    results = await asyncio.gather(*(claim(f"mch-{n}") for n in range(5)), return_exceptions=True)
    assert sum(r is None for r in results) == 1
    assert sum(isinstance(r, Stale) for r in results) == 4
    [seen] = await store.hosts.all()
    assert (seen.provider.used_cores, seen.provider.taken_cpus) == (2, {0, 1})
    work = store.work()
    winner = next(f"mch-{n}" for n, r in enumerate(results) if r is None)
    work.drop_claims(winner, [held], Lease(winner, "x", 0))
    await work.commit()
    [seen] = await store.hosts.all()
    assert (seen.provider.used_cores, seen.provider.used_memory, seen.provider.taken_cpus) == (0, 0, frozenset())


async def test_events_are_numbered_in_the_order_of_commits(store: Store) -> None:
    async def tell(number: int) -> None:
        work = store.work()
        work.emit(Event("test.told", f"vol-{number}", float(number), project="prj-1", tenant="tnt-1"))
        await work.commit()

    reader_saw: list[int] = []

    async def read() -> None:
        after = 0
        while len(reader_saw) < 50:
            for event in await store.events.since(after, projects=["prj-1"], tenants=[]):
                reader_saw.append(event.seq)
                after = event.seq
            await asyncio.sleep(0)

    await asyncio.gather(read(), *(tell(n) for n in range(50)))
    assert reader_saw == sorted(set(reader_saw))
    assert len(reader_saw) == 50
    assert await store.events.since(0, projects=[], tenants=["tnt-1"]) == []


async def test_migrations_from_nothing_give_the_tables_as_they_are_declared(database_url: str) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    store = Store(database_url)
    await migrate(store.database)
    await migrate(store.database)  # again: nothing to do

    def differences(connection: object) -> list[object]:
        return list(compare_metadata(MigrationContext.configure(connection), metadata))  # type: ignore[arg-type]

    assert await store.database.read(differences) == []
    names = await store.database.read(lambda c: set(inspect(c).get_table_names()))
    assert names == set(metadata.tables) | {"alembic_version"}
    await store.close()


async def test_every_earlier_release_can_be_upgraded(database_url: str) -> None:
    from alembic.script import ScriptDirectory

    revisions = [r.revision for r in ScriptDirectory.from_config(alembic_config()).walk_revisions()]
    assert revisions[0] == newest()
    store = Store(database_url)
    for revision in reversed(revisions):
        await migrate(store.database, revision)
    await migrate(store.database)
    await store.close()
