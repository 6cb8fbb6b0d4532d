"""Hosts with maintenance announced in the time of the request."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from usina.core.capacity import Needs
from usina.placement.fleet import Fleet, Mask
from usina.placement.promises import Promises


def close(fleet: Fleet, promises: Promises, needs: Needs) -> Iterator[tuple[str, Mask]]:
    closed = [
        row
        for row, provider in fleet.maintained()
        if any(window.begins < needs.ends and needs.begins < window.ends for window in provider.terms.maintenance)
    ]
    if closed:
        mask = np.zeros(fleet.size, np.bool_)
        mask[closed] = True
        yield "have maintenance in that time", mask
