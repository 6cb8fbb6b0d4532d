"""Claims replayed from nothing: whether together they take more of a provider than it has.

Independent of placement's own bookkeeping, so that a fault there shows here.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence

from usina.core.capacity import Claim, Device, NumaNode, Part, Provider
from usina.placement.partition import geometry_of, resolve


def violations(provider_empty: Provider, claims: Iterable[Claim], whole_cores: Collection[Claim] = ()) -> list[str]:
    """Everything that is over-committed or doubled when all `claims` are held on `provider_empty` at once.

    Only its inventory, ratios and id are looked at, not what it says is taken. `whole_cores` are those of the claims
    that asked for physical cores of their own. Sentences for people; [] when all is well.
    """
    held = list(claims)
    checks = (
        _strangers(provider_empty, held),
        _totals(provider_empty, held),
        _cpus(provider_empty, held),
        _physical_cores(provider_empty, held, whole_cores),
        _node_memory(provider_empty, held),
        _devices(provider_empty, held),
    )
    return [violation for check in checks for violation in check]


def _strangers(provider: Provider, claims: Sequence[Claim]) -> Iterator[str]:
    known = {device.address for device in provider.inventory.devices}
    for claim in claims:
        if claim.provider != provider.id:
            yield f"a claim on {claim.provider} is not one on {provider.id}"
        for name in claim.devices:
            if Part.parse(name).address not in known:
                yield f"{name} is on no device of this host"


def _totals(provider: Provider, claims: Sequence[Claim]) -> Iterator[str]:
    inventory = provider.inventory
    pinned = sum(len(claim.cpus) for claim in claims)
    shared = sum(claim.cores for claim in claims if not claim.cpus)
    room = (inventory.cores - pinned) * provider.cpu_ratio
    if round(shared, 3) > room + 1e-9:  # cores are sold in thousandths; sums of floats are not quite
        yield f"{shared:g} shared cores where {room:g} are left"
    memory = sum(claim.memory for claim in claims if not claim.hugepage)
    sold = inventory.memory * provider.terms.memory_ratio
    if memory > sold:
        yield f"{memory} bytes of memory out of {sold:g}"
    disk = sum(claim.disk for claim in claims)
    if disk > inventory.disk:
        yield f"{disk} bytes of disk out of {inventory.disk}"


def _cpus(provider: Provider, claims: Sequence[Claim]) -> Iterator[str]:
    taken = Counter(cpu for claim in claims for cpu in claim.cpus)
    yield from (f"CPU {cpu} is pinned {times} times" for cpu, times in taken.items() if times > 1)
    home = {cpu: node.id for node in provider.inventory.nodes for cpu in node.cpus}
    for claim in claims:
        if claim.cpus and claim.cores != len(claim.cpus):
            yield f"{claim.cores:g} cores are claimed, and {len(claim.cpus)} CPUs named"
        for cpu in claim.cpus:
            if cpu not in home:
                yield f"CPU {cpu} is not there"
            elif claim.nodes and home[cpu] not in claim.nodes:
                yield f"CPU {cpu} is on node {home[cpu]}, its claim on {claim.nodes}"


def _physical_cores(provider: Provider, claims: Sequence[Claim], whole: Collection[Claim]) -> Iterator[str]:
    for claim in (claim for claim in claims if claim in whole):
        for group in (group for node in provider.inventory.nodes for group in node.siblings):
            mine = set(group) & set(claim.cpus)
            if mine and mine != set(group):
                yield f"the physical core {group} is only in part of a claim for whole ones"


def _node_memory(provider: Provider, claims: Sequence[Claim]) -> Iterator[str]:
    nodes = {node.id: node for node in provider.inventory.nodes}
    used: Counter[tuple[int, int]] = Counter()  # (node, page size; 0 = ordinary) -> bytes
    for claim in claims:
        if claim.hugepage and not claim.nodes:
            yield "huge pages are claimed of no node"
        if claim.nodes and claim.memory % (len(claim.nodes) * (claim.hugepage or 1)):
            yield f"{claim.memory} bytes do not lie evenly on nodes {claim.nodes}"
        for node in claim.nodes:
            used[node, claim.hugepage] += claim.memory // len(claim.nodes)
    for (id, page), taken in used.items():
        room = _room(provider, nodes[id], page) if id in nodes else 0
        if taken > room:
            yield f"{taken} bytes of {f'huge pages of {page}' if page else 'memory'} out of {room:g} on node {id}"


def _room(provider: Provider, node: NumaNode, page: int) -> float:
    return node.hugepages.get(page, 0) * page if page else node.memory * provider.terms.memory_ratio


def _devices(provider: Provider, claims: Sequence[Claim]) -> Iterator[str]:
    devices = {device.address: device for device in provider.inventory.devices}
    parts: dict[str, list[Part]] = defaultdict(list)
    for name in (name for claim in claims for name in claim.devices):
        parts[Part.parse(name).address].append(Part.parse(name))
    for address, taken in parts.items():
        if address in devices:
            yield from _parts(devices[address], taken)


def _parts(device: Device, parts: Sequence[Part]) -> Iterator[str]:
    ways = {_way(part) for part in parts}
    if len(ways) > 1:
        yield f"{device.address} is given as {' and as '.join(sorted(ways))}"
    elif ways == {"whole"} and len(parts) > 1:
        yield f"{device.address} is given {len(parts)} times"
    elif ways == {"share"} and sum(part.share for part in parts) > 1000:
        yield f"{sum(part.share for part in parts)}/1000 of {device.address} are given"
    elif ways == {"mediated"}:
        yield from _mediated(device, parts)
    elif ways == {"partition"}:
        yield from _partitions(device, parts)


def _way(part: Part) -> str:
    if part.share:
        return "share"
    return "partition" if part.profile else "mediated" if part.mdev_type else "whole"


def _mediated(device: Device, parts: Sequence[Part]) -> Iterator[str]:
    """Of each type no more than there can be, and in all no more than the type with most instances allows."""
    counts = Counter(part.mdev_type for part in parts)
    for name, number in counts.items():
        if number > device.mdev_types.get(name, 0):
            yield f"{number} {name} on {device.address}"
    if len(parts) > max(device.mdev_types.get(name, 0) for name in counts):
        yield f"{len(parts)} mediated instances on {device.address}"


def _partitions(device: Device, parts: Sequence[Part]) -> Iterator[str]:
    """Slices once, compute slices as many as there are, one set of media extensions, and alike where they must be."""
    geometry = geometry_of(device.model)
    names = [resolve(geometry, part.profile) if geometry else None for part in parts]
    if geometry is None or None in names:
        yield f"{device.address} has no partitions such as {', '.join(map(str, parts))}"
        return
    profiles = [geometry.named[name] for name in names if name is not None]
    mask = 0
    for profile, part in zip(profiles, parts, strict=True):
        window = profile.window(part.start)
        if part.start not in profile.starts or window & mask:
            yield f"{part} is not free or not a legal place"
        mask |= window
    if sum(profile.compute for profile in profiles) > geometry.compute:
        yield f"more than {geometry.compute} compute slices of {device.address} are given"
    if sum(profile.media for profile in profiles) > 1:
        yield f"the media extensions of {device.address} are given more than once"
    if geometry.uniform and len(set(names)) > 1:
        yield f"{device.address} is cut in different modes at once"
