"""Traits required and forbidden."""

from __future__ import annotations

from collections.abc import Iterator

from usina.placement.fleet import Fleet, Mask, Rows
from usina.placement.shape import Shape


def rule_out(fleet: Fleet, shape: Shape, rows: Rows) -> Iterator[tuple[str, Mask]]:
    needs = shape.needs
    for trait in sorted(needs.traits):
        yield f"lack {trait}", ~fleet.trait(trait)[rows]
    for trait in sorted(needs.forbidden):
        yield f"have {trait}, which is forbidden", fleet.trait(trait)[rows]
    if (needs.pinned or needs.whole_cores) and "pinning" not in needs.traits:
        yield "lack pinning", ~fleet.trait("pinning")[rows]
