"""The host whose free capacity points where the request does ("Multi-resource packing", SIGCOMM 2014)."""

from __future__ import annotations

import numpy as np

from usina.placement.fleet import WHOLE, Fleet, Floats, Rows
from usina.placement.mix import Outlook
from usina.placement.shape import Shape


def cost(fleet: Fleet, shape: Shape, rows: Rows, outlook: Outlook) -> Floats:
    all_cpu, all_memory = np.maximum(fleet.all_cpu[rows], 1), np.maximum(fleet.all_memory[rows], 1)
    all_gpus = np.maximum(WHOLE * fleet.count[rows].astype(np.int64), 1)
    aligned = (
        fleet.cpu[rows] / all_cpu * (shape.cpu / all_cpu)
        + fleet.memory[rows] / all_memory * (shape.memory / all_memory)
        + fleet.gpus[rows].sum(1) / all_gpus * (shape.count * shape.share / all_gpus)
    )
    return 1.0 - aligned / 3  # type: ignore[no-any-return]
