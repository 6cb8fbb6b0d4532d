"""The cheapest host, by the price of the part of it that is taken; 1.0 is one credit an hour."""

from __future__ import annotations

import numpy as np

from usina.placement.fleet import WHOLE, Fleet, Floats, Rows
from usina.placement.mix import Outlook
from usina.placement.shape import Shape

CREDIT = 1_000_000  # micro-credits


def cost(fleet: Fleet, shape: Shape, rows: Rows, outlook: Outlook) -> Floats:
    cpu = shape.cpu / np.maximum(fleet.all_cpu[rows], 1)
    memory = shape.memory / np.maximum(fleet.all_memory[rows], 1)
    gpus = shape.count * shape.share / np.maximum(WHOLE * fleet.count[rows].astype(np.int64), 1)
    return np.maximum(np.maximum(cpu, memory), gpus) * fleet.price[rows] / CREDIT
