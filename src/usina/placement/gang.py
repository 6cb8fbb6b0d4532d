"""Gangs: replicas alike, all placed or none, arranged over the topology.

First counted, then claimed. How many replicas each host would take is one vector; summed by domain it says where the
gang fits. *Same* takes the smallest domain that fits, of several the one left with least. *Pack* takes the fewest
domains: it looks for the narrowest wider domain that holds all (a block before a site), of several the one where fewest
are needed, fills the roomiest in it, and ends with the one that the rest fits most tightly. *Spread* gives each domain
in turn one more. Then the exact claims are made one by one on the fleet and, if a host proves to hold fewer than
counted, all is given back and counted again. An elastic gang is as large as it fits.

Wishes of the replicas towards a group of their own hold between them too: *apart* at a level is one replica in each of
its domains, *near* is one domain of it for all. Those that are only preferred are kept where the whole gang can be.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from usina.core.capacity import LEVELS, Affinity, Claim, Gang
from usina.placement.choose import Chooser
from usina.placement.fleet import WHOLE, Fleet, Ints, Mask
from usina.placement.ranking import FITS, Ranking
from usina.placement.refusal import Refusal
from usina.placement.shape import Shape
from usina.placement.within.standing import cores_of, free_cores, is_pinned

MOST = 1 << 32  # replicas of nothing on a host

Domains = NDArray[np.int32]
Plan = list[tuple[int, int]]
"""(row, replicas on it)"""


def place_gang(chooser: Chooser, gang: Gang) -> list[Claim] | Refusal:
    """Claims for all replicas, taken on the chooser's fleet; or why not, and then nothing is taken.

    An elastic gang gets between `least` and `size` of them.
    """
    ranking = chooser.ranking(gang.needs)
    counted = copies(chooser.fleet, ranking)
    for wanted in _wanted(gang):
        claims = _placed(chooser, ranking, counted, wanted)
        if claims:
            return claims
    return _refusal(chooser, ranking, counted, gang)


def _wanted(gang: Gang) -> Iterator[Gang]:
    """The whole gang with what it prefers between its own, if it prefers anything; then the gang."""
    needs = gang.needs
    kept = tuple(replace(wish, required=wish.required or wish.to in needs.groups) for wish in needs.affinities)
    if kept != needs.affinities:
        yield replace(gang, needs=replace(needs, affinities=kept), least=None)
    yield gang


def _placed(chooser: Chooser, ranking: Ranking, counted: Ints, gang: Gang) -> list[Claim]:
    """Claims, taken; none if the gang does not fit. Lowers `counted` where a host proves to hold less."""
    closed = list(chooser.closed(gang.needs).values())
    open_to = ~np.logical_or.reduce(closed) if closed else np.ones(len(counted), np.bool_)
    while plan := arrange(chooser.fleet, np.where(open_to, counted, 0), gang):
        claims = _claim(chooser, ranking, counted, gang, plan)
        if claims:
            return claims
    return []


def copies(fleet: Fleet, ranking: Ranking) -> Ints:
    """How many replicas each row would take by totals, never fewer than it would; 0 where it takes none."""
    shape: Shape = ranking.shape
    needs = shape.needs
    rows = np.flatnonzero(ranking.reason == FITS)
    room = np.zeros(fleet.size, np.int64)
    most = np.full(len(rows), MOST, np.int64)
    if is_pinned(needs):
        free = np.array([free_cores(fleet.provider(row), pinned=True) for row in rows.tolist()], np.int64)
        np.minimum(most, free // max(int(cores_of(needs)), 1), out=most)
    for asked, left in ((0 if is_pinned(needs) else shape.cpu, fleet.cpu), (shape.disk, fleet.disk)):
        if asked:
            np.minimum(most, left[rows] // asked, out=most)
    if shape.memory and not needs.hugepage:
        np.minimum(most, fleet.memory[rows] // shape.memory, out=most)
    if shape.count:
        gpus = np.where(shape.accepted(fleet)[fleet.kind[rows]], fleet.gpus[rows], 0)
        slots = (gpus == WHOLE).sum(1) if shape.share == WHOLE else (gpus // shape.share).sum(1)
        np.minimum(most, slots // shape.count, out=most)
    room[rows] = np.maximum(most, 1)  # it fits once, the ranking says; what pinning or nodes cost, the claim will tell
    return room


def arrange(fleet: Fleet, room: Ints, gang: Gang) -> Plan | None:
    """Rows and replicas on each for the gang, as large as it may be; None if not even the least fits."""
    domains = fleet.domain(gang.level)
    cells = _cells(fleet, gang)
    room = _apart(fleet, np.where((domains >= 0) & (cells >= 0), room, 0), cells, gang)
    totals = _totals(cells, room)
    size = min(gang.size, int(totals.max(initial=0)))
    if size < max(gang.size if gang.least is None else gang.least, 1):
        return None
    room = np.where(cells == _tightest(totals, size), room, 0)
    return _spread(room, domains, size) if gang.arrange == "spread" else _pack(fleet, room, domains, gang.level, size)


def _cells(fleet: Fleet, gang: Gang) -> Domains:
    """Of every row, the number of the cell it is in, if all replicas must be in one cell; -1 where it is in none."""
    levels = {gang.level} if gang.arrange == "same" else set()
    levels |= {wish.level for wish in _own(gang) if not wish.apart and wish.to not in fleet.members}
    cells: Domains = np.zeros(fleet.size, np.int32)
    for level in sorted(levels):
        domains = fleet.domain(level)
        pairs = np.stack([cells, domains])
        _, number = np.unique(pairs, axis=1, return_inverse=True)
        cells = np.where((pairs >= 0).all(0), number.reshape(-1), -1).astype(np.int32)
    return cells


def _apart(fleet: Fleet, room: Ints, cells: Domains, gang: Gang) -> Ints:
    """`room` where replicas keep apart from their own group: one in each domain, on the host with most room."""
    levels = {wish.level for wish in _own(gang) if wish.apart}
    for level in sorted(levels, key=LEVELS.index, reverse=True):
        domains = fleet.domain(level)
        rows = np.flatnonzero((domains >= 0) & (room > 0))
        rows = rows[np.argsort(-room[rows], kind="stable")]
        _, first = np.unique(np.stack([cells[rows], domains[rows]]), axis=1, return_index=True)
        room = np.where(domains >= 0, 0, room)
        room[rows[first]] = 1
    return room


def _own(gang: Gang) -> Iterator[Affinity]:
    """What is required of the replicas towards each other."""
    return (wish for wish in gang.needs.affinities if wish.required and wish.to in gang.needs.groups)


def _totals(domains: Domains, room: Ints) -> Ints:
    known = domains >= 0
    return np.bincount(domains[known], weights=room[known], minlength=1).astype(np.int64)


def _tightest(totals: Ints, size: int) -> int:
    """The smallest that holds `size`; one must."""
    fitting = np.flatnonzero(totals >= size)
    return int(fitting[totals[fitting].argmin()])


def _pack(fleet: Fleet, room: Ints, domains: Domains, level: str, size: int) -> Plan:
    for wider in LEVELS[LEVELS.index(level) :: -1]:  # the level itself, then those around it, narrowest first
        outer = fleet.domain(wider)
        totals = _totals(outer, room)
        fitting = np.flatnonzero(totals >= size).tolist()
        if fitting:
            best = min(fitting, key=lambda one: (_fewest(domains, room, outer == one, size), int(totals[one])))
            room = np.where(outer == best, room, 0)
            break
    totals, left, chosen = _totals(domains, room), size, []
    while left > 0:
        best = _tightest(totals, left) if totals.max() >= left else int(totals.argmax())
        chosen.append(best)
        left -= int(totals[best])
        totals[best] = 0
    return _fill(room, domains, chosen, size)


def _fewest(domains: Domains, room: Ints, rows: Mask, size: int) -> int:
    """In how many domains `size` replicas are at least, on some rows that hold them."""
    totals = np.sort(_totals(domains[rows], room[rows]))[::-1]
    return int(np.searchsorted(totals.cumsum(), size)) + 1


def _spread(room: Ints, domains: Domains, size: int) -> Plan:
    shares = _evenly(_totals(domains, room), size)
    plan: Plan = []
    for domain in np.flatnonzero(shares).tolist():
        rows = np.flatnonzero(domains == domain)
        given = _evenly(room[rows], int(shares[domain]))
        plan += [(int(row), int(n)) for row, n in zip(rows, given, strict=True) if n]
    return plan


def _evenly(room: Ints, size: int) -> Ints:
    """`size` dealt out one by one in turn, as far as there is room; there must be."""
    given = np.zeros_like(room)
    while size > 0:
        turn = np.flatnonzero(given < room)[:size]
        given[turn] += 1
        size -= len(turn)
    return given


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


def _claim(chooser: Chooser, ranking: Ranking, counted: Ints, gang: Gang, plan: Plan) -> list[Claim]:
    """Exact claims, taken; or none, with everything given back and `counted` lowered to what rows proved to hold."""
    taken: list[Claim] = []
    short = False
    for row, count in plan:
        for done in range(count):
            found = chooser.claim_on(row, ranking.shape, gang.needs)
            if isinstance(found, str):
                counted[row] = done
                short = True
                if not done:
                    ranking.rule_out(row, found)
                break
            chooser.fleet.take(found)
            taken.append(found)
    if short:
        _give_back(chooser.fleet, taken)
        return []
    return taken


def _give_back(fleet: Fleet, taken: list[Claim]) -> None:
    for claim in reversed(taken):
        fleet.give_back(claim)


def _refusal(chooser: Chooser, ranking: Ranking, counted: Ints, gang: Gang) -> Refusal:
    fleet = chooser.fleet
    most = _placed(chooser, ranking, counted, replace(gang, least=1))
    _give_back(fleet, most)
    closed = chooser.closed(gang.needs)
    reasons = ranking.reasons(closed)
    able = (ranking.reason == FITS) & fleet.present[: fleet.size]
    for rows in closed.values():
        able &= ~rows
    for level in (gang.level, *(wish.level for wish in _own(gang) if not wish.apart)):
        outside = able & (fleet.domain(level) < 0)
        reasons[f"are in no {level}"] += int(outside.sum())
        able &= ~outside
    where = f"no {gang.level} has enough" if gang.arrange == "same" else "not enough together"
    reasons[f"have room, but {where}"] += int(able.sum())
    return Refusal(+reasons, largest=f"{len(most)} of {gang.size} replicas would fit" if most else "")
