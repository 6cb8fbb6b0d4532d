"""What a host's totals and terms already say against a request, before any exact search.

Every reason is a short phrase that follows a number of hosts: "3 lack memory". Cores sold shared are what pinned ones
leave, times `Provider.cpu_ratio`, compared in thousandths; ordinary memory is sold `Terms.memory_ratio` times.
"""

from __future__ import annotations

from math import ceil

from usina.core.capacity import HostState, Needs, Provider

MILLI = 1000
"""Thousandths of a core: as finely as cores are sold."""


def obstacle(provider: Provider, needs: Needs) -> str | None:
    """The first reason that totals and terms give, or None."""
    return barred(provider, needs) or _short(provider, needs)


def barred(provider: Provider, needs: Needs) -> str | None:
    """Why this host cannot be asked, however much is free on it."""
    inventory = provider.inventory
    if needs.host is not None and needs.host not in (provider.id, provider.name):
        return "are not the host asked for"
    if provider.state is not HostState.ENABLED:
        return f"are {provider.state.value}"
    if not provider.reachable:
        return "do not answer"
    if provider.terms.tenants and needs.tenant not in provider.terms.tenants:
        return "are dedicated to others"
    if any(window.begins < needs.ends and needs.begins < window.ends for window in provider.terms.maintenance):
        return "have maintenance in that time"
    if needs.traits and not needs.traits <= inventory.traits:
        return f"lack {', '.join(sorted(needs.traits - inventory.traits))}"
    if needs.forbidden and not needs.forbidden.isdisjoint(inventory.traits):
        return f"have {', '.join(sorted(needs.forbidden & inventory.traits))}, which is forbidden"
    if is_pinned(needs) and "pinning" not in inventory.traits:
        return "lack pinning"
    return None


def _short(provider: Provider, needs: Needs) -> str | None:
    if not cores_suffice(provider, cores_of(needs), is_pinned(needs)):
        return "lack cores"
    if needs.hugepage == 0 and needs.memory > free_memory(provider):
        return "lack memory"
    if needs.disk > free_disk(provider):
        return "lack disk"
    return None


def is_pinned(needs: Needs) -> bool:
    return needs.pinned or needs.whole_cores


def cores_of(needs: Needs) -> float:
    """Cores that a request costs: whole ones when pinned."""
    return ceil(round(needs.cores, 3)) if is_pinned(needs) else needs.cores


def cores_suffice(provider: Provider, cores: float, pinned: bool) -> bool:
    """Pinned cores are taken whole; what is left carries the shared ones, times the ratio."""
    whole = len(provider.taken_cpus) + (cores if pinned else 0)
    shared = provider.used_cores - len(provider.taken_cpus) + (0 if pinned else cores)
    return round(shared * MILLI) <= sold_cores(provider, provider.inventory.cores - whole)


def sold_cores(provider: Provider, real: float) -> int:
    """Thousandths of shared cores that `real` ones of this host are sold as."""
    return int(real * provider.cpu_ratio * MILLI)


def free_cores(provider: Provider, pinned: bool) -> float:
    """How many more cores of this kind the host has at most, wherever they lie; never negative."""
    whole = provider.inventory.cores - len(provider.taken_cpus)
    shared = provider.used_cores - len(provider.taken_cpus)
    if pinned:
        return max(0, whole - (ceil(round(shared / provider.cpu_ratio, 3)) if shared > 0 else 0))
    return max(0, sold_cores(provider, whole) - round(shared * MILLI)) / MILLI


def sold_memory(provider: Provider, real: int) -> int:
    """Bytes of ordinary memory that `real` bytes of this host are sold as."""
    ratio = provider.terms.memory_ratio
    return real if ratio == 1.0 else int(real * ratio)


def free_memory(provider: Provider) -> int:
    """Bytes of ordinary memory still to be had, on all nodes together; negative when over-committed."""
    return sold_memory(provider, provider.inventory.memory) - provider.used_memory


def free_disk(provider: Provider) -> int:
    return provider.inventory.disk - provider.used_disk
