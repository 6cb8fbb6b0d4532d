"""The emptiest host first."""

from __future__ import annotations

from usina.placement.fleet import Fleet, Floats, Rows
from usina.placement.mix import Outlook
from usina.placement.scorers import best_fit
from usina.placement.shape import Shape


def cost(fleet: Fleet, shape: Shape, rows: Rows, outlook: Outlook) -> Floats:
    return 1.0 - best_fit.cost(fleet, shape, rows, outlook)
