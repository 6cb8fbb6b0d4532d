"""Why a host cannot be had, an idea a file.

A filter looks at a shape and some rows and yields (reason, which rows it rules out): reasons are short phrases that
follow a number of hosts. The first filter that rules a row out names the reason, so the order here is what people read.
All of these depend on the row alone, so that their answers can be kept until the row changes: those of `LASTING` until
the operator or the inventory changes it, those of `PASSING` until a claim does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from usina.placement.filters import asked, capacity, dedicated, devices, kinds, standing, traits
from usina.placement.fleet import Fleet, Mask, Rows
from usina.placement.shape import Shape

Filter = Callable[[Fleet, Shape, Rows], Iterator[tuple[str, Mask]]]

LASTING: tuple[Filter, ...] = (asked.rule_out, standing.rule_out, dedicated.rule_out, traits.rule_out, kinds.rule_out)
PASSING: tuple[Filter, ...] = (capacity.rule_out, devices.rule_out)

__all__ = ["LASTING", "PASSING", "Filter"]
