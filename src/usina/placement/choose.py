"""The choice: a claim on the best host, or a counted refusal.

A chooser holds requests against a fleet under the operator's policies. Requests of one form share a `Ranking`, kept
from one choice to the next. The best row gives the claim: from columns where totals say all, else by the exact search
within the host, which may send the choice on to the next best.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np

from usina.core.capacity import Claim, Needs, Part, Provider
from usina.placement import slots
from usina.placement.fleet import WHOLE, Fleet, Mask
from usina.placement.mix import USUAL, Mix, Outlook
from usina.placement.policy import DEFAULT, Policy
from usina.placement.promises import Promises
from usina.placement.ranking import Ranking
from usina.placement.refusal import Refusal
from usina.placement.rules import RULES, affinity
from usina.placement.shape import Shape, form_of
from usina.placement.within import place_within
from usina.placement.within.devices import wanted

CELLS = 12_000_000  # rows × rankings kept at most
RANKINGS = 2_048  # forms of requests remembered at most, however few the hosts


class Chooser:
    """Chooses on `fleet`; take what it answers with `fleet.take` before choosing again."""

    def __init__(
        self,
        fleet: Fleet,
        policy: Policy = DEFAULT,
        *,
        by_group: Mapping[str, Policy] | None = None,
        mix: Mix = USUAL,
        promises: Promises | None = None,
    ) -> None:
        self.fleet, self.policy = fleet, policy
        self.promises = promises or Promises()
        self._by_group = by_group or {}
        self._numbered: dict[int, Policy] = {}  # number of a provider group -> its policy; rankings look in it
        self.outlook = Outlook(fleet, mix)
        self._rankings: dict[tuple[Needs, str], Ranking] = {}

    def expect(self, mix: Mix) -> None:
        """Choose for another mix from now on."""
        self.outlook = Outlook(self.fleet, mix)
        self._rankings.clear()

    def choose(self, needs: Needs) -> Claim | Refusal:
        """The claim for `needs` that costs least, or why there is none."""
        ranking = self.ranking(needs)
        closed = self.closed(needs)
        open_to = ~np.logical_or.reduce(list(closed.values())) if closed else None
        extra = affinity.cost(self.fleet, needs)
        while (row := ranking.best(open_to, extra)) is not None:
            found = self.claim_on(row, ranking.shape, needs)
            if isinstance(found, Claim):
                return found
            ranking.rule_out(row, found)
        return Refusal(ranking.reasons(closed))

    @property
    def minds_time(self) -> bool:
        """Whether it matters when a request begins and ends."""
        return bool(self.promises.reservations) or self.fleet.has_maintenance

    def ranking(self, needs: Needs) -> Ranking:
        """All rows held against the form of `needs`, up to date."""
        form = form_of(needs)
        key = (form, needs.tenant if len(self.fleet.tenants) > 1 else "")
        ranking = self._rankings.pop(key, None)
        if ranking is None:
            most = min(RANKINGS, CELLS // max(self.fleet.size, 1))
            while self._rankings and len(self._rankings) >= most:
                del self._rankings[next(iter(self._rankings))]
            shape = Shape(replace(form, tenant=key[1]))
            ranking = Ranking(self.fleet, shape, self._numbered, self.outlook)
        self._rankings[key] = ranking  # last used, last forgotten
        self._policies()
        ranking.refresh()
        return ranking

    def closed(self, needs: Needs) -> dict[str, Mask]:
        """Reason -> rows that rules keep from this request."""
        return {phrase: rows for rule in RULES for phrase, rows in rule(self.fleet, self.promises, needs)}

    def claim_on(self, row: int, shape: Shape, needs: Needs) -> Claim | str:
        """The claim on one row, or the first reason against it."""
        if not shape.plain or (shape.share == WHOLE and not self.fleet.plain[row]) or self.promises.reservations:
            return place_within(self.promises.as_seen_by(self.fleet, row, needs), needs)
        devices: tuple[str, ...] = ()
        if shape.part is not None:
            part = slots.part(self.fleet, shape, shape.part, row, self.outlook)
            if part is None:
                return f"lack a free {wanted(shape.part)}"
            devices = (str(part),)
        if shape.count:
            gpus = self.fleet.gpus_of(row)
            if shape.share == WHOLE:
                devices = tuple(gpus[slot].address for slot in slots.free_whole(self.fleet, shape, row))
            else:
                slot = self.policy_on(row).slot(self.fleet, shape, row, self.outlook)
                devices = (str(Part(gpus[slot].address, share=shape.share)),)
        return Claim(self.fleet.id(row), needs.cores, needs.memory, needs.disk, devices=devices)

    def policy_on(self, row: int) -> Policy:
        """The policy of the provider group that a row is in."""
        if not self._by_group:
            return self.policy
        return self._policies().get(int(self.fleet.group[row]), self.policy)

    def _policies(self) -> dict[int, Policy]:
        if not self._by_group:
            self._numbered[0] = self.policy
        elif len(self._numbered) != len(self.fleet.groups):
            self._numbered |= {n: self._by_group.get(name, self.policy) for name, n in self.fleet.groups.items()}
        return self._numbered


def place(providers: Iterable[Provider], needs: Needs) -> Claim | Refusal:
    """The best claim for one request over `providers`, or a refusal with counts."""
    return Chooser(Fleet(providers)).choose(needs)
