"""A snapshot of providers and a request in, a choice or a counted refusal out. Pure: no clock, no database, no network.

`Fleet` holds hosts as columns; a `Chooser` chooses on it under a `Policy`; `within` is the exact search on one host;
`partition` knows how devices are cut; `gang`, `preempt` and `explain` answer the larger questions; `simulate` runs it
all without a factory.
"""

from usina.placement.choose import Chooser, place
from usina.placement.fleet import Fleet
from usina.placement.mix import History, Mix
from usina.placement.policy import POLICIES, Policies, Policy, policy_of
from usina.placement.promises import Promises
from usina.placement.refusal import Refusal
from usina.placement.within import held_with, held_without, place_within

__all__ = [
    "POLICIES",
    "Chooser",
    "Fleet",
    "History",
    "Mix",
    "Policies",
    "Policy",
    "Promises",
    "Refusal",
    "held_with",
    "held_without",
    "place",
    "place_within",
    "policy_of",
]
