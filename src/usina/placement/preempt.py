"""Preemption: who must go so that a request of higher priority fits, fewest first, then cheapest.

Only holdings of lower priority are asked, and none whose tenant would fall below its guaranteed share. Hosts that
could not hold the request even then are passed over by totals; on the most promising others the smallest set is found:
every single holding, every pair, and beyond that the lowest in priority one after the other, less those that prove
needless. Nothing is taken here; the answer names the claim, the victims and why.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from usina.core.capacity import Claim, Holding, Needs, Part
from usina.placement.choose import Chooser
from usina.placement.fleet import MILLI, WHOLE
from usina.placement.refusal import Refusal
from usina.placement.shape import Shape
from usina.placement.within import held_without, place_within

HOSTS = 256  # looked at exactly
PAIRS = 24  # holdings on a host up to which every pair is tried


@dataclass(frozen=True, slots=True)
class Share:
    """What a tenant is guaranteed, or uses: cores, bytes, thousandths of devices."""

    cores: float = 0
    memory: int = 0
    devices: int = 0

    def without(self, claim: Claim) -> Share:
        return Share(self.cores - claim.cores, self.memory - claim.memory, self.devices - devices_of(claim))

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
    """The least preemption that makes room for `needs`, or a refusal when there is none.

    `guaranteed` is by tenant. The chooser's fleet must know its holdings (`Fleet.know`).
    """
    best: tuple[tuple[object, ...], Preemption] | None = None
    used = usage(chooser.fleet.holdings.values())
    for row, holdings in _promising(chooser, needs):
        found = _least(chooser, row, holdings, needs, used, guaranteed or {})
        if found is not None:
            rank = _rank(found, chooser.fleet.name(row))
            if best is None or rank < best[0]:
                best = rank, found
    if best is not None:
        return best[1]
    refusal = chooser.choose(needs)
    return refusal if isinstance(refusal, Refusal) else Preemption(refusal, ())


def usage(holdings: Iterable[Holding]) -> dict[str, Share]:
    """What each tenant holds in all."""
    cores: Counter[str] = Counter()
    memory: Counter[str] = Counter()
    devices: Counter[str] = Counter()
    for holding in holdings:
        cores[holding.tenant] += holding.claim.cores  # type: ignore[assignment]
        memory[holding.tenant] += holding.claim.memory
        devices[holding.tenant] += devices_of(holding.claim)
    return {tenant: Share(cores[tenant], memory[tenant], devices[tenant]) for tenant in cores}


def devices_of(claim: Claim) -> int:
    """Thousandths of devices; a partition or an instance counts as a whole one."""
    return sum(Part.parse(name).share or WHOLE for name in claim.devices)


def _promising(chooser: Chooser, needs: Needs) -> list[tuple[int, list[Holding]]]:
    """Rows with holdings of lower priority that could make room by totals, those with least to clear first."""
    fleet, shape = chooser.fleet, Shape(needs)
    below: dict[int, list[Holding]] = defaultdict(list)
    for holding in fleet.holdings.values():
        row = fleet.rows.get(holding.claim.provider)
        if row is not None and holding.priority < needs.priority:
            below[row].append(holding)
    closed = chooser.closed(needs)
    found = []
    for row, holdings in below.items():
        cpu = int(fleet.cpu[row]) + sum(round(h.claim.cores * MILLI) for h in holdings)
        memory = int(fleet.memory[row]) + sum(h.claim.memory for h in holdings)
        devices = int(fleet.gpus[row].sum()) + sum(devices_of(h.claim) for h in holdings)
        enough = cpu >= shape.cpu and memory >= shape.memory and devices >= shape.count * shape.share
        if enough and not any(rows[row] for rows in closed.values()):
            found.append((shape.cpu - int(fleet.cpu[row]), row, holdings))
    found.sort(key=lambda one: one[:2])
    return [(row, holdings) for _, row, holdings in found[:HOSTS]]


def _least(
    chooser: Chooser,
    row: int,
    holdings: list[Holding],
    needs: Needs,
    used: Mapping[str, Share],
    guaranteed: Mapping[str, Share],
) -> Preemption | None:
    """The smallest set of victims on one host."""
    provider = chooser.promises.as_seen_by(chooser.fleet, row, needs)

    def claim(gone: Sequence[Holding]) -> Claim | None:
        if not _allowed(gone, used, guaranteed):
            return None
        left = provider
        for holding in gone:
            left = held_without(left, holding.claim)
        found = place_within(left, needs)
        return found if isinstance(found, Claim) else None

    holdings = sorted(holdings, key=_price)
    for count in (1, 2) if len(holdings) <= PAIRS else (1,):
        for gone in sorted(combinations(holdings, count), key=lambda some: [_price(h) for h in some]):
            found = claim(gone)
            if found is not None:
                return _told(found, gone, needs)
    return _greedy(holdings, needs, claim, used, guaranteed)


def _greedy(
    holdings: list[Holding],
    needs: Needs,
    claim: Callable[[Sequence[Holding]], Claim | None],
    used: Mapping[str, Share],
    guaranteed: Mapping[str, Share],
) -> Preemption | None:
    gone: list[Holding] = []
    found: Claim | None = None
    for holding in holdings:
        if not _allowed([*gone, holding], used, guaranteed):
            continue
        gone.append(holding)
        found = claim(gone)
        if found is not None:
            break
    if found is None:
        return None
    for holding in sorted(gone, key=_price, reverse=True):
        fewer = [one for one in gone if one is not holding]
        without = claim(fewer)
        if without is not None:
            gone, found = fewer, without
    return _told(found, gone, needs)


def _allowed(gone: Sequence[Holding], used: Mapping[str, Share], guaranteed: Mapping[str, Share]) -> bool:
    """Whether every tenant keeps what it is guaranteed."""
    left = dict(used)
    for holding in gone:
        left[holding.tenant] = left[holding.tenant].without(holding.claim)
    return all(left[h.tenant].covers(guaranteed.get(h.tenant, Share())) for h in gone)


def _price(holding: Holding) -> tuple[object, ...]:
    claim = holding.claim
    return holding.priority, not holding.preemptible, devices_of(claim), claim.cores, claim.memory, holding.resource


def _rank(found: Preemption, host: str) -> tuple[object, ...]:
    """Fewest, then lowest in priority, then smallest."""
    gone = [victim.holding for victim in found.victims]
    size = sum(devices_of(h.claim) for h in gone), sum(h.claim.cores for h in gone)
    return len(gone), max((h.priority for h in gone), default=0), *size, host


def _told(claim: Claim, gone: Sequence[Holding], needs: Needs) -> Preemption:
    def why(holding: Holding) -> str:
        return f"priority {holding.priority} is below {needs.priority}, and it holds what the request needs"

    return Preemption(claim, tuple(Victim(holding, why(holding)) for holding in sorted(gone, key=_price)))
