"""Advance reservations: capacity promised for a window, lent meanwhile, and called back in time.

A reservation is a set of claims that nobody holds yet. To every request that overlaps its window they look taken,
except to its own tenant, and to preemptible requests, which may borrow what lies idle. When the window begins,
`callbacks` names who must give way. Whoever uses a reservation holds its claims in its name: the reservation's id is
one of the holding's groups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from usina.core.capacity import Claim, Holding, Needs, Part, Provider, Reservation
from usina.core.units import Instant
from usina.placement.exact import is_free
from usina.placement.fleet import Fleet
from usina.placement.within import held_with, held_without


class Promises:
    """The reservations that placement must respect."""

    def __init__(self, reservations: Iterable[Reservation] = ()) -> None:
        self.reservations: dict[str, Reservation] = {one.id: one for one in reservations}

    def add(self, reservation: Reservation) -> None:
        self.reservations[reservation.id] = reservation

    def drop(self, id: str) -> None:
        self.reservations.pop(id, None)

    def against(self, needs: Needs) -> Iterator[Reservation]:
        """Reservations of others that overlap the request's time; none for a request that may be called back."""
        for one in () if needs.preemptible else self.reservations.values():
            if one.tenant != needs.tenant and one.window.begins < needs.ends and needs.begins < one.window.ends:
                yield one

    def rows_against(self, fleet: Fleet, needs: Needs) -> list[int]:
        hosts = {claim.provider for one in self.against(needs) for claim in one.claims}
        return sorted(fleet.rows[host] for host in hosts if host in fleet.rows)

    def as_seen_by(self, fleet: Fleet, row: int, needs: Needs) -> Provider:
        """The host as a request sees it: what is promised to others and not yet used by them is taken."""
        provider = fleet.provider(row)
        for one in self.against(needs):
            for claim in unused(fleet, one, provider.id):
                provider = held_with(provider, claim)
        return provider

    def callbacks(self, fleet: Fleet, reservation: Reservation, now: Instant) -> tuple[Holding, ...]:
        """Who must give way for `reservation` to have all it was promised, once its window has begun; else nobody.

        Only preemptible holdings do, and no more of them than all reservations that have begun need together. What
        cannot be freed, for others hold it by right, is passed over.
        """
        if not reservation.window.begins <= now < reservation.window.ends:
            return ()
        begun = {one.id: one for one in self.reservations.values() if one.window.begins <= now < one.window.ends}
        order = sorted((begun | {reservation.id: reservation}).values(), key=lambda one: (one.window.begins, one.id))
        hosts = sorted({claim.provider for claim in reservation.claims} & fleet.rows.keys())
        return tuple(h for host in hosts for h in _called_back(fleet, order, host)[order.index(reservation)])


def unused(fleet: Fleet, reservation: Reservation, host: str) -> list[Claim]:
    """The claims of a reservation on a host, less those that holdings in its name use there."""
    left = [claim for claim in reservation.claims if claim.provider == host]
    if reservation.id not in fleet.members:
        return left
    users = [h.claim for h in fleet.holdings.values() if h.claim.provider == host and reservation.id in h.groups]
    for alike in _ALIKE:
        for claim in list(users):
            match = next((one for one in left if alike(one, claim)), None)
            if match is not None:
                left.remove(match)
                users.remove(claim)
    return left


def _overlap(one: Claim, other: Claim) -> bool:
    return bool(set(one.cpus) & set(other.cpus) or _addresses(one) & _addresses(other))


def _addresses(claim: Claim) -> set[str]:
    return {Part.parse(name).address for name in claim.devices}


def _same_size(one: Claim, other: Claim) -> bool:
    return (one.cores, one.memory, len(one.devices)) == (other.cores, other.memory, len(other.devices))


_ALIKE: tuple[Callable[[Claim, Claim], bool], ...] = (
    lambda one, other: one == other,
    _overlap,
    _same_size,
    lambda one, other: True,
)
"""Which claim of a reservation a holding uses: the first that is alike, the closest likeness first."""


def _called_back(fleet: Fleet, order: Sequence[Reservation], host: str) -> list[list[Holding]]:
    """Who gives way on one host for each of `order`: found for all together, then told apart one by one."""
    provider = fleet.provider(fleet.rows[host])
    names = {one.id for one in order}
    lent = [
        h for h in fleet.holdings.values() if h.claim.provider == host and h.preemptible and names.isdisjoint(h.groups)
    ]
    lent.sort(key=lambda h: (h.priority, h.resource))
    due = [unused(fleet, reservation, host) for reservation in order]
    _, left = _cleared(provider, lent, [claim for claims in due for claim in claims])
    called: list[list[Holding]] = []
    for claims in due:
        provider, gone = _cleared(provider, left, claims)
        left = [holding for holding in left if holding not in gone]
        called.append(gone)
    return called


def _cleared(provider: Provider, lent: Sequence[Holding], claims: Sequence[Claim]) -> tuple[Provider, list[Holding]]:
    """`provider` with `claims` held and as many of `lent` as can stay, the last in order before the first; who goes."""
    empty = provider
    for holding in lent:
        empty = held_without(empty, holding.claim)
    due: list[Claim] = []
    full = empty
    for claim in claims:
        if is_free(full, claim):
            due.append(claim)
            full = held_with(full, claim)
    gone: list[Holding] = []
    for holding in reversed(lent):
        if due and not is_free(full, holding.claim):
            gone.insert(0, holding)
        else:
            full = held_with(full, holding.claim)
    return full, gone
