"""Which device of a host gives a share, and which give themselves whole."""

from __future__ import annotations

import numpy as np

from usina.placement.fleet import WHOLE, Fleet, Floats, Rows
from usina.placement.mix import Outlook
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
