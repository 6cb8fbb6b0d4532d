"""What a device that is cut up is worth to the requests expected, and where a part does least harm.

A layout is worth the slices that requests of one profile could still use of it, filled with them alone, on average over
the profiles expected; and what it will be worth when some of its parts have gone. Without the second half, of two
devices with the same free slices the one whose neighbours soon leave would be spoiled as readily as the one that stays
cut up. Parts come where the worth falls least.

Every profile that is asked for at all counts alike, not by how often: what is often asked for are small parts, they
fit nearly anywhere, and counting them by number would give away the last place of a large one for nothing. This is
ours, found by measuring (`bench/partitions.py`); the idea to hold a device against typical requests is FGD's (USENIX
ATC 2023).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from usina.placement.partition.choose import room
from usina.placement.partition.cuts import Cuts, cuts_of
from usina.placement.partition.geometry import Geometry
from usina.placement.partition.states import Mix, Occupancy

OFTEN = 0.02  # of the slices asked for: a profile with so many counts in full, with fewer in proportion
UNSEEN = 0.02  # what a plain profile counts that nobody asked for yet
STAYS = 8.0  # how many departures' time a part is expected to find things as they are; infinite: nothing ever leaves
TIGHT = 1e-5  # devices that a free slice counts, so that of equals the fullest is taken


@dataclass(frozen=True, eq=False)
class Worth:
    """By number of a layout (see `Cuts`), in devices. Columns of costs end with infinity, for what is no layout."""

    cuts: Cuts
    value: NDArray[np.float64]  # 1 for a device not yet cut
    cost: Mapping[str, NDArray[np.float64]]  # canonical profile -> least loss of worth by placing one
    start: Mapping[str, NDArray[np.int16]]  # ... and where; -1 where none fits


def worth_of(geometry: Geometry, mix: Mix = ()) -> Worth:
    """The worth of every layout to `mix`; () when nothing is known of it. Mixes that hardly differ are one."""
    weights = _weights(geometry, mix)
    return _worth(geometry, tuple((name, round(weights[name], 2)) for name in sorted(weights)))


@lru_cache(maxsize=64)
def _worth(geometry: Geometry, weights: Mix) -> Worth:
    cuts = cuts_of(geometry)
    value = _values(cuts, dict(weights))
    found = {profile.name: _least(cuts, value, profile.name) for profile in geometry.profiles}
    return Worth(
        cuts,
        value,
        {name: np.array([*(cost for cost, _ in column), np.inf]) for name, column in found.items()},
        {name: np.array([*(start for _, start in column), -1], np.int16) for name, column in found.items()},
    )


def _weights(geometry: Geometry, mix: Mix) -> Mapping[str, float]:
    """How much each profile counts, 0 to 1."""
    plain = {profile.name: UNSEEN if mix else 1.0 for profile in geometry.profiles if profile.plain}
    total = sum(weight * geometry.named[name].width for name, weight in mix)
    for name, weight in mix:
        part = weight * geometry.named[name].width / total
        plain[name] = max(plain.get(name, 0.0), min(1.0, part / OFTEN))
    return plain


def _values(cuts: Cuts, weights: Mapping[str, float]) -> NDArray[np.float64]:
    geometry = cuts.geometry
    whole = _usable(geometry, cuts.occupancies[0], weights)
    value = np.zeros(len(cuts.layouts))
    for number in sorted(range(len(cuts.layouts)), key=lambda number: len(cuts.layouts[number])):
        later = [value[other] for other in cuts.minus[number].values()]
        now = _usable(geometry, cuts.occupancies[number], weights) / whole
        value[number] = (STAYS * now + sum(later)) / (STAYS + len(later))
    return value


def _usable(geometry: Geometry, occupancy: Occupancy, weights: Mapping[str, float]) -> float:
    named = geometry.named
    return sum(weight * named[name].width * room(geometry, occupancy, name) for name, weight in weights.items())


def _least(cuts: Cuts, value: NDArray[np.float64], name: str) -> list[tuple[float, int]]:
    """By number, the least cost of one more and its start; of equals the preferred one."""
    column = []
    for number, (occupancy, plus) in enumerate(zip(cuts.occupancies, cuts.plus, strict=True)):
        free = (cuts.geometry.full & ~occupancy.mask).bit_count()
        costs = [
            (round(float(value[number] - value[after]) + TIGHT * free, 9), place.start)
            for place, after in plus.items()
            if place.profile == name
        ]
        column.append(min(costs, key=lambda one: one[0], default=(np.inf, -1)))
    return column
