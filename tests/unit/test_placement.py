"""Placement, by properties: it never over-commits, and every refusal counts every host once."""

from __future__ import annotations

from dataclasses import replace
from unittest import mock

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
    Part,
    Provider,
)
from usina.core.units import GiB, MiB
from usina.placement import Chooser, Fleet, Refusal, choose, held_with, place, policy_of, ranking
from usina.testing.replay import violations

DEVICES = tuple(
    Device(f"0000:{n:02x}:00.0", DeviceKind.GPU, "H100", "10de:2330", node=n % 2, memory=80 * GiB) for n in range(4)
) + (
    Device("0000:40:00.0", DeviceKind.GPU, "A40", "10de:2235", node=1, mdev_types={"nvidia-63": 2}),
    Device("0000:41:00.0", DeviceKind.GPU, "NVIDIA H100 80GB HBM3", "10de:2330", node=0, memory=80 * GiB, mode="mig"),
)


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
    | st.builds(DeviceRequest, st.just(DeviceKind.GPU), share=st.sampled_from([200, 470, 810]))
    | st.builds(DeviceRequest, st.just(DeviceKind.GPU), profile=st.sampled_from(["1g.10gb", "2g.20gb", "3g.40gb"]))
    | st.just(DeviceRequest(DeviceKind.MDEV, 1, None, "nvidia-63")),
    max_size=2,
).map(tuple)
needs_ = st.builds(
    Needs,
    cores=st.sampled_from([0.5, 1, 2, 4, 6]),
    memory=st.sampled_from([512 * MiB, GiB, 2 * GiB, 4 * GiB]),
    disk=st.sampled_from([GiB, 30 * GiB]),
    pinned=st.booleans(),
    numa_nodes=st.integers(0, 2),
    hugepage=st.sampled_from([0, 0, GiB]),
    devices=requests,
    traits=st.sampled_from([frozenset(), frozenset({"uefi"}), frozenset({"moon"})]),
)


modes = st.sampled_from(["fragmentation", "best-fit", "spread", "pack", "cost", "fgd", "dot-product", "first-fit"])


def columns(fleet: Fleet, id: str) -> dict[str, object]:
    """What the columns say of one host, without numbers that depend on the order of coming."""
    row = fleet.rows[id]
    names = ("cpu", "memory", "disk", "enabled", "draining", "reachable", "plain", "count", "present")
    told: dict[str, object] = {name: getattr(fleet, name)[row].item() for name in names}
    width = int(fleet.count[row])
    return told | {"gpus": fleet.gpus[row, :width].tolist(), "slices": fleet.slices[row, :width].tolist()}


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(needs_, st.integers(0, 30)), max_size=25),
    st.integers(1, 4),
    modes,
    st.frozensets(st.sampled_from([d.address for d in DEVICES]), max_size=2),
)
def test_the_moving_snapshot(
    orders: list[tuple[Needs, int]], count: int, policy: str, cordoned: frozenset[str]
) -> None:
    """Never over-commits; refusals count every host; the columns equal those counted from scratch; all comes back."""
    hosts = {f"h{n}": host(f"h{n}", cordoned_devices=cordoned if n == 0 else frozenset()) for n in range(count)}
    fleet = Fleet(hosts.values())
    chooser = Chooser(fleet, policy_of(policy))
    held: list[Claim] = []
    for needs, leaver in orders:
        if held and leaver < 10:
            fleet.give_back(held.pop(leaver % len(held)))
        found = chooser.choose(needs)
        if isinstance(found, Refusal):
            assert sum(found.reasons.values()) == count
            continue
        assert not {Part.parse(d).address for d in found.devices} & hosts[found.provider].cordoned_devices
        fleet.take(found)
        held.append(found)
    for id, empty in hosts.items():
        mine = [claim for claim in held if claim.provider == id]
        assert violations(empty, mine) == []
        scratch = empty
        for claim in mine:
            scratch = held_with(scratch, claim)
        assert columns(fleet, id) == columns(Fleet([scratch]), id)
    for claim in held:
        fleet.give_back(claim)
    for id, empty in hosts.items():
        assert fleet.provider(fleet.rows[id]) == empty
        assert columns(fleet, id) == columns(Fleet([empty]), id)


@settings(max_examples=60, deadline=None)
@given(st.lists(needs_, min_size=1, max_size=12), st.lists(st.integers(0, 40), max_size=12), modes)
def test_a_remembered_ranking_says_what_a_new_one_says(orders: list[Needs], moves: list[int], policy: str) -> None:
    fleet = Fleet(host(f"h{n}") for n in range(5))
    kept = Chooser(fleet, policy_of(policy))
    held: list[Claim] = []
    for step, needs in enumerate(orders * 2):
        found, fresh = kept.choose(needs), Chooser(fleet, policy_of(policy)).choose(needs)
        assert found == fresh
        if isinstance(found, Claim):
            fleet.take(found)
            held.append(found)
        move = moves[step % len(moves)] if moves else 40
        if held and move < 10:
            fleet.give_back(held.pop(move % len(held)))
        elif 10 <= move < 15:
            row = fleet.rows[f"h{move - 10}"]
            fleet.put(replace(fleet.provider(row), state=HostState.CORDONED))


@settings(max_examples=40, deadline=None)
@given(st.lists(needs_, min_size=1, max_size=10))
def test_hosts_priced_by_and_by_are_all_found(orders: list[Needs]) -> None:
    """With more hosts than are priced at once, what fits somewhere is placed, and the refusals are the same."""
    with mock.patch.object(ranking, "MANY", 2):
        few, fleet = [], Fleet(host(f"h{n}") for n in range(7))
        chooser = Chooser(fleet)
        for needs in orders * 3:
            found, fresh = chooser.choose(needs), place([fleet.provider(row) for row in range(7)], needs)
            assert isinstance(found, Claim) == isinstance(fresh, Claim)
            if isinstance(found, Claim):
                fleet.take(found)
                few.append(found)
            else:
                assert found == fresh
        for row in range(7):
            assert violations(host(f"h{row}"), [c for c in few if c.provider == f"h{row}"]) == []


def test_forms_of_requests_are_not_remembered_without_end() -> None:
    with mock.patch.object(choose, "RANKINGS", 3):
        chooser = Chooser(Fleet([host("h1")]))
        for size in range(1, 9):
            assert isinstance(chooser.choose(Needs(1, size * MiB, 0)), Claim)
            assert len(chooser._rankings) <= 3


def test_a_host_that_leaves_is_counted_no_more() -> None:
    fleet = Fleet([host("h1"), host("h2")])
    chooser = Chooser(fleet)
    assert isinstance(chooser.choose(Needs(1, GiB, GiB)), Claim)
    fleet.drop("h1")
    found = chooser.choose(Needs(1, GiB, GiB))
    assert isinstance(found, Claim) and found.provider == "h2"
    fleet.drop("h2")
    assert chooser.choose(Needs(1, GiB, GiB)) == Refusal({})
    fleet.put(host("h1", used_cores=8))
    assert chooser.choose(Needs(1, GiB, GiB)) == Refusal({"lack cores": 1})


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
    assert refused.reasons == {"are cordoned": 1, "lack 2 free H100": 1}
    assert refused.message == "2 hosts: 1 are cordoned, 1 lack 2 free H100"


def test_mediated_devices_share_their_parent_up_to_its_number() -> None:
    request = (DeviceRequest(DeviceKind.MDEV, 1, None, "nvidia-63"),)
    provider = host("h1", taken_devices={"0000:40:00.0": 1})
    assert isinstance(place([provider], Needs(1, GiB, GiB, devices=request)), Refusal)
