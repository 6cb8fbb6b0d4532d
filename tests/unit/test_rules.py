"""Rules: who may be beside whom, which hosts are closed when, and what is promised to others."""

from __future__ import annotations

from collections import Counter
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
from usina.placement import POLICIES, Chooser, Fleet, Promises, Refusal, held_with, policy_of
from usina.placement.exact import is_free
from usina.placement.promises import unused
from usina.testing.hosts import filled, held_by, shown, small_gpu, small_host
from usina.testing.replay import violations

NEEDS = Needs(1, GiB, 0)
WEB = frozenset({"web"})
LEVELS = ("site", "block", "rack", "nvlink", "host")


def labelled(count: int = 8) -> list[Provider]:
    """Two hosts to a rack, two racks to a block; the last host is in no domain at all."""
    hosts = [
        small_host(f"h{n}", topology={"site": "s", "block": f"b{n // 4}", "rack": f"r{n // 2}", "nvlink": f"n{n // 2}"})
        for n in range(count - 1)
    ]
    return [*hosts, small_host(f"h{count - 1}")]


def web_on(fleet: Fleet, host: str) -> None:
    fleet.hold(Holding(f"web-on-{host}", Claim(host, 1, GiB, 0), groups=WEB))


def allowed(chooser: Chooser, needs: Needs) -> set[str]:
    """Every host that this request gets if asked for by name."""
    found = (chooser.choose(replace(needs, host=id)) for id in chooser.fleet.rows)
    return {claim.provider for claim in found if isinstance(claim, Claim)}


def refused(chooser: Chooser, needs: Needs) -> Counter[str]:
    found = chooser.choose(needs)
    assert isinstance(found, Refusal), found
    assert sum(found.reasons.values()) == chooser.fleet.hosts
    return Counter(found.reasons)


class TestAffinity:
    @pytest.mark.parametrize("level", LEVELS)
    @settings(max_examples=15, deadline=None)
    @given(on=st.sets(st.integers(0, 7), max_size=3))
    def test_required_at_each_level(self, level: str, on: set[int]) -> None:
        hosts = labelled()
        fleet = Fleet(hosts)
        for number in on:
            web_on(fleet, f"h{number}")
        names = {h.id: h.id if level == "host" else h.terms.topology.get(level) for h in hosts}
        taken = {names[f"h{number}"] for number in on} - {None}
        near = {id for id, name in names.items() if name in taken}
        chooser = Chooser(fleet)
        assert allowed(chooser, replace(NEEDS, affinities=(Affinity("web", level=level),))) == near
        apart = replace(NEEDS, affinities=(Affinity("web", apart=True, level=level),))
        assert allowed(chooser, apart) == names.keys() - near

    @pytest.mark.parametrize("level", LEVELS)
    def test_preferred_is_followed_where_it_can_be(self, level: str) -> None:
        for apart in (False, True):
            fleet = Fleet(labelled())
            web_on(fleet, "h0")
            chooser = Chooser(fleet)
            wish = replace(NEEDS, affinities=(Affinity("web", apart, level, required=False),))
            found = chooser.choose(wish)
            assert isinstance(found, Claim)
            domain = fleet.domain(level)
            assert (domain[fleet.rows[found.provider]] == domain[fleet.rows["h0"]]) is not apart
            assert allowed(chooser, wish) == set(fleet.rows)

    def test_the_first_of_a_group_is_near_to_nobody(self) -> None:
        fleet = Fleet(labelled())
        needs = replace(NEEDS, groups=WEB, affinities=(Affinity("web", level="rack"),))
        assert allowed(Chooser(fleet), needs) == set(fleet.rows)
        assert allowed(Chooser(fleet), replace(needs, groups=frozenset())) == set()
        web_on(fleet, "h2")
        assert allowed(Chooser(fleet), needs) == {"h2", "h3"}

    def test_reasons_name_the_level(self) -> None:
        fleet = Fleet(labelled(3))
        web_on(fleet, "h0")
        wishes = (Affinity("web", apart=True, level="rack"), Affinity("web", level="host"))
        counted = refused(Chooser(fleet), replace(NEEDS, affinities=wishes))
        assert counted == {"share a rack with web": 2, "are not on the host of web": 1}

    def test_members_are_known_once_and_gone_when_released(self) -> None:
        fleet = Fleet(labelled())
        web_on(fleet, "h0")
        fleet.know(fleet.holdings["web-on-h0"])
        fleet.know(replace(fleet.holdings["web-on-h0"], claim=Claim("h2", 1, GiB, 0)))
        needs = replace(NEEDS, affinities=(Affinity("web"),))
        assert allowed(Chooser(fleet), needs) == {"h2"}
        fleet.drop("h2")
        fleet.release("web-on-h0")
        assert not fleet.members and not fleet.holdings
        web_on(fleet, "h1")
        provider = fleet.provider(fleet.rows["h1"])
        fleet.drop("h1")
        fleet.put(provider)
        fleet.release("web-on-h1")
        assert not fleet.members


class TestHosts:
    def test_dedicated_hosts_are_for_their_tenants(self) -> None:
        fleet = Fleet([small_host("h0", terms=Terms(tenants=frozenset({"a", "b"}))), small_host("h1")])
        chooser = Chooser(fleet)
        assert allowed(chooser, replace(NEEDS, tenant="a")) == {"h0", "h1"}
        assert allowed(chooser, replace(NEEDS, tenant="c")) == {"h1"}
        fleet.drop("h1")
        assert refused(chooser, NEEDS) == {"are dedicated to others": 1}

    @given(st.integers(0, 20), st.integers(1, 20), st.integers(0, 20), st.integers(1, 20))
    def test_maintenance_is_in_the_way_while_it_lasts(self, begins: int, span: int, asked: int, lasts: int) -> None:
        window = Window(begins, begins + span)
        fleet = Fleet([small_host("h0", terms=Terms(maintenance=(window,)))])
        needs = replace(NEEDS, begins=asked, ends=asked + lasts)
        overlap = bool(set(range(begins, begins + span)) & set(range(asked, asked + lasts)))
        assert allowed(Chooser(fleet), needs) == (set() if overlap else {"h0"})
        if overlap:
            assert refused(Chooser(fleet), needs) == {"have maintenance in that time": 1}
            fleet.put(replace(fleet.provider(0), terms=Terms()))
            assert allowed(Chooser(fleet), needs) == {"h0"}

    def test_traits_required_and_forbidden(self) -> None:
        plain = small_host("h0")
        fast = replace(plain, id="h1", name="h1", inventory=replace(plain.inventory, traits=frozenset({"fast"})))
        chooser = Chooser(Fleet([plain, fast]))
        assert allowed(chooser, replace(NEEDS, traits=frozenset({"fast"}))) == {"h1"}
        assert allowed(chooser, replace(NEEDS, forbidden=frozenset({"fast"}))) == {"h0"}
        both = replace(NEEDS, traits=frozenset({"fast"}), forbidden=frozenset({"fast"}))
        assert refused(chooser, both) == {"lack fast": 1, "have fast, which is forbidden": 1}
        assert refused(chooser, replace(NEEDS, pinned=True, traits=frozenset({"fast"}))) == {
            "lack fast": 1,
            "lack pinning": 1,
        }

    def test_a_cordoned_device_is_not_given(self) -> None:
        gpus = [small_gpu(1), small_gpu(2)]
        fleet = Fleet([small_host("h0", gpus, cordoned_devices=frozenset({gpus[0].address}))])
        chooser = Chooser(fleet)
        one = replace(NEEDS, devices=(DeviceRequest(DeviceKind.GPU),))
        found = chooser.choose(one)
        assert isinstance(found, Claim) and found.devices == (gpus[1].address,)
        fleet.take(found)
        assert refused(chooser, one) == {"lack a free gpu": 1}
        fleet.put(replace(fleet.provider(0), cordoned_devices=frozenset()))
        found = chooser.choose(one)
        assert isinstance(found, Claim) and found.devices == (gpus[0].address,)

    def test_every_host_is_counted_once(self) -> None:
        hosts = [
            small_host("h0", state=HostState.CORDONED),
            small_host("h1", state=HostState.DRAINING),
            small_host("h2", reachable=False),
            small_host("h3", terms=Terms(tenants=frozenset({"x"}))),
            small_host("h4", used_cores=8),
            small_host("h5", [small_gpu(1)], used_memory=16 * GiB),
            small_host("h6", [small_gpu(1)]),
            small_host("h7", [small_gpu(1)], terms=Terms(maintenance=(Window(0, 9),))),
        ]
        fleet = Fleet(hosts)
        fleet.hold(Holding("web", Claim("h6", 1, GiB, 0)))
        needs = replace(
            NEEDS, devices=(DeviceRequest(DeviceKind.GPU),), affinities=(Affinity("web", apart=True),), memory=2 * GiB
        )
        assert refused(Chooser(fleet), needs) == {
            "are cordoned": 1,
            "are draining": 1,
            "do not answer": 1,
            "are dedicated to others": 1,
            "have no gpu": 1,
            "lack memory": 1,
            "share a host with web": 1,
            "have maintenance in that time": 1,
        }

    def test_a_full_partitioned_device_is_a_reason(self) -> None:
        """Also where the tables of scorers know no place, or not the profile: every host is counted."""
        fleet = Fleet([small_host(f"h{n}", [small_gpu(1, mode="mig")]) for n in range(2)])
        chooser = Chooser(fleet)
        for profile, number in (("3g.40gb", 4), ("1g.10gb+me", 2)):
            needs = replace(NEEDS, devices=(DeviceRequest(DeviceKind.GPU, profile=profile),))
            taken = []
            while isinstance(found := chooser.choose(needs), Claim):
                fleet.take(found)
                taken.append(found)
            assert len(taken) == number
            assert found.reasons == {f"lack a free {profile}": 2}
            for claim in taken:
                fleet.give_back(claim)


class TestPolicies:
    def test_each_provider_group_has_its_own(self) -> None:
        """Also a group that comes after the first choice."""
        busy = {"used_cores": 4, "used_memory": 4 * GiB}
        fleet = Fleet([small_host("h0", terms=Terms(group="p")), small_host("h1", terms=Terms(group="p"), **busy)])
        chooser = Chooser(fleet, by_group={"p": POLICIES["best-fit"], "s": POLICIES["spread"]})
        found = chooser.choose(NEEDS)
        assert isinstance(found, Claim) and found.provider == "h1"
        for id in ("h0", "h1"):
            fleet.drop(id)
        fleet.put(small_host("h2", terms=Terms(group="s")))
        fleet.put(small_host("h3", terms=Terms(group="s"), **busy))
        found = chooser.choose(NEEDS)
        assert isinstance(found, Claim) and found.provider == "h2"
        assert chooser.policy_on(fleet.rows["h2"]) is POLICIES["spread"]

    @pytest.mark.parametrize("text", ["nothing", "price=x", "price=nan", "price=inf", "price=-inf", "=1", "price=", ""])
    def test_what_is_no_policy_is_refused(self, text: str) -> None:
        with pytest.raises(Exception, match="rule: "):
            policy_of(text, "rule")

    def test_weights_by_name(self) -> None:
        assert policy_of("price=1, spread=0.5").weights == {"price": 1.0, "spread": 0.5}


gpu_ = st.sampled_from([(), (), (DeviceRequest(DeviceKind.GPU),), (DeviceRequest(DeviceKind.GPU, share=400),)])
needs_ = st.builds(
    Needs,
    cores=st.integers(1, 4),
    memory=st.sampled_from([GiB, 2 * GiB, 4 * GiB]),
    disk=st.just(GiB),
    pinned=st.booleans(),
    numa=st.sampled_from([Numa.NONE, Numa.STRICT]),
    hugepage=st.sampled_from([0, 0, GiB]),
    devices=gpu_
    | st.sampled_from([(DeviceRequest(DeviceKind.GPU, profile=p),) for p in ("1g.10gb", "3g.40gb", "7g.80gb")]),
    tenant=st.sampled_from(["a", "b", "c"]),
    preemptible=st.booleans(),
    priority=st.integers(0, 2),
    begins=st.sampled_from([0, 5, 20]),
    ends=st.sampled_from([10, 25, float("inf")]),
)
promised_ = st.lists(st.tuples(needs_, st.sampled_from(["a", "b"]), st.sampled_from([10, 15])), max_size=4)


def site() -> list[Provider]:
    devices = [small_gpu(1), small_gpu(2, node=1), small_gpu(3, mode="mig")]
    return [small_host(f"h{n}", devices) for n in range(2)]


def promised(wishes: list[tuple[Needs, str, int]], hosts: list[Provider]) -> list[Reservation]:
    """Reservations that all fit together, with windows of 10 that begin when they say."""
    fleet = Fleet(hosts)
    found = []
    for number, (needs, tenant, begins) in enumerate(wishes):
        claim = Chooser(fleet).choose(replace(needs, begins=0, ends=1))
        if isinstance(claim, Claim):
            fleet.take(claim)
            found.append(Reservation(f"rsv-{number}", tenant, Window(begins, begins + 10), (claim,)))
    return found


def overlaps(needs: Needs, reservation: Reservation) -> bool:
    return needs.begins < reservation.window.ends and reservation.window.begins < needs.ends


class TestReservations:
    @settings(max_examples=80, deadline=None)
    @given(promised_, st.lists(needs_, max_size=14))
    def test_promises_are_kept(self, wishes: list[tuple[Needs, str, int]], orders: list[Needs]) -> None:
        """Who is neither the owner nor preemptible leaves what is promised for the time he runs."""
        hosts = site()
        reservations = promised(wishes, hosts)
        fleet = Fleet(hosts)
        chooser = Chooser(fleet, promises=Promises(reservations))
        lasting: list[tuple[Needs, Claim]] = []
        for needs in orders:
            found = chooser.choose(needs)
            if isinstance(found, Refusal):
                assert sum(found.reasons.values()) == len(hosts)
                continue
            fleet.take(found)
            lasting += [(needs, found)] if not needs.preemptible else []
        for host in hosts:
            assert violations(host, held_by([claim for _, claim in lasting], host.id)) == []
            for promise in reservations:
                beside = [c for needs, c in lasting if needs.tenant != promise.tenant and overlaps(needs, promise)]
                assert violations(host, held_by([*beside, *promise.claims], host.id)) == []

    @settings(max_examples=90, deadline=None)
    @given(promised_, st.lists(needs_, max_size=14))
    def test_callbacks_free_what_is_needed_and_no_more(
        self, wishes: list[tuple[Needs, str, int]], orders: list[Needs]
    ) -> None:
        hosts = site()
        reservations = promised([(needs, tenant, 10) for needs, tenant, _ in wishes], hosts)
        fleet = Fleet(hosts)
        promises = Promises(reservations)
        chooser = Chooser(fleet, promises=promises)
        for number, needs in enumerate(orders):
            order = replace(needs, tenant="c", begins=0, ends=100)
            if isinstance(found := chooser.choose(order), Claim):
                fleet.hold(Holding(f"m{number}", found, "c", frozenset(), order.priority, order.preemptible))
        before = shown(fleet)
        for reservation in reservations:
            assert promises.callbacks(fleet, reservation, 9) == promises.callbacks(fleet, reservation, 20) == ()
        gone = {r.id: promises.callbacks(fleet, r, 10) for r in reservations}
        assert shown(fleet) == before
        assert all(holding.preemptible for some in gone.values() for holding in some)
        stay = [h.claim for h in fleet.holdings.values() if not any(h in some for some in gone.values())]
        promise = [claim for reservation in reservations for claim in reservation.claims]
        for host in hosts:
            assert violations(host, held_by([*stay, *promise], host.id)) == []
        names = [h.resource for some in gone.values() for h in some]
        assert len(names) == len(set(names))
        for holding in [h for some in gone.values() for h in some]:  # any one of them who stays is in the way
            host = next(h for h in hosts if h.id == holding.claim.provider)
            assert violations(host, held_by([*stay, *promise, holding.claim], host.id)) != []

    def test_only_on_its_host_and_only_what_clashes(self) -> None:
        """The same address on another host, another share of the device, memory alone: none is in the way."""
        hosts = [small_host(f"h{n}", [small_gpu(1), small_gpu(2)]) for n in range(2)]
        first, second = (gpu.address for gpu in hosts[0].inventory.devices)
        fleet = Fleet(hosts)
        for name, claim in {
            "share": Claim("h0", 1, GiB, 0, devices=(f"{first}/400m",)),
            "large share": Claim("h0", 1, GiB, 0, devices=(f"{second}/600m",)),
            "memory": Claim("h0", 0, 4 * GiB, 0),
            "elsewhere": Claim("h1", 1, GiB, 0, devices=(first,)),
            "pinned": Claim("h1", 2, GiB, 0, cpus=(0, 1)),
        }.items():
            fleet.hold(Holding(name, claim, preemptible=True))
        claims = (
            Claim("h0", 1, GiB, 0, devices=(f"{first}/500m",)),
            Claim("h0", 1, GiB, 0, devices=(f"{second}/500m",)),
            Claim("h1", 2, GiB, 0, cpus=(1, 2)),
        )
        promise = Reservation("rsv", "a", Window(0, 10), claims)
        called = Promises([promise]).callbacks(fleet, promise, 0)
        assert [holding.resource for holding in called] == ["large share", "pinned"]

    def test_who_is_not_preemptible_stays_and_nobody_goes_for_nothing(self) -> None:
        fleet = Fleet([small_host("h0")])
        fleet.hold(Holding("stays", Claim("h0", 6, GiB, 0)))
        fleet.hold(Holding("lent", Claim("h0", 2, GiB, 0), preemptible=True))
        promise = Reservation("rsv", "a", Window(0, 10), (Claim("h0", 4, GiB, 0),))
        assert Promises([promise]).callbacks(fleet, promise, 0) == ()

    def test_what_its_tenant_uses_is_not_counted_twice(self) -> None:
        """The claim that is used is the one that is not promised any more, whichever was first."""
        host = small_host("h0", [small_gpu(1), small_gpu(2)])
        first, second = (gpu.address for gpu in host.inventory.devices)
        claims = (Claim("h0", 1, GiB, 0, devices=(first,)), Claim("h0", 1, GiB, 0, devices=(second,)))
        promise = Reservation("rsv", "a", Window(0, 10), claims)
        fleet = Fleet([host])
        chooser = Chooser(fleet, promises=Promises([promise]))
        fleet.hold(Holding("job", Claim("h0", 2, GiB, 0, devices=(second,)), "a", frozenset({"rsv"})))
        assert unused(fleet, promise, "h0") == [claims[0]]
        other = replace(NEEDS, devices=(DeviceRequest(DeviceKind.GPU),), tenant="b", ends=5)
        assert refused(chooser, other) == {"are reserved for others": 1}
        lent = chooser.choose(replace(other, preemptible=True))
        assert isinstance(lent, Claim) and lent.devices == (first,)
        owner = chooser.choose(replace(other, tenant="a"))
        assert isinstance(owner, Claim) and owner.devices == (first,)

    def test_a_preemptible_job_in_the_name_of_the_reservation_is_not_called_back(self) -> None:
        fleet = Fleet([small_host("h0")])
        promise = Reservation("rsv", "a", Window(0, 10), (Claim("h0", 8, GiB, 0),))
        fleet.hold(Holding("mine", Claim("h0", 8, GiB, 0), "a", frozenset({"rsv"}), preemptible=True))
        assert Promises([promise]).callbacks(fleet, promise, 0) == ()

    def test_before_after_and_while_it_lasts(self) -> None:
        promise = Reservation("rsv", "a", Window(10, 20), (Claim("h0", 8, GiB, 0),))
        promises = Promises([promise])
        chooser = Chooser(Fleet([small_host("h0")]), promises=promises)
        for begins, ends, free in ((0, 10, True), (0, 11, False), (19, 30, False), (20, 30, True)):
            assert isinstance(chooser.choose(replace(NEEDS, begins=begins, ends=ends)), Claim) is free
        promises.drop("rsv")
        assert isinstance(chooser.choose(NEEDS), Claim)

    @settings(max_examples=90, deadline=None)
    @given(st.lists(needs_, min_size=1, max_size=6), needs_)
    def test_a_named_claim_is_free_when_nothing_is_violated(self, orders: list[Needs], last: Needs) -> None:
        host = site()[0]
        last = replace(last, begins=0, ends=1)
        claim = next(iter(filled(host, last, 1)), None)
        held = []
        provider = host
        for needs in orders:
            for one in filled(provider, needs, 1):
                held.append(one)
                provider = held_with(provider, one)
        if claim is not None:
            assert is_free(provider, claim) is (violations(host, [*held, claim]) == [])
