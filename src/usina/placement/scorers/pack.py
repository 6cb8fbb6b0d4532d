"""Hosts that are used already, the fullest first; whole hosts stay free, to be lent, drained or switched off."""

from __future__ import annotations

import numpy as np

from usina.placement.fleet import WHOLE, Fleet, Floats, Rows
from usina.placement.mix import Outlook
from usina.placement.shape import Shape


def cost(fleet: Fleet, shape: Shape, rows: Rows, outlook: Outlook) -> Floats:
    free = [
        fleet.cpu[rows] / np.maximum(fleet.all_cpu[rows], 1),
        fleet.memory[rows] / np.maximum(fleet.all_memory[rows], 1),
        fleet.gpus[rows].sum(1) / np.maximum(WHOLE * fleet.count[rows].astype(np.int64), 1),
    ]
    return np.minimum.reduce([np.where(part < 1, part, 1.0) for part in free]) + 1.0 * (np.minimum.reduce(free) >= 1)  # type: ignore[no-any-return]
