"""Least loss of what the expected mix could use: the host's worth before less its worth after (see `mix`)."""

from __future__ import annotations

import numpy as np

from usina.placement.fleet import WHOLE, Fleet, Floats, Rows
from usina.placement.mix import BLOCK, Outlook
from usina.placement.shape import Shape
from usina.placement.slots import slot_costs

LEFTOVER = 0.05  # GPUs that a gap of one whole device counts, so that of equal losses the tightest fit is taken


def cost(fleet: Fleet, shape: Shape, rows: Rows, outlook: Outlook) -> Floats:
    if not fleet.classes:
        return np.zeros(len(rows))
    cpu, memory, free = fleet.cpu[rows], fleet.memory[rows], fleet.gpus[rows]
    if not shape.count and not free.any():
        return np.zeros(len(rows))  # nothing there that could be lost
    usable, whole = outlook.usable(free), (free == WHOLE).sum(1)
    usable_after, whole_after = usable, whole
    leftover: Floats | float = 0.0
    if shape.share == WHOLE:
        usable_after = usable - shape.count * outlook.gaps[WHOLE]
        whole_after = whole - shape.count
    elif shape.count:
        slot = slot_costs(fleet, shape, rows, outlook).argmin(1)
        gap = free[np.arange(len(rows)), slot]
        after = np.maximum(gap - shape.share, 0)
        usable_after = usable - outlook.gaps[gap] + outlook.gaps[after]
        whole_after = whole - (gap == WHOLE)
        leftover = LEFTOVER / WHOLE * after
    if len(rows) > BLOCK:
        later = outlook.value(rows, cpu - shape.cpu, memory - shape.memory, usable_after, whole_after)
        return outlook.worth(rows) - later + leftover
    both = outlook.value(  # before and after in one go: for a few rows, calls cost more than sums
        np.concatenate([rows, rows]),
        np.concatenate([cpu, cpu - shape.cpu]),
        np.concatenate([memory, memory - shape.memory]),
        np.concatenate([usable, usable_after]),
        np.concatenate([whole, whole_after]),
    )
    cost: Floats = both[: len(rows)] - both[len(rows) :] + leftover
    return cost
