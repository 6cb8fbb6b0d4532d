"""What makes one host better than another, an idea a file.

A scorer gives a cost to every row that fits a shape: less is better, 0 to about 1 where a host is a small matter, in
GPUs lost where GPUs are at stake. A policy weighs scorers by name. Adding one is adding a file with `cost`, and a line
here.
"""

from __future__ import annotations

from collections.abc import Callable

from usina.placement.fleet import Fleet, Floats, Rows
from usina.placement.mix import Outlook
from usina.placement.scorers import best_fit, cheap, dot_product, fgd, first_fit, fragmentation, pack, slices, spread
from usina.placement.shape import Shape

Scorer = Callable[[Fleet, Shape, Rows, Outlook], Floats]

SCORERS: dict[str, Scorer] = {
    "fragmentation": fragmentation.cost,
    "slices": slices.cost,
    "fgd": fgd.cost,
    "best-fit": best_fit.cost,
    "first-fit": first_fit.cost,
    "dot-product": dot_product.cost,
    "spread": spread.cost,
    "pack": pack.cost,
    "price": cheap.cost,
}

__all__ = ["SCORERS", "Scorer"]
