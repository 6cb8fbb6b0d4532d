"""Preemption: it makes room, it asks nobody it may not ask, and as few as possible; compared with trying all sets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from usina.core.capacity import (
    Affinity,
    Claim,
    DeviceKind,
    DeviceRequest,
    Holding,
    HostState,
    Needs,
    Numa,
    Provider,
    Reservation,
    Terms,
    Window,
)
from usina.core.units import GiB
from usina.placement import Chooser, Fleet, Promises, Refusal, held_without, place_within
from usina.placement.preempt import Preemption, Share, Victim, cost_of, devices_of, preempt, usage
from usina.testing.hosts import held_by, shown, small_gpu, small_host
from usina.testing.replay import violations

NEEDS = Needs(4, GiB, 0, priority=5)
gpu = DeviceKind.GPU
devices_ = st.sampled_from(
    [
        (),
        (),
        (DeviceRequest(gpu),),
        (DeviceRequest(gpu, 2),),
        (DeviceRequest(gpu, 2, linked=True),),
        (DeviceRequest(gpu, share=400),),
        (DeviceRequest(gpu, profile="3g.40gb"),),
    ]
)
needs_ = st.builds(
    Needs,
    cores=st.sampled_from([0.1, 0.2, 0.7, 1, 2, 3, 4, 6]),
    memory=st.sampled_from([GiB, 2 * GiB, 4 * GiB]),
    disk=st.just(GiB),
    pinned=st.booleans(),
    numa=st.sampled_from([Numa.NONE, Numa.NONE, Numa.STRICT]),
    hugepage=st.sampled_from([0, 0, 0, GiB]),
    devices=devices_,
    tenant=st.sampled_from(["a", "b", "c"]),
    priority=st.integers(0, 3),
    preemptible=st.booleans(),
)
shares_ = st.dictionaries(
    st.sampled_from(["a", "b"]),
    st.builds(Share, st.sampled_from([0, 2.3, 6, 50]), st.sampled_from([0, 4 * GiB]), st.sampled_from([0, 1000])),
)


def site(count: int, ratio: float) -> list[Provider]:
    devices = [small_gpu(n, node=n % 2, link=f"nv{n // 2}") for n in range(3)] + [small_gpu(3, mode="mig")]
    return [small_host(f"h{n}", devices, cpu_ratio=ratio) for n in range(count)]


def full(hosts: Sequence[Provider], orders: Sequence[Needs]) -> Fleet:
    """At most six holdings on each host, each where it was chosen."""
    fleet = Fleet(hosts)
    for number, needs in enumerate(orders):
        found = Chooser(fleet).choose(needs)
        if isinstance(found, Claim) and len(held_by([h.claim for h in fleet.holdings.values()], found.provider)) < 6:
            fleet.hold(Holding(f"m{number}", found, needs.tenant, frozenset(), needs.priority, needs.preemptible))
    return fleet


def subsets(holdings: Sequence[Holding]) -> Iterator[tuple[Holding, ...]]:
    return chain.from_iterable(combinations(holdings, count) for count in range(len(holdings) + 1))


def kept(fleet: Fleet, gone: Sequence[Holding], guaranteed: Mapping[str, Share]) -> bool:
    """Whether no tenant that loses something has less than its share then, by counting what stays."""
    left = usage(h for h in fleet.holdings.values() if h not in gone)
    return all(left.get(h.tenant, Share()).covers(guaranteed.get(h.tenant, Share())) for h in gone)


def possible(fleet: Fleet, needs: Needs, guaranteed: Mapping[str, Share]) -> Iterator[tuple[Holding, ...]]:
    """Every set of holdings on one host that may be asked and makes room."""
    for id, row in fleet.rows.items():
        below = [h for h in fleet.holdings.values() if h.claim.provider == id and h.priority < needs.priority]
        for gone in subsets(below):
            left = fleet.provider(row)
            for holding in gone:
                left = held_without(left, holding.claim)
            if kept(fleet, gone, guaranteed) and isinstance(place_within(left, needs), Claim):
                yield gone


@pytest.mark.slow
@settings(max_examples=70, deadline=None)
@given(
    st.integers(1, 2),
    st.sampled_from([1.0, 2.0]),
    st.lists(needs_, min_size=4, max_size=14),
    needs_.map(lambda needs: replace(needs, cores=max(needs.cores, 4), priority=max(needs.priority, 1))),
    shares_,
)
def test_it_makes_room_with_the_fewest_victims(
    count: int, ratio: float, orders: list[Needs], needs: Needs, guaranteed: dict[str, Share]
) -> None:
    hosts = site(count, ratio)
    fleet = full(hosts, orders * 3)
    before, chooser = shown(fleet), Chooser(fleet)
    found = preempt(chooser, needs, guaranteed)
    assert shown(fleet) == before
    chosen = chooser.choose(needs)
    sets = list(possible(fleet, needs, guaranteed))
    if isinstance(found, Refusal):
        assert sets == []
        assert found == chosen
        return
    gone = [victim.holding for victim in found.victims]
    if isinstance(chosen, Claim):
        assert (found.claim, gone) == (chosen, [])
        return
    assert all(holding.priority < needs.priority for holding in gone)
    assert {holding.claim.provider for holding in gone} == {found.claim.provider}
    assert kept(fleet, gone, guaranteed)
    assert cost_of(gone)[:-1] == min(cost_of(some)[:-1] for some in sets)
    stay = [holding.claim for holding in fleet.holdings.values() if holding not in gone]
    for host in hosts:
        assert violations(host, held_by([*stay, found.claim], host.id)) == []


def holding(name: str, cores: float, priority: int = 0, host: str = "h0", **more: object) -> Holding:
    return replace(Holding(name, Claim(host, cores, GiB, 0), "a", frozenset(), priority), **more)  # type: ignore[arg-type]


def fleet_of(*holdings: Holding, hosts: int = 1) -> Fleet:
    fleet = Fleet([small_host(f"h{n}") for n in range(hosts)])
    for one in holdings:
        fleet.hold(one)
    return fleet


def victims(fleet: Fleet, needs: Needs, guaranteed: Mapping[str, Share] | None = None) -> list[str]:
    found = preempt(Chooser(fleet), needs, guaranteed)
    return [victim.holding.resource for victim in found.victims] if isinstance(found, Preemption) else ["refused"]


class TestWhoGoes:
    def test_nobody_where_it_fits_elsewhere(self) -> None:
        assert victims(fleet_of(holding("m", 8), hosts=2), NEEDS) == []

    def test_equals_and_betters_stay(self) -> None:
        assert victims(fleet_of(holding("m", 8, 5)), NEEDS) == ["refused"]
        assert victims(fleet_of(holding("m", 8, 6)), NEEDS) == ["refused"]
        assert victims(fleet_of(holding("m", 8, 4)), NEEDS) == ["m"]

    def test_one_large_rather_than_two_small(self) -> None:
        fleet = fleet_of(holding("a", 2), holding("b", 2), holding("c", 4, 4))
        assert victims(fleet, NEEDS) == ["c"]

    def test_three_where_two_do_not_do(self) -> None:
        """Not the five cheapest one after the other, nor what is left of them."""
        small = [holding(f"s{n}", 0.5, 0) for n in range(4)]
        large = [holding(f"l{n}", 2, 1) for n in range(3)]
        assert victims(fleet_of(*small, *large), replace(NEEDS, cores=6)) == ["l0", "l1", "l2"]

    def test_of_equally_many_the_lowest_in_priority_then_the_smallest(self) -> None:
        fleet = fleet_of(holding("a", 4, 1, "h0"), holding("b", 4, 2, "h0"), holding("c", 8, 0, "h1"), hosts=2)
        assert victims(fleet, NEEDS) == ["c"]
        fleet = fleet_of(holding("a", 5, 1), holding("b", 3, 1, "h1"), holding("c", 5, 3, "h1"), hosts=2)
        assert victims(fleet, replace(NEEDS, cores=5)) == ["a"]
        pairs = fleet_of(holding("a", 2, 0), holding("b", 2, 4), holding("c", 2, 1), holding("d", 2, 1))
        assert victims(pairs, NEEDS) == ["a", "c"]

    def test_who_may_give_way_before_who_may_not(self) -> None:
        assert victims(fleet_of(holding("a", 4), holding("b", 4, preemptible=True)), NEEDS) == ["b"]

    def test_the_guaranteed_share_stays(self) -> None:
        fleet = fleet_of(holding("a", 4), holding("b", 4, 1, tenant="b"))
        assert victims(fleet, NEEDS, {"a": Share(cores=4)}) == ["b"]
        assert victims(fleet, NEEDS, {"a": Share(cores=9), "b": Share(memory=GiB)}) == ["refused"]
        assert victims(fleet, NEEDS, {"a": Share(devices=1)}) == ["b"]
        both = fleet_of(holding("a", 4), holding("b", 4))
        assert victims(both, replace(NEEDS, cores=8), {"a": Share(cores=1)}) == ["refused"]
        assert victims(both, NEEDS, {"a": Share(cores=4)}) == ["a"]

    def test_thousandths_add_up(self) -> None:
        fleet = fleet_of(holding("a", 0.1), holding("b", 0.2), holding("c", 7.7, 1))
        assert victims(fleet, NEEDS, {"a": Share(cores=0.3)}) == ["c"]

    def test_the_reason_is_told(self) -> None:
        low = holding("m", 8, 1)
        found = preempt(Chooser(fleet_of(low)), NEEDS)
        why = "priority 1 is below 5, and it holds what the request needs"
        assert found == Preemption(Claim("h0", 4, GiB, 0), (Victim(low, why),))

    def test_there_may_be_too_many_sets_to_try(self) -> None:
        small = Claim("h0", 0.25, GiB // 4, 0)
        fleet = fleet_of(*(replace(holding(f"m{n:02}", 1, n % 3), claim=small) for n in range(32)))
        gone = victims(fleet, replace(NEEDS, cores=3))
        assert len(gone) == 12
        assert {fleet.holdings[name].priority for name in gone} == {0, 1}


class TestRules:
    def test_pinned_cores_free_what_they_were_sold_as(self) -> None:
        fleet = Fleet([small_host("h0", cpu_ratio=4.0)])
        for name, cpus in (("a", (0, 1, 2, 3)), ("b", (4, 5, 6, 7))):
            fleet.hold(Holding(name, Claim("h0", 4, GiB, 0, cpus=cpus)))
        assert victims(fleet, replace(NEEDS, cores=16)) == ["a"]

    def test_huge_pages_are_no_ordinary_memory(self) -> None:
        fleet = Fleet([small_host("h0", used_memory=16 * GiB)])
        fleet.hold(Holding("a", Claim("h0", 1, 8 * GiB, 0, nodes=(0, 1), hugepage=GiB)))
        assert victims(fleet, replace(NEEDS, memory=2 * GiB, hugepage=GiB)) == ["a"]

    def test_hosts_that_are_closed_stay_so(self) -> None:
        fleet = fleet_of(holding("a", 8, host="h0"), holding("b", 8, host="h1"), holding("c", 8, host="h2"), hosts=3)
        fleet.put(replace(fleet.provider(0), state=HostState.CORDONED))
        fleet.put(replace(fleet.provider(1), terms=Terms(maintenance=(Window(0, 9),))))
        assert victims(fleet, NEEDS) == ["c"]
        assert victims(fleet, replace(NEEDS, affinities=(Affinity("c", apart=True),))) == ["refused"]

    def test_whom_it_must_be_near_to_is_not_asked(self) -> None:
        fleet = fleet_of(holding("a", 4), holding("b", 4, 3))
        assert victims(fleet, replace(NEEDS, affinities=(Affinity("a"),))) == ["b"]

    def test_what_is_reserved_stays_so(self) -> None:
        promise = Reservation("rsv", "x", Window(0, 9), (Claim("h0", 2, GiB, 0), Claim("h0", 2, GiB, 0)))
        used = holding("used", 2, 0, groups=frozenset({"rsv"}), tenant="x")
        fleet = fleet_of(used, holding("a", 2, 1), holding("b", 2, 2))
        chooser = Chooser(fleet, promises=Promises([promise]))
        found = preempt(chooser, replace(NEEDS, cores=2))
        assert isinstance(found, Preemption) and [v.holding.resource for v in found.victims] == ["a"]
        assert isinstance(preempt(chooser, replace(NEEDS, cores=5)), Refusal)

    def test_a_partition_counts_as_a_device(self) -> None:
        assert devices_of(Claim("h0", devices=("x/250m", "y", "z/1g.10gb@4"))) == 2250
