"""Every host held against one form of request, and kept up to date as hosts change.

A ranking remembers, for every row, the first reason against it or its cost. Before each choice only rows that changed
since the last one are looked at again, which is what makes thousands of decisions a second possible. Sums are over
rows that are present, so the counts of a refusal add up to the number of hosts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from usina.placement.filters import LASTING, PASSING, Filter
from usina.placement.fleet import Fleet, Floats, Mask, Rows
from usina.placement.mix import Outlook
from usina.placement.policy import Policy
from usina.placement.shape import Shape

MANY = 2048  # hosts priced at once under a slow policy: the fullest at first, the rest by and by
FITS = 0
GONE = -1


class Ranking:
    """Of one shape. `reason` and `cost` are columns as long as the fleet's."""

    def __init__(self, fleet: Fleet, shape: Shape, policies: Mapping[int, Policy], outlook: Outlook) -> None:
        self._fleet, self.shape, self._policies, self._outlook = fleet, shape, policies, outlook
        self._phrases: list[str] = [""]
        self._number: dict[str, int] = {"": FITS}
        self._mark = -1
        self._settled = -1
        self._barred = np.zeros(0, np.int16)  # the reasons that claims do not change
        self._later = np.zeros(0, np.intp)  # rows that fit, and are priced when there is time
        self.reason = np.zeros(0, np.int16)
        self.cost = np.zeros(0, np.float64)

    def refresh(self) -> None:
        """Look again at what changed."""
        fleet = self._fleet
        if self._mark < 0 or len(self.reason) != fleet.size:
            self.reason = np.full(fleet.size, GONE, np.int16)
            self.cost = np.full(fleet.size, np.inf)
            self._barred = np.full(fleet.size, GONE, np.int16)
            self._settled = -1
            self._later = np.zeros(0, np.intp)
            self._look(np.arange(fleet.size))
        else:
            if self._mark != fleet.now:
                self._look(fleet.changed_since(self._mark))
            if len(self._later):
                self._price_later(MANY)
        self._mark = fleet.now

    def settle(self) -> None:
        """Price what was left for later."""
        while len(self._later):
            self._price_later(MANY)

    def best(self, open_to: Mask | None = None, extra: Floats | None = None) -> int | None:
        """The row that costs least, with `extra` added, of those in `open_to`; None if none fits."""
        if not len(self.cost):
            return None
        if len(self._later) and not (open_to is None and extra is None):
            self.settle()
        cost = self._costs(open_to, extra)
        row = int(cost.argmin())
        if not np.isfinite(cost[row]) and len(self._later):
            self.settle()
            row = int(self.cost.argmin())
            cost = self.cost
        return row if np.isfinite(cost[row]) else None

    def order(self, count: int, open_to: Mask | None = None, extra: Floats | None = None) -> list[int]:
        """The `count` best rows, best first, as `best` sees them."""
        self.settle()
        count = min(count, len(self.cost))
        if not count:
            return []
        cost = self._costs(open_to, extra)
        some = np.argpartition(cost, count - 1)[:count]
        return [int(row) for row in some[np.argsort(cost[some], kind="stable")] if np.isfinite(cost[row])]

    def _costs(self, open_to: Mask | None, extra: Floats | None) -> Floats:
        cost = self.cost if open_to is None else np.where(open_to, self.cost, np.inf)
        return cost if extra is None else cost + extra

    def askable(self) -> Mask:
        """Rows against which the operator and the inventory say nothing, however full they are."""
        open_to: Mask = self._barred == FITS
        return open_to

    def rule_out(self, row: int, reason: str) -> None:
        """What the exact search found against a row; true until the row changes."""
        self.reason[row] = self._numbered(reason)
        self.cost[row] = np.inf

    def reasons(self, closed: Mapping[str, Mask] | None = None) -> Counter[str]:
        """Reason -> hosts. `closed` are reasons that come after those of the rows themselves."""
        left = self._fleet.present[: self._fleet.size].copy()
        counted: Counter[str] = Counter()
        numbers, amounts = np.unique(self.reason[left], return_counts=True)
        for number, amount in zip(numbers.tolist(), amounts.tolist(), strict=True):
            if number > FITS:
                counted[self._phrases[number]] += amount
        left &= self.reason == FITS
        for phrase, rows in (closed or {}).items():
            counted[phrase] += int((left & rows).sum())
            left &= ~rows
        return +counted

    def _look(self, rows: Rows) -> None:
        if self._settled != self._fleet.settled:
            self._settled = self._fleet.settled
            self._barred[rows] = GONE
            here = rows[self._fleet.present[rows]]
            self._barred[here] = FITS
            self._rule_out(self._barred, here, LASTING)
        self.cost[rows] = np.inf
        self.reason[rows] = self._barred[rows]
        rows = rows[self._barred[rows] == FITS]
        if len(rows):
            self._price(self._rule_out(self.reason, rows, PASSING))

    def _rule_out(self, reason: NDArray[np.int16], rows: Rows, filters: Sequence[Filter]) -> Rows:
        """Notes the first reason against each row; gives the rows that are left."""
        for rule_out in filters:
            left: Mask | None = None
            for phrase, against in rule_out(self._fleet, self.shape, rows):
                new = against if left is None else against & left
                if np.count_nonzero(new):
                    reason[rows[new]] = self._numbered(phrase)
                    left = ~new if left is None else left & ~new
            if left is not None:
                rows = rows[left]
        return rows

    def _price_later(self, count: int) -> None:
        """Price the next `count` of the rows left over, but for those looked at meanwhile."""
        rows, self._later = self._later[:count], self._later[count:]
        self._price(rows[(self.reason[rows] == FITS) & np.isinf(self.cost[rows])])

    def _price(self, rows: Rows) -> None:
        if len(rows) > MANY and self._fleet.classes and any(policy.is_slow for policy in self._policies.values()):
            free = self._fleet.gpus[rows].sum(1)
            order = np.argsort(free, kind="stable")
            rows, self._later = rows[order[:MANY]], np.concatenate([rows[order[MANY:]], self._later])
        groups = self._fleet.group[rows]
        for number in np.unique(groups).tolist() if len(self._policies) > 1 else [0]:
            mine = rows[groups == number] if len(self._policies) > 1 else rows
            policy = self._policies.get(number, self._policies[0])
            if len(mine):
                self.cost[mine] = policy.cost(self._fleet, self.shape, mine, self._outlook)

    def _numbered(self, phrase: str) -> int:
        number = self._number.setdefault(phrase, len(self._phrases))
        if number == len(self._phrases):
            self._phrases.append(phrase)
        return number
