"""Hosts that the operator keeps for certain tenants."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from usina.placement.fleet import Fleet, Mask, Rows
from usina.placement.shape import Shape


def rule_out(fleet: Fleet, shape: Shape, rows: Rows) -> Iterator[tuple[str, Mask]]:
    if len(fleet.tenants) > 1:
        tenant = shape.needs.tenant
        closed = np.array([bool(tenants) and tenant not in tenants for tenants in fleet.tenants])
        yield "are dedicated to others", closed[fleet.terms[rows]]
