"""Partitions: least loss of what the profiles expected could use of a device, in devices (see `partition.worth`)."""

from __future__ import annotations

import numpy as np

from usina.placement.fleet import Fleet, Floats, Rows
from usina.placement.mix import Outlook
from usina.placement.shape import Shape
from usina.placement.slots import part_costs

UNTOLD = 2.0  # where the columns know no place; whether there is one, the exact search says


def cost(fleet: Fleet, shape: Shape, rows: Rows, outlook: Outlook) -> Floats:
    total: Floats = np.zeros(len(rows))
    for request in shape.others:
        if request.profile:
            total += np.minimum(part_costs(fleet, shape, request, rows, outlook).min(1), UNTOLD)
    return total
