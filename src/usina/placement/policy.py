"""Policies: weights of scorers, by name. An operator chooses one per provider group."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from usina.core.errors import Invalid
from usina.placement import slots
from usina.placement.fleet import Fleet, Floats, Rows
from usina.placement.mix import Outlook
from usina.placement.scorers import SCORERS, fgd
from usina.placement.shape import Shape

SlotPick = Callable[[Fleet, Shape, int, Outlook], int]

_SLOTS: Mapping[str, SlotPick] = {"fragmentation": slots.by_worth, "fgd": fgd.slot}
"""Scorers with an opinion on which device of a host gives a share; else the tightest does."""


SLOW = frozenset({"fragmentation", "fgd"})


@dataclass(frozen=True)
class Policy:
    """Scorers with weights; the cost of a host is the weighted sum."""

    name: str
    weights: Mapping[str, float]

    @property
    def is_slow(self) -> bool:
        """Whether it values hosts, which takes a hundred times as long as counting what is free."""
        return not SLOW.isdisjoint(self.weights)

    def cost(self, fleet: Fleet, shape: Shape, rows: Rows, outlook: Outlook) -> Floats:
        """(R) the cost of each row; less is better."""
        parts = [weight * SCORERS[name](fleet, shape, rows, outlook) for name, weight in self.weights.items()]
        return sum(parts[1:], parts[0])

    def slot(self, fleet: Fleet, shape: Shape, row: int, outlook: Outlook) -> int:
        heaviest = max(self.weights, key=lambda name: self.weights[name])
        return _SLOTS.get(heaviest, slots.tightest)(fleet, shape, row, outlook)


MOST = 1e9  # a weight at most
_TIE = 0.02  # enough to decide between equals, too little to decide anything else

POLICIES: Mapping[str, Policy] = {
    policy.name: policy
    for policy in (
        Policy("fragmentation", {"fragmentation": 1.0, "slices": 1.0, "best-fit": _TIE}),
        Policy("best-fit", {"best-fit": 1.0}),
        Policy("spread", {"spread": 1.0}),
        Policy("pack", {"pack": 1.0, "best-fit": _TIE}),
        Policy("cost", {"price": 1.0, "fragmentation": _TIE}),
        Policy("fgd", {"fgd": 1.0, "best-fit": 0.02}),
        Policy("dot-product", {"dot-product": 1.0}),
        Policy("first-fit", {"first-fit": 1.0}),
    )
}
DEFAULT = POLICIES["fragmentation"]


@dataclass(frozen=True)
class Policies:
    """The operator's choice: one policy, and others for some provider groups."""

    default: Policy = DEFAULT
    by_group: Mapping[str, Policy] = field(default_factory=dict)

    @staticmethod
    def of(texts: Iterable[str], field: str = "policy") -> Policies:
        """``cost`` is for everything, ``gpu:pack`` for the group "gpu". Raises `Invalid` naming `field`."""
        default, by_group = DEFAULT, {}
        for text in texts:
            group, colon, name = text.rpartition(":")
            if colon:
                by_group[group] = policy_of(name, field)
            else:
                default = policy_of(name, field)
        return Policies(default, by_group)


def policy_of(text: str, field: str = "policy") -> Policy:
    """A policy by name, or weights of scorers: ``fragmentation=1,price=0.2``. Raises `Invalid` naming `field`."""
    if text in POLICIES:
        return POLICIES[text]
    if "=" not in text:
        raise Invalid(f"{field}: there is no policy {text!r}; there are {', '.join(POLICIES)}", field=field)
    weights: dict[str, float] = {}
    for word in text.split(","):
        name, _, number = word.strip().partition("=")
        if name not in SCORERS:
            raise Invalid(f"{field}: there is no scorer {name!r}; there are {', '.join(SCORERS)}", field=field)
        weights[name] = _weight(number, field)
    return Policy(text, weights)


def _weight(text: str, field: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = float("nan")
    if not abs(weight) <= MOST:
        raise Invalid(f"{field}: {text!r} is not a weight", field=field)
    return weight
