"""What a host lacks for a request, in numbers, and the largest request of the same shape that it could take."""

from __future__ import annotations

from dataclasses import replace
from math import ceil

from usina.core.capacity import Claim, Needs, Provider
from usina.core.units import MiB, show_size
from usina.placement.within import nodes
from usina.placement.within.choice import Choice
from usina.placement.within.devices import wanted
from usina.placement.within.search import place_within
from usina.placement.within.standing import MILLI, barred, cores_of, free_cores, free_disk, free_memory, is_pinned

STEPS = 8
"""A request is scaled in at least so many steps."""

_SINGULAR = {"are": "is", "do": "does", "have": "has", "lack": "lacks"}


def nearest_miss(provider: Provider, needs: Needs) -> str:
    """What this host lacks: "3 of 4 H100 free; 12GiB of memory short", or "is cordoned"; "" if it lacks nothing."""
    reason = barred(provider, needs)
    if reason is not None:
        return _of_one(reason)
    short = [*_devices_short(provider, needs), *_totals_short(provider, needs)]
    if short:
        return "; ".join(short)
    found = place_within(provider, needs)
    return _of_one(found) + _best_node(provider, needs) if isinstance(found, str) else ""


def _of_one(reason: str) -> str:
    """A reason that follows a number of hosts, said of one."""
    verb, _, rest = reason.partition(" ")
    return f"{_SINGULAR.get(verb, verb)} {rest}"


def _totals_short(provider: Provider, needs: Needs) -> list[str]:
    short = []
    if (cores := round(cores_of(needs) - free_cores(provider, is_pinned(needs)), 3)) > 0:
        short.append(f"{cores:g} core{'' if cores == 1 else 's'} short")
    if not needs.hugepage and (memory := needs.memory - free_memory(provider)) > 0:
        short.append(f"{show_size(memory)} of memory short")
    if needs.hugepage and (pages := needs.memory - _free_pages(provider, needs)) > 0:
        short.append(f"{show_size(pages)} of {show_size(needs.hugepage)} huge pages short")
    if (disk := needs.disk - free_disk(provider)) > 0:
        short.append(f"{show_size(disk)} of disk short")
    return short


def _free_pages(provider: Provider, needs: Needs) -> int:
    """Bytes in free huge pages of the size asked for."""
    return sum(nodes.free_on(provider, node, needs)[1] for node in provider.inventory.nodes)


def _devices_short(provider: Provider, needs: Needs) -> list[str]:
    choice = Choice(provider, needs.devices)
    return [
        f"{choice.free(number)} of {request.count} {wanted(request)} free"
        for number, request in enumerate(needs.devices)
        if choice.free(number) < request.count
    ]


def _best_node(provider: Provider, needs: Needs) -> str:
    """How much of the part it would have to give the best node has, where that is not all."""
    if not nodes.is_bound(needs) or not provider.inventory.nodes:
        return ""
    want_cores, want_memory = nodes.even_part(needs)
    free = (nodes.free_on(provider, node, needs) for node in provider.inventory.nodes)
    served = [(min(cores, want_cores), min(memory, want_memory)) for cores, memory in free]
    cores, memory = max(served, key=lambda have: (_share(have[0], want_cores) + _share(have[1], want_memory), have))
    if (cores, memory) == (want_cores, want_memory):
        return ""
    return (
        f" (at best {cores:g} of {want_cores:g} cores and {show_size(max(0, memory))} of {show_size(want_memory)} "
        f"{nodes.memory_word(needs)})"
    )


def _share(have: float, want: float) -> float:
    return have / want if want else 1.0


def largest_fit(provider: Provider, needs: Needs) -> Needs | None:
    """The largest request of this shape that fits this host now, or None if nothing of it does.

    Cores, memory and numbers of devices shrink together, in the steps of `scaled`; all else stays.
    """
    steps = scale_of(needs)
    if isinstance(place_within(provider, needs), Claim):
        return needs
    fits, fails = 0, steps
    while fails - fits > 1:
        middle = (fits + fails) // 2
        if isinstance(place_within(provider, scaled(needs, middle, steps)), Claim):
            fits = middle
        else:
            fails = middle
    return scaled(needs, fits, steps) if fits else None


def scale_of(needs: Needs) -> int:
    """In how many steps `needs` shrinks: a multiple of its cores per node or of its devices, whichever are more."""
    base = max(1, int(needs.cores) // nodes.how_many(needs), *(request.count for request in needs.devices))
    return base * ceil(STEPS / base)


def scaled(needs: Needs, step: int, steps: int) -> Needs:
    """`needs` times `step / steps`, rounded down to what nodes and pages divide; at least one of everything."""
    if step == steps:
        return needs
    count = nodes.how_many(needs)
    grain = (needs.hugepage or MiB) * count
    return replace(
        needs,
        cores=_cores(needs, step, steps),
        memory=_part(needs.memory, grain, step, steps),
        devices=tuple(replace(one, count=_part(one.count, 1, step, steps)) for one in needs.devices),
    )


def _cores(needs: Needs, step: int, steps: int) -> float:
    """Whole ones, as many on every node; but by the thousandth where a fraction of shared cores was asked for."""
    count, whole = nodes.how_many(needs), int(needs.cores)
    if whole == 0 or (whole != needs.cores and count == 1 and not is_pinned(needs)):
        return _part(round(needs.cores * MILLI), 1, step, steps) / MILLI
    return _part(whole, count, step, steps)


def _part(whole: int, grain: int, step: int, steps: int) -> int:
    return min(whole, max(grain, whole * step // steps // grain * grain))
