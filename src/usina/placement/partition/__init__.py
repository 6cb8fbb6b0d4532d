"""Parts of devices: what a model can be cut into, where a part goes, and how to cut a device up anew.

Pure. `geometry` reads the packaged rows, `states` knows every reachable occupancy of a device, `choose` places one part
among those taken, `tables` is the same as arrays, `cuts` numbers layouts and `worth` says what
they are worth, `moves` and `repartition` plan changes and carry out none.
"""

from usina.placement.partition.choose import (
    best_start,
    blocked,
    capacity_left,
    fragmentation,
    legal_starts,
    pick_start,
)
from usina.placement.partition.cuts import UNKNOWN, Cuts, cuts_of
from usina.placement.partition.geometry import Geometry, Placement, Profile, geometry_of, memory_of, resolve
from usina.placement.partition.layouts import maximal, placed
from usina.placement.partition.moves import Move, compact, moves_for
from usina.placement.partition.repartition import Repartition, plan_repartition
from usina.placement.partition.states import states_of
from usina.placement.partition.tables import Tables, tables
from usina.placement.partition.worth import Worth, worth_of

__all__ = [
    "UNKNOWN",
    "Cuts",
    "Geometry",
    "Move",
    "Placement",
    "Profile",
    "Repartition",
    "Tables",
    "Worth",
    "best_start",
    "blocked",
    "capacity_left",
    "compact",
    "cuts_of",
    "fragmentation",
    "geometry_of",
    "legal_starts",
    "maximal",
    "memory_of",
    "moves_for",
    "pick_start",
    "placed",
    "plan_repartition",
    "resolve",
    "states_of",
    "tables",
    "worth_of",
]
