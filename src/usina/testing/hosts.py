"""Small hosts with devices and a place in the topology, and what a fleet shows of them, to be compared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from usina.core.capacity import Claim, Device, DeviceKind, HostState, Inventory, Needs, NumaNode, Provider, Terms
from usina.core.units import GiB
from usina.placement import Fleet, held_with, place_within

H100 = "NVIDIA H100 80GB HBM3"


def small_gpu(number: int, **more: object) -> Device:
    """An H100; number 0 to 255 makes its address."""
    device = Device(f"0000:{number:02x}:00.0", DeviceKind.GPU, H100, "10de:2330", node=0, memory=80 * GiB)
    return replace(device, **more)  # type: ignore[arg-type]


def small_host(
    id: str,
    devices: Sequence[Device] = (),
    nodes: int = 2,
    topology: Mapping[str, str] | None = None,
    terms: Terms | None = None,
    **more: object,
) -> Provider:
    """`nodes` NUMA nodes of 4 CPUs, 8 GiB and 4 huge pages of 1 GiB each; 100 GiB of disk."""
    cells = tuple(NumaNode(n, tuple(range(4 * n, 4 * n + 4)), 8 * GiB, {GiB: 4}) for n in range(nodes))
    inventory = Inventory(cells, 100 * GiB, tuple(devices), frozenset({"pinning", "uefi"}))
    said = replace(terms or Terms(), topology=topology or {})
    return replace(Provider(id, id, "fake", HostState.ENABLED, 1, inventory, terms=said), **more)  # type: ignore[arg-type]


def filled(provider: Provider, needs: Needs, most: int = 1000) -> list[Claim]:
    """Claims for as many of `needs` as the host takes one after the other."""
    claims: list[Claim] = []
    while len(claims) < most and isinstance(claim := place_within(provider, needs), Claim):
        claims.append(claim)
        provider = held_with(provider, claim)
    return claims


def shown(fleet: Fleet) -> dict[str, tuple[object, ...]]:
    """What a fleet shows of every host: its columns and its exact picture."""
    names = ("cpu", "memory", "disk", "enabled", "draining", "reachable", "count", "present")
    return {
        id: (
            *(getattr(fleet, name)[row].item() for name in names),
            fleet.gpus[row].tolist(),
            fleet.slices[row].tolist(),
            fleet.provider(row),
        )
        for id, row in fleet.rows.items()
    }


def held_by(claims: Iterable[Claim], host: str) -> list[Claim]:
    """Those of `claims` that are on `host`."""
    return [claim for claim in claims if claim.provider == host]
