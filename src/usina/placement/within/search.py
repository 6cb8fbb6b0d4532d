"""The best claim for a request on one host.

Devices, cores and memory come from the same NUMA nodes when that is possible at all, and only from there when it is
required: then every combination of nodes that have room is tried, and devices are searched exactly on each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, combinations

from usina.core.capacity import Claim, Needs, Numa, Provider
from usina.placement.within import nodes
from usina.placement.within.choice import Choice, Chosen
from usina.placement.within.cores import pick_cpus
from usina.placement.within.devices import wanted_in_all
from usina.placement.within.nodes import Room
from usina.placement.within.pools import Mark
from usina.placement.within.standing import cores_of, cores_suffice, is_pinned, obstacle

COMPARED = 16
"""So many combinations of nodes that serve are compared; the first ones are the tightest."""

_NOTHING = Chosen((), frozenset(), ())


def place_within(provider: Provider, needs: Needs) -> Claim | str:
    """The best claim for `needs` on this host, or the first reason why not, a phrase that follows a number of hosts.

    `Claim.cpus` names all CPUs taken when pinned, those to use first (`needs.cores`, whole); more follow only where
    `needs.whole_cores` completes a physical core, and `Claim.cores` counts them too. `Claim.nodes` is set when memory
    is bound: for `numa_nodes`, huge pages, `Numa.STRICT`, and `Numa.PREFERRED` where one node has room for all.
    """
    reason = obstacle(provider, needs)
    if reason is not None:
        return reason
    if not (needs.devices or is_pinned(needs) or nodes.is_bound(needs) or needs.numa is Numa.PREFERRED):
        return Claim(provider.id, needs.cores, needs.memory, needs.disk)
    return _Search(provider, needs).best()


class _Search:
    def __init__(self, provider: Provider, needs: Needs) -> None:
        self._provider, self._needs = provider, needs
        self._pinned = is_pinned(needs)
        self._choice = Choice(provider, needs.devices) if needs.devices else None

    def best(self) -> Claim | str:
        lacking = self._choice.lacking() if self._choice else None
        if lacking is not None:
            return lacking
        needs = self._needs
        if needs.numa is Numa.STRICT:
            return self._on_nodes(bind=True)
        if nodes.is_bound(needs):
            found = self._on_nodes(bind=True)
            return self._beside_devices() if isinstance(found, str) and self._choice else found
        if needs.numa is Numa.PREFERRED or (self._pinned and self._choice):
            found = self._on_nodes(bind=needs.numa is Numa.PREFERRED)
            if isinstance(found, Claim):
                return found
        return self._anywhere()

    def _on_nodes(self, bind: bool) -> Claim | str:
        """Cores, devices and, with `bind`, memory from the same nodes."""
        rooms = self._rooms(bind)
        if isinstance(rooms, str):
            return rooms
        served = [one for one in self._served(rooms) if one is not None]
        if not served:
            return self._apart()
        _, _, combination, chosen = min(served, key=lambda one: one[:2])
        return self._claim(combination, chosen, bind)

    def _rooms(self, bind: bool) -> list[Room] | str:
        reason = nodes.indivisible(self._provider, self._needs)
        if reason is not None:
            return reason
        rooms = nodes.rooms(self._provider, self._needs, bind)
        count = nodes.how_many(self._needs)
        if len(rooms) < count:
            return nodes.lacking(self._provider, self._needs, bind)
        return rooms if self._cores_suffice(rooms[:count]) else "lack cores"

    def _served(self, rooms: Sequence[Room]) -> Iterator[tuple[tuple[Mark, ...], int, Sequence[Room], Chosen]]:
        """Combinations of nodes that serve all devices, with how well they do; only the first few."""
        left = COMPARED if self._choice else 1
        for order, combination in enumerate(combinations(rooms, nodes.how_many(self._needs))):
            if not self._cores_suffice(combination):
                continue
            chosen = self._devices_on([room.node.id for room in combination])
            if chosen is not None:
                yield chosen.marks, order, combination, chosen
                left -= 1
            if not left:
                return

    def _devices_on(self, ids: Sequence[int]) -> Chosen | None:
        if self._choice is None:
            return _NOTHING
        return self._choice.choose(ids) if self._choice.may_serve(ids) else None

    def _cores_suffice(self, combination: Sequence[Room]) -> bool:
        """With what completing physical cores adds, which totals did not know."""
        if not self._needs.whole_cores:
            return True
        return cores_suffice(self._provider, sum(len(room.cpus) for room in combination), True)

    def _apart(self) -> str:
        """The reason when nodes that have room do not have the devices."""
        count, wanted = nodes.how_many(self._needs), wanted_in_all(self._needs.devices)
        everywhere = combinations((node.id for node in self._provider.inventory.nodes), count)
        if self._choice is not None and any(self._choice.may_serve(ids) for ids in everywhere):
            return f"lack {wanted} with cores and {nodes.memory_word(self._needs)} {nodes.on_nodes(count)}"
        return f"lack {wanted} {nodes.on_nodes(count)}"

    def _beside_devices(self) -> Claim | str:
        """Cores and memory from nodes as near to the devices as there is room."""
        rooms = self._rooms(bind=True)
        if isinstance(rooms, str):
            return rooms
        chosen = self._devices_anywhere()
        if isinstance(chosen, str):
            return chosen
        rooms.sort(key=lambda room: room.node.id not in chosen.homes)
        combined = combinations(rooms, nodes.how_many(self._needs))
        return self._claim(next(c for c in combined if self._cores_suffice(c)), chosen, bind=True)

    def _devices_anywhere(self) -> Chosen | str:
        if self._choice is None:
            return _NOTHING
        return self._choice.choose() or f"lack {wanted_in_all(self._needs.devices)} together"

    def _anywhere(self) -> Claim | str:
        """Bound to nothing; pinned cores still come from near the devices, and from few nodes."""
        chosen = self._devices_anywhere()
        if isinstance(chosen, str):
            return chosen
        if not self._pinned:
            return self._made((), (), chosen)
        taken, needs, cores = self._provider.taken_cpus, self._needs, int(cores_of(self._needs))
        near = nodes.nearest_first(self._provider, tuple(chosen.homes), cores, needs.whole_cores)
        for some in (near[:1], near):
            cpus = pick_cpus(some, taken, cores, needs.whole_cores)
            if cpus is not None and cores_suffice(self._provider, len(cpus), True):
                return self._made(cpus, (), chosen)
        return "lack free whole physical cores" if needs.whole_cores else "lack free whole cores"

    def _claim(self, combination: Sequence[Room], chosen: Chosen, bind: bool) -> Claim:
        ordered = sorted(combination, key=lambda room: room.node.id)
        share = int(cores_of(self._needs)) // len(ordered)
        used = chain.from_iterable(room.cpus[:share] for room in ordered)
        rest = chain.from_iterable(room.cpus[share:] for room in ordered)
        ids = tuple(room.node.id for room in ordered) if bind else ()
        return self._made((*used, *rest), ids, chosen)

    def _made(self, cpus: tuple[int, ...], ids: tuple[int, ...], chosen: Chosen) -> Claim:
        needs = self._needs
        return Claim(
            provider=self._provider.id,
            cores=len(cpus) if self._pinned else needs.cores,
            memory=needs.memory,
            disk=needs.disk,
            cpus=cpus,
            nodes=ids,
            hugepage=needs.hugepage,
            devices=chosen.names,
        )
