"""One host: the exact claim for a request on it, what taking it leaves, and what is lacking where it does not fit."""

from usina.placement.within.explain import largest_fit, nearest_miss
from usina.placement.within.holding import held_with, held_without
from usina.placement.within.search import place_within

__all__ = ["held_with", "held_without", "largest_fit", "nearest_miss", "place_within"]
