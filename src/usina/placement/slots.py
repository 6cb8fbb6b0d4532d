"""Which device of a host gives a share or a partition, and which give themselves whole."""

from __future__ import annotations

import numpy as np

from usina.core.capacity import DeviceRequest, Part
from usina.placement.fleet import WHOLE, Fleet, Floats, Rows
from usina.placement.mix import Outlook
from usina.placement.partition import UNKNOWN
from usina.placement.shape import Shape

LOSS = 10.0  # a device lost weighs so much more than a gap of a whole device


def slot_costs(fleet: Fleet, shape: Shape, rows: Rows, outlook: Outlook) -> Floats:
    """(R, G) what giving the share costs on each device: its loss of worth, then the gap left; inf if it cannot."""
    free = fleet.gpus[rows]
    able = (free >= shape.share) & shape.accepted(fleet)[fleet.kind[rows]]
    cost = LOSS * outlook.loss(free, shape.share) + (free - shape.share) / WHOLE
    return np.where(able, cost, np.inf)


def by_worth(fleet: Fleet, shape: Shape, row: int, outlook: Outlook) -> int:
    """The column of the device that loses least by giving the share."""
    return int(slot_costs(fleet, shape, np.array([row]), outlook)[0].argmin())


def tightest(fleet: Fleet, shape: Shape, row: int, outlook: Outlook) -> int:
    """The column of the device with the smallest gap that the share fits."""
    able = (fleet.gpus[row] >= shape.share) & shape.accepted(fleet)[fleet.kind[row]]
    return int(np.where(able, fleet.gpus[row], 2 * WHOLE).argmin())


def free_whole(fleet: Fleet, shape: Shape, row: int) -> list[int]:
    """The columns of the first free devices, as many as asked for."""
    able = (fleet.gpus[row] == WHOLE) & shape.accepted(fleet)[fleet.kind[row]]
    return np.flatnonzero(able)[: shape.count].tolist()  # type: ignore[no-any-return]


def part_costs(fleet: Fleet, shape: Shape, request: DeviceRequest, rows: Rows, outlook: Outlook) -> Floats:
    """(R, G) what one partition costs on each device, in devices of worth lost; inf where none can be had."""
    kind, number = fleet.kind[rows], fleet.slices[rows]
    costs: Floats = np.full(number.shape, np.inf)
    for cut in shape.cut_from(fleet, request):
        mine = np.where(kind == cut.number, number, UNKNOWN)  # its cost is infinite
        costs = np.minimum(costs, outlook.parts(cut.geometry).cost[cut.name][mine])
    return costs


def part(fleet: Fleet, shape: Shape, request: DeviceRequest, row: int, outlook: Outlook) -> Part | None:
    """The partition that costs least on one host; None where none can be had."""
    costs = part_costs(fleet, shape, request, np.array([row]), outlook)[0]
    slot = int(costs.argmin())
    if not np.isfinite(costs[slot]):
        return None
    cut = next(one for one in shape.cut_from(fleet, request) if one.number == fleet.kind[row, slot])
    start = int(outlook.parts(cut.geometry).start[cut.name][fleet.slices[row, slot]])
    return Part(fleet.gpus_of(row)[slot].address, profile=cut.name, start=start)
