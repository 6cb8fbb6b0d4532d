"""The order in which devices are tried for one request: a preference, which no search result depends on.

Several whole devices come from one NVLink group if they can: the smallest group that has enough, then the one left with
least; else from one NUMA node; else from anywhere. Parts come from the tightest device that fits.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

from usina.core.capacity import Device, DeviceRequest, Part

Offer = tuple[Device, list[Part]]
"""A device, and all the parts it could give to one request."""


class Mark(NamedTuple):
    """How well a pool serves a request; less is better."""

    grade: int  # 0 one link group, or each by itself; 1 any devices
    size: int  # of the link group, on the whole host
    left: int  # of what is offered, after the request


class Pool(NamedTuple):
    """Devices to choose from, best first."""

    offers: Sequence[Offer]
    mark: Mark


def pools(
    request: DeviceRequest, offers: Sequence[Offer], links: Counter[str], homes: Collection[int | None]
) -> Iterator[Pool]:
    """Pools for `request`, best first; `links` has the sizes of link groups, `homes` the nodes chosen so far.

    The last one holds every offer, unless links are required.
    """
    joined = request.linked and request.count > 1
    if not joined and (request.count == 1 or is_part(request)):
        yield _one_by_one(request, offers, links, homes)
        return
    yield from _by_link(request.count, offers, links, homes)
    if not joined:
        yield Pool(_gathered(request.count, offers, homes), Mark(1, 0, _slots(offers) - request.count))


def is_part(request: DeviceRequest) -> bool:
    return bool(request.share or request.profile or request.mdev_type)


def link_groups(offers: Sequence[Offer]) -> dict[str, list[Offer]]:
    groups: dict[str, list[Offer]] = defaultdict(list)
    for offer in offers:
        if offer[0].link is not None:
            groups[offer[0].link].append(offer)
    return groups


def _slots(offers: Sequence[Offer]) -> int:
    return sum(len(parts) for _, parts in offers)


def _one_by_one(
    request: DeviceRequest, offers: Sequence[Offer], links: Counter[str], homes: Collection[int | None]
) -> Pool:
    """Each on its own merits: near, then tight; a whole device out of what is broken already."""
    free = Counter(device.link for device, _ in offers)
    near = Counter(device.node for device, _ in offers)

    def whole(offer: Offer) -> tuple[bool, int, int, int, str]:
        device = offer[0]
        left = free[device.link] - 1 if device.link is not None else 0
        return (_far(device, homes), links[device.link or ""] or 1, left, near[device.node], device.address)

    def part(offer: Offer) -> tuple[bool, int, str]:
        return (_far(offer[0], homes), len(offer[1]), offer[0].address)

    if is_part(request):
        ordered = sorted(offers, key=part)
        return Pool(ordered, Mark(0, 0, len(ordered[0][1])))
    ordered = sorted(offers, key=whole)
    return Pool(ordered, Mark(0, *whole(ordered[0])[1:3]))


def _by_link(count: int, offers: Sequence[Offer], links: Counter[str], homes: Collection[int | None]) -> Iterator[Pool]:
    found = [
        (_all_far(group, homes), Mark(0, links[name], _slots(group) - count), name, group)
        for name, group in link_groups(offers).items()
        if _slots(group) >= count
    ]
    for _, mark, _, group in sorted(found, key=lambda one: one[:3]):
        yield Pool(_gathered(count, group, homes), mark)


def _gathered(count: int, offers: Sequence[Offer], homes: Collection[int | None]) -> list[Offer]:
    """So that few nodes, then few link groups are used: one that suffices and is tight, else the largest first."""
    nodes = Counter(device.node for device, parts in offers for _ in parts)
    links = Counter(device.link for device, parts in offers for _ in parts)
    tight = _tightness(count)

    def key(offer: Offer) -> tuple[bool, int, int, int, str, str]:
        device = offer[0]
        node = -1 if device.node is None else device.node
        return (
            _far(device, homes),
            tight(nodes[device.node]),
            node,
            tight(links[device.link] if device.link is not None else 1),
            device.link or "",
            device.address,
        )

    return sorted(offers, key=key)


def _tightness(count: int) -> Callable[[int], int]:
    """Orders sizes: those that suffice from small to large, before those that do not from large to small."""
    return lambda size: size - count if size >= count else _MANY - size


_MANY = 1 << 20


def _far(device: Device, homes: Collection[int | None]) -> bool:
    return bool(homes) and device.node not in homes


def _all_far(offers: Sequence[Offer], homes: Collection[int | None]) -> bool:
    return all(_far(device, homes) for device, _ in offers)
