"""Least left over: cores, memory and devices weigh alike, each as a part of all the host has."""

from __future__ import annotations

import numpy as np

from usina.placement.fleet import WHOLE, Fleet, Floats, Rows
from usina.placement.mix import Outlook
from usina.placement.shape import Shape


def cost(fleet: Fleet, shape: Shape, rows: Rows, outlook: Outlook) -> Floats:
    cpu = (fleet.cpu[rows] - shape.cpu) / np.maximum(fleet.all_cpu[rows], 1)
    memory = (fleet.memory[rows] - shape.memory) / np.maximum(fleet.all_memory[rows], 1)
    if not fleet.classes:
        return (cpu + memory) / 3
    free = fleet.gpus[rows].sum(1) - shape.count * shape.share
    gpus = free / np.maximum(WHOLE * fleet.count[rows].astype(np.int64), 1)
    wasted = free / WHOLE if not shape.count else 0.0  # who needs no devices goes where none lie idle
    return (cpu + memory + gpus) / 3 + wasted  # type: ignore[no-any-return]
