"""Best fit over a snapshot: the host that is left with least to spare, and exact claims on it.

Every refusal counts hosts by their first failing reason, so that the counts add up to the number of hosts.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from usina.core.capacity import Claim, Device, DeviceKind, DeviceRequest, HostState, Needs, NumaNode, Provider


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why nothing fits: reason → number of hosts."""

    reasons: Mapping[str, int]

    @property
    def message(self) -> str:
        """For people: ``12 hosts: 9 lack memory, 3 are cordoned``."""
        total = sum(self.reasons.values())
        if not total:
            return "there are no hosts yet"
        parts = ", ".join(f"{count} {reason}" for reason, count in sorted(self.reasons.items(), key=lambda r: -r[1]))
        return f"{total} host{'' if total == 1 else 's'}: {parts}"


def place(providers: Iterable[Provider], needs: Needs) -> Claim | Refusal:
    """The best claim for `needs` over `providers`, or a refusal with counts."""
    snapshot = {provider.id: provider for provider in providers}
    return Shortlist(snapshot, needs).choose(snapshot)


class Shortlist:
    """Hosts ranked for one request, for requests alike that are placed one after the other.

    Ranking goes by totals, which is cheap; the exact search then runs on the best few only, mostly on one. A host that
    changed since it was ranked is ranked anew when its turn comes.
    """

    def __init__(self, snapshot: Mapping[str, Provider], needs: Needs) -> None:
        self._needs = needs
        fitting = (provider for provider in snapshot.values() if _obstacle(provider, needs) is None)
        self._ranked = [(_spare(provider, needs), provider.id, provider) for provider in fitting]
        heapq.heapify(self._ranked)

    def choose(self, snapshot: Mapping[str, Provider]) -> Claim | Refusal:
        """The best claim now, or a refusal that counts every host of `snapshot`."""
        while self._ranked:
            _, id, ranked = self._ranked[0]
            provider = snapshot[id]
            if provider is not ranked:
                heapq.heappop(self._ranked)
                if _obstacle(provider, self._needs) is None:
                    heapq.heappush(self._ranked, (_spare(provider, self._needs), id, provider))
                continue
            found = place_within(provider, self._needs)
            if isinstance(found, Claim):
                return found
            heapq.heappop(self._ranked)
        return Refusal(Counter(str(place_within(provider, self._needs)) for provider in snapshot.values()))


def _spare(provider: Provider, needs: Needs) -> float:
    """How much of the host is left after the claim; cores and memory weigh alike, idle devices count too."""
    inventory = provider.inventory
    cores = inventory.cores * provider.cpu_ratio
    idle_devices = len(inventory.devices) - len(provider.taken_devices)
    wasted = idle_devices if not needs.devices else 0
    return (
        (cores - provider.used_cores - needs.cores) / max(cores, 1)
        + (inventory.memory - provider.used_memory - needs.memory) / max(inventory.memory, 1)
        + wasted
    )


def _obstacle(provider: Provider, needs: Needs) -> str | None:
    """The first reason that the host's totals already give why not (a short phrase that follows a number)."""
    inventory = provider.inventory
    if needs.host is not None and needs.host not in (provider.id, provider.name):
        return "are not the host asked for"
    if provider.state is not HostState.ENABLED:
        return f"are {provider.state.value}"
    if not provider.reachable:
        return "do not answer"
    if needs.traits and not needs.traits <= inventory.traits:
        return f"lack {', '.join(sorted(needs.traits - inventory.traits))}"
    if needs.pinned and "pinning" not in inventory.traits:
        return "lack pinning"
    if not _cores_suffice(provider, needs):
        return "lack cores"
    if needs.hugepage == 0 and provider.used_memory + needs.memory > inventory.memory:
        return "lack memory"
    if provider.used_disk + needs.disk > inventory.disk:
        return "lack disk"
    return None


def place_within(provider: Provider, needs: Needs) -> Claim | str:
    """The claim for `needs` on this one host, or the first reason why not."""
    obstacle = _obstacle(provider, needs)
    if obstacle is not None:
        return obstacle
    devices = _pick_devices(provider, needs.devices)
    if isinstance(devices, str):
        return devices
    nodes = _pick_nodes(provider, needs, devices)
    if isinstance(nodes, str):
        return nodes
    cpus: tuple[int, ...] = ()
    if needs.pinned:
        picked = _pick_cpus(provider, needs, nodes)
        if picked is None:
            return "lack free whole cores"
        cpus = picked
    return Claim(
        provider=provider.id,
        cores=needs.cores,
        memory=needs.memory,
        disk=needs.disk,
        cpus=cpus,
        nodes=tuple(n.id for n in nodes) if needs.numa_nodes or needs.hugepage else (),
        hugepage=needs.hugepage,
        devices=tuple(_claimed_name(d, r) for d, r in devices),
    )


def _cores_suffice(provider: Provider, needs: Needs) -> bool:
    """Pinned cores are taken whole; what is left carries the shared ones, times the ratio."""
    pinned = len(provider.taken_cpus) + (needs.cores if needs.pinned else 0)
    shared = provider.used_cores - len(provider.taken_cpus) + (0 if needs.pinned else needs.cores)
    return shared <= (provider.inventory.cores - pinned) * provider.cpu_ratio


def _claimed_name(device: Device, request: DeviceRequest) -> str:
    return f"{device.address}/{request.mdev_type}" if request.kind is DeviceKind.MDEV else device.address


def _matches(device: Device, request: DeviceRequest) -> bool:
    if request.kind is DeviceKind.MDEV:
        if request.mdev_type not in device.mdev_types:
            return False
    elif device.kind is not request.kind:
        return False
    if request.model is None:
        return True
    wanted = request.model.lower()
    return wanted in device.model.lower() or wanted == device.vendor.lower()


def _free_slots(provider: Provider, device: Device, request: DeviceRequest) -> int:
    """How many claims of this request's kind the device can still take."""
    if device.address in provider.cordoned_devices or device.address in provider.taken_devices:
        return 0
    shared = sum(n for taken, n in provider.taken_devices.items() if taken.startswith(device.address + "/"))
    if request.kind is DeviceKind.MDEV:
        return device.mdev_types[request.mdev_type or ""] - shared
    return 0 if shared else 1


def _pick_devices(
    provider: Provider, requests: tuple[DeviceRequest, ...]
) -> tuple[tuple[Device, DeviceRequest], ...] | str:
    """Devices for every request, those of one NUMA node together; or the reason why not."""
    if not requests:
        return ()
    picked: list[tuple[Device, DeviceRequest]] = []
    used: Counter[str] = Counter()
    for request in requests:
        name = request.mdev_type or request.model or request.kind.value
        if request.kind is not DeviceKind.ACCELERATOR and not any(
            _matches(d, request) for d in provider.inventory.devices
        ):
            return f"have no {name}"
        slots = [
            d
            for d in provider.inventory.devices
            if _matches(d, request)
            for _ in range(max(0, _free_slots(provider, d, request) - used[d.address]))
        ]
        if len(slots) < request.count:
            return f"lack a free {name}"
        per_node = Counter(d.node for d in slots)
        home = next((d.node for d, _ in picked), None)
        slots.sort(key=lambda d: (d.node != home, -per_node[d.node], d.node or 0, d.address))
        for device in slots[: request.count]:
            picked.append((device, request))
            used[device.address] += 1
    return tuple(picked)


def _pick_nodes(
    provider: Provider, needs: Needs, devices: tuple[tuple[Device, DeviceRequest], ...]
) -> tuple[NumaNode, ...] | str:
    """The NUMA nodes that cores and memory come from: those of the devices first, then the fullest that fit."""
    nodes = provider.inventory.nodes
    if not needs.numa_nodes and not needs.hugepage:
        return nodes
    count = max(1, needs.numa_nodes)
    if count > len(nodes):
        return f"have fewer than {count} NUMA nodes"
    if needs.cores % count or needs.memory % count:
        return f"cannot split this evenly over {count} NUMA nodes"
    homes = {d.node for d, _ in devices}
    good = [n for n in nodes if _node_fits(provider, n, needs, count)]
    if len(good) < count:
        lacking = "huge pages" if needs.hugepage else "memory or cores"
        return f"lack {lacking} on {count} NUMA node{'s' if count > 1 else ''}"
    good.sort(key=lambda n: (n.id not in homes, n.id))
    return tuple(good[:count])


def _node_fits(provider: Provider, node: NumaNode, needs: Needs, count: int) -> bool:
    if needs.hugepage:
        pool = node.hugepages.get(needs.hugepage, 0) - provider.used_hugepages.get((node.id, needs.hugepage), 0)
        share = needs.memory // count
        if share % needs.hugepage or pool * needs.hugepage < share:
            return False
    elif node.memory - provider.bound_memory.get(node.id, 0) < needs.memory // count:
        return False
    free = len(set(node.cpus) - provider.taken_cpus) if needs.pinned else len(node.cpus)
    return free >= needs.cores // count


def _pick_cpus(provider: Provider, needs: Needs, nodes: tuple[NumaNode, ...]) -> tuple[int, ...] | None:
    """Host CPUs of its own, evenly from the chosen nodes (node by node, lowest numbers first)."""
    if needs.numa_nodes:
        share = needs.cores // len(nodes)
        return tuple(c for n in nodes for c in sorted(set(n.cpus) - provider.taken_cpus)[:share])
    free = [c for n in nodes for c in sorted(set(n.cpus) - provider.taken_cpus)]
    return tuple(free[: needs.cores]) if len(free) >= needs.cores else None
