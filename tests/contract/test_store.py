"""One contract for the store, held by SQLite and PostgreSQL alike."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from sqlalchemy import Connection, inspect, text

from usina.core.capacity import Claim, Holding, Host, HostState, Inventory, NumaNode, Provider, Terms, Window
from usina.core.errors import Conflict, NotFound, QuotaExceeded, Stale
from usina.core.event import Event
from usina.core.goods import NoStatus, VolumeSpec
from usina.core.grant import Grant, Lease
from usina.core.machine import MachineSpec, MachineStatus
from usina.core.resource import Kind, Phase, Resource
from usina.core.task import TaskSpec, TaskStatus, Usage
from usina.core.tenancy import Action, Amounts, Project, Quota, Scope, Tenant
from usina.store import hosts as host_writers
from usina.store import identity as identity_writers
from usina.store import tasks as task_writers
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


TERMS = Terms(
    topology={"site": "lisbon", "rack": "r1"},
    group="gpu",
    memory_ratio=1.5,
    tenants=frozenset({"tnt-1", "tnt-2"}),
    maintenance=(Window(10.0, 20.5),),
    price=3_600_000,
)


async def test_terms_come_back_as_they_were_set_and_count_a_generation(store: Store) -> None:
    first = host("hst-1")
    work = store.work()
    host_writers.add(work, replace(first, provider=replace(first.provider, terms=TERMS)), GRANT)
    host_writers.add(work, host("hst-2"), GRANT)
    await work.commit()
    one, two = await store.hosts.all()
    assert (one.provider.terms, two.provider.terms) == (TERMS, Terms())
    work = store.work()
    host_writers.set_terms(work, replace(two.provider, terms=TERMS, cpu_ratio=4.0), GRANT)
    await work.commit()
    changed = await store.hosts.get("hst-2")
    assert changed is not None
    assert changed.provider == replace(two.provider, terms=TERMS, cpu_ratio=4.0, generation=2)
    work = store.work()
    host_writers.set_terms(work, replace(two.provider, terms=Terms()), GRANT)  # on the sight of before
    with pytest.raises(Stale):
        await work.commit()


async def test_holdings_say_whose_each_claim_is(store: Store) -> None:
    spec = MachineSpec("img-1", cores=2, memory=10, disk=10, group="web", priority=5, preemptible=True)
    machine = Resource("mch-1", Kind.MACHINE, "tnt-1", "prj-1", "m", spec, MachineStatus(), 1.0, 1.0)
    one = Claim("hst-1", cores=2, memory=10, disk=10, cpus=(0, 1))
    work = store.work()
    host_writers.add(work, host("hst-1"), GRANT)
    work.order(machine, GRANT, due=None)
    work.order(volume("vol-1"), GRANT, due=None)
    work.order(volume("vol-2"), GRANT, due=None)
    work.claim(one, "mch-1", GRANT)
    work.claim(Claim("hst-1", disk=5), "vol-1", GRANT)
    work.note_presence("hst-1", "vol-2", GRANT)  # is there, and holds nothing
    await work.commit()
    assert await store.hosts.holdings() == [
        Holding("mch-1", one, "tnt-1", frozenset({"prj-1/web"}), 5, True),
        Holding("vol-1", Claim("hst-1", disk=5), "tnt-1"),
    ]


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


def furnish_as_of_0001(connection: Connection) -> None:
    """A host, a machine on it and its claim, as the first release wrote them."""
    node = b'{"id":0,"cpus":[0,1],"memory":1000,"hugepages":{}}'
    inventory = b'{"nodes":[' + node + b'],"disk":1000,"devices":[],"traits":["fake"],"facts":{}}'
    spec = b'{"image":"img-1","cores":1,"memory":10,"disk":10,"devices":[{"kind":"gpu","count":1,"model":null}]}'
    connection.execute(
        text(
            "INSERT INTO providers (id, name, driver, options, state, generation, inventory, cordoned_devices,"
            " cpu_ratio, used_cores, used_memory, used_disk, reachable, message, seen_at, created_at)"
            " VALUES ('hst-1', 'h1', 'fake', :empty, 'enabled', 7, :inventory, :none,"
            " 2.0, 1, 10, 10, :yes, '', 1.0, 1.0)"
        ),
        {"empty": b"{}", "none": b"[]", "inventory": inventory, "yes": True},
    )
    connection.execute(
        text(
            "INSERT INTO resources (id, kind, tenant, project, name, spec, status, generation, observed, phase,"
            " conditions, provider, deleting, attempts, labels, created_at, updated_at)"
            " VALUES ('mch-1', 'machine', 'tnt-1', 'prj-1', 'm', :spec, :empty, 1, 1, 'running',"
            " :none, 'hst-1', :no, 0, :empty, 1.0, 1.0)"
        ),
        {"empty": b"{}", "none": b"[]", "spec": spec, "no": False},
    )
    connection.execute(
        text(
            "INSERT INTO claims (provider, resource, cores, memory, disk, exact, particular)"
            " VALUES ('hst-1', 'mch-1', 1, 10, 10, :exact, :no)"
        ),
        {"exact": b'{"provider":"hst-1","cores":1,"memory":10,"disk":10}', "no": False},
    )


async def test_a_host_of_the_first_release_has_the_default_terms(database_url: str) -> None:
    store = Store(database_url)
    await migrate(store.database, "0001")
    await store.database.transact(furnish_as_of_0001)
    await store.start()
    [found] = await store.hosts.all()
    assert found.provider.terms == Terms()
    assert (found.name, found.provider.cpu_ratio, found.provider.generation) == ("h1", 2.0, 7)
    machine = await store.resources.get("mch-1")
    assert machine is not None and (machine.spec.group, machine.spec.devices[0].traits) == ("", frozenset())
    assert await store.hosts.holdings() == [Holding("mch-1", Claim("hst-1", 1, 10, 10), "tnt-1")]
    work = store.work()
    host_writers.set_terms(work, replace(found.provider, terms=TERMS), GRANT)
    await work.commit()
    work = store.work()
    host_writers.add(work, Host(replace(host("hst-2").provider, name="h1"), 1.0), GRANT)
    with pytest.raises(Conflict, match="exists already"):  # what the table held for unique still is
        await work.commit()
    await store.close()


async def test_a_migration_that_is_broken_off_leaves_all_as_it_was(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alembic.operations import BatchOperations

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    store = Store(database_url)
    await migrate(store.database, "0001")
    await store.database.transact(furnish_as_of_0001)
    with monkeypatch.context() as broken:
        broken.setattr(BatchOperations, "alter_column", killed)
        with pytest.raises(KeyboardInterrupt):
            await migrate(store.database)
    columns = await store.database.read(lambda c: {column["name"] for column in inspect(c).get_columns("providers")})
    assert "terms" not in columns
    await migrate(store.database)
    [found] = await store.hosts.all()
    assert found.provider.terms == Terms()
    await store.close()


# --- what belongs to tasks


def task(id: str, **changes: object) -> Resource[TaskSpec, TaskStatus]:
    made = Resource(id, Kind.TASK, "tnt-1", "prj-1", id, TaskSpec(on="fake"), TaskStatus(), 1.0, 1.0)
    return replace(made, **changes)  # type: ignore[arg-type]


async def due(store: Store, id: str) -> float | None:
    row = await store.database.first(text("SELECT due_at FROM resources WHERE id = :id"), {"id": id})
    assert row is not None
    return row.due_at


async def put(store: Store, *tasks: Resource[TaskSpec, TaskStatus], at: float | None = None) -> None:
    work = store.work()
    for one in tasks:
        work.order(one, GRANT, due=at)
    await work.commit()


async def test_a_log_is_kept_once_and_read_from_any_position(store: Store) -> None:
    pieces = {0: b"1000 o one\n", 11: b"2000 e two\n"}
    for _ in range(2):
        work = store.work()
        for start, data in pieces.items():
            task_writers.keep_log(work, "tsk-1", 1, start, data, GRANT)
        task_writers.keep_sample(work, "tsk-1", 1, Usage(cpu=1.5, at=3.0))
        await work.commit()
    assert [(kept.start, kept.data) for kept in await store.tasks.log("tsk-1", 1)] == list(pieces.items())
    assert [kept.start for kept in await store.tasks.log("tsk-1", 1, after=11)] == [11]
    assert [usage.cpu for usage in await store.tasks.usage("tsk-1", 1)] == [1.5]
    work = store.work()
    task_writers.forget(work, "tsk-1", GRANT)
    await work.commit()
    assert await store.tasks.log("tsk-1", 1) == [] == await store.tasks.usage("tsk-1", 1)


async def test_content_that_is_used_or_given_again_is_never_dropped(store: Store) -> None:
    digests = ["a" * 64, "b" * 64, "c" * 64]
    work = store.work()
    for digest in digests:
        task_writers.own_blob(work, "prj-1", digest, 5, 1.0, GRANT)
    await work.commit()
    work = store.work()
    task_writers.use_blob(work, "prj-1", digests[0], "tsk-1", "archive", GRANT)
    await work.commit()
    stale = await store.tasks.stale_blobs(2.0)
    assert sorted(stale) == [("prj-1", digests[1]), ("prj-1", digests[2])]
    work = store.work()
    task_writers.own_blob(work, "prj-1", digests[1], 5, 9.0, GRANT)  # given again, after housekeeping has looked
    await work.commit()
    work = store.work()
    for digest in digests:
        task_writers.drop_blob(work, "prj-1", digest, 2.0)
    await work.commit()
    assert await store.tasks.blobs("prj-1", digests) == {digests[0]: 5, digests[1]: 5}
    assert not await store.tasks.blob_is_owned(digests[2])
    work = store.work()
    task_writers.use_blob(work, "prj-1", digests[2], "tsk-2", "archive", GRANT)
    with pytest.raises(NotFound) as refused:
        await work.commit()
    assert refused.value.field == "archive"


async def test_a_hint_while_somebody_works_is_not_lost(store: Store) -> None:
    leases = store.leases("ours")
    for hinted in (False, True):
        one = task(f"tsk-{hinted}")
        await put(store, one, at=10.0)
        [leased] = await leases.take(10.0, 5)
        if hinted:
            work = store.work()
            task_writers.wake(work, one.id, 11.0)
            await work.commit()
        work = store.work()
        work.observe(one, leased.lease, keep=True)
        work.observe(one, leased.lease, due=None)
        await work.commit()
        assert await due(store, one.id) == (11.0 if hinted else None)


async def test_those_that_wait_are_woken(store: Store) -> None:
    waiting, sleeping, refused = task("tsk-1"), task("tsk-2"), task("tsk-3")
    await put(store, waiting, sleeping)
    await put(store, refused, at=99.0)
    work = store.work()
    work.reserve(task_writers.waiting_for("tsk-0"), waiting.id, waiting.id, GRANT, lambda: Conflict("taken"))
    await work.commit()
    work = store.work()
    task_writers.wake_dependents(work, "tsk-0", 20.0)
    task_writers.wake_waiting(work, 20.0, cores=1)
    await work.commit()
    assert [await due(store, id) for id in ("tsk-1", "tsk-2", "tsk-3")] == [20.0, None, 20.0]


@pytest.mark.parametrize(("cores", "woken"), [(0.01, 1), (1, 1), (2.5, 3), (64, task_writers.WOKEN)])
async def test_one_that_waits_is_woken_for_each_core(store: Store, cores: float, woken: int) -> None:
    tasks = [task(f"tsk-{n:02}") for n in range(task_writers.WOKEN + 2)]
    await put(store, *tasks, at=99.0)
    work = store.work()
    task_writers.wake_waiting(work, 20.0, cores)
    await work.commit()
    assert [await due(store, one.id) for one in tasks] == [20.0] * woken + [99.0] * (len(tasks) - woken)


async def test_who_has_asked_last_is_called_last(store: Store) -> None:
    tasks = [task(f"tsk-{n}", updated_at=at) for n, at in enumerate((9.0, 3.0, 3.0, 5.0))]
    await put(store, *tasks, at=99.0)
    called = []
    for _ in tasks:
        work = store.work()
        task_writers.wake_waiting(work, 20.0, cores=1)
        await work.commit()
        called += [one.id for one in tasks if await due(store, one.id) == 20.0 and one.id not in called]
    assert called == ["tsk-1", "tsk-2", "tsk-3", "tsk-0"]


async def test_waking_later_does_not_put_off_what_is_due(store: Store) -> None:
    await put(store, task("tsk-1"), at=10.0)
    for at, expected in ((12.0, 10.0), (9.0, 9.0)):
        work = store.work()
        task_writers.wake(work, "tsk-1", at)
        await work.commit()
        assert await due(store, "tsk-1") == expected


async def test_parts_are_in_order_of_index_and_placed_once(store: Store) -> None:
    parts = [task(f"tsk-{n}", parent="tsk-w", spec=TaskSpec(on="fake", index=n)) for n in (2, 0, 1)]
    await put(store, *parts)
    assert [part.id for part in await store.tasks.parts("tsk-w")] == ["tsk-0", "tsk-1", "tsk-2"]
    assert [part.id for part in await store.tasks.part_rows("tsk-w")] == ["tsk-0", "tsk-1", "tsk-2"]
    for expected in (None, Stale):
        work = store.work()
        work.place_part(replace(parts[0], provider="hst-1"), Lease("tsk-w", "ours", 9.0), 5.0)
        if expected is None:
            await work.commit()
        else:
            with pytest.raises(expected):
                await work.commit()
    assert [part.placed for part in await store.tasks.parts("tsk-w")] == [False, False, True]
    assert {one.id for one in await store.resources.page(Kind.TASK, whole=True)} == set()


async def test_who_a_member_is_elsewhere(store: Store) -> None:
    for name in ("ada", "ada2", None):
        work = store.work()
        task_writers.map_identity(work, "slurm:x", "mbr-1", name, GRANT)
        await work.commit()
        assert await store.tasks.identity("slurm:x", "mbr-1") == name
    assert await store.tasks.identities("slurm:x") == {}


async def test_cores_are_counted_in_thousandths(store: Store) -> None:
    for _ in range(10):
        work = store.work()
        work.charge("prj-1", Amounts(cores=0.1), GRANT)
        await work.commit()
    quota = await store.identity.quota("prj-1")
    assert quota is not None and quota.used.cores == 1
    assert await store.events.last_at("tsk-1", "task.accessed") == 0.0
