"""Capacity promised to others in the time of the request. Who may be called back may borrow it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from usina.core.capacity import Needs
from usina.placement.fleet import Fleet, Mask
from usina.placement.promises import Promises
from usina.placement.within import place_within

PHRASE = "are reserved for others"


def close(fleet: Fleet, promises: Promises, needs: Needs) -> Iterator[tuple[str, Mask]]:
    if not promises.reservations:
        return
    closed = [
        row
        for row in promises.rows_against(fleet, needs)
        if isinstance(place_within(promises.as_seen_by(fleet, row, needs), needs), str)
    ]
    if closed:
        mask = np.zeros(fleet.size, np.bool_)
        mask[closed] = True
        yield PHRASE, mask
