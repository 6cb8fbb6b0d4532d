"""Prices of shares: no filling of a device is worth more than the device, and the best plan is worth what it costs."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from usina.core.capacity import DeviceKind, DeviceRequest, Needs
from usina.core.units import GiB
from usina.placement import prices as module
from usina.placement.fleet import Fleet
from usina.placement.mix import TYPES, USUAL, Mix, Outlook
from usina.placement.prices import gap_values, prices
from usina.testing.hosts import small_gpu, small_host

demand_ = st.dictionaries(st.integers(10, 99).map(lambda n: 10 * n), st.integers(1, 20), min_size=1, max_size=5)


def fillings(sizes: list[int]) -> list[tuple[int, ...]]:
    """Every way to fill one device."""
    ways = product(*(range(1000 // size + 1) for size in sizes))
    return [way for way in ways if 0 < sum(n * size for n, size in zip(way, sizes, strict=True)) <= 1000]


@settings(max_examples=60, deadline=None)
@given(demand_)
def test_against_all_fillings(demand: dict[int, float]) -> None:
    """Feasible for every filling, and as much worth in all as the fewest devices that carry the demand."""
    found = prices(demand)
    sizes = sorted(demand)
    assert list(found) == sizes
    price = np.array([found[size] for size in sizes])
    ways = np.array(fillings(sizes))
    assert price.min() >= 0
    assert (ways @ price).max() <= 1 + 1e-6
    wanted = np.array([demand[size] for size in sizes])
    fewest = linprog(np.ones(len(ways)), A_ub=-ways.T, b_ub=-wanted).fun
    assert wanted @ price == pytest.approx(fewest, rel=1e-6)


def test_known_prices() -> None:
    assert prices({500: 1}) == pytest.approx({500: 0.5})
    assert prices({810: 10, 190: 1}) == pytest.approx({190: 0.0, 810: 1.0})
    assert sum(prices({600: 1, 400: 1}).values()) == pytest.approx(1)
    assert prices({340: 3}) == pytest.approx({340: 0.5})
    assert prices({}) == prices({0: 1, 1000: 2, 300: 0, -5: 1}) == {}


def test_feasible_also_when_rounds_run_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROUNDS", 1)
    sizes = [310, 330, 480, 520]
    found = prices(dict.fromkeys(sizes, 1.0))
    assert max(np.array(fillings(sizes)) @ np.array(list(found.values()))) <= 1 + 1e-6
    assert max(found.values()) > 0.3


@settings(max_examples=30, deadline=None)
@given(demand_)
def test_a_larger_gap_is_worth_no_less(demand: dict[int, float]) -> None:
    found = prices(demand)
    values = gap_values(found)
    assert values.shape == (1001,)
    assert (np.diff(values) >= -1e-9).all()
    assert values[0] == 0
    assert values[1000] == pytest.approx(1, abs=1e-6)
    for size, price in found.items():
        assert values[size] >= price - 1e-9
    ways = fillings(list(found))
    best = {700: 0.0}
    for way in ways:
        if sum(n * size for n, size in zip(way, found, strict=True)) <= 700:
            best[700] = max(best[700], sum(n * worth for n, worth in zip(way, found.values(), strict=True)))
    assert values[700] == pytest.approx(best[700], abs=1e-6)


def test_gaps_where_nothing_is_shared() -> None:
    values = gap_values({})
    assert values[1000] == 1
    assert not values[:1000].any()


def wants(cores: float, count: int = 1, share: int = 0) -> Needs:
    return Needs(cores, GiB, 0, devices=(DeviceRequest(DeviceKind.GPU, count, share=share),))


class TestMix:
    def test_without_gpus_it_is_the_usual_one(self) -> None:
        assert Mix.of([]) == USUAL
        assert Mix.of([Needs(1, GiB, 0)]) == USUAL
        assert Mix.weighted({wants(1): 0.0}) == USUAL
        assert sum(USUAL.weights.values()) == pytest.approx(1)

    def test_who_asks_and_when_does_not_matter(self) -> None:
        some = [wants(1), replace(wants(1), tenant="a", priority=3, ends=9.0), wants(2), Needs(1, GiB, 0)]
        assert Mix.of(some).weights == pytest.approx({wants(1): 2 / 3, wants(2): 1 / 3})

    def test_the_rarest_are_left_out(self) -> None:
        mix = Mix.weighted({wants(n): n for n in range(1, 3 * TYPES)})
        assert len(mix.weights) == TYPES
        assert min(needs.cores for needs in mix.weights) == 2 * TYPES
        assert sum(mix.weights.values()) == pytest.approx(1)

    def test_prices_are_of_its_shares(self) -> None:
        mix = Mix.of([wants(1, share=500), wants(1, share=500), wants(1, 2)])
        assert mix.prices == pytest.approx({500: 0.5})
        assert mix.gaps[499] == 0
        assert mix.gaps[500] == pytest.approx(0.5)

    def test_types_by_share_are_made_once(self) -> None:
        fleet = Fleet([small_host("h0", [small_gpu(0)])])
        outlook = Outlook(fleet, Mix.of([wants(1), wants(1, share=500)]))
        known = {share: id(types) for share, types in outlook.by_share().items()}
        assert sorted(known) == [500, 1000]
        assert {share: id(types) for share, types in outlook.by_share().items()} == known
        fleet.put(small_host("h1", [small_gpu(0, model="A40")]))
        assert outlook.by_share()[1000].weight(fleet.kind[:2, 0]).shape == (2, 1)
