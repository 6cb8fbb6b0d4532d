"""Near to, and apart from, resources and groups; at any level of the topology.

A host that is in no domain of the level asked for is near nobody and apart from everybody.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from usina.core.capacity import Affinity, Needs
from usina.placement.fleet import Fleet, Floats, Mask
from usina.placement.promises import Promises

PREFERRED = 1.0  # GPUs that a preferred affinity is worth


def close(fleet: Fleet, promises: Promises, needs: Needs) -> Iterator[tuple[str, Mask]]:
    for wish in needs.affinities:
        if not wish.required or (not wish.apart and wish.to in needs.groups and wish.to not in fleet.members):
            continue  # the first of a group that keeps together has nobody to be near to
        beside = _beside(fleet, wish)
        where = "" if wish.level == "host" else f" {wish.level}"
        yield (
            (f"share a{where or ' host'} with {wish.to}", beside)
            if wish.apart
            else (
                f"are not on the{where or ' host'} of {wish.to}",
                ~beside,
            )
        )


def cost(fleet: Fleet, needs: Needs) -> Floats | None:
    """What preferred affinities add to the cost of each row."""
    wishes = [wish for wish in needs.affinities if not wish.required]
    if not wishes:
        return None
    sides = [_beside(fleet, wish) if wish.apart else ~_beside(fleet, wish) for wish in wishes]
    cost: Floats = np.zeros(fleet.size)
    for side in sides:
        cost += PREFERRED * side
    return cost


def _beside(fleet: Fleet, wish: Affinity) -> Mask:
    domain = fleet.domain(wish.level)
    taken = {int(domain[row]) for row in fleet.members.get(wish.to, ())} - {-1}
    return np.isin(domain, list(taken))
