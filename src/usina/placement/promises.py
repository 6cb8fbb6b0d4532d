"""Advance reservations: capacity promised for a window, lent meanwhile, and called back in time.

A reservation is a set of claims that nobody holds yet. To every request that overlaps its window they look taken,
except to its own tenant, and to preemptible requests, which may borrow what lies idle. When the window begins,
`callbacks` names who must give way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from usina.core.capacity import Claim, Holding, Needs, Part, Provider, Reservation
from usina.core.units import Instant
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
        """Reservations of others that overlap the request's time."""
        for one in self.reservations.values():
            if one.tenant != needs.tenant and one.window.begins < needs.ends and needs.begins < one.window.ends:
                yield one

    def rows_against(self, fleet: Fleet, needs: Needs) -> list[int]:
        hosts = {claim.provider for one in self.against(needs) for claim in one.claims}
        return sorted(fleet.rows[host] for host in hosts if host in fleet.rows)

    def as_seen_by(self, fleet: Fleet, row: int, needs: Needs) -> Provider:
        """The host as a request sees it: what is promised to others and not yet used by them is taken."""
        provider = fleet.provider(row)
        for one in self.against(needs):
            for claim in self._unused(fleet, one, provider.id):
                provider = held_with(provider, claim)
        return provider

    def _unused(self, fleet: Fleet, reservation: Reservation, host: str) -> Iterator[Claim]:
        """The claims of a reservation on a host, less as many as its tenant uses there by holdings in its name."""
        used = sum(1 for h in fleet.holdings.values() if h.claim.provider == host and reservation.id in h.groups)
        mine = [claim for claim in reservation.claims if claim.provider == host]
        yield from mine[used:]

    def callbacks(self, fleet: Fleet, reservation: Reservation, now: Instant) -> tuple[Holding, ...]:
        """Who must give way for `reservation` to have all it was promised, once its window has begun; else nobody."""
        if not reservation.window.begins <= now < reservation.window.ends:
            return ()
        out: list[Holding] = []
        for host in sorted({claim.provider for claim in reservation.claims}):
            if host in fleet.rows:
                out += self._in_the_way(fleet, reservation, host)
        return tuple(out)

    def _in_the_way(self, fleet: Fleet, reservation: Reservation, host: str) -> Sequence[Holding]:
        provider = fleet.provider(fleet.rows[host])
        for claim in self._unused(fleet, reservation, host):
            provider = held_with(provider, claim)
        lent = [h for h in fleet.holdings.values() if h.claim.provider == host and h.preemptible]
        lent.sort(key=lambda h: (h.priority, h.resource))
        out: list[Holding] = []
        wanted = {Part.parse(d).address for claim in reservation.claims for d in claim.devices}
        for holding in lent:
            clash = wanted & {Part.parse(d).address for d in holding.claim.devices}
            if clash or over_committed(provider):
                out.append(holding)
                provider = held_without(provider, holding.claim)
        return out


def over_committed(provider: Provider) -> bool:
    """Whether more is held on a host than it sells, by totals, nodes and CPUs."""
    inventory = provider.inventory
    pinned = len(provider.taken_cpus)
    nodes = {node.id: node for node in inventory.nodes}
    return (
        provider.used_cores - pinned > (inventory.cores - pinned) * provider.cpu_ratio
        or provider.used_memory > inventory.memory * provider.terms.memory_ratio
        or provider.used_disk > inventory.disk
        or any(n > nodes[i].hugepages.get(size, 0) for (i, size), n in provider.used_hugepages.items())
    )
