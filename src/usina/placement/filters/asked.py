"""Only the host asked for."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from usina.placement.fleet import Fleet, Mask, Rows
from usina.placement.shape import Shape


def rule_out(fleet: Fleet, shape: Shape, rows: Rows) -> Iterator[tuple[str, Mask]]:
    host = shape.needs.host
    if host is not None:
        names = (host in (fleet.id(row), fleet.name(row)) for row in rows.tolist())
        yield "are not the host asked for", ~np.fromiter(names, np.bool_, len(rows))
