"""A snapshot with a claim taken or given back: the two are exact inverses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import replace
from typing import TypeVar

from usina.core.capacity import Claim, Provider

K = TypeVar("K", bound=Hashable)


def held_with(provider: Provider, claim: Claim) -> Provider:
    """`provider` with `claim` taken; its generation stays."""
    return _changed(provider, claim, 1)


def held_without(provider: Provider, claim: Claim) -> Provider:
    """`provider` with `claim` given back; its generation stays."""
    return _changed(provider, claim, -1)


def _changed(provider: Provider, claim: Claim, sign: int) -> Provider:
    ordinary = 0 if claim.hugepage else claim.memory
    cores = round(provider.used_cores + sign * claim.cores, 3)  # sums of thousandths stay thousandths
    memory = provider.used_memory + sign * ordinary
    disk = provider.used_disk + sign * claim.disk
    if not (claim.cpus or claim.nodes or claim.devices):
        return replace(provider, used_cores=cores, used_memory=memory, used_disk=disk)
    cpus = frozenset(claim.cpus)
    pages, bound = _on_nodes(claim)
    return replace(
        provider,
        used_cores=cores,
        used_memory=memory,
        used_disk=disk,
        taken_cpus=provider.taken_cpus | cpus if sign > 0 else provider.taken_cpus - cpus,
        taken_devices=_counted(provider.taken_devices, Counter(claim.devices), sign),
        used_hugepages=_counted(provider.used_hugepages, pages, sign),
        bound_memory=_counted(provider.bound_memory, bound, sign),
    )


def _on_nodes(claim: Claim) -> tuple[Mapping[tuple[int, int], int], Mapping[int, int]]:
    """Huge pages by (node, page size), and bytes bound by node: memory lies evenly on the claim's nodes."""
    if not claim.nodes:
        return {}, {}
    share = claim.memory // len(claim.nodes)
    if claim.hugepage:
        return {(node, claim.hugepage): share // claim.hugepage for node in claim.nodes}, {}
    return {}, dict.fromkeys(claim.nodes, share)


def _counted(before: Mapping[K, int], change: Mapping[K, int], sign: int) -> Mapping[K, int]:
    """`before` with `change` added or taken off, without zeros."""
    if not change:
        return before
    after = Counter(before)
    for key, number in change.items():
        after[key] += sign * number
    return +after
