"""Every layout of a device by number, so that columns of devices can say how each is cut.

The numbers of one geometry are the same in every run; 0 is the uncut device. A mask of slices would not do: the same
slices taken by one large part or by several small ones come free at different times.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from usina.core.capacity import Part
from usina.placement.partition.geometry import Geometry, Placement
from usina.placement.partition.layouts import Layout, placed
from usina.placement.partition.states import EMPTY, Occupancy, after, placement_of

UNKNOWN = -1
"""The number of what is no layout. Columns by number end with an entry for it."""


@dataclass(frozen=True, eq=False)
class Cuts:
    """Layouts by number, and what placing or removing one part makes of each."""

    geometry: Geometry
    layouts: tuple[Layout, ...]
    occupancies: tuple[Occupancy, ...]
    plus: tuple[Mapping[Placement, int], ...]  # by number: every legal placement -> the number afterwards
    minus: tuple[Mapping[Placement, int], ...]
    fits: Mapping[str, NDArray[np.bool_]]  # canonical profile -> by number, whether one more fits; ends with False
    _numbers: Mapping[Layout, int]

    def number(self, parts: Iterable[Part]) -> int:
        """The number of a device that has exactly `parts`; UNKNOWN if they are not all partitions that go together."""
        placements = [placement_of(self.geometry, part) for part in parts]
        known = tuple(sorted(placement for placement in placements if placement))
        return self._numbers.get(known, UNKNOWN) if len(known) == len(placements) else UNKNOWN

    def changed(self, number: int, part: Part, sign: int) -> int:
        """The number after `part` came (+1) or went (-1); UNKNOWN where that cannot be."""
        placement = placement_of(self.geometry, part)
        if placement is None or number < 0:
            return UNKNOWN
        return (self.plus if sign > 0 else self.minus)[number].get(placement, UNKNOWN)


@lru_cache(maxsize=64)
def cuts_of(geometry: Geometry) -> Cuts:
    """The layouts of `geometry` with parts of every variant, numbered once."""
    variants = frozenset(profile.variant for profile in geometry.profiles)
    layouts = tuple(tuple(sorted(layout)) for layout in placed(geometry, variants))
    numbers = {layout: number for number, layout in enumerate(layouts)}
    occupancies = tuple(after(geometry, layout) or EMPTY for layout in layouts)
    plus = tuple(
        {
            placement: numbers[tuple(sorted((*layout, placement)))]
            for profile in geometry.profiles
            for placement in (Placement(profile.name, start) for start in occupancy.starts(geometry, profile))
        }
        for layout, occupancy in zip(layouts, occupancies, strict=True)
    )
    fits = {profile.name: _fits(profile.name, plus) for profile in geometry.profiles}
    return Cuts(geometry, layouts, occupancies, plus, tuple(_without(numbers, one) for one in layouts), fits, numbers)


def _without(numbers: Mapping[Layout, int], layout: Layout) -> Mapping[Placement, int]:
    return {placement: numbers[tuple((Counter(layout) - Counter([placement])).elements())] for placement in layout}


def _fits(name: str, plus: Sequence[Mapping[Placement, int]]) -> NDArray[np.bool_]:
    column = np.array([*(any(placement.profile == name for placement in one) for one in plus), False])
    column.flags.writeable = False
    return column
