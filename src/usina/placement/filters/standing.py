"""Hosts that take nothing new, or do not answer."""

from __future__ import annotations

from collections.abc import Iterator

from usina.placement.fleet import Fleet, Mask, Rows
from usina.placement.shape import Shape


def rule_out(fleet: Fleet, shape: Shape, rows: Rows) -> Iterator[tuple[str, Mask]]:
    draining = fleet.draining[rows]
    yield "are cordoned", ~fleet.enabled[rows] & ~draining
    yield "are draining", draining
    yield "do not answer", ~fleet.reachable[rows]
