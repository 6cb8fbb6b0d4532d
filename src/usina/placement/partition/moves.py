"""Moves of parts within one device that make room, for planned repartitioning with migration (cf. arXiv 2512.16099).

A move makes before it breaks: the new place is free while the old one still runs, so that a plan is carried out in its
order without a stop. An instance with the media extensions cannot move, as there is only one set of them.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from usina.core.capacity import Part
from usina.placement.partition.geometry import Geometry, Placement
from usina.placement.partition.layouts import Layout
from usina.placement.partition.states import EMPTY, Occupancy, after, fragmentation_of, placement_of, states_of


@dataclass(frozen=True, slots=True)
class Move:
    """`part`, as it lies just before this move, goes to `start`."""

    part: Part
    start: int

    @property
    def moved(self) -> Part:
        return Part(self.part.address, profile=self.part.profile, start=self.start)


_Step = tuple[Placement, int]
_Reached = tuple[int, int, tuple[_Step, ...], Layout]  # moves, slices moved, the way there, where everything lies


def moves_for(geometry: Geometry, taken: Sequence[Part], profile: str) -> tuple[Move, ...] | None:
    """The fewest moves after which `profile` fits, of those the fewest slices, of those the least fragmentation then.

    () if it fits as it is. None if no moves help, or if `taken` has what is no partition and so cannot be moved.
    """
    name, layout = geometry.resolve(profile), _layout(geometry, taken)
    if name is None or layout is None:
        return None
    goals: list[tuple[float, tuple[_Step, ...]]] = []
    cost: tuple[int, int] | None = None
    for moves, slices, way, reached in _reachable(geometry, layout):
        if cost is not None and (moves, slices) > cost:
            break
        harm = _harm(geometry, reached, name)
        if harm is not None:
            cost = moves, slices
            goals.append((harm, way))
    return _named(taken, min(goals)[1]) if goals else None


def compact(geometry: Geometry, taken: Sequence[Part]) -> tuple[Move, ...]:
    """The fewest moves to the least fragmented arrangement of `taken`; () if it is that, or has what cannot move."""
    layout = _layout(geometry, taken)
    if layout is None:
        return ()
    ranked = (
        (fragmentation_of(geometry, _occupancy(geometry, reached)), moves, slices, way)
        for moves, slices, way, reached in _reachable(geometry, layout)
    )
    return _named(taken, min(ranked)[3])


def _reachable(geometry: Geometry, layout: Layout) -> Iterator[_Reached]:
    """Every layout that moves lead to, the cheapest first (Dijkstra; of equal ways the first in order of starts)."""
    heap: list[_Reached] = [(0, 0, (), layout)]
    seen: set[Layout] = set()
    while heap:
        moves, slices, way, layout = heapq.heappop(heap)
        if layout in seen:
            continue
        seen.add(layout)
        yield moves, slices, way, layout
        for step, moved in _steps(geometry, layout):
            if moved not in seen:
                width = geometry.named[step[0].profile].width
                heapq.heappush(heap, (moves + 1, slices + width, (*way, step), moved))


def _steps(geometry: Geometry, layout: Layout) -> Iterator[tuple[_Step, Layout]]:
    starts = states_of(geometry).at(_occupancy(geometry, layout)).starts
    for index, placement in enumerate(layout):
        for start in starts[placement.profile]:
            others = layout[:index] + layout[index + 1 :]
            yield (placement, start), tuple(sorted((*others, Placement(placement.profile, start))))


def _harm(geometry: Geometry, layout: Layout, name: str) -> float | None:
    """Fragmentation once `name` is placed beside `layout`; None if it does not fit."""
    occupancy = _occupancy(geometry, layout)
    start = states_of(geometry).at(occupancy).best.get(name)
    if start is None:
        return None
    return fragmentation_of(geometry, occupancy.plus(geometry, geometry.named[name], start))


def _layout(geometry: Geometry, taken: Sequence[Part]) -> Layout | None:
    """Where `taken` lie, or None if something among them is no partition or two lie in one place."""
    placements = [placement_of(geometry, part) for part in taken]
    known = tuple(sorted(placement for placement in placements if placement))
    return known if len(known) == len(placements) and after(geometry, known) is not None else None


def _occupancy(geometry: Geometry, layout: Layout) -> Occupancy:
    return after(geometry, layout) or EMPTY


def _named(taken: Sequence[Part], way: Sequence[_Step]) -> tuple[Move, ...]:
    return tuple(
        Move(Part(taken[0].address, profile=placement.profile, start=placement.start), start)
        for placement, start in way
    )
