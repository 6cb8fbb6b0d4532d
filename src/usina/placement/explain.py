"""Why this host, or why none: the scores of the best few, or counts, the nearest miss and what would fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from usina.core.capacity import Claim, DeviceRequest, Needs, Provider
from usina.core.units import show_size
from usina.placement.choose import Chooser
from usina.placement.fleet import Floats, Mask, Rows
from usina.placement.ranking import GONE, Ranking
from usina.placement.refusal import Refusal
from usina.placement.rules import affinity, reserved
from usina.placement.scorers import SCORERS
from usina.placement.within import largest_fit, nearest_miss
from usina.placement.within.devices import wanted

FEW = 5
_SINGULAR = {"are": "is", "do": "does", "have": "has", "lack": "lacks", "share": "shares"}
LOOKED_AT = 16  # hosts that are asked exactly for the nearest miss and the largest fit


@dataclass(frozen=True, slots=True)
class Score:
    """One host: its cost (less is better), and what each scorer of the policy gave to it, weighted."""

    host: str
    name: str
    cost: float
    parts: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Explanation:
    """`answer` is what placement would answer now. `reasons` counts the hosts that cannot have it."""

    answer: Claim | Refusal
    policy: str
    hosts: int
    best: tuple[Score, ...] = ()
    reasons: Mapping[str, int] = field(default_factory=dict)
    nearest: str = ""  # host and what it lacks
    nearest_host: str = ""
    largest: str = ""


def explain(chooser: Chooser, needs: Needs) -> Explanation:
    """Everything placement can say of `needs` now; nothing is taken."""
    answer = chooser.choose(needs)
    ranking = chooser.ranking(needs)
    closed = chooser.closed(needs)
    said = Explanation(answer, chooser.policy.name, chooser.fleet.hosts, reasons=dict(ranking.reasons(closed)))
    if isinstance(answer, Claim):
        return replace(said, best=_scores(chooser, ranking, closed, needs, answer))
    asked = _Asked(chooser, ranking, closed, needs)
    row = asked.nearest()
    if row is None:
        return said
    return replace(said, nearest=asked.lacks(row), nearest_host=chooser.fleet.name(row), largest=asked.largest_told())


def told(chooser: Chooser, needs: Needs, refusal: Refusal) -> Refusal:
    """`refusal` with the nearest miss and what would fit, without naming hosts."""
    asked = _Asked(chooser, chooser.ranking(needs), chooser.closed(needs), needs)
    row = asked.nearest()
    if row is None or not asked.up[row]:
        return refusal
    lacks = asked.lacks(row)
    return replace(refusal, nearest=f"the nearest: {lacks}" if lacks else "", largest=asked.largest_told())


def described(needs: Needs) -> str:
    """ "4 cores, 8GiB and 2 H100"."""
    parts = [f"{needs.cores:g} core{'' if needs.cores == 1 else 's'}", show_size(needs.memory)]
    parts += [_device(request) for request in needs.devices]
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


def _device(request: DeviceRequest) -> str:
    return f"{request.count} {wanted(request)}"


def _scores(
    chooser: Chooser, ranking: Ranking, closed: Mapping[str, Mask], needs: Needs, answer: Claim
) -> tuple[Score, ...]:
    """The best few, the chosen one first."""
    open_to = ~np.logical_or.reduce(list(closed.values())) if closed else None
    extra = affinity.cost(chooser.fleet, needs)
    chosen = chooser.fleet.rows[answer.provider]
    others = [row for row in ranking.order(FEW, open_to, extra) if row != chosen]
    return tuple(_score(chooser, ranking, row, extra) for row in (chosen, *others[: FEW - 1]))


def _score(chooser: Chooser, ranking: Ranking, row: int, extra: Floats | None) -> Score:
    fleet, at = chooser.fleet, np.array([row])
    parts = {
        name: weight * float(SCORERS[name](fleet, ranking.shape, at, chooser.outlook)[0])
        for name, weight in chooser.policy_on(row).weights.items()
    }
    if extra is not None:
        parts["affinity"] = float(extra[row])
    return Score(fleet.id(row), fleet.name(row), sum(parts.values()), parts)


class _Asked:
    """Hosts that refused a request, asked what they lack. Each is seen as the request sees it."""

    def __init__(self, chooser: Chooser, ranking: Ranking, closed: Mapping[str, Mask], needs: Needs) -> None:
        self._chooser, self._fleet, self._shape, self._needs = chooser, chooser.fleet, ranking.shape, needs
        # what is reserved is seen as taken, so that it closes nothing here
        self._closed = {phrase: rows for phrase, rows in closed.items() if phrase != reserved.PHRASE}
        self._there = ranking.reason != GONE
        self.up = self._there & self._fleet.enabled[: self._fleet.size] & self._fleet.reachable[: self._fleet.size]
        self._open = ranking.askable()
        for rows in self._closed.values():
            self._open = self._open & ~rows

    def nearest(self) -> int | None:
        """The row that has most of what is asked for, of those that may be asked at all; else of those up; else any."""
        for some in (self._open, self.up, self._there):
            rows = np.flatnonzero(some).astype(np.intp)
            if len(rows):
                return int(rows[self._parts(rows).sum(1).argmax()])
        return None

    def lacks(self, row: int) -> str:
        """What a row lacks, or what keeps the request from it: "2 cores short", "shares a host with web"."""
        lacks = nearest_miss(self._provider(row), self._needs)
        against = (of_one(phrase) for phrase, rows in self._closed.items() if rows[row])
        return lacks or next(against, "")

    def largest(self) -> Needs | None:
        """The largest request of this form that some host would take."""
        rows = np.flatnonzero(self._open).astype(np.intp)
        if not len(rows):
            return None
        likely = rows[np.argsort(-self._parts(rows).min(1), kind="stable")[:LOOKED_AT]]
        found = (largest_fit(self._provider(int(row)), self._needs) for row in likely)
        return max((one for one in found if one is not None), key=_size, default=None)

    def largest_told(self) -> str:
        largest = self.largest()
        return f"{described(largest)} would fit" if largest else ""

    def _provider(self, row: int) -> Provider:
        return self._chooser.promises.as_seen_by(self._fleet, row, self._needs)

    def _parts(self, rows: Rows) -> Floats:
        """(R, 4) how much of the cores, memory, disk and devices asked for each row has free, 0 to 1."""
        fleet, shape = self._fleet, self._shape
        able = np.where(shape.accepted(fleet)[fleet.kind[rows]], fleet.gpus[rows], 0).sum(1) if shape.count else 0
        have = [fleet.cpu[rows], fleet.memory[rows], fleet.disk[rows], np.zeros(len(rows)) + able]
        want = [shape.cpu, shape.memory, shape.disk, shape.count * shape.share]
        parts = [np.clip(h / w, 0, 1) if w else np.ones(len(rows)) for h, w in zip(have, want, strict=True)]
        return np.column_stack(parts)


def of_one(reason: str) -> str:
    """A reason that follows a number of hosts, said of one."""
    verb, _, rest = reason.partition(" ")
    return f"{_SINGULAR.get(verb, verb)} {rest}"


def _size(needs: Needs) -> tuple[float, int, int]:
    return needs.cores, needs.memory, sum(request.count for request in needs.devices)
