"""Gangs: all or nothing, arranged as asked, never more than there is; compared with counting each host by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from usina.core.capacity import (
    Affinity,
    Claim,
    DeviceKind,
    DeviceRequest,
    Gang,
    Holding,
    Needs,
    Numa,
    Part,
    Provider,
    Reservation,
    Terms,
    Window,
)
from usina.core.units import GiB
from usina.placement import Chooser, Fleet, Promises, Refusal
from usina.placement.gang import place_gang
from usina.testing.hosts import filled, held_by, shown, small_gpu, small_host
from usina.testing.replay import violations

LEVELS = ("host", "nvlink", "rack", "block", "site")
Hosts = list[tuple[Provider, list[Claim]]]


def labels(rack: int | None) -> dict[str, str]:
    if rack is None:
        return {"site": "s0"}
    return {"rack": f"r{rack}", "block": f"b{rack // 2}", "site": "s0", "nvlink": f"n{rack}"}


def made(number: int, rack: int | None, nodes: int, gpus: int, mig: bool, used: int, gone: int) -> Hosts:
    """A host, and what is held on it."""
    devices = [
        small_gpu(n, node=n % nodes, link=f"nv{n // 2}", mode="mig" if mig and n == gpus - 1 else "")
        for n in range(gpus)
    ]
    name, used = f"h{number}", min(used, 4 * nodes)
    held = [Claim(name, used, used * GiB // 2, GiB)] if used else []
    held += [Claim(name, devices=(device.address,)) for device in devices[:gone] if not device.mode]
    return [(small_host(name, devices, nodes, labels(rack)), held)]


fleets = st.lists(
    st.tuples(
        st.sampled_from([0, 0, 1, 1, 2, 3, None]),
        st.integers(1, 2),
        st.integers(0, 4),
        st.booleans(),
        st.integers(0, 6),
        st.integers(0, 2),
    ),
    min_size=1,
    max_size=12,
).map(lambda some: [one for number, spec in enumerate(some) for one in made(number, *spec)])
gpu = DeviceKind.GPU
devices_ = st.sampled_from(
    [
        (),
        (),
        (DeviceRequest(gpu),),
        (DeviceRequest(gpu, 2),),
        (DeviceRequest(gpu, 2, linked=True),),
        (DeviceRequest(gpu, share=400),),
        (DeviceRequest(gpu, profile="2g.20gb"),),
    ]
)
needs_ = st.builds(
    Needs,
    cores=st.sampled_from([0.5, 1, 2, 3]),
    memory=st.sampled_from([GiB, 2 * GiB, 3 * GiB]),
    disk=st.sampled_from([0, GiB, 30 * GiB]),
    pinned=st.booleans(),
    numa=st.sampled_from([Numa.NONE, Numa.NONE, Numa.STRICT]),
    hugepage=st.sampled_from([0, 0, GiB]),
    devices=devices_,
)
gangs = st.builds(
    Gang,
    needs=needs_,
    size=st.integers(1, 9),
    least=st.sampled_from([None, 1, 2]),
    level=st.sampled_from(LEVELS),
    arrange=st.sampled_from(["same", "pack", "spread"]),
).map(lambda gang: replace(gang, least=gang.least and min(gang.least, gang.size)))


def fleet_of(hosts: Hosts) -> Fleet:
    fleet = Fleet(provider for provider, _ in hosts)
    for number, claim in enumerate(claim for _, held in hosts for claim in held):
        fleet.hold(Holding(f"held-{number}", claim))
    return fleet


def domain(provider: Provider, level: str) -> str | None:
    return provider.id if level == "host" else provider.terms.topology.get(level)


def rooms(fleet: Fleet, needs: Needs) -> dict[str, int]:
    """How many replicas each host really takes."""
    alone = replace(needs, affinities=())
    return {id: len(filled(fleet.provider(row), alone, 40)) for id, row in fleet.rows.items()}


def by_domain(hosts: Hosts, room: Mapping[str, int], level: str) -> Counter[str]:
    totals: Counter[str] = Counter()
    for provider, _ in hosts:
        name = domain(provider, level)
        if name is not None:
            totals[name] += room[provider.id]
    return totals


def fewest(hosts: Hosts, room: Mapping[str, int], level: str, size: int) -> int:
    """The fewest domains for `size`, inside the narrowest wider domain that holds all, by trying all sets."""
    for wider in (*LEVELS[LEVELS.index(level) :], None):
        found = []
        for outer in {domain(p, wider) for p, _ in hosts} - {None} if wider else {None}:
            inside = [h for h in hosts if wider is None or domain(h[0], wider) == outer]
            totals = by_domain(inside, room, level)
            if totals.total() >= size:
                found.append(smallest(totals, size))
        if found:
            return min(found)
    raise AssertionError


def smallest(totals: Counter[str], size: int) -> int:
    for count in range(1, len(totals) + 1):
        if any(sum(some) >= size for some in combinations(totals.values(), count)):
            return count
    raise AssertionError


def told_by_totals(needs: Needs) -> bool:
    exact = any(one.linked or one.profile for one in needs.devices)
    return not (exact or needs.pinned or needs.hugepage or needs.numa is not Numa.NONE)


def check(hosts: Hosts, gang: Gang) -> list[Claim]:
    """Places the gang; what holds of every gang."""
    fleet = fleet_of(hosts)
    before, chooser = shown(fleet), Chooser(fleet)
    found = place_gang(chooser, gang)
    if isinstance(found, Refusal):
        assert shown(fleet) == before
        assert sum(found.reasons.values()) == len(hosts)
        assert all(found.reasons.values())
        return []
    assert (gang.least or gang.size) <= len(found) <= gang.size
    for provider, held in hosts:
        assert violations(provider, [*held, *held_by(found, provider.id)]) == []
    for claim in found:
        fleet.give_back(claim)
    assert shown(fleet) == before
    return found


@pytest.mark.slow
@settings(max_examples=180, deadline=None)
@given(fleets, gangs)
def test_a_gang_is_as_large_as_it_fits_and_lies_as_asked(hosts: Hosts, gang: Gang) -> None:
    room = rooms(fleet_of(hosts), gang.needs)
    totals = by_domain(hosts, room, gang.level)
    found = check(hosts, gang)
    fits = min(gang.size, max(totals.values(), default=0) if gang.arrange == "same" else totals.total())
    if fits < (gang.least or gang.size):
        assert found == []
        return
    assert len(found) == fits
    where = {provider.id: domain(provider, gang.level) for provider, _ in hosts}
    loads = Counter(where[claim.provider] for claim in found)
    assert None not in loads
    if gang.arrange == "same":
        assert len(loads) == 1
        if told_by_totals(gang.needs):
            assert [totals[name] for name in loads if name] == [min(n for n in totals.values() if n >= fits)]
    elif gang.arrange == "pack":
        assert len(loads) == fewest(hosts, room, gang.level, fits)
    else:
        open_to = [loads[name] for name in totals if loads[name] < totals[name]]
        assert max(loads.values()) - min(open_to, default=max(loads.values())) <= 1


@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=30, deadline=None)
@given(hosts=fleets, gang=gangs, required=st.booleans())
def test_replicas_keep_apart_from_each_other(level: str, hosts: Hosts, gang: Gang, required: bool) -> None:
    needs = replace(gang.needs, groups=frozenset({"web"}), affinities=(Affinity("web", True, level, required),))
    gang = replace(gang, needs=needs, arrange="spread", level="host")
    room = rooms(fleet_of(hosts), needs)
    domains = {provider.id: domain(provider, level) for provider, _ in hosts}
    apart = {d for id, d in domains.items() if d and room[id]}
    most = len(apart) + sum(room[id] for id, d in domains.items() if d is None)
    found = check(hosts, gang)
    loads = Counter(domains[claim.provider] for claim in found)
    loads.pop(None, None)
    if required or most >= gang.size:
        assert max(loads.values(), default=0) <= 1
        assert len(found) == (min(most, gang.size) if most >= (gang.least or gang.size) else 0)
    else:
        assert len(found) == (fits if (fits := min(gang.size, sum(room.values()))) >= (gang.least or gang.size) else 0)


@settings(max_examples=70, deadline=None)
@given(fleets, gangs, st.sampled_from(LEVELS), st.booleans())
def test_replicas_stay_near_each_other(hosts: Hosts, gang: Gang, level: str, apart: bool) -> None:
    wishes = (Affinity("web", level=level), *([Affinity("web", apart=True)] if apart else []))
    gang = replace(gang, needs=replace(gang.needs, groups=frozenset({"web"}), affinities=wishes), arrange="pack")
    room = rooms(fleet_of(hosts), gang.needs)
    room = {p.id: min(room[p.id], 1) if apart else room[p.id] for p, _ in hosts if domain(p, gang.level)}
    inside = [host for host in hosts if host[0].id in room]
    most = min(gang.size, max(by_domain(inside, room, level).values(), default=0))
    found = check(hosts, gang)
    domains = {provider.id: domain(provider, level) for provider, _ in hosts}
    assert len({domains[claim.provider] for claim in found}) <= 1
    assert len(found) == (most if most >= (gang.least or gang.size) else 0)
    if apart:
        assert len({claim.provider for claim in found}) == len(found)


def gang_of(size: int, arrange: str = "pack", level: str = "rack", **more: object) -> Gang:
    return Gang(replace(Needs(2, GiB, 0), **more), size, level=level, arrange=arrange)  # type: ignore[arg-type]


def racks(*spec: tuple[str, str, int]) -> list[Provider]:
    """(block, rack, nodes of 4 cores) of each host."""
    return [
        small_host(f"h{n}", nodes=nodes, topology={"block": block, "rack": rack})
        for n, (block, rack, nodes) in enumerate(spec)
    ]


def placed(chooser: Chooser, gang: Gang) -> Counter[str]:
    found = place_gang(chooser, gang)
    assert isinstance(found, list), found
    return Counter(claim.provider for claim in found)


class TestChosenPlaces:
    def test_one_block_before_crossing_and_in_it_the_fewest_racks(self) -> None:
        many = [("b0", f"r{n}", 1) for n in range(4)]
        few = [("b1", "r8", 2), ("b1", "r9", 2)]
        assert placed(Chooser(Fleet(racks(*many, *few))), gang_of(6)) == {"h4": 4, "h5": 2}

    def test_the_smallest_domain_that_fits(self) -> None:
        hosts = racks(("b0", "r0", 3), ("b0", "r1", 2), ("b0", "r2", 1))
        assert placed(Chooser(Fleet(hosts)), gang_of(3, "same")) == {"h1": 3}

    def test_labels_are_needed(self) -> None:
        hosts = [*racks(("b0", "r0", 1)), small_host("h9", nodes=4)]
        refused = place_gang(Chooser(Fleet(hosts)), gang_of(3, "spread"))
        assert refused == Refusal(
            {"are in no rack": 1, "have room, but not enough together": 1}, largest="2 of 3 replicas would fit"
        )

    def test_no_rack_has_enough(self) -> None:
        refused = place_gang(Chooser(Fleet(racks(("b0", "r0", 1), ("b0", "r1", 1)))), gang_of(3, "same"))
        assert refused == Refusal({"have room, but no rack has enough": 2}, largest="2 of 3 replicas would fit")

    def test_many_hosts_that_hold_less_than_totals_say(self) -> None:
        """Two nodes with three cores free each: three replicas of two cores by totals, two really."""
        hosts = [small_host(f"h{n}", used_cores=2, taken_cpus=frozenset({0, 4})) for n in range(150)]
        needs = Needs(2, GiB, 0, pinned=True, numa_nodes=1)
        chooser = Chooser(Fleet(hosts))
        assert isinstance(place_gang(chooser, Gang(needs, 3, arrange="same")), Refusal)
        assert placed(chooser, Gang(needs, 4)).most_common() == [("h0", 2), ("h1", 2)]
        refused = place_gang(Chooser(Fleet(hosts)), Gang(replace(needs, cores=4), 2))
        assert isinstance(refused, Refusal) and refused.reasons == {"lack cores on one NUMA node": 150}

    def test_huge_pages_take_no_ordinary_memory(self) -> None:
        host = small_host("h1", used_memory=15 * GiB)
        assert placed(Chooser(Fleet([host])), Gang(Needs(1, GiB, 0, hugepage=GiB), 8)) == {"h1": 8}


class TestRules:
    def test_rows_closed_by_rules_are_left_alone(self) -> None:
        maintained = Terms(maintenance=(Window(0, 100),))
        hosts = [small_host("h0"), small_host("h1", terms=maintained), small_host("h2"), small_host("h3")]
        fleet = Fleet(hosts)
        fleet.hold(Holding("db", Claim("h2", 1, GiB, 0)))
        promise = Reservation("rsv", "other", Window(0, 100), (Claim("h3", 8, GiB, 0),))
        needs = Needs(4, GiB, 0, affinities=(Affinity("db", apart=True),))
        chooser = Chooser(fleet, promises=Promises([promise]))
        assert placed(chooser, Gang(needs, 2)) == {"h0": 2}
        refused = place_gang(chooser, Gang(needs, 1))
        assert isinstance(refused, Refusal)
        assert refused.reasons == {
            "lack cores": 1,
            "have maintenance in that time": 1,
            "share a host with db": 1,
            "are reserved for others": 1,
        }

    def test_a_reservation_is_not_eaten_into(self) -> None:
        promise = Reservation("rsv", "other", Window(0, 100), (Claim("h0", 4, GiB, 0),))
        chooser = Chooser(Fleet([small_host("h0")]), promises=Promises([promise]))
        refused = place_gang(chooser, Gang(Needs(2, GiB, 0), 3))
        assert isinstance(refused, Refusal) and refused.largest == "2 of 3 replicas would fit"
        assert placed(chooser, Gang(Needs(2, GiB, 0, tenant="other"), 4)) == {"h0": 4}

    def test_members_of_the_group_that_are_there_already_count(self) -> None:
        fleet = Fleet(racks(("b0", "r0", 2), ("b0", "r0", 2), ("b0", "r1", 2)))
        fleet.hold(Holding("web-0", Claim("h0", 1, GiB, 0), groups=frozenset({"web"})))
        web = frozenset({"web"})
        apart = gang_of(2, groups=web, affinities=(Affinity("web", apart=True),))
        assert placed(Chooser(fleet), apart) == {"h1": 1, "h2": 1}
        near = gang_of(1, groups=web, affinities=(Affinity("web", level="rack"), Affinity("web", apart=True)))
        fleet.release("web-0")
        fleet.hold(Holding("web-0", Claim("h2", 1, GiB, 0), groups=web))
        refused = place_gang(Chooser(fleet), near)
        assert isinstance(refused, Refusal)
        assert refused.reasons == {"are not on the rack of web": 2, "share a host with web": 1}

    def test_shares_of_a_device_are_given_to_replicas_up_to_the_whole(self) -> None:
        host = small_host("h1", [small_gpu(1), small_gpu(2)])
        needs = Needs(0.5, GiB, 0, devices=(DeviceRequest(gpu, share=300),))
        found = place_gang(Chooser(Fleet([host])), Gang(needs, 9, least=1))
        assert isinstance(found, list)
        assert Counter(Part.parse(name).address for claim in found for name in claim.devices) == {
            "0000:01:00.0": 3,
            "0000:02:00.0": 3,
        }
