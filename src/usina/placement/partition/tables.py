"""The states of a geometry as arrays, for simulators that place on thousands of devices at once.

A row is a profile, a column an occupancy mask of the memory slices (bit i is slice i), reachable or not. Media
extensions are left out: profiles with them have no row. Nor does a mask say a mode: on a device whose parts must be
alike (`Tables.uniform`) a row is right only while the device is empty or in that mode.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from usina.placement.partition.geometry import Geometry, Profile
from usina.placement.partition.states import Occupancy, blocked_of, fragmentation_of

S = TypeVar("S", bound=np.generic)


@dataclass(frozen=True, eq=False)
class Tables:
    """P profiles × M = 2^slices masks; 256 masks for a device of 8 slices. The arrays are read-only."""

    profiles: tuple[str, ...]  # canonical names, by row
    uniform: bool
    width: NDArray[np.int8]  # (P) slices of each profile
    fits: NDArray[np.bool_]  # (P, M)
    best_start: NDArray[np.int8]  # (P, M) the start that harms least, -1 where it does not fit
    best_mask: NDArray[np.int16]  # (P, M) the mask afterwards, -1 where it does not fit
    free_slices: NDArray[np.int8]  # (M)
    fragmentation: NDArray[np.float64]  # (M) share of the device, for the default mix
    blocked: NDArray[np.int16]  # (M) score of the fragmentation-aware greedy

    def row(self, profile: str) -> int:
        """The row of a canonical name. Raises ValueError if there is none."""
        return self.profiles.index(profile)


@lru_cache(maxsize=64)
def tables(geometry: Geometry) -> Tables:
    """The tables of `geometry`, computed once."""
    profiles = tuple(profile for profile in geometry.profiles if not profile.media)
    masks = range(geometry.full + 1)
    fragmentation = np.array([fragmentation_of(geometry, Occupancy(mask)) for mask in masks])
    starts = np.array([[_best(profile, mask, fragmentation) for mask in masks] for profile in profiles], np.int8)
    after = [
        [-1 if starts[row, mask] < 0 else mask | profile.window(int(starts[row, mask])) for mask in masks]
        for row, profile in enumerate(profiles)
    ]
    return Tables(
        profiles=tuple(profile.name for profile in profiles),
        uniform=geometry.uniform,
        width=_frozen(np.array([profile.width for profile in profiles], np.int8)),
        fits=_frozen(starts >= 0),
        best_start=_frozen(starts),
        best_mask=_frozen(np.array(after, np.int16)),
        free_slices=_frozen(np.array([geometry.slices - mask.bit_count() for mask in masks], np.int8)),
        fragmentation=_frozen(fragmentation),
        blocked=_frozen(np.array([blocked_of(geometry, Occupancy(mask)) for mask in masks], np.int16)),
    )


def _best(profile: Profile, mask: int, fragmentation: NDArray[np.float64]) -> int:
    free = [start for start in profile.starts if not mask & profile.window(start)]
    return min(free, key=lambda start: float(fragmentation[mask | profile.window(start)]), default=-1)


def _frozen(array: NDArray[S]) -> NDArray[S]:
    array.flags.writeable = False
    return array
