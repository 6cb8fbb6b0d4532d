"""One host: claims never over-commit, what is required is found whenever it exists, and what is lacking is said."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain, combinations, product
from math import ceil

import pytest
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
    Numa,
    NumaNode,
    Part,
    Provider,
    Terms,
    Window,
)
from usina.core.units import GiB, MiB
from usina.placement.partition import geometry_of
from usina.placement.within import held_with, held_without, largest_fit, nearest_miss, place_within
from usina.placement.within.cores import pick_cpus
from usina.placement.within.explain import scale_of, scaled
from usina.testing.replay import violations

GPU, VF, MDEV = DeviceKind.GPU, DeviceKind.VF, DeviceKind.MDEV
H100 = "NVIDIA H100 80GB HBM3"


def gpu(number: int, model: str = H100, **more: object) -> Device:
    vendor = "10de:2330" if "H100" in model else "10de:2235"
    device = Device(f"0000:{number:02x}:00.0", GPU, model, vendor, node=0, memory=80 * GiB)
    return replace(device, **more)  # type: ignore[arg-type]


def vf(number: int, node: int | None) -> Device:
    return Device(f"0000:e0:{number:02x}.0", VF, "ConnectX-7", "15b3:101e", node=node)


def host(
    devices: Sequence[Device] = (), nodes: int = 2, cpus: int = 4, threads: int = 1, pages: int = 4, **more: object
) -> Provider:
    """`nodes` NUMA nodes of `cpus` CPUs and 8 GiB; siblings are numbered apart, as Linux does."""
    made = []
    for id in range(nodes):
        own = tuple(range(id * cpus, (id + 1) * cpus))
        step = cpus // threads
        siblings = tuple(own[first::step] for first in range(step)) if threads > 1 else ()
        made.append(NumaNode(id, own, 8 * GiB, {GiB: pages}, siblings))
    inventory = Inventory(tuple(made), 100 * GiB, tuple(devices), frozenset({"pinning", "uefi"}))
    return replace(Provider("h1", "h1", "fake", HostState.ENABLED, 1, inventory), **more)  # type: ignore[arg-type]


def placed(provider: Provider, needs: Needs) -> Claim:
    found = place_within(provider, needs)
    assert isinstance(found, Claim), found
    return found


def of(*devices: DeviceRequest, cores: float = 1, memory: int = GiB, **more: object) -> Needs:
    return replace(Needs(cores, memory, GiB, devices=devices), **more)  # type: ignore[arg-type]


devices_ = st.tuples(
    st.builds(
        lambda model, node, link, mode: replace(
            gpu(0, model), node=node, link=link, mode=mode, mdev_types={"nvidia-63": 2} if model == "A40" else {}
        ),
        st.sampled_from([H100, H100, "A40"]),
        st.sampled_from([0, 0, 1, None]),
        st.sampled_from([None, "nv0", "nv1"]),
        st.sampled_from(["", "", "mig"]),
    ),
    st.booleans(),
)
inventories = st.lists(devices_, max_size=5).map(
    lambda some: (
        tuple(replace(device, address=f"0000:{n:02x}:00.0") for n, (device, _) in enumerate(some)),
        frozenset(f"0000:{n:02x}:00.0" for n, (_, cordoned) in enumerate(some) if cordoned and n % 2),
    )
)
providers = st.builds(
    lambda inventory, nodes, threads, ratio, sold: host(
        (*inventory[0], vf(0, 0), vf(1, 0), vf(2, 1), vf(3, None)),
        nodes,
        threads=threads,
        cordoned_devices=inventory[1],
        cpu_ratio=ratio,
        terms=Terms(memory_ratio=sold),
    ),
    inventories,
    st.integers(1, 3),
    st.sampled_from([1, 2]),
    st.sampled_from([1.0, 1.5, 2.0]),
    st.sampled_from([1.0, 1.25]),
)
requests_ = st.one_of(
    st.builds(DeviceRequest, st.just(GPU), st.integers(1, 3), st.sampled_from([None, "h100", "A40|10de:2330"])),
    st.builds(DeviceRequest, st.just(GPU), st.integers(2, 3), linked=st.just(True)),
    st.builds(DeviceRequest, st.just(GPU), st.integers(1, 4), share=st.sampled_from([200, 400, 700])),
    st.builds(DeviceRequest, st.just(GPU), st.integers(1, 3), profile=st.sampled_from(["1g.10gb", "2g", "3g.40gb"])),
    st.builds(DeviceRequest, st.just(VF), st.integers(1, 2)),
    st.just(DeviceRequest(MDEV, 1, None, "nvidia-63")),
)
needs_ = st.builds(
    Needs,
    cores=st.sampled_from([1, 2, 3, 4, 0.1, 1.7]),
    memory=st.sampled_from([512 * MiB, GiB, 2 * GiB, 6 * GiB]),
    disk=st.sampled_from([GiB, 30 * GiB]),
    pinned=st.booleans(),
    numa_nodes=st.sampled_from([0, 0, 0, 1, 2]),
    hugepage=st.sampled_from([0, 0, 0, GiB]),
    devices=st.lists(requests_, max_size=2).map(tuple),
    numa=st.sampled_from(list(Numa)),
    whole_cores=st.sampled_from([False, False, True]),
)


def homes(provider: Provider, claim: Claim) -> set[int]:
    """NUMA nodes of the devices of a claim that say theirs."""
    mine = {Part.parse(name).address for name in claim.devices}
    return {d.node for d in provider.inventory.devices if d.address in mine and d.node is not None}


def is_bound(needs: Needs) -> bool:
    return bool(needs.numa_nodes or needs.hugepage or needs.numa is Numa.STRICT)


def assert_as_ordered(provider: Provider, needs: Needs, claim: Claim) -> None:
    """The claim gives what was asked, where it was asked."""
    parts = [Part.parse(name) for name in claim.devices]
    devices = {d.address: d for d in provider.inventory.devices}
    assert not {part.address for part in parts} & provider.cordoned_devices
    assert len(parts) == sum(request.count for request in needs.devices)
    for request in needs.devices:
        mine, parts = parts[: request.count], parts[request.count :]
        assert all(gives(devices[part.address], request, part) for part in mine)
        links = {devices[part.address].link for part in mine}
        assert not request.linked or (len(links) == 1 and None not in links)
    pinned = needs.pinned or needs.whole_cores
    assert (claim.memory, claim.disk, claim.hugepage) == (needs.memory, needs.disk, needs.hugepage)
    assert len(claim.cpus) == (claim.cores if pinned else 0)
    cores = ceil(needs.cores) if pinned else needs.cores
    assert cores <= claim.cores <= cores + (max(1, needs.numa_nodes) if needs.whole_cores else 0)
    if is_bound(needs):
        assert len(claim.nodes) == max(1, needs.numa_nodes)
        for node in (n for n in provider.inventory.nodes if n.id in claim.nodes and pinned):
            used = set(claim.cpus[: ceil(needs.cores)])
            assert len(used & set(node.cpus)) == ceil(needs.cores) // len(claim.nodes)
    if needs.numa is Numa.STRICT:
        assert homes(provider, claim) <= set(claim.nodes)


def gives(device: Device, request: DeviceRequest, part: Part) -> bool:
    """Whether `part` of `device` is what `request` asks for, read from the rules and not from the search."""
    if request.kind is MDEV:
        return part.mdev_type == request.mdev_type
    words = (request.model or "").lower().split("|")
    if device.kind is not request.kind or not any(w in device.model.lower() or w == device.vendor for w in words):
        return False
    if request.profile:
        geometry = geometry_of(device.model)
        return device.mode == "mig" and geometry is not None and part.profile == geometry.resolve(request.profile)
    return device.mode == "" and part == Part(device.address, share=request.share)


@settings(max_examples=150, deadline=None)
@given(providers, st.lists(st.tuples(needs_, st.integers(0, 3)), max_size=14))
def test_taking_and_giving_back_never_over_commits_and_ends_where_it_began(
    empty: Provider, orders: list[tuple[Needs, int]]
) -> None:
    now, held, whole = empty, list[Claim](), list[Claim]()
    for needs, turn in orders:
        if held and turn == 0:
            now = held_without(now, held.pop(0))
        found = place_within(now, needs)
        assert (nearest_miss(now, needs) == "") == isinstance(found, Claim)
        if isinstance(found, str):
            continue
        assert_as_ordered(empty, needs, found)
        now = held_with(now, found)
        held.append(found)
        whole.extend([found] if needs.whole_cores else [])
        assert violations(empty, held, whole) == []
    for claim in held:
        now = held_without(now, claim)
    assert now == empty


def every_part(device: Device, request: DeviceRequest) -> Iterator[Part]:
    geometry = geometry_of(device.model) if request.profile else None
    name = geometry.resolve(request.profile or "") if geometry else None
    if geometry and name:
        yield from (Part(device.address, profile=name, start=start) for start in geometry.named[name].starts)
    elif request.kind is MDEV and request.mdev_type in device.mdev_types:
        yield Part(device.address, mdev_type=request.mdev_type or "")
    elif request.kind is not MDEV and not request.profile:
        yield Part(device.address, share=request.share)


def conceivable(provider: Provider, needs: Needs) -> Iterator[Claim]:
    """Every claim that serves `needs` on nodes of its own, be it free or not."""
    count = max(1, needs.numa_nodes)
    for nodes in combinations(provider.inventory.nodes, count):
        ids = {None, *(n.id for n in nodes)}
        near = [d for d in provider.inventory.devices if d.node in ids and d.address not in provider.cordoned_devices]
        slots = [
            [str(part) for d in near for part in every_part(d, request) if gives(d, request, part)]
            for request in needs.devices
            for _ in range(request.count)
        ]
        size = int(needs.cores) // count
        cpus = [list(combinations(n.cpus, size + extra)) for n in nodes for extra in (0, 1)] if needs.pinned else []
        per_node = [cpus[2 * at] + (cpus[2 * at + 1] if needs.whole_cores else []) for at in range(len(cpus) // 2)]
        if needs.pinned or all(
            needs.cores / count <= len(set(n.cpus) - provider.taken_cpus) * provider.cpu_ratio for n in nodes
        ):
            for picked in product(*per_node):
                mine = tuple(chain.from_iterable(picked))
                for devices in product(*slots):
                    cores = len(mine) if needs.pinned else needs.cores
                    claim = Claim("h1", cores, needs.memory, needs.disk, mine, tuple(n.id for n in nodes))
                    yield replace(claim, hugepage=needs.hugepage, devices=devices)


strict_needs = st.builds(
    Needs,
    cores=st.sampled_from([2, 2, 4]),
    memory=st.sampled_from([GiB, 2 * GiB, 6 * GiB]),
    disk=st.just(GiB),
    pinned=st.just(True),
    numa_nodes=st.sampled_from([0, 0, 2]),
    hugepage=st.sampled_from([0, 0, GiB]),
    devices=st.lists(
        st.builds(DeviceRequest, st.just(GPU), st.integers(1, 2), st.sampled_from([None, "H100"]))
        | st.builds(DeviceRequest, st.just(GPU), st.integers(1, 2), share=st.sampled_from([400, 600]))
        | st.builds(DeviceRequest, st.just(GPU), st.integers(1, 2), profile=st.sampled_from(["2g", "3g"]))
        | st.just(DeviceRequest(VF, 1)),
        max_size=2,
    ).map(tuple),
    numa=st.just(Numa.STRICT),
    whole_cores=st.booleans(),
) | st.builds(Needs, st.sampled_from([0.3, 1, 4]), st.just(GiB), st.just(GiB), numa=st.just(Numa.STRICT))


@settings(max_examples=120, deadline=None)
@given(providers, st.lists(needs_, max_size=5), strict_needs)
def test_strict_is_found_exactly_when_it_exists(empty: Provider, before: list[Needs], needs: Needs) -> None:
    now, held, whole = empty, list[Claim](), list[Claim]()
    for other in before:
        found = place_within(now, other)
        if isinstance(found, Claim):
            now = held_with(now, found)
            held.append(found)
            whole.extend([found] if other.whole_cores else [])
    found = place_within(now, needs)
    if isinstance(found, Claim):
        assert_as_ordered(empty, needs, found)
        return
    for claim in conceivable(now, needs):
        wholly = [*whole, claim] if needs.whole_cores else whole
        assert violations(empty, [*held, claim], wholly), (found, claim)


small_devices = st.lists(
    st.builds(
        lambda model, link, held: (replace(gpu(0, model), link=link), held),
        st.sampled_from([H100, H100, "A40"]),
        st.sampled_from([None, "nv0", "nv0", "nv1"]),
        st.sampled_from(["", "", "/200m", "/500m", "/nvidia-63"]),
    ),
    min_size=2,
    max_size=4,
).map(lambda some: [(replace(d, address=f"0000:{n:02x}:00.0"), held) for n, (d, held) in enumerate(some)])
small_requests = st.lists(
    st.builds(DeviceRequest, st.just(GPU), st.integers(1, 2), st.sampled_from([None, None, "H100", "A40"]))
    | st.just(DeviceRequest(GPU, 2, linked=True))
    | st.builds(DeviceRequest, st.just(GPU), st.integers(1, 2), share=st.sampled_from([300, 500, 800]))
    | st.builds(DeviceRequest, st.just(MDEV), st.integers(1, 2), mdev_type=st.just("nvidia-63")),
    min_size=2,
    max_size=3,
).filter(lambda some: sum(one.count for one in some) <= 5)


@settings(max_examples=250, deadline=None)
@given(small_devices, small_requests)
def test_devices_for_several_requests_are_found_exactly_when_they_exist(
    some: list[tuple[Device, str]], requests: list[DeviceRequest]
) -> None:
    devices = [replace(device, mdev_types={"nvidia-63": 2}) for device, _ in some]
    empty = host(devices)
    before = Claim("h1", devices=tuple(device.address + held for device, held in some if held))
    needs = of(*requests)
    found = place_within(held_with(empty, before), needs)
    if isinstance(found, Claim):
        assert_as_ordered(empty, needs, found)
        assert violations(empty, [before, found]) == []
        return
    links = {device.address: device.link for device in devices}
    slots = [
        [str(part) for device in devices for part in every_part(device, request) if gives(device, request, part)]
        for request in requests
        for _ in range(request.count)
    ]
    for names in product(*slots):
        joined, first = True, 0
        for request in requests:
            mine = {links[Part.parse(name).address] for name in names[first : first + request.count]}
            joined = joined and (not request.linked or (len(mine) == 1 and None not in mine))
            first += request.count
        assert not joined or violations(empty, [before, Claim("h1", devices=names)]), (found, names)


@settings(max_examples=100, deadline=None)
@given(providers, st.lists(needs_, max_size=4), needs_)
def test_the_largest_fit_fits_and_no_larger_step_does(empty: Provider, before: list[Needs], needs: Needs) -> None:
    now = empty
    for other in before:
        found = place_within(now, other)
        now = held_with(now, found) if isinstance(found, Claim) else now
    larger = replace(needs, cores=needs.cores * 4, memory=needs.memory * 4)
    steps = scale_of(larger)
    fits = [
        n for n in (scaled(larger, s, steps) for s in range(1, steps + 1)) if isinstance(place_within(now, n), Claim)
    ]
    assert largest_fit(now, larger) == (fits[-1] if fits else None)


def test_a_scaled_request_keeps_its_shape_and_at_least_one_of_everything() -> None:
    needs = of(DeviceRequest(GPU, 8), cores=64, memory=512 * GiB, numa_nodes=2, hugepage=GiB)
    assert largest_fit(host([gpu(n) for n in range(2)], cpus=40, pages=256), needs) == replace(
        needs, cores=22, memory=176 * GiB, devices=(DeviceRequest(GPU, 2),)
    )
    least = scaled(needs, 1, scale_of(needs))
    assert (least.cores, least.memory, least.devices[0].count) == (2, 16 * GiB, 1)
    assert largest_fit(host(), needs) is None


@pytest.mark.parametrize(
    ("provider", "needs", "reason", "miss"),
    [
        (host(), of(host="h9"), "are not the host asked for", "is not the host asked for"),
        (host(state=HostState.CORDONED), of(), "are cordoned", "is cordoned"),
        (host(reachable=False), of(), "do not answer", "does not answer"),
        (host(terms=Terms(tenants=frozenset({"a"}))), of(), "are dedicated to others", "is dedicated to others"),
        (host(), of(traits=frozenset({"moon"})), "lack moon", "lacks moon"),
        (host(), of(forbidden=frozenset({"uefi"})), "have uefi, which is forbidden", "has uefi, which is forbidden"),
        (host(), of(cores=10), "lack cores", "2 cores short"),
        (host(cpu_ratio=2.0), of(cores=17), "lack cores", "1 core short"),
        (host(cpu_ratio=2.0), of(cores=9, pinned=True), "lack cores", "1 core short"),
        (host(), of(memory=28 * GiB), "lack memory", "12GiB of memory short"),
        (host(), of(memory=16 * GiB + 1), "lack memory", "1B of memory short"),
        (host(), replace(of(), disk=105 * GiB), "lack disk", "5GiB of disk short"),
        (host(), of(DeviceRequest(GPU, 1, "B200")), "have no B200", "0 of 1 B200 free"),
        (host([gpu(0, mode="mig")]), of(DeviceRequest(GPU, 1, profile="5g")), "have no 5g", "0 of 1 5g free"),
        (host([gpu(0)]), of(DeviceRequest(GPU, 1, profile="1g")), "have no 1g", "0 of 1 1g free"),
        (host([gpu(0)]), of(DeviceRequest(MDEV, 1, None, "nvidia-63")), "have no nvidia-63", "0 of 1 nvidia-63 free"),
        (
            host([gpu(0)]),
            of(DeviceRequest(GPU, 2, "H100|B200")),
            "lack a free H100 or B200",
            "1 of 2 H100 or B200 free",
        ),
        (
            host([gpu(0, mode="mig")]),
            of(DeviceRequest(GPU, share=500)),
            "lack a free 500/1000 gpu",
            "0 of 1 500/1000 gpu free",
        ),
        (
            host([gpu(n) for n in range(3)], used_memory=15 * GiB),
            of(DeviceRequest(GPU, 4, "H100"), memory=13 * GiB),
            "lack memory",
            "3 of 4 H100 free; 12GiB of memory short",
        ),
        (
            host([gpu(0), gpu(1)]),
            of(DeviceRequest(GPU, 2, "H100", linked=True)),
            "lack 2 linked H100",
            "lacks 2 linked H100",
        ),
        (
            host([gpu(0), gpu(1)]),
            of(DeviceRequest(GPU, 2), DeviceRequest(GPU, share=100)),
            "lack 2 gpu, 100/1000 gpu together",
            "lacks 2 gpu, 100/1000 gpu together",
        ),
        (
            host(),
            of(cores=6, numa=Numa.STRICT),
            "lack cores on one NUMA node",
            "lacks cores on one NUMA node (at best 4 of 6 cores and 1GiB of 1GiB memory)",
        ),
        (
            host(),
            of(memory=9 * GiB, numa_nodes=1),
            "lack memory on one NUMA node",
            "lacks memory on one NUMA node (at best 1 of 1 cores and 8GiB of 9GiB memory)",
        ),
        (
            host(bound_memory={0: 8 * GiB}, taken_cpus=frozenset({4}), used_cores=1),
            of(cores=4, numa=Numa.STRICT),
            "lack cores and memory on one NUMA node",
            "lacks cores and memory on one NUMA node (at best 3 of 4 cores and 1GiB of 1GiB memory)",
        ),
        (
            host(),
            of(memory=10 * GiB, hugepage=GiB),
            "lack huge pages on one NUMA node",
            "2GiB of 1GiB huge pages short",
        ),
        (host(), of(cores=3, numa_nodes=2), *["cannot split this evenly over 2 NUMA nodes"] * 2),
        (host(), of(numa_nodes=3), "have fewer than 3 NUMA nodes", "has fewer than 3 NUMA nodes"),
        (
            host([gpu(0), gpu(1, node=1)]),
            of(DeviceRequest(GPU, 2, "H100"), numa=Numa.STRICT),
            "lack 2 H100 on one NUMA node",
            "lacks 2 H100 on one NUMA node",
        ),
        (
            host([gpu(0)], taken_cpus=frozenset({0}), used_cores=1),
            of(DeviceRequest(GPU), cores=4, numa=Numa.STRICT),
            "lack gpu with cores and memory on one NUMA node",
            "lacks gpu with cores and memory on one NUMA node",
        ),
        (
            host(threads=2, taken_cpus=frozenset({0, 1, 4, 5}), used_cores=4),
            of(cores=2, whole_cores=True),
            "lack free whole physical cores",
            "lacks free whole physical cores",
        ),
    ],
)
def test_a_refusal_says_what_is_lacking(provider: Provider, needs: Needs, reason: str, miss: str) -> None:
    assert place_within(provider, needs) == reason
    assert nearest_miss(provider, needs) == miss


def test_maintenance_matters_only_to_what_runs_then() -> None:
    provider = host(terms=Terms(maintenance=(Window(100.0, 200.0),)))
    assert place_within(provider, of(begins=150.0)) == "have maintenance in that time"
    assert place_within(provider, of(begins=10.0, ends=101.0)) == "have maintenance in that time"
    assert isinstance(place_within(provider, of(begins=10.0, ends=100.0)), Claim)
    assert isinstance(place_within(provider, of(begins=200.0)), Claim)


def test_a_dedicated_host_serves_its_tenants_and_memory_is_sold_as_often_as_said() -> None:
    provider = host(terms=Terms(tenants=frozenset({"a"}), memory_ratio=1.5))
    assert placed(provider, of(tenant="a", memory=24 * GiB)).memory == 24 * GiB
    assert place_within(provider, of(tenant="a", memory=25 * GiB)) == "lack memory"
    assert placed(provider, of(tenant="a", memory=12 * GiB, numa=Numa.STRICT)).nodes == (0,)
    assert place_within(provider, of(tenant="a", memory=13 * GiB, numa=Numa.STRICT)) == "lack memory on one NUMA node"


def test_pinned_cores_leave_the_rest_to_shared_ones_at_the_ratio() -> None:
    provider = held_with(host(cpu_ratio=2.0), placed(host(), of(cores=4, pinned=True)))
    assert placed(provider, of(cores=8)).cores == 8
    assert place_within(provider, of(cores=9)) == "lack cores"
    full = held_with(provider, placed(provider, of(cores=7)))
    assert place_within(full, of(cores=1, pinned=True)) == "lack cores"


def test_shared_cores_are_sold_by_the_thousandth_and_pinned_ones_whole() -> None:
    provider, held = host(nodes=1, cpus=1), list[Claim]()
    for _ in range(10):
        held.append(placed(provider, of(cores=0.1, memory=256 * MiB, numa=Numa.STRICT)))
        provider = held_with(provider, held[-1])
    assert provider.used_cores == 1
    assert place_within(provider, of(cores=0.001)) == "lack cores"
    assert nearest_miss(provider, of(cores=0.5)) == "0.5 cores short"
    assert largest_fit(held_without(provider, held[0]), of(cores=0.8)) == of(cores=0.1, memory=GiB // 8)
    pinned = placed(host(), of(cores=1.5, pinned=True))
    assert (pinned.cores, pinned.cpus) == (2, (0, 1))


def test_huge_pages_are_no_ordinary_memory() -> None:
    provider = host(used_memory=16 * GiB)
    claim = placed(provider, of(memory=2 * GiB, hugepage=GiB))
    assert claim.nodes == (0,)
    after = held_with(provider, claim)
    assert (after.used_memory, after.used_hugepages) == (16 * GiB, {(0, GiB): 2})
    assert held_without(after, claim) == provider


def test_whole_cores_come_with_all_their_threads_and_all_of_them_count() -> None:
    provider = host(threads=2, taken_cpus=frozenset({0}), used_cores=1)
    claim = placed(provider, of(cores=3, whole_cores=True))
    assert (claim.cpus, claim.cores) == ((4, 6, 5, 7), 4)  # the last is only there to complete a core
    spread = placed(host(threads=2), of(cores=2, whole_cores=True, numa_nodes=2))
    assert (spread.cpus, spread.cores) == ((0, 4, 2, 6), 4)


def test_a_thread_that_only_completes_a_core_is_not_sold_to_others() -> None:
    provider = host(threads=2, nodes=1, used_cores=3)
    assert placed(replace(provider, used_cores=2), of(cores=1, whole_cores=True)).cores == 2
    assert place_within(provider, of(cores=1, whole_cores=True)) == "lack free whole physical cores"
    assert place_within(provider, of(cores=1, whole_cores=True, numa=Numa.STRICT)) == "lack cores"


def test_shared_cores_on_a_node_are_held_against_its_unpinned_cpus_times_the_ratio() -> None:
    provider = host(cpu_ratio=2.0, taken_cpus=frozenset({0}), used_cores=1)
    assert placed(provider, of(cores=6, numa=Numa.STRICT)).nodes == (0,)
    assert placed(provider, of(cores=8, numa=Numa.STRICT)).nodes == (1,)
    assert place_within(provider, of(cores=9, numa=Numa.STRICT)) == "lack cores on one NUMA node"


def test_pinned_threads_complete_broken_cores_before_they_break_others() -> None:
    provider = host(threads=2, cpus=8, taken_cpus=frozenset({2}), used_cores=1)
    assert placed(provider, of(cores=2, pinned=True, numa_nodes=1)).cpus == (6, 0)
    assert placed(host(), of(cores=3, pinned=True)).cpus == (0, 1, 2)


def test_as_few_threads_as_possible_complete_cores_of_unequal_size() -> None:
    node = NumaNode(0, (0, 1, 2, 3), GiB, {}, ((2, 3),))
    assert pick_cpus([node], (), 3, whole=True) == (0, 2, 3)
    assert pick_cpus([node], {0}, 2, whole=True) == (2, 3)
    assert pick_cpus([node], {0, 3}, 2, whole=True) is None


def test_a_cordoned_device_and_one_set_up_to_be_cut_are_not_given_whole() -> None:
    devices = [gpu(0), gpu(1, mode="mig"), gpu(2)]
    provider = host(devices, cordoned_devices=frozenset({"0000:00:00.0"}))
    assert placed(provider, of(DeviceRequest(GPU))).devices == ("0000:02:00.0",)
    assert place_within(provider, of(DeviceRequest(GPU, 2, "H100"))) == "lack a free H100"


def test_devices_are_matched_by_models_memory_and_traits() -> None:
    devices = [gpu(0, "A40", memory=48 * GiB), gpu(1, traits=frozenset({"sxm"})), gpu(2, memory=94 * GiB)]
    for request, number in (
        (DeviceRequest(GPU, model="10DE:2235"), 0),
        (DeviceRequest(GPU, model="B200|h100", traits=frozenset({"sxm"})), 1),
        (DeviceRequest(GPU, memory=90 * GiB), 2),
    ):
        assert placed(host(devices), of(request)).devices == (f"0000:{number:02x}:00.0",)


def test_requests_that_accept_the_same_devices_do_not_take_them_from_each_other() -> None:
    provider = host([gpu(0), gpu(1, "A40")])
    either, one = DeviceRequest(GPU, 1, "A40|H100"), DeviceRequest(GPU, 1, "H100")
    assert placed(provider, of(either, one)).devices == ("0000:01:00.0", "0000:00:00.0")
    assert placed(provider, of(one, either)).devices == ("0000:00:00.0", "0000:01:00.0")


def test_linked_devices_come_from_the_smallest_group_that_suffices() -> None:
    links = ["a"] * 4 + ["b"] * 2 + ["c"] * 4 + [None]
    provider = host([gpu(n, link=link) for n, link in enumerate(links)])
    chosen = {count: placed(provider, of(DeviceRequest(GPU, count))).devices for count in (1, 2, 3)}
    assert chosen[1] == ("0000:0a:00.0",)
    assert chosen[2] == ("0000:04:00.0", "0000:05:00.0")
    assert chosen[3] == ("0000:00:00.0", "0000:01:00.0", "0000:02:00.0")
    broken = replace(provider, taken_devices={"0000:06:00.0": 1})
    assert placed(broken, of(DeviceRequest(GPU, 3))).devices == ("0000:07:00.0", "0000:08:00.0", "0000:09:00.0")
    fuller = replace(provider, taken_devices={"0000:04:00.0": 1, "0000:06:00.0": 1, "0000:07:00.0": 1})
    assert placed(fuller, of(DeviceRequest(GPU, 2))).devices == ("0000:08:00.0", "0000:09:00.0")
    trio = host([gpu(n, link="a" if n < 4 else "b") for n in range(7)], taken_devices={"0000:00:00.0": 1})
    tighter = held_with(trio, Claim("h1", devices=("0000:01:00.0",)))  # two are left of four, three of three
    assert placed(tighter, of(DeviceRequest(GPU, 2))).devices == ("0000:04:00.0", "0000:05:00.0")
    assert place_within(broken, of(DeviceRequest(GPU, 5, "H100", linked=True))) == "lack 5 linked H100"
    assert len(placed(broken, of(DeviceRequest(GPU, 5))).devices) == 5


def test_devices_without_links_come_from_one_node_and_network_functions_from_there_too() -> None:
    provider = host([gpu(0), gpu(1, node=1), gpu(2, node=1), vf(0, 0), vf(1, 0), vf(2, 1)])
    claim = placed(provider, of(DeviceRequest(VF), DeviceRequest(GPU, 2)))
    assert claim.devices == ("0000:e0:02.0", "0000:01:00.0", "0000:02:00.0")


def test_cores_lie_where_the_devices_are_even_if_nobody_asked() -> None:
    provider = host([gpu(0), gpu(1, node=1)], taken_cpus=frozenset({0}), used_cores=1)
    claim = placed(provider, of(DeviceRequest(GPU), cores=4, pinned=True))
    assert (claim.cpus, claim.devices, claim.nodes) == ((4, 5, 6, 7), ("0000:01:00.0",), ())
    both = placed(provider, of(DeviceRequest(GPU, 2), cores=6, pinned=True))
    assert len(both.cpus) == 6


def test_preferred_binds_where_one_node_has_room_and_else_does_not() -> None:
    assert placed(host(), of(cores=4, numa=Numa.PREFERRED)).nodes == (0,)
    assert placed(host(), of(cores=5, numa=Numa.PREFERRED)).nodes == ()
    apart = [gpu(0), gpu(1, node=1)]
    assert placed(host(apart), of(DeviceRequest(GPU, 2), numa=Numa.PREFERRED)).nodes == ()
    assert placed(host(apart), of(DeviceRequest(GPU, 2), numa_nodes=1)).nodes == (0,)
    assert placed(host(apart), of(DeviceRequest(GPU, 2), cores=2, numa_nodes=2, numa=Numa.STRICT)).nodes == (0, 1)


def test_shares_fill_the_tightest_device_and_never_mix_with_other_uses() -> None:
    provider = host([gpu(n) for n in range(4)], taken_devices={"0000:01:00.0/500m": 1, "0000:02:00.0": 1})
    two = placed(provider, of(DeviceRequest(GPU, 2, share=300)))
    assert two.devices == ("0000:01:00.0/300m", "0000:00:00.0/300m")[::-1]
    assert placed(provider, of(DeviceRequest(GPU, 1, share=500))).devices == ("0000:01:00.0/500m",)
    assert placed(provider, of(DeviceRequest(GPU, 2))).devices == ("0000:00:00.0", "0000:03:00.0")
    twice = held_with(provider, placed(provider, of(DeviceRequest(GPU, 2, share=250))))
    assert twice.taken_devices["0000:01:00.0/250m"] == 2
    assert place_within(provider, of(DeviceRequest(GPU, 3, "H100"))) == "lack a free H100"


def test_shares_are_spread_where_packing_them_tightly_would_waste_room() -> None:
    provider = host([gpu(0), gpu(1)])
    claim = placed(provider, of(DeviceRequest(GPU, 2, share=400), DeviceRequest(GPU, 4, share=300)))
    assert sorted(claim.devices) == [f"0000:0{n}:00.0/{share}m" for n in (0, 1) for share in (300, 300, 400)]


def test_partitions_go_to_the_device_in_use_that_they_fit_most_tightly() -> None:
    devices = [gpu(0), gpu(1, mode="mig"), gpu(2, mode="mig")]
    provider = host(devices, taken_devices={"0000:02:00.0/3g.40gb@4": 1})
    claim = placed(provider, of(DeviceRequest(GPU, 1, profile="3g")))
    assert claim.devices == ("0000:02:00.0/3g.40gb@0",)
    later = placed(held_with(provider, claim), of(DeviceRequest(GPU, 1, profile="1g.10gb")))
    assert Part.parse(later.devices[0]).address == "0000:01:00.0"
    assert place_within(provider, of(DeviceRequest(GPU, 1, profile="1g", memory=20 * GiB))) == "have no 1g"


def test_partitions_of_one_request_are_laid_out_together() -> None:
    provider = host([gpu(0, mode="mig")])
    needs = of(DeviceRequest(GPU, 2, profile="2g"), DeviceRequest(GPU, 1, profile="3g"))
    claim = placed(provider, needs)
    assert claim.devices == ("0000:00:00.0/2g.20gb@0", "0000:00:00.0/2g.20gb@2", "0000:00:00.0/3g.40gb@4")
    assert place_within(held_with(provider, claim), of(DeviceRequest(GPU, profile="1g"))) == "lack a free 1g"


def test_a_device_in_an_amd_mode_gives_parts_of_that_mode_only() -> None:
    provider = host([Device("0000:10:00.0", GPU, "AMD Instinct MI300X", node=0, mode="cpx")])
    claim = placed(provider, of(DeviceRequest(GPU, 8, profile="CPX")))
    assert claim.devices == tuple(f"0000:10:00.0/cpx@{start}" for start in range(8))
    assert place_within(held_with(provider, claim), of(DeviceRequest(GPU, profile="cpx"))) == "lack a free cpx"
    assert place_within(provider, of(DeviceRequest(GPU, profile="dpx"))) == "have no dpx"


def test_mediated_instances_are_as_many_as_their_type_allows_on_a_device_of_no_other_use() -> None:
    request = DeviceRequest(MDEV, 2, None, "nvidia-63")
    provider = host([gpu(0, mdev_types={"nvidia-63": 3}), gpu(1)])
    claim = placed(provider, of(request))
    assert claim.devices == ("0000:00:00.0/nvidia-63",) * 2
    assert place_within(held_with(provider, claim), of(request)) == "lack a free nvidia-63"
    assert placed(held_with(provider, claim), of(DeviceRequest(GPU))).devices == ("0000:01:00.0",)
    shared = held_with(provider, placed(provider, of(DeviceRequest(GPU, 2, share=900))))
    assert place_within(shared, of(request)) == "lack a free nvidia-63"


@pytest.mark.timeout(20)
def test_a_hostile_request_is_answered_soon() -> None:
    devices = [gpu(n, node=n % 2) for n in range(16)]
    provider = host(devices, taken_devices={f"{d.address}/{13 * n + 1}m": 1 for n, d in enumerate(devices)})
    packed = tuple(
        DeviceRequest(GPU, count, share=share) for count, share in ((9, 500), (13, 330), (18, 231), (6, 130))
    )
    assert str(place_within(provider, of(*packed))).endswith("together")
    many = host([vf(n, n % 2) for n in range(256)])
    assert len(placed(many, of(DeviceRequest(VF, 127), DeviceRequest(VF, 128))).devices) == 255


@pytest.mark.parametrize(
    "claims",
    [
        [Claim("h2")],
        [Claim("h1", cores=9)],
        [Claim("h1", cores=7), Claim("h1", cores=2, cpus=(0, 1))],
        [Claim("h1", memory=17 * GiB)],
        [Claim("h1", disk=101 * GiB)],
        [Claim("h1", cores=1, cpus=(0,)), Claim("h1", cores=1, cpus=(0,))],
        [Claim("h1", cores=2, cpus=(0,))],
        [Claim("h1", cores=1, cpus=(8,))],
        [Claim("h1", cores=1, cpus=(4,), nodes=(0,))],
        [Claim("h1", memory=9 * GiB, nodes=(0,))],
        [Claim("h1", memory=5 * GiB, nodes=(0,), hugepage=GiB)],
        [Claim("h1", memory=GiB, hugepage=GiB)],
        [Claim("h1", memory=GiB, nodes=(7,))],
        [Claim("h1", memory=GiB, nodes=(0, 1), hugepage=GiB)],
        [Claim("h1", devices=("0000:99:00.0",))],
        [Claim("h1", devices=("0000:00:00.0",)), Claim("h1", devices=("0000:00:00.0",))],
        [Claim("h1", devices=("0000:00:00.0", "0000:00:00.0/1m"))],
        [Claim("h1", devices=("0000:00:00.0/600m",)), Claim("h1", devices=("0000:00:00.0/500m",))],
        [Claim("h1", devices=("0000:00:00.0/nvidia-63",) * 3)],
        [Claim("h1", devices=("0000:00:00.0/nvidia-63",) * 2 + ("0000:00:00.0/nvidia-64",))],
        [Claim("h1", devices=("0000:00:00.0/5g@0",))],
        [Claim("h1", devices=("0000:00:00.0/1g.10gb@7",))],
        [Claim("h1", devices=("0000:00:00.0/3g.40gb@0", "0000:00:00.0/2g.20gb@2"))],
        [Claim("h1", devices=("0000:00:00.0/4g.40gb@0", "0000:00:00.0/3g.40gb@4", "0000:00:00.0/1g.10gb@6"))],
        [Claim("h1", devices=("0000:00:00.0/1g.10gb+me@0", "0000:00:00.0/1g.10gb+me@1"))],
        [Claim("h1", devices=("0000:10:00.0/cpx@0", "0000:10:00.0/dpx@1"))],
    ],
)
def test_the_replay_sees_what_is_doubled(claims: list[Claim]) -> None:
    devices = [gpu(0, mdev_types={"nvidia-63": 2, "nvidia-64": 1}), Device("0000:10:00.0", GPU, "AMD Instinct MI300X")]
    assert violations(host(devices), claims)
    assert violations(host(devices), [Claim("h1", 1, GiB, GiB, (0,), (0,))]) == []


def test_the_replay_sees_a_whole_core_that_is_not_whole() -> None:
    claim = Claim("h1", cores=1, cpus=(0,))
    assert violations(host(threads=2), [claim], [claim])
    assert violations(host(threads=2), [claim]) == []
