"""What several gateway workers share, without the processes: rates, figures, messages and sockets."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from usina.cli.up import _workers
from usina.core.errors import Invalid, Unavailable
from usina.core.llm import Budget, Limits
from usina.core.tenancy import Role
from usina.ports.llm import Slice
from usina.server.figures import families, lasting, page, together
from usina.server.link import Link
from usina.server.messages import Count, Dialled, TakeOver, ToMain, ToWorker, packed, unpacked
from usina.server.process import check_port, listeners
from usina.server.settings import MOST_WORKERS, Settings, check_workers
from usina.server.workers import descriptor_of
from usina.services.llm import shared as memory
from usina.services.llm.purse import Purses
from usina.services.llm.rates import Rates
from usina.services.llm.refusal import Refusal
from usina.services.llm.shared import SharedCount, SharedRates, Table
from usina.testing.llm import MemoryLedger, Site, running_gateway
from usina.testing.waiting import eventually

# --- rates

GATEWAYS = 3


@pytest.fixture(scope="module")
def tables():
    """One table, as each gateway has it."""
    first = Table.made(GATEWAYS)
    found = [first, *(Table(os.dup(first.descriptor), GATEWAYS, n) for n in range(1, GATEWAYS))]
    yield found
    for table in found:
        table.close()


_names = iter(range(10**6))


def shared(tables: list[Table], limits: Limits, now: float = 0.0) -> list[SharedRates]:
    """Those of a new key, in each gateway."""
    name = f"key-{next(_names)}"
    return [SharedRates(table, name, limits, now) for table in tables]


@given(
    st.builds(Limits, requests=st.integers(0, 6), tokens=st.integers(0, 300), concurrency=st.integers(0, 4)),
    st.lists(st.tuples(st.integers(0, GATEWAYS - 1), st.floats(0, 20), st.booleans(), st.integers(0, 80)), max_size=50),
)
def test_together_they_are_as_one(tables, limits: Limits, steps: list[tuple[int, float, bool, int]]) -> None:
    """Whatever gateway is asked, it answers as a single one would that had been asked all of it."""
    alone, several, now = Rates(limits, 0.0), shared(tables, limits), 0.0
    inside: list[tuple[int, int]] = []
    for gateway, pause, enters, tokens in steps:
        now += pause
        if enters:
            told = []
            for one in (alone, several[gateway]):
                try:
                    one.enter(tokens, now)
                    told.append("in")
                except Refusal as refusal:
                    told.append(f"{refusal.message} {refusal.retry_after:.6f}")
            assert told[0] == told[1]
            if told[0] == "in":
                inside.append((gateway, tokens))
                if any((limits.requests, limits.tokens, limits.concurrency)):
                    assert several[gateway].running == alone.running
        elif inside:
            where, estimate = inside.pop(0)
            alone.leave(estimate, tokens)
            several[where].leave(estimate, tokens)
    for where, estimate in inside:
        several[where].leave(estimate, 0)


def test_what_a_gateway_had_at_work_is_forgotten_when_it_dies(tables) -> None:
    one, two, _ = shared(tables, Limits(concurrency=2))
    two.enter(1, 0.0)
    two.enter(1, 0.0)
    with pytest.raises(Refusal):
        one.enter(1, 0.0)
    tables[0].clear(1)
    one.enter(1, 0.0)
    one.leave(1, 1)


def test_a_key_that_gets_limits_while_it_is_used_is_counted_from_then_on(tables) -> None:
    one, two, _ = shared(tables, Limits())
    one.enter(5, 0.0)
    for rates in (one, two):
        rates.change(Limits(concurrency=2), 1.0)
    one.enter(5, 1.0)
    with pytest.raises(Refusal):
        two.enter(5, 1.0)
    one.change(Limits(), 2.0)
    one.leave(5, 5)
    two.enter(5, 2.0)
    one.leave(5, 5)
    two.leave(5, 5)


def test_a_limit_that_changes_is_as_full_as_the_old_one_was(tables) -> None:
    one, two, _ = shared(tables, Limits(requests=10))
    for _ in range(5):
        one.enter(1, 0.0)
    two.change(Limits(requests=100), 0.0)
    for _ in range(50):
        two.enter(1, 0.0)
    for rates in (one, two):  # the one has not heard of the change yet
        with pytest.raises(Refusal):
            rates.enter(1, 0.0)


def test_rows_are_used_again_and_never_taken_from_who_needs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "ROWS", 4)
    monkeypatch.setattr(memory, "NEAR", 4)
    table = Table.made(2)
    keys = [SharedRates(table, f"key-{n}", Limits(requests=1), 0.0) for n in range(5)]
    for key in keys[:4]:
        key.enter(1, 0.0)
        key.leave(1, 1)
    keys[4].enter(1, 0.0)  # there is no place: it counts by itself
    for key in keys:
        with pytest.raises(Refusal):
            key.enter(1, 0.0)
    keys[4].enter(1, 61.0)  # all are full again, and one gives way
    for key in keys[:4]:
        key.enter(1, 61.0)
        with pytest.raises(Refusal):
            key.enter(1, 61.0)
    table.close()


def test_requests_at_a_replica_are_counted_in_all_gateways(tables) -> None:
    one, two, three = (SharedCount(table, "tsk-1", lambda: 0.0) for table in tables)
    one.tell(2)
    two.tell(1)
    assert (one.others(), two.others(), three.others()) == (1, 2, 3)
    tables[2].clear(0)
    two.tell(0)
    assert three.others() == 0


# --- budgets


def test_a_purse_is_idle_when_nobody_drew_on_it_for_some_looks() -> None:
    purses = Purses(lambda wanted: None)
    for purse in purses.keep(["key-a", "key-b", "key-c"]):
        purse.answered(Slice(purse.scope, 1.0, float("inf"), 10_000 if purse.scope != "key-c" else 0), 0.0)
    assert [purses.idle(2) for _ in range(2)] == [[], []]
    hold = purses.reserve(purses.of(["key-b"]), 10, 2.0)
    assert purses.idle(2) == ["key-a"]
    assert hold is not None
    hold.settle(5)
    assert [sorted(purses.idle(2)) for _ in range(3)] == [["key-a"], ["key-a"], ["key-a", "key-b"]]
    purses.take_out("key-a")
    assert purses.idle(2) == ["key-b"]


@pytest.mark.parametrize("alone", [True, False])
async def test_too_little_for_a_request_is_left_to_others_where_there_are_any(tmp_path: Path, alone: bool) -> None:
    """Two gateways that each held on to too little would both refuse what both together could serve."""
    site, ledger = Site(), MemoryLedger({"key-ann": Budget("key-ann", 300)})
    site.project("lab")
    site.key("ann", project="prj-lab", tnt_1=Role.MEMBER)
    site.budgets = ledger.budgets
    async with running_gateway(tmp_path, site, ledger, alone=alone) as running:
        gateway = running.gateway

        async def asked() -> int:
            return ledger.asked

        if alone:
            await eventually(asked)  # for a first slice
        before = ledger.asked
        assert gateway.purses.reserve(gateway.purses.of(["key-ann"]), 400, 1e9) is None
        await eventually(asked, lambda times: times == before + 1)

        async def leased() -> int:
            return ledger.leased["key-ann"]

        await eventually(leased, lambda tokens: tokens == (300 if alone else 0))
        assert gateway.purses.purses["key-ann"].free == (300 if alone else 0)


# --- figures


def figures(requests: int, running: int, seconds: float):
    registry = CollectorRegistry()
    all_requests = Counter("made", "Requests.", ("model",), registry=registry)
    all_requests.labels("a").inc(requests)
    Gauge("running", "Now.", registry=registry).set(running)
    Histogram("took", "Seconds.", buckets=(1, 2), registry=registry).observe(seconds)
    return registry, families([registry])


def test_figures_of_several_processes_are_added_up() -> None:
    registry, own = figures(2, 1, 0.5)
    _, other = figures(3, 4, 1.5)
    _, dead = figures(10, 7, 3.0)
    text = page(registry.collect(), together([own, other, lasting(dead)])).decode()
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert values['made_total{model="a"}'] == "15.0"
    assert values["running"] == "5.0"
    assert [values[f'took_bucket{{le="{bound}"}}'] for bound in ("1.0", "2.0", "+Inf")] == ["1.0", "2.0", "3.0"]
    assert values["took_sum"] == "5.0"
    assert text.count("# TYPE took histogram") == 1


# --- between processes


def test_settings_arrive_as_they_were() -> None:
    settings = Settings(
        Path("/srv"), master_key_file=Path("/k"), roles=frozenset({"api", "gateway"}), runtimes={"vllm": {"image": "x"}}
    )
    assert unpacked(packed(settings)) == settings


@pytest.mark.parametrize("change", [{"gateway_workers": 0}, {"gateway_workers": MOST_WORKERS + 1}])
@pytest.mark.parametrize("roles", [frozenset({"engine"}), frozenset({"api", "engine"})])
def test_bad_numbers_of_workers_are_refused_by_name(change: dict, roles: frozenset) -> None:
    for wrong in (change, {"gateway_workers": 2, "roles": roles}):
        with pytest.raises(Invalid) as caught:
            check_workers(Settings(Path("/srv"), **wrong))
        assert caught.value.field == "gateway-workers"
    check_workers(Settings(Path("/srv"), roles=roles))


@pytest.mark.parametrize("word", ["", "two", "-1", "1.5", "\u0663x"])
def test_words_that_are_no_number_of_workers_are_refused_by_name(word: str) -> None:
    with pytest.raises(Invalid) as caught:
        _workers(word)
    assert caught.value.field == "gateway-workers"
    assert _workers("auto") >= 1
    assert _workers("3") == 3


def test_a_port_is_shared_within_a_factory_only() -> None:
    with socket.socket() as any_port:
        any_port.bind(("127.0.0.1", 0))
        settings = Settings(Path("/srv"), port=any_port.getsockname()[1])
    check_port(settings)
    shared = [one for _ in range(2) for one in listeners(settings)]
    for one in shared:
        one.listen()
    with pytest.raises(Unavailable):
        check_port(settings)
    for one in shared:
        one.close()


async def test_messages_and_sockets_arrive_in_order_however_large() -> None:
    ours, theirs = socket.socketpair()
    got: list[tuple[object, bytes]] = []
    gone = asyncio.Event()

    def received(message: object, descriptor: int) -> None:
        data = b""
        if descriptor >= 0:
            data = os.read(descriptor, 10)
            os.close(descriptor)
        got.append((message, data))

    near = Link(ours, ToWorker, lambda *_: None, lambda: None)
    far = Link(theirs, ToMain, received, gone.set)
    wanted: list[tuple[object, bytes]] = []
    for n in range(40):
        message = TakeOver(bytes(n * 20_000))
        if n % 3:
            read, write = os.pipe()
            os.write(write, b"%d" % n)
            os.close(write)
            assert near.send(message, read)
            wanted.append((message, b"%d" % n))
        else:
            assert near.send(message)
            wanted.append((message, b""))

    async def count() -> int:
        return len(got)

    await eventually(count, lambda found: found == 40)
    assert got == wanted
    near.close()
    await asyncio.wait_for(gone.wait(), 5)
    assert not far.send(Count(1))


async def test_a_link_that_nobody_reads_takes_no_more_than_so_much() -> None:
    ours, theirs = socket.socketpair()
    link = Link(ours, ToMain, lambda *_: None, lambda: None)
    sent = 0
    while link.send(Dialled(1, "x" * (1 << 20))):
        sent += 1
        assert sent < 100
    read, write = os.pipe()
    assert not link.send(Dialled(1), read)
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(read)
    os.close(write)
    link.close()
    theirs.close()


@pytest.mark.parametrize("plain", [True, False])
async def test_a_stream_goes_on_in_a_descriptor(plain: bool) -> None:
    """As the very socket, or where it is none, through a pair that is pumped."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100):
            writer.write(data.upper())
        writer.close()

    async with await asyncio.start_server(echo, "127.0.0.1", 0) as server:
        if plain:
            streams = await asyncio.open_connection(*server.sockets[0].getsockname())
            process = None
        else:
            process = await asyncio.create_subprocess_exec(
                "tr", "a-z", "A-Z", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
            )
            assert process.stdin is not None
            assert process.stdout is not None
            streams = process.stdout, process.stdin
        taken = socket.socket(fileno=await descriptor_of(streams))
        assert (taken.family == socket.AF_UNIX) is not plain
        taken.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=taken)
        writer.write(b"hello")
        if process is not None:
            writer.write_eof()  # `tr` gathers until its input ends
        assert await reader.readexactly(5) == b"HELLO"
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
        if process is not None:
            assert await process.wait() == 0
