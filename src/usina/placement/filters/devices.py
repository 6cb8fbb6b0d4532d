"""Enough free GPUs, whole or in shares, or room for one partition; what else is asked for the exact search knows."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from usina.core.capacity import DeviceRequest
from usina.placement.fleet import WHOLE, Fleet, Mask, Rows
from usina.placement.partition import UNKNOWN, cuts_of
from usina.placement.shape import Shape
from usina.placement.within.devices import wanted


def rule_out(fleet: Fleet, shape: Shape, rows: Rows) -> Iterator[tuple[str, Mask]]:
    if shape.gpu is not None:
        free = fleet.gpus[rows] * shape.accepted(fleet)[fleet.kind[rows]]
        slots = (free == WHOLE) if shape.share == WHOLE else free // shape.share
        yield _lacking(shape.gpu), np.less(slots.sum(1), shape.count)
    if shape.part is not None:
        yield _lacking(shape.part), ~_cuttable(fleet, shape, shape.part, rows)


def _cuttable(fleet: Fleet, shape: Shape, request: DeviceRequest, rows: Rows) -> Mask:
    kind, number = fleet.kind[rows], fleet.slices[rows]
    found: Mask = np.zeros(len(rows), np.bool_)
    for cut in shape.cut_from(fleet, request):
        found |= cuts_of(cut.geometry).fits[cut.name][np.where(kind == cut.number, number, UNKNOWN)].any(1)
    return found


def _lacking(request: DeviceRequest) -> str:
    name = wanted(request)
    return f"lack a free {name}" if request.count == 1 else f"lack {request.count} free {name}"
