"""How many replicas: within what is allowed, more for more load, and steady where load is."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from usina.core import endpoint_scale
from usina.core.endpoint import EndpointSpec, EndpointStatus, Load, Variant
from usina.core.endpoint_scale import STABLE, UP_AGAIN, asked, look_again, target, wanted

NOW = 1_000_000.0

specs = st.builds(
    lambda low, more, slots, tokens: EndpointSpec(
        Variant("a/m"), "llama.cpp", low, max(1, low + more), slots=slots, target_tokens=tokens, idle_limit=600.0
    ),
    st.integers(0, 5),
    st.integers(0, 20),
    st.integers(1, 64),
    st.sampled_from([0.0, 50.0]),
)
loads = st.builds(
    lambda flying, waiting, oldest, tokens: Load(flying, waiting, oldest if waiting else 0.0, tokens, NOW),
    st.integers(0, 500),
    st.integers(0, 100),
    st.floats(0, 100),
    st.floats(0, 5000),
)


def spec(**more: object) -> EndpointSpec:
    return EndpointSpec(Variant("a/m"), "llama.cpp", **{"minimum": 1, "maximum": 8, **more})  # type: ignore[arg-type]


@given(specs, loads, st.integers(0, 40), st.integers(0, 40))
def test_always_within_what_is_allowed(spec: EndpointSpec, load: Load, have: int, ready: int) -> None:
    number, _ = wanted(spec, EndpointStatus(have, needed_at=NOW), load, ready, NOW)
    assert spec.minimum <= number <= spec.maximum


@given(specs, loads, st.integers(0, 30), st.integers(0, 100), st.integers(0, 50))
def test_more_load_never_asks_for_fewer(spec: EndpointSpec, load: Load, have: int, flying: int, waiting: int) -> None:
    status = EndpointStatus(have, needed_at=NOW, scaled_at=NOW)
    more = replace(load, in_flight=load.in_flight + flying, waiting=load.waiting + waiting)
    assert wanted(spec, status, more, 0, NOW)[0] >= wanted(spec, status, load, 0, NOW)[0]
    assert asked(spec, more) >= asked(spec, load)


@settings(max_examples=50)
@given(specs, loads, st.integers(0, 30))
def test_a_constant_load_ends_at_one_number_and_stays(spec: EndpointSpec, load: Load, have: int) -> None:
    """Up or down, never both, and then nothing: up in one go unless a queue lasts, down one by one."""
    status = EndpointStatus(have, needed_at=NOW, scaled_at=NOW)
    now, path = NOW, [endpoint_scale.current(spec, status)]
    for _ in range(220):
        now += 10
        load = replace(load, last_at=now)  # it is asked all the time
        number, _ = wanted(spec, status, load, status.wanted, now)
        changed = number != status.wanted
        needed = endpoint_scale.is_needed(spec, status, load)
        status = replace(
            status,
            wanted=number,
            scaled_at=now if changed else status.scaled_at,
            needed_at=now if changed or needed else status.needed_at,
        )
        path.append(number)
    ups = [b > a for a, b in pairwise(path) if a != b]
    assert len(set(ups)) <= 1, path
    assert len(ups) <= 1 or not ups[0] or load.oldest > endpoint_scale.QUEUE, path
    assert len(set(path[-3:])) == 1, path
    assert all(a - b <= 1 for a, b in pairwise(path)), path


def test_the_aim_is_three_quarters_of_the_slots_unless_it_is_said() -> None:
    assert (target(spec(slots=8)), target(spec(slots=1)), target(spec(slots=8, target=2))) == (6.0, 1.0, 2.0)
    assert asked(spec(slots=8), Load(in_flight=13)) == 3
    assert asked(spec(target_tokens=100.0), Load(in_flight=1, tokens=250.0)) == 3


def test_a_queue_that_lasts_adds_one_at_a_time_once_all_are_there() -> None:
    slow = Load(in_flight=1, waiting=1, oldest=9.0)
    assert wanted(spec(slots=4), EndpointStatus(1, scaled_at=NOW - 60), slow, 1, NOW) == (
        2,
        "a request has waited for 9 s",
    )
    assert wanted(spec(slots=4), EndpointStatus(1, scaled_at=NOW - 60), slow, 0, NOW)[0] == 1  # it is just coming up
    assert wanted(spec(slots=4), EndpointStatus(2, scaled_at=NOW - 1), slow, 2, NOW)[0] == 2  # it was added just now
    assert look_again(spec(slots=4), EndpointStatus(2, scaled_at=NOW), slow) == NOW + UP_AGAIN


def test_time_alone_is_looked_for() -> None:
    assert look_again(spec(), EndpointStatus(3, needed_at=NOW), Load()) == NOW + STABLE
    assert look_again(spec(), EndpointStatus(1, needed_at=NOW), Load()) is None
    idle = spec(minimum=0, idle_limit=50.0)
    assert look_again(idle, EndpointStatus(1, scaled_at=NOW), Load(last_at=NOW + 5)) == NOW + 55
    assert look_again(idle, EndpointStatus(0), Load()) is None
