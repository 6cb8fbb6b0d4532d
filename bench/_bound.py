"""What no placement could exceed: relaxations of the placement experiment, solved as linear programmes by HiGHS.

Hosts alike are pooled, requests may be cut between pools, and cores and memory need only suffice in the pool as a
whole; devices are cut into shares by whole patterns, in any fractional number. Every real placement is feasible here,
so the optimum is a bound on it.

`bound` may refuse whatever it likes, knowing all requests beforehand: that is far more than a scheduler may, which must
take what fits when it comes. `alike` serves the same part of every form of request; it is not a bound, but tells what
a scheduler that cannot choose its customers could reach with no host ever spoiled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import coo_array

from usina.core.capacity import Needs, Provider
from usina.placement.fleet import WHOLE
from usina.placement.shape import Shape
from usina.placement.within.devices import matches


@dataclass
class _Programme:
    """Rows by name, columns as they come."""

    rows: dict[tuple[object, ...], int] = field(default_factory=dict)
    i: list[int] = field(default_factory=list)
    j: list[int] = field(default_factory=list)
    v: list[float] = field(default_factory=list)
    worth: list[float] = field(default_factory=list)

    def column(self, worth: float, entries: dict[tuple[object, ...], float]) -> int:
        for name, value in entries.items():
            self.i.append(self.rows.setdefault(name, len(self.rows)))
            self.j.append(len(self.worth))
            self.v.append(value)
        self.worth.append(worth)
        return len(self.worth) - 1


def bound(hosts: Sequence[Provider], requests: Sequence[Needs]) -> float:
    """Per cent of all GPUs that any placement of these requests allocates at most."""
    forms = Counter(requests)
    programme, limits = _placements(hosts, forms)
    limits |= {("form", number): float(count) for number, count in enumerate(forms.values())}
    matrix, right = _arrays(programme, limits)
    solved = linprog(-np.array(programme.worth), A_ub=matrix, b_ub=right, method="highs")
    return 100 * -float(solved.fun) / _gpus(hosts)


def alike(hosts: Sequence[Provider], requests: Sequence[Needs]) -> float:
    """Per cent allocated when the same part of every form is placed, as large as it may be."""
    forms = Counter(requests)
    programme, limits = _placements(hosts, forms)
    # A form that no host could ever take is served by nobody, and does not hold up the others.
    served = {("form", n): -float(c) for n, c in enumerate(forms.values()) if ("form", n) in programme.rows}
    part = programme.column(0.0, served)
    limits |= {("form", number): 0.0 for number in range(len(forms))}
    matrix, right = _arrays(programme, limits)
    equal = np.array([name[0] == "form" for name in programme.rows])
    objective = np.zeros(len(programme.worth))
    objective[part] = -1.0
    solved = linprog(
        objective, A_ub=matrix[~equal], b_ub=right[~equal], A_eq=matrix[equal], b_eq=right[equal], method="highs"
    )
    offered = sum(Shape(needs).count * Shape(needs).share * count for needs, count in forms.items()) / WHOLE
    return 100 * min(1.0, -float(solved.fun)) * offered / _gpus(hosts)


def _gpus(hosts: Sequence[Provider]) -> int:
    return sum(len(host.inventory.devices) for host in hosts)


def _placements(hosts: Sequence[Provider], forms: Counter[Needs]) -> tuple[_Programme, dict[tuple[object, ...], float]]:
    """A column for every form on every pool, and for every pattern a device of a pool may be cut by."""
    pools = Counter(id(host.inventory) for host in hosts)
    inventories = {id(host.inventory): host.inventory for host in hosts}
    programme, limits = _Programme(), {}
    shapes = [Shape(needs) for needs in forms]
    patterns = _patterns(sorted({shape.share for shape in shapes if shape.count and shape.share < WHOLE}))
    for pool, count in pools.items():
        inventory = inventories[pool]
        limits["cpu", pool] = count * inventory.cores
        limits["memory", pool] = count * inventory.memory / 2**30
        limits["gpu", pool] = count * len(inventory.devices)
        for number, shape in enumerate(shapes):
            if not _could(inventory, shape):
                continue
            entries: dict[tuple[object, ...], float] = {
                ("form", number): 1.0,
                ("cpu", pool): shape.cpu / 1000,
                ("memory", pool): shape.memory / 2**30,
            }
            if shape.count:
                whole = shape.share == WHOLE
                entries["gpu", pool] = shape.count if whole else 0.0
                entries["share", pool, shape.share] = 0.0 if whole else 1.0
            programme.column(shape.count * shape.share / WHOLE, {k: v for k, v in entries.items() if v})
        for pattern in patterns:
            programme.column(0.0, {("gpu", pool): 1.0} | {("share", pool, s): -float(n) for s, n in pattern.items()})
    limits |= {name: 0.0 for name in programme.rows if name[0] == "share"}
    return programme, limits


def _could(inventory: object, shape: Shape) -> bool:
    devices = inventory.devices  # type: ignore[attr-defined]
    if shape.cpu > 1000 * inventory.cores or shape.memory > inventory.memory:  # type: ignore[attr-defined]
        return False
    return shape.gpu is None or sum(matches(device, shape.gpu) for device in devices) >= shape.count


def _patterns(sizes: list[int]) -> list[dict[int, int]]:
    """Every way to cut a device to which nothing more can be added."""
    found: list[dict[int, int]] = []

    def cut(index: int, left: int, pattern: dict[int, int]) -> None:
        if index < 0:
            if left < sizes[0]:
                found.append({size: count for size, count in pattern.items() if count})
            return
        for count in range(left // sizes[index], -1, -1):
            cut(index - 1, left - count * sizes[index], {**pattern, sizes[index]: count})

    if sizes:
        cut(len(sizes) - 1, WHOLE, {})
    return found


def _arrays(programme: _Programme, limits: dict[tuple[object, ...], float]) -> tuple[coo_array, np.ndarray]:  # type: ignore[type-arg]
    shape = len(programme.rows), len(programme.worth)
    right = np.array([limits[name] for name in programme.rows])
    return coo_array((programme.v, (programme.i, programme.j)), shape=shape).tocsr(), right
