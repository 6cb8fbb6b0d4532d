"""Where on a device a partition goes, and how much more fits.

`taken` are the parts in use on that same device. What is no partition of the model there (a whole device, a share, a
name nobody knows) takes all of it, so a doubt never leads to two parts in one place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

from usina.core.capacity import Part
from usina.placement.partition.geometry import Geometry, geometry_of
from usina.placement.partition.states import Occupancy, blocked_of, fragmentation_of, occupancy_of, states_of


def legal_starts(geometry: Geometry, taken: Sequence[Part], profile: str) -> tuple[int, ...]:
    """Where `profile` fits beside `taken`, in the field's order of preference; () also if there is no such profile."""
    name = geometry.resolve(profile)
    return states_of(geometry).at(occupancy_of(geometry, taken)).starts[name] if name else ()


def best_start(geometry: Geometry, taken: Sequence[Part], profile: str) -> int | None:
    """The legal start that leaves the device least fragmented; of equals the preferred one. None if it cannot fit."""
    name = geometry.resolve(profile)
    return states_of(geometry).at(occupancy_of(geometry, taken)).best.get(name) if name else None


def pick_start(model: str, taken: Sequence[Part], profile: str) -> int | None:
    """`best_start` by the name of the device's model; None also for a model that cannot be partitioned."""
    geometry = geometry_of(model)
    return best_start(geometry, taken, profile) if geometry else None


def capacity_left(model: str, taken: Sequence[Part], profile: str) -> int:
    """How many more of `profile` fit beside `taken`, packed as well as possible."""
    geometry = geometry_of(model)
    name = geometry.resolve(profile) if geometry else None
    return room(geometry, occupancy_of(geometry, taken), name) if geometry and name else 0


def fragmentation(geometry: Geometry, taken: Sequence[Part], mix: Mapping[str, float] | None = None) -> float:
    """The share of the device, 0 to 1, that is idle and that a request drawn from `mix` could not use.

    `mix` is profile → weight; without it every plain profile is as likely. Raises KeyError for an unknown profile.
    """
    occupancy = occupancy_of(geometry, taken)
    if mix is None:
        return states_of(geometry).at(occupancy).fragmentation
    return fragmentation_of(geometry, occupancy, tuple((_known(geometry, name), part) for name, part in mix.items()))


def blocked(geometry: Geometry, taken: Sequence[Part]) -> int:
    """Score of the fragmentation-aware greedy, see `states.blocked_of`."""
    return blocked_of(geometry, occupancy_of(geometry, taken))


def _known(geometry: Geometry, profile: str) -> str:
    name = geometry.resolve(profile)
    if name is None:
        raise KeyError(profile)
    return name


@lru_cache(maxsize=65536)
def room(geometry: Geometry, occupancy: Occupancy, name: str) -> int:
    """How many of a profile, by its canonical name, still fit, packed as well as possible."""
    profile = geometry.named[name]
    return max(
        (
            1 + room(geometry, occupancy.plus(geometry, profile, start), name)
            for start in occupancy.starts(geometry, profile)
        ),
        default=0,
    )
