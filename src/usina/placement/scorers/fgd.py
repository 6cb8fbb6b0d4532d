"""Fragmentation gradient descent ("Beware of Fragmentation", USENIX ATC 2023): the published peer.

A host's fragmentation is the expected part of its idle GPUs that a typical request could not use: all of them if it
does not fit, else those with too little left each. The host (and the device in it) where this grows least is taken.
Requests without GPUs are part of the published mix and can use no GPU; they only add a constant, and are left out.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from usina.placement.fleet import WHOLE, Fleet, Floats, Ints, Mask, Rows
from usina.placement.mix import Outlook
from usina.placement.shape import Shape


def cost(fleet: Fleet, shape: Shape, rows: Rows, outlook: Outlook) -> Floats:
    before = _fragmented(fleet, outlook, rows, fleet.cpu[rows], fleet.memory[rows], fleet.gpus[rows])
    return _after(fleet, shape, rows, outlook).min(1) - before  # type: ignore[no-any-return]


def slot(fleet: Fleet, shape: Shape, row: int, outlook: Outlook) -> int:
    """The column of the device whose share leaves least fragmented."""
    return int(_after(fleet, shape, np.array([row]), outlook)[0].argmin())


def _after(fleet: Fleet, shape: Shape, rows: Rows, outlook: Outlook) -> Floats:
    """(R, K) how fragmented each row is after each of K ways to serve the shape there; inf where it cannot be."""
    free, able = _outcomes(fleet, shape, rows)
    ways = able.shape[1]
    again = np.repeat(rows, ways)
    cpu, memory = fleet.cpu[again] - shape.cpu, fleet.memory[again] - shape.memory
    after = _fragmented(fleet, outlook, again, cpu, memory, free.reshape(len(again), -1))
    return np.where(able, after.reshape(len(rows), ways), np.inf)


def _outcomes(fleet: Fleet, shape: Shape, rows: Rows) -> tuple[NDArray[np.int16], Mask]:
    """(R, K, G) what the devices could be left with in K ways, and (R, K) which of these there are."""
    free = fleet.gpus[rows]
    if not shape.count:
        return free[:, None], np.ones((len(rows), 1), np.bool_)
    accepted = shape.accepted(fleet)[fleet.kind[rows]]
    if shape.share == WHOLE:
        able = (free == WHOLE) & accepted
        taken = able & (able.cumsum(1) <= shape.count)
        return np.where(taken, 0, free).astype(np.int16)[:, None], np.ones((len(rows), 1), np.bool_)
    ways = free[:, None] - shape.share * np.eye(free.shape[1], dtype=np.int16)
    return np.maximum(ways, 0).astype(np.int16), accepted & (free >= shape.share)


def _fragmented(fleet: Fleet, outlook: Outlook, rows: Rows, cpu: Ints, memory: Ints, free: NDArray[np.int16]) -> Floats:
    total, whole = free.sum(1), (free == WHOLE).sum(1)
    fragmented: Floats = np.zeros(len(rows))
    for share, types in outlook.by_share().items():
        if share == WHOLE:
            usable = np.where(whole[:, None] >= types.count, (whole * WHOLE)[:, None], 0)
        else:
            usable = np.where(free >= share, free, 0).sum(1)[:, None]
        fits = (cpu[:, None] >= types.cpu) & (memory[:, None] >= types.memory)
        weight = types.weight(fleet.kind[rows, 0])
        fragmented += types.given.sum() * total - (weight * np.where(fits, usable, 0)).sum(1)
    return fragmented / WHOLE
