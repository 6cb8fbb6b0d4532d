"""Which CPUs a pinned request gets: threads that complete broken physical cores, or whole physical cores.

A physical core is a group of hardware threads (`NumaNode.siblings`). Lists of CPUs go core by core, lowest numbers
first, so that neighbours in a guest are neighbours on the host.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache

from usina.core.capacity import NumaNode

Core = tuple[int, ...]
"""The CPUs of one physical core."""


def physical_cores(node: NumaNode) -> tuple[Core, ...]:
    """All CPUs of `node` by physical core; one that `siblings` does not name is a core of its own."""
    return _cores(node.cpus, node.siblings)


@lru_cache(maxsize=4096)
def _cores(cpus: tuple[int, ...], siblings: tuple[Core, ...]) -> tuple[Core, ...]:
    have = set(cpus)
    groups = [tuple(sorted(have.intersection(group))) for group in siblings]
    alone = have.difference(*groups) if groups else have
    return tuple(sorted([group for group in groups if group] + [(cpu,) for cpu in alone]))


def free_cpus(node: NumaNode, taken: Collection[int], whole: bool) -> int:
    """How many CPUs of `node` are free; with `whole`, only those of cores that are free altogether."""
    if whole:
        return sum(len(core) for core in _free_cores([node], taken))
    return len(set(node.cpus).difference(taken)) if taken else len(node.cpus)


def pick_cpus(nodes: Sequence[NumaNode], taken: Collection[int], count: int, whole: bool) -> tuple[int, ...] | None:
    """CPUs from `nodes`, earlier nodes first, the `count` to use before those that only complete a core.

    None when there are not enough. With `whole` as few are added as the sizes of the cores allow.
    """
    return _whole(nodes, taken, count) if whole else _threads(nodes, taken, count)


def _threads(nodes: Iterable[NumaNode], taken: Collection[int], count: int) -> tuple[int, ...] | None:
    picked: list[int] = []
    for node in nodes:
        free = [(len(core), tuple(c for c in core if c not in taken)) for core in physical_cores(node)]
        # broken cores first, so that whole ones stay whole
        for _, left in sorted(free, key=lambda core: (len(core[1]) == core[0], core[1])):
            picked.extend(left)
        if len(picked) >= count:
            return tuple(picked[:count])
    return tuple(picked) if len(picked) == count else None


def _whole(nodes: Sequence[NumaNode], taken: Collection[int], count: int) -> tuple[int, ...] | None:
    cores = _free_cores(nodes, taken)
    slack = sum(map(len, cores)) - count
    if slack < 0:
        return None
    left: set[int] = set()
    # Leaving out the largest first is exact where sizes divide each other, as numbers of hardware threads do.
    for at in sorted(range(len(cores)), key=lambda at: (-len(cores[at]), -at)):
        if len(cores[at]) <= slack:
            slack -= len(cores[at])
            left.add(at)
    return tuple(cpu for at, core in enumerate(cores) if at not in left for cpu in core)


def _free_cores(nodes: Iterable[NumaNode], taken: Collection[int]) -> list[Core]:
    have = frozenset(taken)
    return [core for node in nodes for core in physical_cores(node) if have.isdisjoint(core)]
