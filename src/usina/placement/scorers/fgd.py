"""Fragmentation gradient descent ("Beware of Fragmentation", USENIX ATC 2023): the published peer.

A host's fragmentation is the expected part of its idle GPUs that a typical request could not use: all of them if it
does not fit, else those with too little left each. The host (and the device in it) where this grows least is taken.
Requests without GPUs are part of the published mix and can use no GPU; they only add a constant, and are left out.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from usina.placement.fleet import WHOLE, Fleet, Floats, Ints, Rows
from usina.placement.mix import Outlook
from usina.placement.shape import Shape


def cost(fleet: Fleet, shape: Shape, rows: Rows, outlook: Outlook) -> Floats:
    before = _fragmented(fleet, outlook, rows, fleet.cpu[rows], fleet.memory[rows], fleet.gpus[rows])
    best: Floats = np.full(len(rows), np.inf)
    for free in _outcomes(fleet, shape, rows):
        able = free[:, 0] > -WHOLE
        after = _fragmented(fleet, outlook, rows, fleet.cpu[rows] - shape.cpu, fleet.memory[rows] - shape.memory, free)
        best = np.where(able, np.minimum(best, after - before), best)
    return best


def slot(fleet: Fleet, shape: Shape, row: int, outlook: Outlook) -> int:
    """The column of the device whose share leaves least fragmented."""
    rows = np.array([row])
    cpu, memory = fleet.cpu[rows] - shape.cpu, fleet.memory[rows] - shape.memory
    after = [
        float(_fragmented(fleet, outlook, rows, cpu, memory, free)[0]) if free[0, 0] > -WHOLE else np.inf
        for free in _outcomes(fleet, shape, rows)
    ]
    return int(np.argmin(after))


def _outcomes(fleet: Fleet, shape: Shape, rows: Rows) -> list[NDArray[np.int16]]:
    """What the devices could be left with; a first column of -1000 where this outcome cannot be."""
    free = fleet.gpus[rows]
    accepted = shape.accepted(fleet)[fleet.kind[rows]] if shape.count else None
    if accepted is None:
        return [free]
    if shape.share == WHOLE:
        able = (free == WHOLE) & accepted
        return [np.where(able & (able.cumsum(1) <= shape.count), 0, free).astype(np.int16)]
    outcomes = []
    for slot in range(free.shape[1]):
        after = free.copy()
        after[:, slot] -= shape.share
        after[~accepted[:, slot] | (after[:, slot] < 0), 0] = -WHOLE
        outcomes.append(after)
    return outcomes


def _fragmented(fleet: Fleet, outlook: Outlook, rows: Rows, cpu: Ints, memory: Ints, free: NDArray[np.int16]) -> Floats:
    total = np.maximum(free, 0).sum(1)
    whole = (free == WHOLE).sum(1)
    fragmented: Floats = np.zeros(len(rows))
    for share, types in outlook.by_share().items():
        if share == WHOLE:
            usable = np.where(whole[:, None] >= types.count, (whole * WHOLE)[:, None], 0)
        else:
            usable = np.where(free >= share, free, 0).sum(1)[:, None]
        fits = (cpu[:, None] >= types.cpu) & (memory[:, None] >= types.memory)
        weight = types.weight(fleet.kind[rows, 0])
        fragmented += (types.given * total[:, None] - weight * np.where(fits, usable, 0)).sum(1)
    return fragmented / WHOLE
