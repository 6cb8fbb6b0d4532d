"""Which NUMA nodes have room for an even part of a request.

Memory bound to nodes is counted on them; claims bound to none take from the host's total only. The same goes for
shared cores: on a node they are held against the CPUs that nobody has pinned, times the ratio.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from usina.core.capacity import Needs, Numa, NumaNode, Provider
from usina.placement.within.cores import free_cpus, pick_cpus
from usina.placement.within.standing import MILLI, cores_of, is_pinned, sold_cores, sold_memory


@dataclass(frozen=True, slots=True)
class Room:
    """A node that has room, and the CPUs it would give: those to use first; () where they are shared."""

    node: NumaNode
    cpus: tuple[int, ...]
    spare_memory: int  # bytes bound to nobody, after the request
    spare_cores: float


def is_bound(needs: Needs) -> bool:
    """Whether memory must come from named nodes."""
    return bool(needs.numa_nodes or needs.hugepage or needs.numa is Numa.STRICT)


def how_many(needs: Needs) -> int:
    """Over how many nodes a request lies that is bound to any."""
    return max(1, needs.numa_nodes)


def on_nodes(count: int) -> str:
    return "on one NUMA node" if count == 1 else f"on {count} NUMA nodes"


def indivisible(provider: Provider, needs: Needs) -> str | None:
    """Why the request cannot lie evenly on nodes of this host, however empty; or None."""
    count = how_many(needs)
    if count > len(provider.inventory.nodes):
        return f"have fewer than {count} NUMA nodes"
    if (count > 1 and cores_of(needs) % count) or needs.memory % (count * (needs.hugepage or 1)):
        return f"cannot split this evenly over {count} NUMA node{'' if count == 1 else 's'}"
    return None


def free_on(provider: Provider, node: NumaNode, needs: Needs) -> tuple[float, int]:
    """Cores and bytes of memory of the kinds asked for that `node` has left."""
    cores: float = free_cpus(node, provider.taken_cpus, needs.whole_cores)
    if not is_pinned(needs):
        cores = sold_cores(provider, cores) / MILLI
    if needs.hugepage:
        used = provider.used_hugepages.get((node.id, needs.hugepage), 0)
        return cores, (node.hugepages.get(needs.hugepage, 0) - used) * needs.hugepage
    return cores, sold_memory(provider, node.memory) - provider.bound_memory.get(node.id, 0)


def even_part(needs: Needs) -> tuple[float, int]:
    """Cores and bytes of memory for each node."""
    count = how_many(needs)
    return cores_of(needs) / count, needs.memory // count


def rooms(provider: Provider, needs: Needs, bind: bool) -> list[Room]:
    """Nodes that have room for their even part, the tightest first; memory counts only if it will be bound."""
    cores, memory = even_part(needs)
    found = (_room(provider, node, needs, cores, memory if bind else 0) for node in provider.inventory.nodes)
    return sorted((room for room in found if room is not None), key=_tightness)


def _room(provider: Provider, node: NumaNode, needs: Needs, cores: float, memory: int) -> Room | None:
    free_cores, free_memory = free_on(provider, node, needs)
    if free_cores < cores or free_memory < memory:
        return None
    cpus: tuple[int, ...] = ()
    if is_pinned(needs):
        cpus = pick_cpus([node], provider.taken_cpus, int(cores), needs.whole_cores) or ()
    return Room(node, cpus, free_memory - memory if memory else 0, free_cores - cores)


def _tightness(room: Room) -> tuple[int, int, float, int]:
    return len(room.cpus), room.spare_memory, room.spare_cores, room.node.id


def lacking(provider: Provider, needs: Needs, bind: bool) -> str:
    """The reason when fewer nodes than needed have room: what by itself is short, else all of it together."""
    count, (part_cores, part_memory) = how_many(needs), even_part(needs)
    free = [free_on(provider, node, needs) for node in provider.inventory.nodes]
    short = []
    if sum(cores >= part_cores for cores, _ in free) < count:
        short.append("cores")
    if bind and sum(memory >= part_memory for _, memory in free) < count:
        short.append(memory_word(needs))
    return f"lack {' and '.join(short or ['cores', memory_word(needs)])} {on_nodes(count)}"


def memory_word(needs: Needs) -> str:
    return "huge pages" if needs.hugepage else "memory"


def nearest_first(provider: Provider, homes: Sequence[int], cores: int, whole: bool) -> list[NumaNode]:
    """All nodes, those of the devices first; then those that have all cores, from tight to wide; then the widest."""
    nodes = list(provider.inventory.nodes)
    if len(nodes) == 1:
        return nodes
    free = {node.id: free_cpus(node, provider.taken_cpus, whole) for node in nodes}
    return sorted(
        nodes,
        key=lambda n: (n.id not in homes, free[n.id] < cores, free[n.id] * (1 if free[n.id] >= cores else -1), n.id),
    )
