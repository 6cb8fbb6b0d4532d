"""How full a device is, what still fits, and how broken up the rest is; computed once for every reachable state.

An occupancy is all that decides what fits: which slices are taken, compute slices used, whether the one set of media
extensions is gone and, where parts must be alike, the mode. A device has at most a few thousand of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

from usina.core.capacity import Part
from usina.placement.partition.geometry import Geometry, Placement, Profile

Mix = tuple[tuple[str, float], ...]
"""Requests expected: canonical profile names with weights, which need not add up to one."""


class Occupancy(NamedTuple):
    """What is taken of one device."""

    mask: int = 0  # bit i: slice i
    compute: int = 0  # compute slices
    media: bool = False  # the media extensions
    mode: str = ""  # the profile that all parts have, where they must be alike

    def fits(self, geometry: Geometry, profile: Profile, start: int) -> bool:
        return not (
            self.mask & profile.window(start)
            or self.compute + profile.compute > geometry.compute
            or (self.media and profile.media)
            or self.mode not in ("", profile.name)
        )

    def plus(self, geometry: Geometry, profile: Profile, start: int) -> Occupancy:
        return Occupancy(
            self.mask | profile.window(start),
            self.compute + profile.compute,
            self.media or profile.media,
            profile.name if geometry.uniform else "",
        )

    def starts(self, geometry: Geometry, profile: Profile) -> tuple[int, ...]:
        """Where `profile` fits, the preferred start first."""
        return tuple(start for start in profile.starts if self.fits(geometry, profile, start))


EMPTY = Occupancy()


@dataclass(frozen=True, slots=True)
class State:
    """What is known of one occupancy. Starts by canonical profile name, the preferred first."""

    starts: Mapping[str, tuple[int, ...]]
    best: Mapping[str, int]  # the start that harms least; no entry where nothing fits
    fragmentation: float  # for the default mix, see `fragmentation_of`


class States:
    """All reachable occupancies of a geometry, and lazily any other that is asked for."""

    def __init__(self, geometry: Geometry) -> None:
        self._geometry = geometry
        self._known: dict[Occupancy, State] = {}

    def at(self, occupancy: Occupancy) -> State:
        state = self._known.get(occupancy)
        if state is None:
            state = self._known[occupancy] = self._state(occupancy)
        return state

    @cached_property
    def reachable(self) -> Mapping[Occupancy, State]:
        """Every occupancy that taking legal parts leads to."""
        found, todo = {EMPTY}, [EMPTY]
        while todo:
            occupancy = todo.pop()
            for profile in self._geometry.profiles:
                for start in occupancy.starts(self._geometry, profile):
                    after = occupancy.plus(self._geometry, profile, start)
                    if after not in found:
                        found.add(after)
                        todo.append(after)
        return {occupancy: self.at(occupancy) for occupancy in sorted(found)}

    def _state(self, occupancy: Occupancy) -> State:
        geometry = self._geometry
        starts = {profile.name: occupancy.starts(geometry, profile) for profile in geometry.profiles}
        fitting = (geometry.named[name] for name, found in starts.items() if found)
        best = {profile.name: _best(geometry, occupancy, profile) for profile in fitting}
        return State(starts, best, fragmentation_of(geometry, occupancy))


@lru_cache(maxsize=64)
def states_of(geometry: Geometry) -> States:
    """The states of `geometry`, computed once."""
    return States(geometry)


def occupancy_of(geometry: Geometry, taken: Iterable[Part]) -> Occupancy:
    """What `taken`, parts of one device, leave. A part that is no partition of this geometry takes all of it."""
    occupancy = EMPTY
    for part in taken:
        placement = placement_of(geometry, part)
        if placement is None or occupancy.mode not in ("", placement.profile):
            return Occupancy(geometry.full, geometry.compute, True)
        occupancy = occupancy.plus(geometry, geometry.named[placement.profile], placement.start)
    return occupancy


def placement_of(geometry: Geometry, part: Part) -> Placement | None:
    """The placement that `part` says; None for a whole device, a share, another model's profile or an illegal start."""
    return _placement(geometry, part.profile, part.start) if part.profile else None


@lru_cache(maxsize=65536)
def _placement(geometry: Geometry, profile: str, start: int) -> Placement | None:
    name = geometry.resolve(profile)
    return Placement(name, start) if name and start in geometry.named[name].starts else None


def after(geometry: Geometry, placements: Iterable[Placement], before: Occupancy = EMPTY) -> Occupancy | None:
    """`before` with all `placements` in it, or None if they do not go together."""
    for name, start in placements:
        profile = geometry.named[name]
        if not before.fits(geometry, profile, start):
            return None
        before = before.plus(geometry, profile, start)
    return before


def default_mix(geometry: Geometry) -> Mix:
    """Every plain profile equally often."""
    # Weights are whole, so that sums are exact and equals are equal whatever is added first.
    return tuple((profile.name, 1.0) for profile in geometry.profiles if profile.plain)


@lru_cache(maxsize=65536)
def fragmentation_of(geometry: Geometry, occupancy: Occupancy, mix: Mix | None = None) -> float:
    """The share of the device, 0 to 1, that is idle and that a request drawn from `mix` could not use.

    As in FGD (Weng et al., USENIX ATC 2023), with a slice in the place of a GPU: an idle slice is lost to a profile if
    no legal placement of that profile has it. Times the slices of a device it adds up over devices.
    """
    chosen = default_mix(geometry) if mix is None else mix
    total = sum(weight for _, weight in chosen)
    if not total:
        return 0.0
    lost = sum(weight * unusable(geometry, occupancy, geometry.named[name]) for name, weight in chosen)
    return lost / total / geometry.slices


def unusable(geometry: Geometry, occupancy: Occupancy, profile: Profile) -> int:
    """Idle slices that no legal placement of `profile` has."""
    usable = 0
    for start in occupancy.starts(geometry, profile):
        usable |= profile.window(start)
    return (geometry.full & ~occupancy.mask & ~usable).bit_count()


def blocked_of(geometry: Geometry, occupancy: Occupancy) -> int:
    """Placements of plain profiles that what is taken stands in the way of, each counted with its width in slices.

    Meant as the score of the fragmentation-aware greedy of arXiv 2511.18906, which takes the placement with the least
    growth of a metric of this kind. Its abstract is what we could read; the formula here is ours, not checked with it.
    """
    return sum(
        profile.width
        for profile in geometry.profiles
        if profile.plain
        for start in profile.starts
        if profile.window(start) & occupancy.mask
    )


def _best(geometry: Geometry, occupancy: Occupancy, profile: Profile) -> int:
    """Least fragmentation afterwards; of equals the first, which is the preferred one."""
    starts = occupancy.starts(geometry, profile)
    return min(starts, key=lambda start: fragmentation_of(geometry, occupancy.plus(geometry, profile, start)))
