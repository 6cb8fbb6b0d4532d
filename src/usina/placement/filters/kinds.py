"""Hosts without a device of the kind asked for, free or not."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from usina.core.capacity import DeviceKind, DeviceRequest
from usina.placement.fleet import Fleet, Mask, Rows
from usina.placement.shape import Shape
from usina.placement.within.devices import matches, wanted


def rule_out(fleet: Fleet, shape: Shape, rows: Rows) -> Iterator[tuple[str, Mask]]:
    for request in shape.needs.devices:
        yield f"have no {wanted(request)}", ~_has(fleet, request, rows)


def _has(fleet: Fleet, request: DeviceRequest, rows: Rows) -> Mask:
    if request.kind is DeviceKind.GPU:
        accepted = np.array([*(matches(device, request) for device in fleet.classes), False], np.bool_)
        some: Mask = np.asarray(accepted[fleet.kind[rows]].any(1))
        return some
    found = (any(matches(d, request) for d in fleet.inventory(row).devices) for row in rows.tolist())
    return np.fromiter(found, np.bool_, len(rows))
