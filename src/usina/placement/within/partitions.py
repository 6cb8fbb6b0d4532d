"""Partitions of a device as the search sees them: which profiles it takes, and how many more of one.

A device in mode "mig" takes any instance that is legal beside those on it; one in an AMD mode takes partitions of that
mode only. A device without a mode is not cut up here: its operator does that.

While devices are being chosen, partitions are `OPEN`: where on the device they start is settled for all of them
together, so that an early one is never in the way of a later one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from usina.core.capacity import Device, DeviceRequest, Part
from usina.placement.partition import Geometry, geometry_of, memory_of, resolve, states_of
from usina.placement.partition.states import Occupancy, occupancy_of

MIG = "mig"
OPEN = -1
"""The start of a partition that will be settled."""


def canonical(device: Device, profile: str) -> str | None:
    """The canonical name of `profile` on this device as it is set up now, or None if it cannot be cut out of it."""
    geometry = geometry_of(device.model) if device.mode else None
    name = resolve(geometry, profile) if geometry is not None else None
    return name if name is not None and device.mode.lower() in (MIG, name) else None


def can_cut(device: Device, request: DeviceRequest) -> bool:
    """Whether an instance of the request's profile on this device exists, and has the memory asked for."""
    geometry, name = geometry_of(device.model), canonical(device, request.profile or "")
    return geometry is not None and name is not None and memory_of(geometry, name) >= request.memory


def next_cuts(device: Device, parts: Sequence[Part], profile: str) -> list[Part]:
    """All further instances of `profile` that fit beside `parts`, open."""
    geometry, name = geometry_of(device.model), canonical(device, profile)
    if geometry is None or name is None or not all(part.profile for part in parts):
        return []
    before, found = occupancy_of(geometry, _fixed(parts)), _open(parts)
    number = 0
    while _starts(geometry, before, _large_first(geometry, [*found, *[name] * (number + 1)])) is not None:
        number += 1
    return [Part(device.address, profile=name, start=OPEN)] * number


def settled(device: Device, parts: Sequence[Part]) -> list[Part]:
    """The open ones of `parts`, as `next_cuts` gave them, each with its start."""
    geometry = geometry_of(device.model)
    profiles = _large_first(geometry, _open(parts)) if geometry is not None else ()
    if geometry is None or not profiles:
        return []
    starts = _starts(geometry, occupancy_of(geometry, _fixed(parts)), profiles) or ()
    return [Part(device.address, profile=name, start=start) for name, start in zip(profiles, starts, strict=True)]


def _fixed(parts: Sequence[Part]) -> list[Part]:
    return [part for part in parts if part.start != OPEN]


def _open(parts: Sequence[Part]) -> list[str]:
    return [part.profile for part in parts if part.start == OPEN]


def _large_first(geometry: Geometry, profiles: Sequence[str]) -> tuple[str, ...]:
    return tuple(sorted(profiles, key=lambda name: (-geometry.named[name].width, -geometry.named[name].compute, name)))


@lru_cache(maxsize=65536)
def _starts(geometry: Geometry, before: Occupancy, profiles: tuple[str, ...]) -> tuple[int, ...] | None:
    """Legal starts for all of `profiles` at once, those that harm least first; None if they do not go together."""
    if not profiles:
        return ()
    name, state = profiles[0], states_of(geometry).at(before)
    for start in sorted(state.starts[name], key=lambda start: start != state.best[name]):
        rest = _starts(geometry, before.plus(geometry, geometry.named[name], start), profiles[1:])
        if rest is not None:
            return (start, *rest)
    return None
