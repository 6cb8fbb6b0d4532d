"""Partitions: least growth of what the default mix of profiles could not use of a device, in devices."""

from __future__ import annotations

import numpy as np

from usina.placement.fleet import Fleet, Floats, Rows
from usina.placement.mix import Outlook
from usina.placement.partition import geometry_of, resolve, tables
from usina.placement.shape import Shape
from usina.placement.within.devices import matches

OPENED = 0.02  # devices that a device not yet cut counts, so that of equal losses one in use is taken
UNTOLD = 2.0  # where the tables know no place; whether there is one, the exact search says


def cost(fleet: Fleet, shape: Shape, rows: Rows, outlook: Outlook) -> Floats:
    total: Floats = np.zeros(len(rows))
    for request in shape.others:
        if request.profile:
            best: Floats = np.full(len(rows), UNTOLD)
            for number, device in enumerate(fleet.classes):
                geometry = geometry_of(device.model)
                name = resolve(geometry, request.profile) if geometry else None
                if geometry is None or name is None or not matches(device, request):
                    continue
                known = tables(geometry)
                if name not in known.profiles:
                    continue
                mask = np.where(fleet.kind[rows] == number, fleet.slices[rows], -1)
                after = known.best_mask[known.row(name)][np.maximum(mask, 0)]
                grown = known.fragmentation[np.maximum(after, 0)] - known.fragmentation[np.maximum(mask, 0)]
                grown += OPENED * (mask == 0)
                best = np.minimum(best, np.where((mask >= 0) & (after >= 0), grown, UNTOLD).min(1))
            total += best
    return total
