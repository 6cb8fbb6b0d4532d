"""The first host that fits, in the order hosts were added."""

from __future__ import annotations

from usina.placement.fleet import Fleet, Floats, Rows
from usina.placement.mix import Outlook
from usina.placement.shape import Shape


def cost(fleet: Fleet, shape: Shape, rows: Rows, outlook: Outlook) -> Floats:
    return rows / max(fleet.size, 1)
