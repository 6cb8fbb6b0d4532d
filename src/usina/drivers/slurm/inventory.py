"""A partition as Usina counts it. Pure: records in, an `Inventory` out.

A partition is one provider with the sum of its nodes: Slurm itself finds the place, and queues what finds none now. So
nodes that are down count as well; how many are up, and how large the largest is, is told as facts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from usina.core.capacity import QUEUE, Device, DeviceKind, Inventory, NumaNode, runs
from usina.core.units import GiB, show_size
from usina.drivers.slurm.records import Gres, NodeRecord, PartitionRecord, expand, gres_of
from usina.drivers.slurm.request import PROFILE


def members(partition: PartitionRecord, nodes: Sequence[NodeRecord]) -> list[NodeRecord]:
    """The nodes of a partition."""
    names = set(expand(partition.nodes))
    return [node for node in nodes if node.name in names]


def inventory(
    partition: PartitionRecord, nodes: Sequence[NodeRecord], *, version: str, wire: str, topology: str = ""
) -> Inventory:
    cores = sum(node.cpus for node in nodes)
    memory = sum(node.memory for node in nodes)
    return Inventory(
        nodes=(NumaNode(0, tuple(range(cores)), memory),),
        disk=0,
        devices=devices(nodes),
        traits=_traits(partition, nodes),
        facts=_facts(partition, nodes)
        | {"slurm": version, "wire": wire}
        | ({"topology": topology} if topology else {}),
    )


def devices(nodes: Sequence[NodeRecord]) -> tuple[Device, ...]:
    """One for each GPU, or part of one, that the nodes have as GRES, counted over the partition.

    An address has no slash, which would begin a part of a device: ``gres:gpu:h100#0``.
    """
    totals: Counter[tuple[str, str]] = Counter()
    for node in nodes:
        for gres in gres_of(node.gres):
            if gres.name == "gpu":
                totals[gres.name, gres.type] += gres.count
    return tuple(
        _device(Gres(name, type_, count), number)
        for (name, type_), count in sorted(totals.items())
        for number in range(count)
    )


def _device(gres: Gres, number: int) -> Device:
    profile = PROFILE.search(gres.type)
    return Device(
        address=f"gres:{gres.name}{f':{gres.type}' if gres.type else ''}#{number}",
        kind=DeviceKind.GPU,
        model=gres.type.upper(),
        memory=int(profile[0].lower().partition("g.")[2].removesuffix("gb")) * GiB if profile else 0,
        mode="mig" if profile else "",
        traits=frozenset({profile[0].lower()} if profile else ()),
    )


def _traits(partition: PartitionRecord, nodes: Sequence[NodeRecord]) -> frozenset[str]:
    features = {f"feature:{feature}" for node in nodes for feature in node.features}
    reach = {"task:outbound", "task:host-network"}  # a job always has the network of its nodes
    own = {runs("slurm"), QUEUE, f"partition:{partition.name}"}
    return frozenset(own | reach | features | {node.arch for node in nodes if node.arch})


def _facts(partition: PartitionRecord, nodes: Sequence[NodeRecord]) -> dict[str, str]:
    up = sum(node.up for node in nodes)
    gres = Counter({f"{g.name}:{g.type}".rstrip(":"): 0 for node in nodes for g in gres_of(node.gres)})
    for node in nodes:
        for one in gres_of(node.gres):
            gres[f"{one.name}:{one.type}".rstrip(":")] += one.count
    facts = {
        "partition": partition.name,
        "state": ", ".join(sorted(partition.states)).lower(),
        "nodes": f"{up} up, {len(nodes) - up} down or drained",
        "limits": ", ".join(f"{name} {value}" for name, value in sorted(partition.limits.items())),
        "gres": ", ".join(f"{count} x {name}" for name, count in sorted(gres.items())),
        "features": ", ".join(sorted({feature for node in nodes for feature in node.features})),
        **largest(nodes),
    }
    return {name: value for name, value in facts.items() if value}


def largest(nodes: Sequence[NodeRecord]) -> Mapping[str, str]:
    """What one node has at most, each by itself: a task that wants more never fits."""
    if not nodes:
        return {}
    gpus = max(sum(gres.count for gres in gres_of(node.gres) if gres.name == "gpu") for node in nodes)
    return {
        "largest_node.cores": str(max(node.cpus for node in nodes)),
        "largest_node.memory": show_size(max(node.memory for node in nodes)),
        "largest_node.gpus": str(gpus),
    }
