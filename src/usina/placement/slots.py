"""Which device of a host gives a share or a partition, and which give themselves whole."""

from __future__ import annotations

import numpy as np

from usina.core.capacity import DeviceRequest, Part
from usina.placement.fleet import WHOLE, Fleet, Floats, Rows
from usina.placement.mix import Outlook
from usina.placement.partition import UNKNOWN, geometry_of
from usina.placement.shape import Shape
from usina.placement.within.devices import matches
from usina.placement.within.partitions import canonical

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


def part_costs(fleet: Fleet, request: DeviceRequest, rows: Rows, outlook: Outlook) -> Floats:
    """(R, G) what one partition costs on each device, in devices of worth lost; inf where none can be had."""
    kind, cut = fleet.kind[rows], fleet.slices[rows]
    costs: Floats = np.full(cut.shape, np.inf)
    for number, device in enumerate(fleet.classes):
        name, geometry = canonical(device, request.profile or ""), geometry_of(device.model)
        if name is not None and geometry is not None and matches(device, request):
            mine = np.where(kind == number, cut, UNKNOWN)  # its cost is infinite
            costs = np.minimum(costs, outlook.parts(geometry).cost[name][mine])
    return costs


def part(fleet: Fleet, request: DeviceRequest, row: int, outlook: Outlook) -> Part | None:
    """The partition that costs least on one host."""
    costs = part_costs(fleet, request, np.array([row]), outlook)[0]
    slot = int(costs.argmin())
    device = fleet.gpus_of(row)[slot] if np.isfinite(costs[slot]) else None
    name, geometry = (canonical(device, request.profile or ""), geometry_of(device.model)) if device else (None, None)
    if device is None or name is None or geometry is None:
        return None
    return Part(device.address, profile=name, start=int(outlook.parts(geometry).start[name][fleet.slices[row, slot]]))
