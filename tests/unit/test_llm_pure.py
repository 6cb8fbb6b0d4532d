"""The gateway's decisions, without sockets: what is asked, who may, how much, to whom, and what is kept."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usina.core.llm import Every, Limits, Usage, period
from usina.core.tenancy import Role
from usina.ports.llm import Slice
from usina.services.llm.ask import Verb, read, with_limit, with_members
from usina.services.llm.book import Book
from usina.services.llm.journal import Journal
from usina.services.llm.line import Line
from usina.services.llm.purse import Purses
from usina.services.llm.rates import Rates
from usina.services.llm.refusal import Refusal
from usina.services.llm.responses import Answer, ResponseEvents, as_chat
from usina.services.llm.route import BLOCK, DEEPEST, OWNERS, Memory, chain_of, choose
from usina.services.llm.stream import Events, used_in
from usina.testing.llm import VARIANT, Site, secret_of, token_of

# --- what is asked


def ask(**body: object):
    return read(Verb.CHAT, json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}], **body}).encode())


def test_a_stream_is_asked_for_its_usage_and_the_client_does_not_see_it() -> None:
    asked = ask(stream=True)
    assert asked.hides_usage
    assert json.loads(asked.body)["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize("options", [{"include_usage": False}, {}, None, {"other": 1}])
def test_options_of_a_stream_are_kept_beside_ours(options: dict[str, object] | None) -> None:
    asked = ask(stream=True, stream_options=options)
    assert asked.hides_usage
    assert json.loads(asked.body)["stream_options"] == {**(options or {}), "include_usage": True}


def test_what_the_client_asks_for_goes_as_it_came() -> None:
    body = b'{ "model":"m","stream":true, "stream_options":{"include_usage":true},"messages":[]}'
    asked = read(Verb.CHAT, body)
    assert asked.body is body
    assert not asked.hides_usage


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"{}", "model"),
        (b'{"model":3}', "model"),
        (b'{"model":"m","max_tokens":"x"}', "max_tokens"),
        (b'{"model":"m","max_tokens":-1}', "max_tokens"),
        (b'{"model":"m","n":1000}', "n"),
        (b'{"model":"m","stream":true,"stream_options":3}', "stream_options"),
        (b"[1", None),
        (b"", None),
        (b"\xff", None),
    ],
)
def test_what_cannot_be_meant_names_the_member(body: bytes, param: str | None) -> None:
    with pytest.raises(Refusal) as refused:
        read(Verb.CHAT, body)
    assert (refused.value.status, refused.value.param) == (400, param)


def test_members_are_replaced_and_the_rest_is_not_touched() -> None:
    body = b'{"model":"m","messages":[{"role":"user","content":"h\\u00e9"}],"x":1.50}'
    assert with_members(body, {"model": "other"}) == body.replace(b'"m"', b'"other"')
    asked = read(Verb.CHAT, body)
    assert json.loads(with_limit(asked, 5))["max_tokens"] == 5


@given(st.text(max_size=200), st.integers(1, 500) | st.none(), st.integers(1, 4), st.sampled_from([0, 64, 4096]))
def test_the_most_is_never_less_than_the_bytes_allow(text: str, limit: int | None, n: int, context: int) -> None:
    asked = ask(messages=[{"role": "user", "content": text}], max_tokens=limit, n=n)
    most = asked.most(context)
    most_context = context or 10**6
    answer = min(limit, most_context) if limit is not None else most_context
    assert most >= min(len(text.encode()) + answer * n, most_context * n)


# --- rates


def test_a_minute_has_so_many_requests_and_fills_again() -> None:
    rates = Rates(Limits(requests=60), 0.0)
    for _ in range(60):
        rates.enter(1, 0.0)
    with pytest.raises(Refusal) as refused:
        rates.enter(1, 0.0)
    assert refused.value.status == 429
    assert refused.value.retry_after == pytest.approx(1.0)
    rates.enter(1, 1.0)


def test_what_was_estimated_too_high_is_given_back() -> None:
    rates = Rates(Limits(tokens=1000), 0.0)
    rates.enter(900, 0.0)
    with pytest.raises(Refusal):
        rates.enter(900, 0.0)
    rates.leave(900, 10)
    rates.enter(900, 0.0)
    assert dict(rates.headers(0.0))[b"x-ratelimit-remaining-tokens"] == b"90"


def test_a_refusal_takes_nothing() -> None:
    rates = Rates(Limits(requests=5, tokens=100, concurrency=9), 0.0)
    rates.enter(100, 0.0)
    with pytest.raises(Refusal):
        rates.enter(50, 0.0)
    assert (rates.running, rates.requests.level) == (1, 4)


@given(st.lists(st.tuples(st.floats(0, 3), st.integers(0, 40), st.integers(0, 60)), max_size=60))
def test_no_long_time_gets_more_than_its_rate(steps: list[tuple[float, int, int]]) -> None:
    rates, now, used = Rates(Limits(tokens=100), 0.0), 0.0, 0
    for pause, estimate, real in steps:
        now += pause
        try:
            rates.enter(estimate, now)
        except Refusal:
            continue
        rates.leave(estimate, min(real, estimate))
        used += min(real, estimate)
    assert used <= 100 + now * 100 / 60 + 1e-6


# --- purses


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 400), st.integers(0, 400)), max_size=80), st.randoms())
def test_no_budget_is_ever_overspent(orders: list[tuple[int, int, int]], random) -> None:
    """Two gateways, three budgets; requests come and go in any order."""
    budgets = {"key-a": 1500, "prj-a": 900, "tnt-a": 2000}
    leased, spent = dict.fromkeys(budgets, 0), dict.fromkeys(budgets, 0)
    now = 0.0

    def gateway() -> Purses:
        def grant(wanted: dict[str, int]) -> None:
            for scope, least in wanted.items():
                left = budgets[scope] - leased[scope]
                tokens = min(left, max(least, left // 4))
                leased[scope] += tokens
                purses.purses[scope].answered(Slice(scope, 0.0, float("inf"), tokens), now)

        purses = Purses(grant)
        purses.keep(budgets)
        return purses

    gateways = [gateway(), gateway()]
    open_ = []
    for which, most, used in orders:
        now += 2.0
        mine = gateways[which % 2]
        scopes = [("key-a", "prj-a", "tnt-a"), ("prj-a", "tnt-a"), ("tnt-a",)][which]
        hold = mine.reserve(mine.of(scopes), most, now) or mine.reserve(mine.of(scopes), most, now)
        if hold is not None:
            open_.append((hold, min(used, most)))
        if open_ and random.random() < 0.5:
            hold, real = open_.pop(random.randrange(len(open_)))
            for one in hold.settle(real):
                spent[one.scope] += one.tokens
    for hold, real in open_:
        for one in hold.settle(real):
            spent[one.scope] += one.tokens
    for scope, tokens in budgets.items():
        assert spent[scope] <= tokens
    for mine in gateways:
        assert all(purse.reserved == 0 for purse in mine.purses.values())


def test_a_new_period_begins_with_an_empty_purse() -> None:
    purses = Purses(lambda wanted: None)
    purses.keep(["key-a"])
    purse = purses.purses["key-a"]
    purse.answered(Slice("key-a", 0.0, 100.0, 50), 0.0)
    hold = purses.reserve([purse], 40, 50.0)
    assert purses.reserve([purse], 5, 100.0) is None  # it is over
    purse.answered(Slice("key-a", 100.0, 200.0, 50), 100.0)
    assert hold is not None
    assert [one.began_at for one in hold.settle(30)] == [0.0]
    assert (purse.held, purse.reserved) == (50, 0)


@given(st.sampled_from(list(Every)), st.integers(0, 4_000_000_000))
def test_now_lies_in_its_period(every: Every, now: int) -> None:
    begin, end = period(every, now)
    assert begin <= now < end
    assert period(every, begin) == (begin, end)


# --- who waits


@dataclass(eq=False)
class Waiter:
    tenant: str
    priority: int = 0
    since: float = 0.0


def test_tenants_take_turns_and_priority_goes_before() -> None:
    line: Line[Waiter] = Line()
    many, one, high = [Waiter("a") for _ in range(3)], Waiter("b"), Waiter("a", 1)
    for waiter in (*many, one, high):
        line.join(waiter)
    assert [line.next() for _ in range(5)] == [high, many[0], one, many[1], many[2]]
    assert line.next() is None


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(-1, 1), st.booleans()), max_size=40))
def test_everybody_in_line_leaves_it_once(steps: list[tuple[str, int, bool]]) -> None:
    line: Line[Waiter] = Line()
    inside: list[Waiter] = []
    for tenant, priority, leaves in steps:
        if leaves and inside:
            assert line.leave(inside.pop(0))
        waiter = Waiter(tenant, priority)
        line.join(waiter)
        inside.append(waiter)
    assert len(line) == len(inside)
    assert {id(line.next()) for _ in inside} == {id(one) for one in inside}
    assert len(line) == 0


# --- to whom


@dataclass
class Seat:
    id: str
    in_flight: int = 0
    owed: int = 0


def test_who_has_seen_the_beginning_gets_the_rest_unless_busy() -> None:
    seats, memory = [Seat("a"), Seat("b"), Seat("c")], Memory()
    text = os.urandom(8 * BLOCK)
    memory.note(chain_of(text), "b")
    longer = chain_of(text + os.urandom(3 * BLOCK))
    assert choose(seats, longer, memory).replica == "b"
    assert choose(seats, longer, memory).matched == 8
    seats[1].in_flight = 50
    assert choose(seats, longer, memory).replica != "b"


@given(st.binary(min_size=1, max_size=5 * BLOCK), st.binary(max_size=BLOCK))
def test_chains_of_prompts_with_one_beginning_share_theirs(start: bytes, more: bytes) -> None:
    whole = start[: len(start) // BLOCK * BLOCK]
    shared = chain_of(whole)
    assert chain_of(whole + more)[: len(shared)] == shared


def test_without_memory_gateways_agree_and_spread() -> None:
    prompts = [chain_of(b"%d" % n * 400) for n in range(400)]
    first = [choose([Seat("a"), Seat("b"), Seat("c")], chain, Memory()).replica for chain in prompts]
    second = [choose([Seat("c"), Seat("a"), Seat("b")], chain, Memory()).replica for chain in prompts]
    assert first == second
    assert all(100 < first.count(seat) < 170 for seat in "abc")


def test_gateways_send_what_goes_on_alike_behind_a_shared_beginning_to_one_replica() -> None:
    seats, shared = [Seat("a"), Seat("b"), Seat("c"), Seat("d")], os.urandom(2 * BLOCK)
    gateways = [Memory(), Memory()]
    for memory in gateways:
        for seat in seats:
            memory.note(chain_of(shared + os.urandom(BLOCK)), seat.id)
    prompts = [chain_of(shared + os.urandom(BLOCK)) for _ in range(200)]
    first, second = ([choose(seats, chain, memory).replica for chain in prompts] for memory in gateways)
    assert first == second
    assert all(20 < first.count(seat.id) < 90 for seat in seats)


def test_who_has_yet_to_read_much_gets_no_more() -> None:
    seats, memory = [Seat("a"), Seat("b")], Memory()
    chain = chain_of(os.urandom(16 * BLOCK))
    memory.note(chain, "a")
    seats[0].owed = 64
    assert choose(seats, chain, memory).replica == "a"
    seats[0].owed = 256
    choice = choose(seats, chain, memory)
    assert (choice.replica, choice.matched, choice.unread) == ("b", 0, 16)


def test_several_who_have_seen_it_share_the_work() -> None:
    seats, memory = [Seat("a", 30), Seat("b"), Seat("c")], Memory()
    chain = chain_of(os.urandom(16 * BLOCK))
    memory.note(chain, "b")
    memory.note(chain, "a")
    assert memory.match(chain) == {"a": len(chain), "b": len(chain)}
    assert choose(seats, chain, memory).replica == "b"


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 12), st.integers(0, 7)), max_size=60))
def test_no_more_is_remembered_than_was_seen(turns: list[tuple[int, int, int]]) -> None:
    memory, seen = Memory(), dict[str, set[int]]()
    for prompt, length, number in turns:
        chain = [100 * prompt + depth for depth in range(length)]
        for replica, depth in memory.match(chain).items():
            assert set(chain[:depth]) <= seen[replica]
        memory.note(chain, f"r{number}")
        seen.setdefault(f"r{number}", set()).update(chain)
        assert memory.match(chain)[f"r{number}"] == length
        assert len(memory.match(chain[-1:])) <= OWNERS


@given(st.integers(2, 40), st.lists(st.tuples(st.integers(0, 9), st.integers(1, 8)), max_size=60))
def test_what_is_forgotten_last_is_the_beginning(size: int, turns: list[tuple[int, int]]) -> None:
    memory = Memory(size)
    for prompt, length in turns:
        chain = [100 * prompt + depth for depth in range(length)]
        memory.note(chain, "a")
        assert len(memory) <= size + 2 * 8  # each half may end with a whole prompt
        for other in range(10):
            known = [bool(memory.match([100 * other + depth])) for depth in range(8)]
            assert known == sorted(known, reverse=True)


@given(
    st.lists(st.tuples(st.integers(0, 200), st.integers(0, 2000)), min_size=1, max_size=20),
    st.lists(st.integers(0, 19), max_size=8),
    st.binary(max_size=80 * BLOCK),
)
def test_a_choice_is_among_those_who_can_and_no_worse_than_any(
    loads: list[tuple[int, int]], owners: list[int], text: bytes
) -> None:
    seats, memory, chain = [Seat(f"r{n}", *load) for n, load in enumerate(loads)], Memory(), chain_of(text)
    for owner in owners:
        memory.note(chain, f"r{owner}")
    choice = choose(seats, chain, memory)
    chosen = next(seat for seat in seats if seat.id == choice.replica)
    assert 0 <= choice.matched <= choice.matched + choice.unread <= DEEPEST
    for seat in seats:  # nobody does better in everything, but by what is no difference
        if seat.id in memory.match(chain) or not choice.matched:
            assert seat.in_flight + 5 > chosen.in_flight or seat.owed > chosen.owed


# --- names


def site() -> Site:
    made = Site()
    made.project("lab")
    made.project("other")
    made.project("far", tenant="tnt-2")
    made.endpoint("chat", "prj-lab", [1])
    made.endpoint("code", "prj-other", [1])
    made.endpoint("far", "prj-far", [1])
    return made


def test_a_name_is_for_those_who_may_use_it() -> None:
    made = site()
    ann = made.key("ann", project="prj-lab", tnt_1=Role.MEMBER)
    book = Book(made.directory(), secret_of)
    caller = book.caller(f"Bearer {token_of(ann)}".encode(), None, 0.0)
    assert [name for name, _ in book.listed(caller)] == ["chat"]
    for name in ("code", "other/code", "far", "far/far", "nothing"):
        with pytest.raises(Refusal) as refused:
            book.meant(caller, name)
        assert refused.value.status == 404


@pytest.mark.parametrize(
    ("models", "listed"),
    [
        ((), ["chat", "chat:fr", "chat:law"]),
        (("chat",), ["chat", "chat:fr", "chat:law"]),
        (("chat:fr",), ["chat:fr"]),
    ],
)
def test_adapters_are_names_too(models: tuple[str, ...], listed: list[str]) -> None:
    made = Site()
    made.project("lab")
    made.endpoint("chat", "prj-lab", [1], adapters={"law": VARIANT, "fr": VARIANT})
    ann = made.key("ann", project="prj-lab", limits=Limits(models=models), tnt_1=Role.MEMBER)
    book = Book(made.directory(), secret_of)
    caller = book.caller(None, token_of(ann).encode(), 0.0)
    assert [name for name, _ in book.listed(caller)] == listed
    for name in ("chat", "chat:fr", "chat:law"):
        if name in listed:
            assert book.meant(caller, name).adapter == name.partition(":")[2]
        else:
            with pytest.raises(Refusal):
                book.meant(caller, name)
    with pytest.raises(Refusal):
        book.meant(caller, "chat:nothing")


@pytest.mark.parametrize("roles", [{}, {"tnt_1": Role.VIEWER}, {"tnt_2": Role.ADMIN}])
def test_a_viewer_and_a_stranger_may_use_nothing(roles: dict[str, Role]) -> None:
    made = site()
    key = made.key("vic", **roles)
    book = Book(made.directory(), secret_of)
    caller = book.caller(None, token_of(key).encode(), 0.0)
    assert "chat" not in [name for name, _ in book.listed(caller)]


def test_a_key_is_refused_in_the_same_words_whatever_is_wrong() -> None:
    made = site()
    key = made.key("ann", tnt_1=Role.MEMBER)
    book = Book(made.directory(), secret_of)
    for token in (b"", b"usk-ann-wrong", b"usk-nobody-x", b"Bearer", token_of(key).encode() + b"x", b"sk-123"):
        with pytest.raises(Refusal) as refused:
            book.caller(b"Bearer " + token, None, 0.0)
        assert refused.value.status == 401
        assert refused.value.message == "the key is unknown, expired or revoked"


def test_what_two_projects_call_alike_needs_its_long_name() -> None:
    made = site()
    made.endpoint("x", "prj-other", [1])
    twin = made.endpoints.pop("ept-x")
    made.endpoints["ept-twin"] = replace(twin, id="ept-twin", name="chat")
    key = made.key("ann", tnt_1=Role.MEMBER)
    book = Book(made.directory(), secret_of)
    caller = book.caller(None, token_of(key).encode(), 0.0)
    with pytest.raises(Refusal, match="several projects"):
        book.meant(caller, "chat")
    assert book.meant(caller, "lab/chat").endpoint == "ept-chat"
    assert book.meant(caller, "other/chat").endpoint == "ept-twin"


# --- streams

EVENTS = [
    b'data: {"choices":[{"index":0,"delta":{"content":"a \\"usage\\": {"}}]}\n\n',
    b'data: {"choices":[{"index":0,"delta":{"content":"b"}}],"usage":null}\n\n',
    b'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":2}}\n\n',
    b"data: [DONE]\n\n",
]


@given(st.lists(st.integers(1, 40), min_size=1), st.booleans())
def test_a_stream_passes_through_however_it_is_cut(sizes: list[int], hides: bool) -> None:
    data, events, out, at = b"".join(EVENTS), Events(hides_usage=hides), b"", 0
    for size in (sizes * len(data))[: len(data)]:
        out += events.feed(data[at : at + size])
        at += size
    out += events.rest()
    wanted = [event for event in EVENTS if not (hides and b'"choices":[],' in event)]
    assert out == b"".join(wanted)
    assert (events.used.prompt, events.used.completion) == (9, 2)


@pytest.mark.parametrize(
    ("body", "counted"),
    [
        ({"usage": {"prompt_tokens": 5, "completion_tokens": 3}}, (5, 0, 3)),
        (
            {"usage": {"prompt_tokens": 5, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 4}}},
            (5, 4, 3),
        ),
        ({"usage": {"prompt_tokens": 5, "total_tokens": 5}}, (5, 0, None)),
        (
            {"usage": {"input_tokens": 5, "output_tokens": 3, "input_tokens_details": {"cached_tokens": 4}}},
            (5, 4, 3),
        ),
        ({"usage": {"input_tokens": 1, "output_tokens": 3, "cache_read_input_tokens": 4}}, (5, 4, 3)),
        ({"input_tokens": 8}, (8, 0, None)),
        ({"usage": None}, (None, 0, None)),
        ({}, (None, 0, None)),
    ],
)
def test_every_dialect_tells_its_usage(body: dict[str, object], counted: tuple[int | None, int, int | None]) -> None:
    used = used_in(json.dumps(body).encode())
    assert (used.prompt, used.cached, used.completion) == counted


def test_messages_tell_their_usage_in_two_events() -> None:
    events = Events(hides_usage=False)
    events.feed(
        b'event: message_start\ndata: {"type":"message_start","message":{"usage":{"input_tokens":1,'
        b'"cache_read_input_tokens":30,"output_tokens":0}}}\n\n'
    )
    events.feed(b'event: message_delta\ndata: {"type":"message_delta","usage":{"output_tokens":4}}\n\n')
    assert (events.used.prompt, events.used.cached, events.used.completion) == (31, 30, 4)


# --- the journal


class Numbered:
    def __init__(self, number: int) -> None:
        self.number = number


def usage(prompt: int) -> Usage:
    return Usage(7, "tnt", "prj", "mbr", "key", "ept", "m", 1, 0, prompt, 0, 1, 0.5)


async def filled(folder: Path) -> Journal:
    """One request settled and one open, in a segment; then the next one."""
    journal = Journal(folder)
    journal.start(1)
    purses = Purses(lambda wanted: None)
    purses.keep(["key-a"])
    purses.purses["key-a"].answered(Slice("key-a", 0.0, float("inf"), 1000), 0.0)
    first, second = (purses.reserve(purses.of(["key-a"]), tokens, 0.0) for tokens in (100, 200))
    assert first is not None
    assert second is not None
    journal.hold(Numbered(1), first)
    journal.hold(Numbered(2), second)
    journal.settle(Numbered(1), usage(30), first.settle(31))
    return journal


async def test_what_was_settled_is_read_back_and_what_was_open_counts_as_used(tmp_path: Path) -> None:
    journal = await filled(tmp_path)
    left = Journal(tmp_path).left(0)
    assert [(one.prompt, one.requests) for one in left.sums.usage()] == [(30, 1)]
    assert [(one.scope, one.tokens) for one in left.sums.spent()] == [("key-a", 231)]
    assert (left.open, left.last) == (1, 1)
    journal.close()


async def test_open_reservations_go_along_when_the_ledger_has_the_rest(tmp_path: Path) -> None:
    journal = await filled(tmp_path)
    segment, sums = journal.rotate()
    assert segment == 1
    assert [one.tokens for one in sums.spent()] == [31]
    journal.forget(1)
    left = Journal(tmp_path).left(1)
    assert [(one.scope, one.tokens) for one in left.sums.spent()] == [("key-a", 200)]
    journal.close()


async def test_a_record_cut_short_by_a_crash_is_left_out(tmp_path: Path) -> None:
    journal = await filled(tmp_path)
    journal.close()
    path = next(tmp_path.glob("segment-*"))
    whole = path.read_bytes()
    for size in range(len(whole) - 1, len(whole) - 40, -1):
        path.write_bytes(whole[:size])
        left = Journal(tmp_path).left(0)
        assert left.sums.usage() == []  # the settlement was the last record
        assert [one.tokens for one in left.sums.spent()] == [300]  # so both count as used


async def test_where_the_disk_takes_no_more_nothing_is_lost_and_it_says_so(tmp_path: Path) -> None:
    journal = await filled(tmp_path)
    good = journal._file
    journal._file = os.open("/dev/full", os.O_WRONLY)
    journal.settle(Numbered(2), usage(40), [])
    assert journal.broken
    os.close(journal._file)
    journal._file = good
    journal.flush()
    assert not journal.broken
    left = Journal(tmp_path).left(0)
    assert [one.prompt for one in left.sums.usage()] == [70]
    assert left.open == 0
    journal.close()


# --- responses


def chunk(**delta: object) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": None}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


def test_calls_of_functions_stream_as_items_of_a_response() -> None:
    events = ResponseEvents(Answer({"model": "m", "input": "x"}))
    out = events.feed(
        chunk(content="Let me see.")
        + chunk(tool_calls=[{"index": 0, "id": "call_1", "function": {"name": "weather", "arguments": ""}}])
        + chunk(tool_calls=[{"index": 0, "function": {"arguments": '{"city":'}}])
        + chunk(tool_calls=[{"index": 0, "function": {"arguments": '"Lisbon"}'}}])
        + b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":9}}\n\ndata: [DONE]\n\n'
    )
    told = [json.loads(line[6:]) for line in out.splitlines() if line.startswith(b"data: ")]
    assert [event["sequence_number"] for event in told] == list(range(len(told)))
    done = [event["item"] for event in told if event["type"] == "response.output_item.done"]
    assert [(item["type"], item["status"]) for item in done] == [
        ("message", "completed"),
        ("function_call", "completed"),
    ]
    assert (done[1]["call_id"], done[1]["name"], done[1]["arguments"]) == ("call_1", "weather", '{"city":"Lisbon"}')
    assert told[-1]["type"] == "response.completed"
    assert told[-1]["response"]["output"] == done
    assert told[-1]["response"]["usage"]["total_tokens"] == 14
    assert events.ended


def test_a_conversation_with_functions_becomes_a_chat() -> None:
    asked = {
        "model": "m",
        "instructions": "Be short.",
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
            {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"},
            {"type": "function_call", "call_id": "c2", "name": "time", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "sunny"},
        ],
        "tools": [{"type": "function", "name": "weather", "parameters": {}, "strict": True}],
        "tool_choice": {"type": "function", "name": "weather"},
        "text": {"format": {"type": "json_schema", "name": "w", "schema": {}}},
        "max_output_tokens": 9,
    }
    chat = json.loads(as_chat(json.dumps(asked).encode())[0])
    assert [message["role"] for message in chat["messages"]] == ["system", "user", "assistant", "tool"]
    assert [call["id"] for call in chat["messages"][2]["tool_calls"]] == ["c1", "c2"]
    assert chat["tools"] == [{"type": "function", "function": {"name": "weather", "parameters": {}, "strict": True}}]
    assert chat["tool_choice"] == {"type": "function", "function": {"name": "weather"}}
    assert chat["response_format"] == {"type": "json_schema", "json_schema": {"name": "w", "schema": {}}}
    assert chat["max_tokens"] == 9


@pytest.mark.parametrize("text", [1, None, ["a"], {}])
def test_text_that_is_none_is_named(text: object) -> None:
    body = json.dumps({"model": "m", "input": [{"role": "user", "content": [{"type": "input_text", "text": text}]}]})
    with pytest.raises(Refusal) as refused:
        as_chat(body.encode())
    assert refused.value.param == "input[0].content[0].text"


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(ANYTHING)
def test_whatever_is_given_as_input_is_a_chat_or_a_refusal(given_: object) -> None:
    body = json.dumps({"model": "m", "input": given_, "tools": given_, "text": given_, "reasoning": given_}).encode()
    try:
        chat, _ = as_chat(body)
    except Refusal as refused:
        assert refused.status == 400
    else:
        assert json.loads(chat)["messages"] is not None
