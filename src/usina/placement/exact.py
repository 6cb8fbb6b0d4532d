"""Whether a claim is still to be had just as it is written: these CPUs, these nodes, these parts of devices.

Where `place_within` chooses, this only checks; it is for claims that were promised before, and names what it is of no
use to choose again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from usina.core.capacity import Claim, Device, Part, Provider
from usina.placement.fleet import WHOLE
from usina.placement.partition import geometry_of, resolve
from usina.placement.partition.states import occupancy_of
from usina.placement.within.devices import taken_parts
from usina.placement.within.standing import cores_suffice, free_disk, free_memory, sold_memory


def is_free(provider: Provider, claim: Claim) -> bool:
    """Whether `claim` can be held on `provider` beside all that is. State, terms and cordons do not matter."""
    return (
        cores_suffice(provider, claim.cores, bool(claim.cpus))
        and (bool(claim.hugepage) or claim.memory <= free_memory(provider))
        and claim.disk <= free_disk(provider)
        and provider.taken_cpus.isdisjoint(claim.cpus)
        and _nodes_free(provider, claim)
        and _devices_free(provider, claim)
    )


def _nodes_free(provider: Provider, claim: Claim) -> bool:
    nodes = {node.id: node for node in provider.inventory.nodes}
    for id in claim.nodes:
        share = claim.memory // len(claim.nodes)
        node = nodes.get(id)
        if node is None:
            return False
        if claim.hugepage:
            used = provider.used_hugepages.get((id, claim.hugepage), 0) * claim.hugepage
            if used + share > node.hugepages.get(claim.hugepage, 0) * claim.hugepage:
                return False
        elif provider.bound_memory.get(id, 0) + share > sold_memory(provider, node.memory):
            return False
    return True


def _devices_free(provider: Provider, claim: Claim) -> bool:
    if not claim.devices:
        return True
    devices = {device.address: device for device in provider.inventory.devices}
    taken = taken_parts(provider)
    for name in claim.devices:
        part = Part.parse(name)
        before = taken.get(part.address, ())
        if part.address not in devices or not _part_free(devices[part.address], before, part):
            return False
        taken[part.address] = (*before, part)
    return True


def _part_free(device: Device, before: Sequence[Part], part: Part) -> bool:
    if part.share:
        return all(one.share for one in before) and sum(one.share for one in before) + part.share <= WHOLE
    if part.profile:
        return all(one.profile for one in before) and _cut_free(device, before, part)
    if part.mdev_type:
        return all(one.mdev_type for one in before) and _instance_free(device, before, part)
    return not before


def _cut_free(device: Device, before: Sequence[Part], part: Part) -> bool:
    geometry = geometry_of(device.model)
    name = resolve(geometry, part.profile) if geometry is not None else None
    if geometry is None or name is None:
        return False
    profile = geometry.named[name]
    return part.start in profile.starts and occupancy_of(geometry, before).fits(geometry, profile, part.start)


def _instance_free(device: Device, before: Sequence[Part], part: Part) -> bool:
    counts = Counter(one.mdev_type for one in (*before, part))
    most = max(device.mdev_types.get(name, 0) for name in counts)
    return counts.total() <= most and counts[part.mdev_type] <= device.mdev_types.get(part.mdev_type, 0)
