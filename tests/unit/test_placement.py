"""Placement, by properties: it never over-commits, and every refusal counts every host once."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from usina.core.capacity import (
    Claim,
    Device,
    DeviceKind,
    DeviceRequest,
    HostState,
    Inventory,
    Needs,
    NumaNode,
    Provider,
)
from usina.core.units import GiB, MiB
from usina.engine.placer import _with, _without
from usina.placement import Refusal, place

DEVICES = tuple(
    Device(f"0000:{n:02x}:00.0", DeviceKind.GPU, "H100", "10de:2330", node=n % 2, memory=80 * GiB) for n in range(4)
) + (Device("0000:40:00.0", DeviceKind.GPU, "A40", "10de:2235", node=1, mdev_types={"nvidia-63": 2}),)


def host(id: str, cores: int = 8, memory: int = 16 * GiB, **more: object) -> Provider:
    half = cores // 2
    nodes = (
        NumaNode(0, tuple(range(half)), memory // 2, {GiB: 4}),
        NumaNode(1, tuple(range(half, cores)), memory // 2, {GiB: 4}),
    )
    inventory = Inventory(nodes, 100 * GiB, DEVICES, frozenset({"pinning", "uefi"}))
    return replace(Provider(id, id, "fake", HostState.ENABLED, 1, inventory), **more)  # type: ignore[arg-type]


requests = st.lists(
    st.builds(DeviceRequest, st.just(DeviceKind.GPU), st.integers(1, 3), st.sampled_from([None, "H100", "10de:2235"]))
    | st.just(DeviceRequest(DeviceKind.MDEV, 1, None, "nvidia-63")),
    max_size=2,
).map(tuple)
needs_ = st.builds(
    Needs,
    cores=st.sampled_from([1, 2, 4, 6]),
    memory=st.sampled_from([512 * MiB, GiB, 2 * GiB, 4 * GiB]),
    disk=st.sampled_from([GiB, 30 * GiB]),
    pinned=st.booleans(),
    numa_nodes=st.integers(0, 2),
    hugepage=st.sampled_from([0, 0, GiB]),
    devices=requests,
    traits=st.sampled_from([frozenset(), frozenset({"uefi"}), frozenset({"moon"})]),
)


@settings(max_examples=200)
@given(st.lists(needs_, max_size=25), st.integers(1, 3))
def test_never_over_commits_and_giving_all_back_leaves_nothing(orders: list[Needs], count: int) -> None:
    hosts = {f"h{n}": host(f"h{n}") for n in range(count)}
    empty = dict(hosts)
    held: list[Claim] = []
    for needs in orders:
        found = place(hosts.values(), needs)
        if isinstance(found, Refusal):
            assert sum(found.reasons.values()) == count
            continue
        before = hosts[found.provider]
        assert not set(found.cpus) & before.taken_cpus
        assert len(found.cpus) == (needs.cores if needs.pinned else 0)
        whole = [d for d in found.devices if "/" not in d]
        assert not set(whole) & set(before.taken_devices)
        assert len(whole) == len(set(whole))
        hosts[found.provider] = _with(before, found)
        held.append(found)
    for provider in hosts.values():
        mine = [c for c in held if c.provider == provider.id]
        assert sum(c.cores for c in mine) <= provider.inventory.cores
        assert sum(c.memory for c in mine if not c.hugepage) <= provider.inventory.memory
        assert sum(c.disk for c in mine) <= provider.inventory.disk
        for node in provider.inventory.nodes:
            pages = sum(c.memory // len(c.nodes) // GiB for c in mine if c.hugepage and node.id in c.nodes)
            assert pages <= node.hugepages[GiB]
        taken = [cpu for c in mine for cpu in c.cpus]
        assert len(taken) == len(set(taken))
        shares = [d for c in mine for d in c.devices if "/" in d]
        assert len(shares) <= 2
    for claim in held:
        hosts[claim.provider] = _without(hosts[claim.provider], claim)
    for id, provider in hosts.items():
        assert provider.used_cores == provider.used_memory == provider.used_disk == 0
        assert not provider.taken_cpus
        assert not provider.taken_devices
        assert not any(provider.used_hugepages.values())
        assert provider.inventory == empty[id].inventory


def test_the_fullest_host_that_fits_is_chosen() -> None:
    found = place(
        [host("h1"), host("h2", used_cores=4, used_memory=4 * GiB), host("h3", used_cores=8)], Needs(2, GiB, GiB)
    )
    assert isinstance(found, Claim)
    assert found.provider == "h2"


def test_machines_without_devices_leave_device_hosts_alone() -> None:
    plain = replace(host("h9"), inventory=replace(host("h9").inventory, devices=()))
    found = place([host("h1"), plain], Needs(2, GiB, GiB))
    assert isinstance(found, Claim)
    assert found.provider == "h9"


def test_pinned_cores_come_from_the_node_of_the_gpu() -> None:
    gpu = DeviceRequest(DeviceKind.GPU, 2, "H100")
    found = place([host("h1")], Needs(2, GiB, GiB, pinned=True, numa_nodes=1, devices=(gpu,)))
    assert isinstance(found, Claim)
    node = found.nodes[0]
    assert {d.node for d in DEVICES if d.address in found.devices} == {node}
    assert set(found.cpus) <= set(host("h1").inventory.nodes[node].cpus)


def test_a_cordoned_host_and_a_cordoned_device_are_never_used() -> None:
    cordoned = frozenset(d.address for d in DEVICES[:3])
    hosts = [host("h1", state=HostState.CORDONED), host("h2", cordoned_devices=cordoned)]
    found = place(hosts, Needs(1, GiB, GiB, devices=(DeviceRequest(DeviceKind.GPU, 1, "H100"),)))
    assert isinstance(found, Claim)
    assert found.devices == (DEVICES[3].address,)
    refused = place(hosts, Needs(1, GiB, GiB, devices=(DeviceRequest(DeviceKind.GPU, 2, "H100"),)))
    assert isinstance(refused, Refusal)
    assert refused.reasons == {"are cordoned": 1, "lack a free H100": 1}
    assert refused.message == "2 hosts: 1 are cordoned, 1 lack a free H100"


def test_mediated_devices_share_their_parent_up_to_its_number() -> None:
    request = (DeviceRequest(DeviceKind.MDEV, 1, None, "nvidia-63"),)
    provider = host("h1", taken_devices={"0000:40:00.0": 1})
    assert isinstance(place([provider], Needs(1, GiB, GiB, devices=request)), Refusal)
