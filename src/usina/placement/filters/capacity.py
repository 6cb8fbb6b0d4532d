"""Cores, memory and disk, by totals."""

from __future__ import annotations

from collections.abc import Iterator

from usina.placement.fleet import Fleet, Mask, Rows
from usina.placement.shape import Shape


def rule_out(fleet: Fleet, shape: Shape, rows: Rows) -> Iterator[tuple[str, Mask]]:
    if not (shape.needs.pinned or shape.needs.whole_cores):  # what whole cores cost, the exact search knows
        yield "lack cores", fleet.cpu[rows] < shape.cpu
    if not shape.needs.hugepage:
        yield "lack memory", fleet.memory[rows] < shape.memory
    if shape.disk:
        yield "lack disk", fleet.disk[rows] < shape.disk
