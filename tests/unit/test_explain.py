"""Why this host, or why none: what is told is true, and enough to act on."""

from __future__ import annotations

from dataclasses import replace

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
from usina.placement import POLICIES, Chooser, Fleet, Promises, Refusal, place_within
from usina.placement.explain import described, explain, of_one, told
from usina.placement.within import largest_fit
from usina.placement.within.explain import scale_of, scaled
from usina.testing.hosts import shown, small_gpu, small_host

NEEDS = Needs(2, GiB, GiB)
gpu = DeviceKind.GPU
needs_ = st.builds(
    Needs,
    cores=st.sampled_from([0.5, 1, 2, 4, 8, 12]),
    memory=st.sampled_from([GiB, 4 * GiB, 12 * GiB, 20 * GiB]),
    disk=st.just(GiB),
    pinned=st.booleans(),
    numa=st.sampled_from([Numa.NONE, Numa.STRICT]),
    devices=st.sampled_from(
        [(), (), (DeviceRequest(gpu),), (DeviceRequest(gpu, 4),), (DeviceRequest(gpu, 2, linked=True),)]
        + [(DeviceRequest(gpu, profile="3g.40gb"),), (DeviceRequest(gpu, share=600),)]
    ),
    affinities=st.sampled_from(
        [(), (), (Affinity("web", apart=True),), (Affinity("web", level="rack"),), (Affinity("web", required=False),)]
    ),
    tenant=st.sampled_from(["a", "b"]),
)
hosts_ = st.lists(
    st.tuples(st.integers(0, 7), st.integers(0, 12), st.integers(0, 4), st.integers(0, 2), st.integers(0, 12)),
    min_size=1,
    max_size=12,
)


def site(spec: list[tuple[int, int, int, int, int]]) -> tuple[Fleet, Promises]:
    """Hosts with so many cores, GiB and devices gone; every third has a member of web or something reserved for b."""
    fleet, reservations = Fleet(), []
    for number, (cores, memory, devices, taken, kind) in enumerate(spec):
        gpus = [small_gpu(n, node=n % 2, mode="mig" if n == 3 else "") for n in range(devices)]
        terms = Terms(maintenance=(Window(0, 9),) if kind == 3 else (), tenants=frozenset({"b"} if kind == 4 else ()))
        more = {"state": HostState.CORDONED} if kind == 5 else {"reachable": kind != 6}
        name = f"host-{number}"
        fleet.put(small_host(name, gpus, topology={"rack": f"r{number // 3}"}, terms=terms, **more))
        names = tuple(one.address for one in gpus[:taken])
        groups = frozenset({"web"} if kind == 1 else ())
        fleet.hold(Holding(f"m{number}", Claim(name, cores, memory * GiB, 0, devices=names), groups=groups))
        if kind == 2:
            reservations.append(Reservation(f"rsv{number}", "b", Window(0, 9), (Claim(name, 1, 4 * GiB, 0),)))
    return fleet, Promises(reservations)


def as_asked(chooser: Chooser, needs: Needs) -> list[Provider]:
    """Hosts that rules do not close, as the request sees them."""
    closed = [rows for phrase, rows in chooser.closed(needs).items() if phrase != "are reserved for others"]
    rows = (row for row in chooser.fleet.rows.values() if not any(mask[row] for mask in closed))
    return [chooser.promises.as_seen_by(chooser.fleet, row, needs) for row in rows]


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(hosts_, needs_, st.sampled_from(sorted(POLICIES)))
def test_what_is_told_is_true(spec: list[tuple[int, int, int, int, int]], needs: Needs, policy: str) -> None:
    fleet, promises = site(spec)
    chooser = Chooser(fleet, POLICIES[policy], promises=promises)
    before = shown(fleet)
    found = explain(chooser, needs)
    assert shown(fleet) == before
    assert found.answer == chooser.choose(needs)
    assert (found.hosts, found.policy) == (len(spec), policy)
    if isinstance(found.answer, Claim):
        assert found.best[0].host == found.answer.provider
        assert len({score.host for score in found.best}) == len(found.best)
        costs = [score.cost for score in found.best]
        assert costs == sorted(costs)
        assert all(score.cost == pytest.approx(sum(score.parts.values())) for score in found.best)
        free = {provider.id for provider in as_asked(chooser, needs)}
        assert {score.host for score in found.best} <= free
        return
    assert sum(found.reasons.values()) == len(spec)
    assert found.reasons == found.answer.reasons
    refusal = told(chooser, needs, found.answer)
    assert refusal.reasons == found.answer.reasons
    assert not any(name in refusal.message for name in fleet.rows)
    assert not set(fleet.rows) & {word.strip(":;,") for word in f"{found.nearest} {found.largest}".split()}
    assert found.nearest and found.nearest_host in fleet.rows
    assert refusal.largest == found.largest
    steps = scale_of(needs)
    fit = [n for n in range(1, steps) for p in as_asked(chooser, needs) if fits(p, scaled(needs, n, steps))]
    assert found.largest == (f"{described(scaled(needs, max(fit), steps))} would fit" if fit else "")


def fits(provider: Provider, needs: Needs) -> bool:
    return isinstance(place_within(provider, needs), Claim)


class TestPlaced:
    def test_a_preferred_affinity_is_a_part_of_the_cost(self) -> None:
        fleet = Fleet([small_host("h0"), small_host("h1")])
        fleet.hold(Holding("web", Claim("h1", 1, GiB, 0)))
        wish = replace(NEEDS, affinities=(Affinity("web", apart=True, required=False),))
        found = explain(Chooser(fleet), wish)
        assert [(score.host, score.parts["affinity"]) for score in found.best] == [("h0", 0.0), ("h1", 1.0)]

    def test_hosts_that_rules_close_are_not_among_the_best(self) -> None:
        fleet = Fleet([small_host("h0"), small_host("h1")])
        fleet.hold(Holding("web", Claim("h1", 1, GiB, 0)))
        found = explain(Chooser(fleet), replace(NEEDS, affinities=(Affinity("web", apart=True),)))
        assert [score.host for score in found.best] == ["h0"]
        assert found.reasons == {"share a host with web": 1}


class TestRefused:
    def test_the_nearest_miss_and_what_would_fit(self) -> None:
        hosts = [small_host("h0", used_cores=7), small_host("h1", used_cores=3), small_host("h2", [small_gpu(1)])]
        found = explain(Chooser(Fleet(hosts)), Needs(6, GiB, 0, devices=(DeviceRequest(gpu, 2, "H100"),)))
        assert found.nearest == "1 of 2 H100 free"
        assert found.nearest_host == "h2"
        assert found.largest == "5 cores, 938MiB and 1 H100 would fit"

    def test_by_the_number_of_devices_too(self) -> None:
        """Cores and memory cannot shrink here, only the devices."""
        few, more = (small_host(f"h{n}", [small_gpu(g) for g in range(n)]) for n in (1, 3))
        found = explain(
            Chooser(Fleet([few, more])), Needs(1, 1 << 20, 0, pinned=True, devices=(DeviceRequest(gpu, 4),))
        )
        assert found.largest == "1 core, 1MiB and 3 gpu would fit"

    def test_only_hosts_that_may_be_asked_are_near(self) -> None:
        """The one asked for, not an emptier one; not what is reserved, nor beside whom it must not be."""
        fleet = Fleet([small_host("h0"), small_host("h1", used_cores=7)])
        found = explain(Chooser(fleet), replace(NEEDS, host="h1"))
        assert (found.nearest_host, found.nearest) == ("h1", "1 core short")
        fleet.hold(Holding("web", Claim("h0", 1, GiB, 0)))
        found = explain(Chooser(fleet), replace(NEEDS, affinities=(Affinity("web", apart=True),)))
        assert (found.nearest_host, found.nearest) == ("h1", "1 core short")
        assert found.largest == "1 core and 896MiB would fit"

    def test_where_rules_close_all_the_rule_is_told(self) -> None:
        fleet = Fleet([small_host("h0")])
        fleet.hold(Holding("web", Claim("h0", 1, GiB, 0)))
        needs = replace(NEEDS, affinities=(Affinity("web", apart=True),))
        chooser = Chooser(fleet)
        refusal = chooser.choose(needs)
        assert isinstance(refusal, Refusal)
        assert told(chooser, needs, refusal).message == (
            "1 host: 1 share a host with web; the nearest: shares a host with web"
        )

    def test_what_is_reserved_is_seen_as_taken(self) -> None:
        promise = Reservation("rsv", "b", Window(0, 9), (Claim("h0", 7, GiB, 0),))
        chooser = Chooser(Fleet([small_host("h0")]), promises=Promises([promise]))
        found = explain(chooser, NEEDS)
        assert found.reasons == {"are reserved for others": 1}
        assert (found.nearest, found.largest) == ("1 core short", "1 core and 896MiB would fit")

    def test_nobody_there_or_nobody_up(self) -> None:
        assert explain(Chooser(Fleet()), NEEDS).nearest == ""
        assert told(Chooser(Fleet()), NEEDS, Refusal({})) == Refusal({})
        chooser = Chooser(Fleet([small_host("h0", state=HostState.DRAINING)]))
        found = explain(chooser, NEEDS)
        assert (found.nearest_host, found.nearest, found.largest) == ("h0", "is draining", "")
        assert told(chooser, NEEDS, Refusal({"are draining": 1})) == Refusal({"are draining": 1})

    def test_the_largest_is_really_the_largest(self) -> None:
        host = small_host("h0", used_cores=3)
        largest = largest_fit(host, Needs(8, 4 * GiB, 0))
        assert largest is not None and largest.cores == 5 and fits(host, largest)

    def test_words(self) -> None:
        assert of_one("are cordoned") == "is cordoned"
        assert of_one("share a rack with web") == "shares a rack with web"
        one = replace(NEEDS, cores=1, devices=(DeviceRequest(gpu, 2, "H100"), DeviceRequest(gpu, profile="1g.10gb")))
        assert described(one) == "1 core, 1GiB, 2 H100 and 1 1g.10gb"
