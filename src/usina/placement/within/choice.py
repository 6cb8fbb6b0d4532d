"""Devices for all requests of one claim at once: exact search by trying and taking back.

Devices that are alike are tried once, a request that can no longer be served cuts its branch, and the last request
needs no search, so that ordinary requests are settled without a step back. `EFFORT` bounds what a hostile one may
cost: beyond it the search gives up as if nothing were found.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from typing import NamedTuple

from usina.core.capacity import Device, DeviceKind, DeviceRequest, Part, Provider
from usina.placement.within.devices import matches, offers, taken_parts, wanted
from usina.placement.within.partitions import OPEN, settled
from usina.placement.within.pools import Mark, Offer, is_part, link_groups, pools

EFFORT = 2_000
"""Steps of one search over all combinations of NUMA nodes, and of one anywhere; some 50 microseconds each at worst."""


class Chosen(NamedTuple):
    """The parts for every request, in the order of the requests."""

    names: tuple[str, ...]
    homes: frozenset[int]  # NUMA nodes of the devices that say
    marks: tuple[Mark, ...]  # how well each is served; less is better


class _Turn(NamedTuple):
    request: DeviceRequest
    number: int  # of the request in the order


class Choice:
    """The devices of one host for some requests, to `choose` as often as wanted."""

    def __init__(self, provider: Provider, requests: Sequence[DeviceRequest]) -> None:
        self._requests, self._devices = requests, provider.inventory.devices
        self._taken = taken_parts(provider)
        self._now = dict(self._taken)
        self._links = Counter(device.link for device in provider.inventory.devices if device.link is not None)
        self._effort = EFFORT
        self._matching = [[d for d in provider.inventory.devices if matches(d, request)] for request in requests]
        usable = ([d for d in some if d.address not in provider.cordoned_devices] for some in self._matching)
        self._first_offers = [
            [(d, parts) for d in some if (parts := offers(d, self._taken.get(d.address, ()), request))]
            for request, some in zip(requests, usable, strict=True)
        ]
        self._turns = sorted((_Turn(request, number) for number, request in enumerate(requests)), key=self._hardness)
        self._nodes: Collection[int] | None = None
        self._homes: list[int | None] = []
        self._marks: list[Mark] = []
        self._given: dict[int, list[Part]] = {}

    def lacking(self) -> str | None:
        """The first request that this host cannot serve by itself, as a reason."""
        for number, request in enumerate(self._requests):
            if not self._matching[number]:
                return f"have no {wanted(request)}"
            if self.free(number) < request.count:
                return f"lack a free {wanted(request)}"
            if not self._joined(request, self._first_offers[number]):
                return f"lack {request.count} linked {wanted(request)}"
        return None

    def free(self, number: int) -> int:
        """How many of the request with this number the host could give, were it the only one."""
        return sum(len(parts) for _, parts in self._first_offers[number])

    def may_serve(self, nodes: Collection[int]) -> bool:
        """A quick look: False if devices on these nodes, or of unknown node, are too few for some request."""
        return all(
            sum(len(parts) for device, parts in offered if device.node is None or device.node in nodes) >= one.count
            for one, offered in zip(self._requests, self._first_offers, strict=True)
        )

    def choose(self, nodes: Collection[int] | None = None) -> Chosen | None:
        """Devices for all requests, those with a known node on `nodes` only (None: anywhere)."""
        self._nodes, self._now = nodes, dict(self._taken)
        self._homes, self._marks, self._given = [], [], {}
        if nodes is None:
            self._effort = EFFORT  # the last resort is not to fail for what was tried before it
        if not self._serve(0):
            return None
        self._settle()
        parts = [part for number in range(len(self._requests)) for part in sorted(self._given[number], key=_order)]
        homes = frozenset(node for node in self._homes if node is not None)
        return Chosen(tuple(map(str, parts)), homes, tuple(self._marks))

    def _settle(self) -> None:
        """Say where the partitions given start."""
        opened = {part.address for parts in self._given.values() for part in parts if part.start == OPEN}
        starts: dict[tuple[str, str], list[Part]] = defaultdict(list)
        for device in (d for d in self._devices if d.address in opened):
            for part in settled(device, self._now[device.address]):
                starts[part.address, part.profile].append(part)
        for number, parts in self._given.items():
            self._given[number] = [starts[p.address, p.profile].pop(0) if p.start == OPEN else p for p in parts]

    def _hardness(self, turn: _Turn) -> tuple[bool, bool, bool, int]:
        """Virtual functions follow what they serve; then what has the least choice, and of parts the largest."""
        request, free = turn.request, self.free(turn.number)
        choice = free if is_part(request) else free - request.count
        return (request.kind is DeviceKind.VF, not request.linked, is_part(request), choice)

    def _offered(self, turn: _Turn) -> list[Offer]:
        """What the devices on the nodes chosen could give to this turn now; only where parts were taken it is new."""
        nodes, found = self._nodes, []
        for device, parts in self._first_offers[turn.number]:
            if nodes is not None and device.node is not None and device.node not in nodes:
                continue
            now = self._now.get(device.address, ())
            if now is not self._taken.get(device.address, ()):
                parts = offers(device, now, turn.request)
            if parts:
                found.append((device, parts))
        return found

    @staticmethod
    def _joined(request: DeviceRequest, offered: Sequence[Offer]) -> bool:
        if not request.linked or request.count <= 1:
            return True
        return any(sum(len(p) for _, p in group) >= request.count for group in link_groups(offered).values())

    def _serve(self, at: int) -> bool:
        """Whether all turns from `at` on can be served beside what is taken now; if so, they are."""
        if at == len(self._turns):
            return True
        turn, request = self._turns[at], self._turns[at].request
        if request.count <= 0:
            self._given[turn.number] = []
            return self._serve(at + 1)
        offered = self._offered(turn)
        if sum(len(parts) for _, parts in offered) < request.count or not self._later(at + 1):
            return False
        for pool in pools(request, offered, self._links, set(self._homes) - {None}):
            self._marks.append(pool.mark)
            self._given[turn.number] = []
            if self._fill(at, pool.offers, 0, request.count):
                return True
            self._marks.pop()
            if self._effort < 0:
                return False
        return False

    def _later(self, first: int) -> bool:
        """Whether each of the later turns could still be served by itself."""
        for turn in self._turns[first:]:
            offered = self._offered(turn)
            if sum(len(parts) for _, parts in offered) < turn.request.count or not self._joined(turn.request, offered):
                return False
        return True

    def _fill(self, at: int, pool: Sequence[Offer], first: int, missing: int) -> bool:
        """Take `missing` more parts from `pool[first:]`, then serve the later turns."""
        if not missing:
            return self._serve(at + 1)
        if at == len(self._turns) - 1:
            return self._fill_last(at, pool, first, missing)
        room = sum(len(parts) for _, parts in pool[first:])
        tried: set[object] = set()
        for index in range(first, len(pool)):
            if room < missing:
                return False
            device, parts = pool[index]
            room -= len(parts)
            if tried and self._alike(device) in tried:
                continue
            for number in range(min(len(parts), missing), 0, -1):
                before = self._take(at, device, parts[:number])
                if self._fill(at, pool, index + 1, missing - number):
                    return True
                self._give_back(at, device, number, before)
                if self._effort < 0:
                    return False
            tried.add(self._alike(device))
        return False

    def _fill_last(self, at: int, pool: Sequence[Offer], first: int, missing: int) -> bool:
        """With nothing to serve after it, the best are simply taken."""
        for device, parts in pool[first:]:
            if missing:
                self._take(at, device, parts[:missing])
                missing -= min(missing, len(parts))
        return not missing

    def _take(self, at: int, device: Device, parts: Sequence[Part]) -> tuple[Part, ...]:
        """Returns what was taken of the device before."""
        self._effort -= 1
        before = self._now.get(device.address, ())
        self._now[device.address] = (*before, *parts)
        self._given[self._turns[at].number].extend(parts)
        self._homes.append(device.node)
        return before

    def _give_back(self, at: int, device: Device, number: int, before: tuple[Part, ...]) -> None:
        self._now[device.address] = before
        del self._given[self._turns[at].number][-number:]
        self._homes.pop()

    def _alike(self, device: Device) -> object:
        """Equal for devices that no request can tell apart."""
        taken = tuple(sorted((p.share, p.profile, p.start, p.mdev_type) for p in self._now.get(device.address, ())))
        types = tuple(sorted(device.mdev_types.items()))
        return (device.node, device.link, device.kind, device.model, device.vendor, device.memory, device.mode,
                device.traits, types, taken)  # fmt: skip


def _order(part: Part) -> tuple[str, int]:
    return part.address, part.start
