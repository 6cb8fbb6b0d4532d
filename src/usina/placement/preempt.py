"""Preemption: who must go so that a request of higher priority fits, fewest first, then cheapest.

Only holdings of lower priority are asked, and none whose tenant would fall below its guaranteed share. Hosts that
could not hold the request even then are passed over by totals; on the most promising others sets are tried from small
to large. Where there are too many, the lowest in priority go one after the other, less those that prove needless, and
the set may be larger than it need be. Nothing is taken here; the answer names the claim, the victims and why.

Rules are as strict as if all victims stayed: a host is not had by removing whom the request must be apart from.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import ceil, comb

import numpy as np

from usina.core.capacity import Claim, Holding, Needs, Part
from usina.placement.choose import Chooser
from usina.placement.fleet import MILLI, WHOLE
from usina.placement.refusal import Refusal
from usina.placement.rules import reserved
from usina.placement.shape import Shape
from usina.placement.within import held_without, place_within
from usina.placement.within.standing import is_pinned

HOSTS = 256  # looked at exactly
SETS = 2_000  # sets of one size that are tried on a host
TRIES = 20_000  # sets that are asked of the exact search in all


@dataclass(frozen=True, slots=True)
class Share:
    """What a tenant is guaranteed, or uses: cores, bytes, thousandths of devices."""

    cores: float = 0
    memory: int = 0
    devices: int = 0

    def without(self, claim: Claim) -> Share:
        return Share(round(self.cores - claim.cores, 3), self.memory - claim.memory, self.devices - devices_of(claim))

    def covers(self, other: Share) -> bool:
        return self.cores >= other.cores and self.memory >= other.memory and self.devices >= other.devices


@dataclass(frozen=True, slots=True)
class Victim:
    holding: Holding
    why: str


@dataclass(frozen=True, slots=True)
class Preemption:
    """The claim that is free once all victims are gone."""

    claim: Claim
    victims: tuple[Victim, ...]


def preempt(chooser: Chooser, needs: Needs, guaranteed: Mapping[str, Share] | None = None) -> Preemption | Refusal:
    """The least preemption that makes room for `needs`, nobody's if it fits anyway; or a refusal when there is none.

    `guaranteed` is by tenant. The chooser's fleet must know its holdings (`Fleet.know`).
    """
    answer = chooser.choose(needs)
    if isinstance(answer, Claim):
        return Preemption(answer, ())
    found = _Hunt(chooser, needs, guaranteed or {}).best()
    return _told(*found, needs) if found else answer


def usage(holdings: Iterable[Holding]) -> dict[str, Share]:
    """What each tenant holds in all."""
    cores: Counter[str] = Counter()
    memory: Counter[str] = Counter()
    devices: Counter[str] = Counter()
    for holding in holdings:
        cores[holding.tenant] += holding.claim.cores  # type: ignore[assignment]
        memory[holding.tenant] += holding.claim.memory
        devices[holding.tenant] += devices_of(holding.claim)
    return {tenant: Share(round(cores[tenant], 3), memory[tenant], devices[tenant]) for tenant in cores}


def devices_of(claim: Claim) -> int:
    """Thousandths of devices; a partition or an instance counts as a whole one."""
    return sum(Part.parse(name).share or WHOLE for name in claim.devices)


class _Hunt:
    """One search over hosts; what was found on one bounds what is looked for on the next."""

    def __init__(self, chooser: Chooser, needs: Needs, guaranteed: Mapping[str, Share]) -> None:
        self._chooser, self._needs, self._guaranteed = chooser, needs, guaranteed
        self._fleet, self._shape = chooser.fleet, Shape(needs)
        self._used = usage(chooser.fleet.holdings.values())
        self._tries = TRIES
        self._best: tuple[tuple[object, ...], Claim, Sequence[Holding]] | None = None

    def best(self) -> tuple[Claim, Sequence[Holding]] | None:
        for row, holdings in self._promising():
            found = self._least(row, holdings)
            if found is not None:
                rank = *cost_of(found[1]), self._fleet.name(row)
                if self._best is None or rank < self._best[0]:
                    self._best = rank, *found
        return self._best[1:] if self._best else None

    def _promising(self) -> list[tuple[int, list[Holding]]]:
        """Rows where holdings that may be asked could make room by totals, those with least to clear first."""
        below: dict[int, list[Holding]] = defaultdict(list)
        spared = self._spared()
        for holding in self._fleet.holdings.values():
            row = self._fleet.rows.get(holding.claim.provider)
            asked = holding.priority < self._needs.priority and spared.isdisjoint({holding.resource, *holding.groups})
            if row is not None and asked and self._allowed([holding]):
                below[row].append(holding)
        open_to = self._chooser.ranking(self._needs).askable()
        for phrase, rows in self._chooser.closed(self._needs).items():
            if phrase != reserved.PHRASE:  # of that the exact search knows, and victims may make room beside it
                open_to = open_to & ~rows
        found = [
            (self._short(row)[0], row, sorted(holdings, key=_price)) for row, holdings in below.items() if open_to[row]
        ]
        found = [one for one in found if self._enough(one[1], one[2])]
        found.sort(key=lambda one: one[:2])
        return [(row, holdings) for _, row, holdings in found[:HOSTS]]

    def _spared(self) -> set[str]:
        """Who is never asked: whom the request must be near to, and who uses what is reserved for others."""
        near = {wish.to for wish in self._needs.affinities if wish.required and not wish.apart}
        promised = self._chooser.promises.reservations.values()
        return near | {one.id for one in promised if one.tenant != self._needs.tenant}

    def _short(self, row: int) -> tuple[int, ...]:
        """What the totals of a host lack at least; what they do not tell counts as nothing."""
        fleet, shape, needs = self._fleet, self._shape, self._needs
        gpus = fleet.gpus[row][shape.accepted(fleet)[fleet.kind[row]]] if shape.count else 0
        return (
            0 if is_pinned(needs) else shape.cpu - int(fleet.cpu[row]),
            0 if needs.hugepage else shape.memory - int(fleet.memory[row]),
            shape.disk - int(fleet.disk[row]) if shape.disk else 0,
            shape.count * shape.share - int(np.sum(gpus)),
        )

    def _freed(self, row: int, holding: Holding) -> tuple[int, ...]:
        """What a holding gives back to the totals at most."""
        claim = holding.claim
        ratio = self._fleet.provider(row).cpu_ratio if claim.cpus else 1.0
        return (
            ceil(claim.cores * ratio * MILLI),
            0 if claim.hugepage else claim.memory,
            claim.disk,
            devices_of(claim),
        )

    def _enough(self, row: int, holdings: Iterable[Holding]) -> bool:
        freed = [self._freed(row, holding) for holding in holdings]
        return all(short <= sum(parts) for short, parts in zip(self._short(row), zip(*freed, strict=True), strict=True))

    def _least(self, row: int, holdings: list[Holding]) -> tuple[Claim, Sequence[Holding]] | None:
        """The smallest set of victims on one host, of equally small ones the cheapest."""
        if self._claim(row, holdings) is None and not any(h.tenant in self._guaranteed for h in holdings):
            return None  # not even then
        known = {holding.resource: self._freed(row, holding) for holding in holdings}
        short = self._short(row)
        most = len(holdings) if self._best is None else min(len(holdings), len(self._best[2]))
        for count in range(1, most + 1):
            if comb(len(holdings), count) > SETS:
                return self._greedy(row, holdings)
            for gone in sorted(combinations(holdings, count), key=cost_of):
                sums = [sum(parts) for parts in zip(*(known[h.resource] for h in gone), strict=True)]
                if any(lacks > freed for lacks, freed in zip(short, sums, strict=True)):
                    continue
                if self._tries <= 0:
                    return self._greedy(row, holdings)
                found = self._claim(row, gone)
                if found is not None:
                    return found, gone
        return None

    def _greedy(self, row: int, holdings: list[Holding]) -> tuple[Claim, Sequence[Holding]] | None:
        gone: list[Holding] = []
        found: Claim | None = None
        for holding in holdings:
            if self._allowed([*gone, holding]):
                gone.append(holding)
                found = self._claim(row, gone)
                if found is not None:
                    break
        if found is None:
            return None
        for holding in reversed(list(gone)):
            fewer = [one for one in gone if one is not holding]
            without = self._claim(row, fewer)
            if without is not None:
                gone, found = fewer, without
        return found, gone

    def _claim(self, row: int, gone: Sequence[Holding]) -> Claim | None:
        """The claim on a host once some are gone, if they may be asked and that is enough."""
        if not self._allowed(gone):
            return None
        self._tries -= 1
        left = self._chooser.promises.as_seen_by(self._fleet, row, self._needs)
        for holding in gone:
            left = held_without(left, holding.claim)
        found = place_within(left, self._needs)
        return found if isinstance(found, Claim) else None

    def _allowed(self, gone: Sequence[Holding]) -> bool:
        """Whether every tenant keeps what it is guaranteed."""
        left: dict[str, Share] = {}
        for holding in gone:
            left[holding.tenant] = left.get(holding.tenant, self._used[holding.tenant]).without(holding.claim)
        return all(share.covers(self._guaranteed.get(tenant, Share())) for tenant, share in left.items())


def cost_of(gone: Sequence[Holding]) -> tuple[object, ...]:
    """What a set of victims costs: fewest first, then lowest in priority, then smallest."""
    claims = [holding.claim for holding in gone]
    return (
        len(gone),
        tuple(sorted((holding.priority for holding in gone), reverse=True)),
        sum(not holding.preemptible for holding in gone),
        sum(devices_of(claim) for claim in claims),
        round(sum(claim.cores for claim in claims), 3),
        sum(claim.memory for claim in claims),
        tuple(sorted(holding.resource for holding in gone)),
    )


def _price(holding: Holding) -> tuple[object, ...]:
    return cost_of([holding])


def _told(claim: Claim, gone: Sequence[Holding], needs: Needs) -> Preemption:
    def why(holding: Holding) -> str:
        return f"priority {holding.priority} is below {needs.priority}, and it holds what the request needs"

    return Preemption(claim, tuple(Victim(holding, why(holding)) for holding in sorted(gone, key=_price)))
