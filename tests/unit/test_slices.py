"""Partitions of devices over many hosts: how layouts are numbered, what they are worth, and where parts go."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from usina.core.capacity import (
    Claim,
    Device,
    DeviceKind,
    DeviceRequest,
    HostState,
    Inventory,
    Needs,
    NumaNode,
    Part,
    Provider,
)
from usina.core.units import GiB
from usina.placement import Chooser, Fleet, History, Mix, Refusal, place, place_within
from usina.placement.mix import LEARN, USUAL
from usina.placement.partition import UNKNOWN, cuts_of, geometry_of, legal_starts, worth_of
from usina.placement.partition.geometry import Geometry, shipped
from usina.testing.replay import violations

H100 = "NVIDIA H100 80GB HBM3"
PROFILES = ("1g.10gb", "1g.10gb+me", "1g.20gb", "2g.20gb", "3g.40gb", "4g.40gb", "7g.80gb")


def geometry() -> Geometry:
    found = geometry_of(H100)
    assert found is not None
    return found


def gpu(number: int, model: str = H100, mode: str = "mig") -> Device:
    return Device(f"0000:{number:02x}:00.0", DeviceKind.GPU, model, memory=80 * GiB, mode=mode)


def host(id: str = "h", devices: tuple[Device, ...] = (), **more: object) -> Provider:
    inventory = Inventory((NumaNode(0, tuple(range(32)), 512 * GiB),), 0, devices or (gpu(0), gpu(1)))
    return replace(Provider(id, id, "fake", HostState.ENABLED, 1, inventory), **more)  # type: ignore[arg-type]


def of(profile: str, count: int = 1) -> Needs:
    return Needs(1, GiB, 0, devices=(DeviceRequest(DeviceKind.GPU, count, profile=profile),))


def placed(chooser: Chooser, profile: str) -> Claim:
    found = chooser.choose(of(profile))
    assert isinstance(found, Claim)
    chooser.fleet.take(found)
    return found


# --- layouts by number


@pytest.mark.parametrize("geometry", shipped(), ids=lambda geometry: geometry.name)
def test_every_layout_has_a_number_and_parts_lead_from_one_to_the_next(geometry: Geometry) -> None:
    cuts = cuts_of(geometry)
    assert cuts.layouts[0] == ()
    assert len(set(cuts.layouts)) == len(cuts.layouts)
    for number, layout in enumerate(cuts.layouts):
        parts = [Part("gpu", profile=name, start=start) for name, start in layout]
        assert cuts.number(reversed(parts)) == number
        for part in parts:
            assert cuts.changed(cuts.changed(number, part, -1), part, +1) == number
    for name, column in cuts.fits.items():
        assert not column[UNKNOWN]
        assert [bool(fits) for fits in column[:-1]] == [
            any(placement.profile == name for placement in plus) for plus in cuts.plus
        ]


def test_what_does_not_go_together_has_no_number() -> None:
    cuts = cuts_of(geometry())
    part = Part("gpu", profile="3g.40gb", start=4)
    assert cuts.number([part, part]) == UNKNOWN
    assert cuts.number([Part("gpu")]) == UNKNOWN
    assert cuts.changed(UNKNOWN, part, +1) == UNKNOWN
    assert cuts.changed(0, part, -1) == UNKNOWN
    assert cuts.changed(0, Part("gpu", share=500), +1) == UNKNOWN


# --- worth


def test_worth_falls_as_parts_come_and_starts_are_legal() -> None:
    known = worth_of(geometry())
    assert known.value[0] == 1.0
    for number, layout in enumerate(known.cuts.layouts):
        parts = [Part("gpu", profile=name, start=start) for name, start in layout]
        for name in PROFILES:
            starts = legal_starts(geometry(), parts, name)
            assert np.isfinite(known.cost[name][number]) == bool(starts)
            assert known.start[name][number] in (starts or (-1,))
    assert all(
        known.value[after] <= known.value[number] + 1e-9
        for number, plus in enumerate(known.cuts.plus)
        for after in plus.values()
    )
    assert all(column[UNKNOWN] == np.inf for column in known.cost.values())


def test_of_equal_room_the_device_that_is_sooner_empty_again_is_worth_more() -> None:
    known = worth_of(geometry())
    one = known.cuts.number([Part("gpu", profile="4g.40gb", start=0)])
    many = known.cuts.number([Part("gpu", profile="1g.10gb", start=start) for start in range(4)])
    assert known.value[one] > known.value[many]
    assert known.cost["3g.40gb"][many] < known.cost["3g.40gb"][one]


def test_a_profile_counts_by_being_asked_for_not_by_how_often() -> None:
    often = worth_of(geometry(), (("1g.10gb", 0.8), ("7g.80gb", 0.2)))
    seldom = worth_of(geometry(), (("1g.10gb", 0.2), ("7g.80gb", 0.8)))
    assert often is seldom
    assert worth_of(geometry(), (("1g.10gb", 1.0),)) is not often


def test_small_parts_go_where_the_sizes_asked_for_still_fit() -> None:
    """Where only 1g and 3g are asked for, small parts share one half, and a 3g goes to the other."""
    known = worth_of(geometry(), (("1g.10gb", 0.6), ("3g.40gb", 0.4)))
    beside = known.cuts.number([Part("gpu", profile="3g.40gb", start=4)])
    opened = known.cuts.number([Part("gpu", profile="1g.10gb", start=0)])
    assert known.cost["1g.10gb"][opened] < known.cost["1g.10gb"][beside]
    assert known.start["3g.40gb"][opened] == 4


# --- the mix


def test_a_mix_carries_the_profiles_asked_for() -> None:
    whole = Needs(8, 32 * GiB, 0, devices=(DeviceRequest(DeviceKind.GPU, 1),))
    mix = Mix.of([of("1g.10gb"), of("1g.10gb"), of("3g.40gb"), of("2g.20gb", 2), whole])
    assert mix.parts == {"1g.10gb": 0.4, "2g.20gb": 0.4, "3g.40gb": 0.2}
    assert dict(mix.weights) == {whole: 1.0}
    assert Mix.of([of("1g.10gb")]).weights == USUAL.weights
    assert Mix.of([whole]).parts == {}


def test_a_history_learns_profiles() -> None:
    history = History()
    for _ in range(LEARN):
        history.observe(of("2g.20gb"))
    mix = history.mix()
    assert mix is not None
    assert mix.parts == {"2g.20gb": 1.0}


def test_names_of_one_profile_add_up_and_other_models_names_do_not_matter() -> None:
    fleet = Fleet([host()])
    short, full = (
        Chooser(fleet, mix=Mix.weighted({of(a): 1, of(b): 1, of("9g.999gb"): 1})).outlook.parts(geometry())
        for a, b in (("1g", "2G.20GB"), ("1g.10gb", "MIG-2g"))
    )
    assert short is full


# --- choosing


def test_the_device_and_the_start_are_those_that_cost_least() -> None:
    taken = {"0000:00:00.0/4g.40gb@0": 1, "0000:01:00.0/1g.10gb@6": 1}
    fleet = Fleet([host(taken_devices=taken), host("empty")])
    assert placed(Chooser(fleet), "3g").devices == ("0000:00:00.0/3g.40gb@4",)
    assert placed(Chooser(fleet), "4g").devices == ("0000:01:00.0/4g.40gb@0",)
    assert placed(Chooser(fleet), "7g").provider == "empty"


def test_geometries_of_different_size_live_side_by_side() -> None:
    mixed = host("a30", (gpu(0, "NVIDIA A30"), gpu(1, "AMD Instinct MI300X", "cpx"), gpu(2, mode="")))
    full = host("h100", taken_devices={f"0000:00:00.0/1g.10gb@{start}": 1 for start in range(7)})
    chooser = Chooser(Fleet([full, mixed]))
    assert placed(chooser, "4g.24gb").devices == ("0000:00:00.0/4g.24gb@0",)
    assert placed(chooser, "cpx").devices == ("0000:01:00.0/cpx@0",)
    assert placed(chooser, "1g.10gb").provider == "h100"
    assert chooser.choose(of("4g.24gb")) == Refusal({"have no 4g.24gb": 1, "lack a free 4g.24gb": 1})


def test_a_device_with_something_else_on_it_or_cordoned_gives_no_part() -> None:
    for more in (
        {"taken_devices": {"0000:00:00.0": 1}},
        {"taken_devices": {"0000:00:00.0/500m": 1}},
        {"taken_devices": {"0000:00:00.0/9g@0": 1}},
        {"cordoned_devices": frozenset({"0000:00:00.0"})},
    ):
        refused = place([host(devices=(gpu(0),), **more)], of("1g.10gb"))
        assert refused == Refusal({"lack a free 1g.10gb": 1})


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(PROFILES), st.integers(0, 30), st.integers(1, 2)), max_size=40))
def test_a_part_is_found_exactly_when_there_is_room_and_columns_follow(
    orders: list[tuple[str, int, int]],
) -> None:
    hosts = {id: host(id) for id in ("h1", "h2")}
    fleet = Fleet(hosts.values())
    chooser = Chooser(fleet)
    held: list[Claim] = []
    for profile, leaver, count in orders:
        if held and leaver < 12:
            fleet.give_back(held.pop(leaver % len(held)))
        now = [fleet.provider(row) for row in range(fleet.size)]
        found = chooser.choose(of(profile, count))
        possible = any(isinstance(place_within(one, of(profile, count)), Claim) for one in now)
        assert isinstance(found, Claim) == possible
        if isinstance(found, Claim):
            fleet.take(found)
            held.append(found)
        again = Fleet([fleet.provider(row) for row in range(fleet.size)])
        assert fleet.slices[: fleet.size].tolist() == again.slices[: again.size].tolist()
    for id, empty in hosts.items():
        assert violations(empty, [claim for claim in held if claim.provider == id]) == []
