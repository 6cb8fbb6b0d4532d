"""Gangs: replicas alike, all placed or none, arranged over the topology.

First counted, then claimed. How many replicas each host would take is one vector; summed by domain it says where the
gang fits. *Same* takes the smallest domain that fits, of several the one left with least. *Pack* takes the fewest
domains: it looks for the narrowest wider domain that holds all (a block before a site), fills the roomiest domains in
it, and ends with the one that the rest fits most tightly. *Spread* gives each domain in turn one more. Then the exact
claims are made one by one on the fleet and, if a host proves to hold fewer than counted, all is given back and
counted again without it. An elastic gang is tried at its full size, and else as large as it fits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from usina.core.capacity import LEVELS, Claim, Gang
from usina.placement.choose import Chooser
from usina.placement.fleet import WHOLE, Fleet, Ints
from usina.placement.ranking import Ranking
from usina.placement.refusal import Refusal
from usina.placement.shape import Shape

TRIES = 64  # hosts that may prove to hold less than counted

Domains = NDArray[np.int32]
Plan = list[tuple[int, int]]
"""(row, replicas on it)"""


def place_gang(chooser: Chooser, gang: Gang) -> list[Claim] | Refusal:
    """Claims for all replicas, taken on the chooser's fleet; or why not, and then nothing is taken.

    An elastic gang gets between `least` and `size` of them.
    """
    ranking = chooser.ranking(gang.needs)
    closed = chooser.closed(gang.needs)
    room = copies(chooser.fleet, ranking)
    for rows in closed.values():
        room[rows] = 0
    for _ in range(TRIES):
        plan = arrange(chooser.fleet, room, gang)
        if plan is None:
            return _refusal(chooser, ranking, room, gang)
        claims = _claim(chooser, ranking.shape, gang, plan)
        if isinstance(claims, list):
            return claims
        row, held = claims
        room[row] = held
    return Refusal({"hold fewer replicas than counted": chooser.fleet.hosts})


def copies(fleet: Fleet, ranking: Ranking) -> Ints:
    """How many replicas each row would take by totals; 0 where it takes none."""
    shape: Shape = ranking.shape
    rows = np.flatnonzero(np.isfinite(ranking.cost))
    room = np.zeros(fleet.size, np.int64)
    if not len(rows):
        return room
    most = fleet.cpu[rows] // max(shape.cpu, 1)
    np.minimum(most, fleet.memory[rows] // max(shape.memory, 1), out=most)
    if shape.disk:
        np.minimum(most, fleet.disk[rows] // shape.disk, out=most)
    if shape.count:
        free = np.where(shape.accepted(fleet)[fleet.kind[rows]], fleet.gpus[rows], 0)
        slots = (free == WHOLE).sum(1) if shape.share == WHOLE else (free // shape.share).sum(1)
        np.minimum(most, slots // shape.count, out=most)
    room[rows] = np.maximum(most, 1)  # it fits once, the ranking says; what pinning or nodes cost, the claim will tell
    return room


def arrange(fleet: Fleet, room: Ints, gang: Gang) -> Plan | None:
    """Rows and replicas on each for the gang, as large as it may be; None if not even the least fits."""
    domains = fleet.domain(gang.level)
    least = gang.size if gang.least is None else gang.least
    inside = np.where(domains >= 0, room, 0)
    if gang.arrange == "same":
        totals = _totals(domains, inside)
        size = min(gang.size, int(totals.max(initial=0)))
        if size < max(least, 1):
            return None
        fitting = np.flatnonzero(totals >= size)
        return _fill(inside, domains, [int(fitting[totals[fitting].argmin()])], size)
    size = min(gang.size, int(inside.sum()))
    if size < max(least, 1):
        return None
    order = _spread if gang.arrange == "spread" else _pack
    return order(fleet, inside, domains, gang.level, size)


def _totals(domains: Domains, room: Ints) -> Ints:
    known = domains >= 0
    return np.bincount(domains[known], weights=room[known], minlength=1).astype(np.int64)


def _pack(fleet: Fleet, room: Ints, domains: Domains, level: str, size: int) -> Plan:
    for wider in _widening(level):
        outer = fleet.domain(wider)
        totals = _totals(outer, room)
        fitting = np.flatnonzero(totals >= size)
        if len(fitting):
            room = np.where(outer == fitting[totals[fitting].argmin()], room, 0)
            break
    totals, left, chosen = _totals(domains, room), size, []
    while left > 0:
        fitting = np.flatnonzero(totals >= left)
        best = int(fitting[totals[fitting].argmin()]) if len(fitting) else int(totals.argmax())
        chosen.append(best)
        left -= int(totals[best])
        totals[best] = 0
    return _fill(room, domains, chosen, size)


def _widening(level: str) -> Iterator[str]:
    """The level itself, then those around it, narrowest first."""
    return iter(LEVELS[LEVELS.index(level) :: -1])


def _spread(fleet: Fleet, room: Ints, domains: Domains, level: str, size: int) -> Plan:
    totals = _totals(domains, room)
    shares = np.zeros_like(totals)
    left = size
    while left > 0:
        open_to = np.flatnonzero(shares < totals)
        open_to = open_to[np.argsort(shares[open_to], kind="stable")]
        lowest = shares[open_to[0]]
        turn = open_to[shares[open_to] == lowest][:left]
        shares[turn] += 1
        left -= len(turn)
    plan: Plan = []
    for domain in np.flatnonzero(shares).tolist():
        plan += _evenly(room, np.flatnonzero(domains == domain), int(shares[domain]))
    return plan


def _evenly(room: Ints, rows: NDArray[np.intp], size: int) -> Plan:
    """`size` replicas over the rows of one domain, as many hosts as possible."""
    given = np.zeros(len(rows), np.int64)
    while size > 0:
        turn = np.flatnonzero(given < room[rows])
        turn = turn[given[turn] == given[turn].min()][:size]
        given[turn] += 1
        size -= len(turn)
    return [(int(row), int(n)) for row, n in zip(rows, given, strict=True) if n]


def _fill(room: Ints, domains: Domains, chosen: list[int], size: int) -> Plan:
    """`size` replicas on the chosen domains in turn: the roomiest hosts first, the last one as tight as it fits."""
    plan: Plan = []
    for domain in chosen:
        rows = np.flatnonzero((domains == domain) & (room > 0))
        for row in rows[np.argsort(-room[rows], kind="stable")].tolist():
            if size <= 0:
                return plan
            if room[row] >= size:
                used = {taken for taken, _ in plan}
                tight = min((r for r in rows.tolist() if room[r] >= size and r not in used), key=lambda r: int(room[r]))
                return [*plan, (tight, size)]
            plan.append((row, int(room[row])))
            size -= int(room[row])
    return plan


def _claim(chooser: Chooser, shape: Shape, gang: Gang, plan: Plan) -> list[Claim] | tuple[int, int]:
    """Exact claims, taken; or (row, replicas it really holds), with everything given back."""
    taken: list[Claim] = []
    for row, count in plan:
        for done in range(count):
            found = chooser.claim_on(row, shape, gang.needs)
            if isinstance(found, str):
                for claim in reversed(taken):
                    chooser.fleet.give_back(claim)
                return row, done
            chooser.fleet.take(found)
            taken.append(found)
    return taken


def _refusal(chooser: Chooser, ranking: Ranking, room: Ints, gang: Gang) -> Refusal:
    domains = chooser.fleet.domain(gang.level)
    fits = int(np.where(domains >= 0, room, 0).sum())
    inside = int(_totals(domains, room).max(initial=0))
    best = inside if gang.arrange == "same" else fits
    reasons = ranking.reasons(chooser.closed(gang.needs))
    held = int(((room > 0) & (domains >= 0)).sum())
    if held:
        where = (
            "have room, but not enough together"
            if gang.arrange != "same"
            else f"have room, but no {gang.level} has enough"
        )
        reasons[where] += held
    outside = chooser.fleet.hosts - sum(reasons.values())
    if outside > 0:
        reasons[f"are in no {gang.level}"] += outside
    return replace(Refusal(reasons), largest=f"{best} of {gang.size} replicas would fit" if best else "")
