"""Enough free GPUs, whole or in shares; of what else is asked for, the exact search knows."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from usina.core.capacity import DeviceRequest
from usina.placement.fleet import WHOLE, Fleet, Mask, Rows
from usina.placement.shape import Shape
from usina.placement.within.devices import wanted


def rule_out(fleet: Fleet, shape: Shape, rows: Rows) -> Iterator[tuple[str, Mask]]:
    if shape.gpu is not None:
        free = fleet.gpus[rows] * shape.accepted(fleet)[fleet.kind[rows]]
        slots = (free == WHOLE) if shape.share == WHOLE else free // shape.share
        yield _lacking(shape.gpu), np.less(slots.sum(1), shape.count)


def _lacking(request: DeviceRequest) -> str:
    name = wanted(request)
    return f"lack a free {name}" if request.count == 1 else f"lack {request.count} free {name}"
