"""Why this host, or why none: the scores of the best few, or counts, the nearest miss and what would fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from usina.core.capacity import Claim, DeviceRequest, Needs
from usina.core.units import show_size
from usina.placement.choose import Chooser
from usina.placement.fleet import Fleet, Floats, Rows
from usina.placement.ranking import GONE, Ranking
from usina.placement.refusal import Refusal
from usina.placement.scorers import SCORERS
from usina.placement.shape import Shape
from usina.placement.within import largest_fit, nearest_miss
from usina.placement.within.devices import wanted

FEW = 5
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
    reasons = dict(ranking.reasons(closed))
    told = Explanation(answer, chooser.policy.name, chooser.fleet.hosts, reasons=reasons)
    if isinstance(answer, Claim):
        return replace(told, best=_scores(chooser, ranking, answer))
    row = _nearest(chooser.fleet, ranking)
    if row is None:
        return told
    host, lacks = chooser.fleet.name(row), nearest_miss(chooser.fleet.provider(row), needs)
    largest = _largest(chooser, ranking, needs)
    return replace(told, nearest=lacks, nearest_host=host, largest=f"{described(largest)} would fit" if largest else "")


def told(chooser: Chooser, needs: Needs, refusal: Refusal) -> Refusal:
    """`refusal` with the nearest miss and what would fit, without naming hosts."""
    ranking = chooser.ranking(needs)
    row = _nearest(chooser.fleet, ranking)
    if row is None or not len(_refused(chooser.fleet, ranking)):
        return refusal
    lacks, largest = nearest_miss(chooser.fleet.provider(row), needs), _largest(chooser, ranking, needs)
    return replace(
        refusal,
        nearest=f"the nearest: {lacks}" if lacks else "",
        largest=f"{described(largest)} would fit" if largest else "",
    )


def described(needs: Needs) -> str:
    """ "4 cores, 8GiB and 2 H100"."""
    parts = [f"{needs.cores:g} core{'' if needs.cores == 1 else 's'}", show_size(needs.memory)]
    parts += [_device(request) for request in needs.devices]
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


def _device(request: DeviceRequest) -> str:
    return f"{request.count} {wanted(request)}"


def _scores(chooser: Chooser, ranking: Ranking, answer: Claim) -> tuple[Score, ...]:
    rows = ranking.order(FEW)
    chosen = chooser.fleet.rows[answer.provider]
    if chosen not in rows:
        rows = [chosen, *rows[: FEW - 1]]
    rows.sort(key=lambda row: (row != chosen, ranking.cost[row]))
    return tuple(_score(chooser, ranking, row) for row in rows)


def _score(chooser: Chooser, ranking: Ranking, row: int) -> Score:
    fleet, at = chooser.fleet, np.array([row])
    parts = {
        name: weight * float(SCORERS[name](fleet, ranking.shape, at, chooser.outlook)[0])
        for name, weight in chooser.policy_on(row).weights.items()
    }
    return Score(fleet.id(row), fleet.name(row), float(ranking.cost[row]), parts)


def _refused(fleet: Fleet, ranking: Ranking) -> Rows:
    rows = np.flatnonzero((ranking.reason != GONE) & fleet.enabled[: fleet.size] & fleet.reachable[: fleet.size])
    return rows.astype(np.intp)


def _parts(fleet: Fleet, shape: Shape, rows: Rows) -> Floats:
    """(R, 4) how much of the cores, memory, disk and devices asked for each row has free, 0 to 1."""
    able = np.where(shape.accepted(fleet)[fleet.kind[rows]], fleet.gpus[rows], 0).sum(1) if shape.count else 0
    have = [fleet.cpu[rows], fleet.memory[rows], fleet.disk[rows], np.zeros(len(rows)) + able]
    want = [shape.cpu, shape.memory, shape.disk, shape.count * shape.share]
    parts = [np.clip(h / w, 0, 1) if w else np.ones(len(rows)) for h, w in zip(have, want, strict=True)]
    return np.column_stack(parts)


def _nearest(fleet: Fleet, ranking: Ranking) -> int | None:
    """The row that has most of what is asked for, of those that may be asked at all; else any."""
    rows = _refused(fleet, ranking)
    if not len(rows):
        rows = np.flatnonzero(ranking.reason != GONE).astype(np.intp)
    if not len(rows):
        return None
    return int(rows[_parts(fleet, ranking.shape, rows).sum(1).argmax()])


def _largest(chooser: Chooser, ranking: Ranking, needs: Needs) -> Needs | None:
    """The largest request of this form that some host would take."""
    rows = _refused(chooser.fleet, ranking)
    if not len(rows):
        return None
    likely = rows[np.argsort(-_parts(chooser.fleet, ranking.shape, rows).min(1), kind="stable")[:LOOKED_AT]]
    found = (largest_fit(chooser.fleet.provider(int(row)), needs) for row in likely)
    return max((one for one in found if one is not None), key=lambda one: (one.cores, one.memory), default=None)
