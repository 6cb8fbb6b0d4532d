"""Every way to cut up a device: the placed states, and those that leave no room.

Placed means that it matters where a part lies, not only which parts there are. Without variants an A100 or H100 has 298
placed states, the empty one included, and 19 maximal ones, which are the configurations that NVIDIA's guide draws; with
the double-memory 1g 723 and 78.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import lru_cache

from usina.placement.partition.geometry import Geometry, Placement
from usina.placement.partition.states import EMPTY, Occupancy

Layout = tuple[Placement, ...]


@lru_cache(maxsize=64)
def placed(geometry: Geometry, variants: frozenset[str] = frozenset()) -> tuple[Layout, ...]:
    """All layouts of plain profiles and those of `variants` ("me", "double" …), the empty one first."""
    return tuple(layout for layout, _ in _grow(geometry, _choices(geometry, variants), (), EMPTY))


@lru_cache(maxsize=64)
def maximal(geometry: Geometry, variants: frozenset[str] = frozenset()) -> tuple[Layout, ...]:
    """The layouts to which nothing of the same choice of profiles can be added."""
    choices = _choices(geometry, variants)
    return tuple(
        layout
        for layout, occupancy in _grow(geometry, choices, (), EMPTY)
        if not any(occupancy.fits(geometry, geometry.named[name], start) for name, start in choices)
    )


def _choices(geometry: Geometry, variants: Collection[str]) -> Layout:
    chosen = (profile for profile in geometry.profiles if profile.plain or profile.variant in variants)
    return tuple(Placement(profile.name, start) for profile in chosen for start in sorted(profile.starts))


def _grow(
    geometry: Geometry, choices: Layout, layout: Layout, occupancy: Occupancy
) -> Iterator[tuple[Layout, Occupancy]]:
    yield layout, occupancy
    for index, choice in enumerate(choices):
        profile = geometry.named[choice.profile]
        if occupancy.fits(geometry, profile, choice.start):
            bigger = occupancy.plus(geometry, profile, choice.start)
            yield from _grow(geometry, choices[index + 1 :], (*layout, choice), bigger)
