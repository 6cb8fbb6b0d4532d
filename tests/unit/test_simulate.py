"""Placement on paper: files are read or refused by line, runs repeat, and numbers add up."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import mean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from usina.core.capacity import (
    Device,
    DeviceKind,
    DeviceRequest,
    HostState,
    Inventory,
    Needs,
    Numa,
    NumaNode,
    Provider,
    Terms,
    Window,
)
from usina.core.errors import Invalid
from usina.core.units import GiB, MiB
from usina.placement import POLICIES, held_with
from usina.placement.simulate import Experiment, Result, hosts_of, hosts_text, requests_of, shuffled
from usina.placement.simulate.experiment import size_of
from usina.testing.hosts import filled, small_gpu, small_host

HOSTS = "sn,cpu_milli,memory_mib,gpu,model\n"
REQUESTS = "cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec\n"
gpu = DeviceKind.GPU


def last(experiment: Experiment, seed: int = 0, demand: float = 1.3, **more: bool) -> Result:
    return list(experiment.run(seed, demand, **more))[-1]


class TestCsv:
    def test_hosts_and_requests(self) -> None:
        a, b, c = hosts_of(HOSTS + "a,8000,1024,2,T4\nb,8000,1024,2,T4\n,1500,10,0,\n")
        assert (a.name, a.inventory.cores, a.inventory.memory, len(a.inventory.devices)) == ("a", 8, 1024 * MiB, 2)
        assert a.inventory is b.inventory
        assert (c.name, c.inventory.cores, c.inventory.devices) == ("host-4", 1, ())
        text = "\ufeff" + REQUESTS + "500,1024,1,470,T4|P100\n1000,0,1,1000,\n1000,0,2,,\n\n,,,,\n"
        assert requests_of(text) == [
            Needs(0.5, 1024 * MiB, 0, devices=(DeviceRequest(gpu, 1, "T4|P100", share=470),)),
            Needs(1, 0, 0, devices=(DeviceRequest(gpu),)),
            Needs(1, 0, 0, devices=(DeviceRequest(gpu, 2),)),
            Needs(0, 0, 0),
        ]

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("", "it: the first line lacks the columns cpu_milli, memory_mib, gpu, model"),
            ("sn,cpu_milli,model\n", "it: the first line lacks the columns memory_mib, gpu"),
            (HOSTS, "it: there are no hosts in it"),
            (HOSTS + "a,8000,1,0,\nb,x,1,0,\n", "it: line 3: cpu_milli is 'x', not a whole number"),
            (HOSTS + "a,1.5,1,0,\n", "it: line 2: cpu_milli is '1.5', not a whole number"),
            (HOSTS + f"a,{'9' * 5000},1,0,\n", f"it: line 2: cpu_milli is '{'9' * 40}', not a whole number"),
            (HOSTS + "a,-1,1,0,\n", "it: line 2: cpu_milli is -1, not 0 to 65536000"),
            (HOSTS + f"a,{1 << 50},1,0,\n", f"it: line 2: cpu_milli is {1 << 50}, not 0 to 65536000"),
            (HOSTS + f"a,1,{1 << 50},0,\n", f"it: line 2: memory_mib is {1 << 50}, not 0 to {1 << 36}"),
            (HOSTS + "a,1,1,5000,\n", "it: line 2: gpu is 5000, not 0 to 1024"),
            (HOSTS + "\n\na,1,1\n", "it: line 4: ends before gpu"),
            (HOSTS + '"a\nb",1,1,0,\nc,x,1,0,\n', "it: line 4: cpu_milli is 'x', not a whole number"),
            (HOSTS + "a,1,1,0,\na,1,1,0,\n", "it: 'a' is in it more than once"),
            (HOSTS + f"a,{'x' * 200_000},1,0,\n", "it: line 2: field larger than field limit (131072)"),
        ],
    )
    def test_what_is_wrong_is_told_by_line(self, text: str, says: str) -> None:
        with pytest.raises(Invalid) as caught:
            hosts_of(text, "it")
        assert str(caught.value) == says

    def test_so_it_is_for_requests(self) -> None:
        with pytest.raises(Invalid, match="requests: line 2: gpu_milli is 1001, not 0 to 1000"):
            requests_of(REQUESTS + "1,1,1,1001,\n")
        with pytest.raises(Invalid, match="requests: there are no requests in it"):
            requests_of(REQUESTS)


class TestJson:
    def test_copies_and_defaults(self) -> None:
        found = requests_of('{"requests": [{"cores": 2, "copies": 3}, {"cores": "1.5", "memory": 5}]}')
        assert found == [Needs(2, 0, 0)] * 3 + [Needs(1.5, 5, 0)]
        text = json.loads(hosts_text([small_host("h")]))
        text["hosts"][0]["copies"] = 3
        assert [(host.id, host.name) for host in hosts_of(json.dumps(text))] == [
            ("h", "h"),
            ("h-2", "h-2"),
            ("h-3", "h-3"),
        ]
        text["hosts"].append(json.loads(hosts_text([small_host("h-2")]))["hosts"][0])
        with pytest.raises(Invalid, match="hosts: 'h-2' is in it more than once"):
            hosts_of(json.dumps(text))

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("{", "is not JSON"),
            ("[" * 100_000, "is not JSON"),
            ("[]", "must be an object with a list 'requests' of objects"),
            ('{"hosts": []}', "must be an object with a list 'requests' of objects"),
            ('{"requests": {}}', "must be an object with a list 'requests' of objects"),
            ('{"requests": [1]}', "must be an object with a list 'requests' of objects"),
            ('{"requests": []}', "there are no requests in it"),
            ('{"requests": [{"cores": 1}, {"memory": 1}]}', "entry 2: Object missing required field `cores`"),
            ('{"requests": [{"cores": "x"}]}', r"entry 1: .*`\$.cores`"),
            ('{"requests": [{"cores": 1, "memmory": 1}]}', "entry 1: there is no field 'memmory'"),
            ('{"requests": [{"cores": -1}]}', "entry 1: cores is out of range"),
            ('{"requests": [{"cores": 1e300}]}', "entry 1: cores is out of range"),
            ('{"requests": [{"cores": 1, "memory": 99999999999999999999}]}', "entry 1: "),
            (
                '{"requests": [{"cores": 1, "devices": [{"kind": "gpu", "count": 0}]}]}',
                "entry 1: count is out of range",
            ),
            ('{"requests": [{"cores": 1, "devices": [{"kind": "gpu", "share": 1000}]}]}', "entry 1: share is out of"),
            ('{"requests": [{"cores": 1, "devices": [{"kind": "cpu"}]}]}', r"entry 1: .*`\$.devices\[0\].kind`"),
            ('{"requests": [{"cores": 1, "copies": 0}]}', "entry 1: copies must be a number above 0"),
            ('{"requests": [{"cores": 1, "copies": true}]}', "entry 1: copies must be a number above 0"),
            ('{"requests": [{"cores": 1, "copies": 2.5}]}', "entry 1: copies must be a number above 0"),
            ('{"requests": [{"cores": 1}, {"cores": 1, "copies": 1000000}]}', "entry 2: more than 1000000 requests"),
        ],
    )
    def test_what_is_wrong_is_told_by_entry(self, text: str, says: str) -> None:
        with pytest.raises(Invalid, match=f"^it: {says}"):
            requests_of(text, "it")

    @pytest.mark.parametrize("field", ["cpu_ratio", "used_memory"])
    def test_hosts_out_of_range(self, field: str) -> None:
        text = json.loads(hosts_text([small_host("h")]))
        text["hosts"][0][field] = -1
        with pytest.raises(Invalid, match=f"hosts: entry 1: {field} is out of range"):
            hosts_of(json.dumps(text))

    @settings(max_examples=40, deadline=None)
    @given(
        st.lists(
            st.builds(
                Needs,
                cores=st.sampled_from([0.5, 1, 2]),
                memory=st.sampled_from([GiB, 2 * GiB]),
                disk=st.just(GiB),
                pinned=st.booleans(),
                numa=st.sampled_from([Numa.NONE, Numa.STRICT]),
                hugepage=st.sampled_from([0, GiB]),
                devices=st.sampled_from(
                    [()] + [(DeviceRequest(gpu, share=s, profile=p),) for s, p in ((300, None), (0, "1g.10gb"))]
                ),
            ),
            max_size=6,
        ),
        st.sampled_from([HostState.ENABLED, HostState.CORDONED]),
    )
    def test_hosts_come_back_as_they_were(self, orders: list[Needs], state: HostState) -> None:
        devices = [small_gpu(1, link="nv0"), small_gpu(2, mode="mig"), Device("0000:41:00.0", DeviceKind.VF)]
        devices.append(Device("0000:40:00.0", gpu, "A40", node=1, mdev_types={"nvidia-63": 2}))
        terms = Terms({"rack": "r"}, "g", 1.5, frozenset({"t"}), (Window(1, 2), Window(3, float("inf"))), 7)
        host = small_host("h", devices, topology={"rack": "r"}, terms=terms, cpu_ratio=2.0)
        for needs in orders:
            for claim in filled(replace(host, terms=Terms()), needs, 1):
                host = held_with(host, claim)
        host = replace(host, state=state, cordoned_devices=frozenset({"0000:41:00.0"}), reachable=False, seen_at=3.5)
        assert hosts_of(hosts_text([host])) == [host]


def wants(cores: float, count: int = 1, share: int = 0) -> Needs:
    return Needs(cores, GiB, 0, devices=(DeviceRequest(gpu, count, share=share),) if count else ())


class TestShuffled:
    @given(st.lists(st.integers(1, 900), min_size=1, max_size=8), st.integers(0, 5), st.sampled_from([0.3, 1.0, 1.3]))
    def test_it_stops_right_before_demand_is_exceeded(self, shares: list[int], seed: int, demand: float) -> None:
        requests = [wants(1, share=share) for share in shares]
        out = shuffled(requests, 3000, seed, demand)
        total = sum(size_of(needs, True) for needs in out)
        assert total <= demand * 3000 < total + 900
        assert sorted(map(repr, out[: len(requests)])) == sorted(map(repr, requests[: len(out)])) or len(out) < len(
            requests
        )
        assert out == shuffled(requests, 3000, seed, demand)

    def test_requests_without_size_are_offered_once(self) -> None:
        assert len(shuffled([wants(1, 0)] * 5, 1000, 0, 1.3)) == 5

    def test_sizes(self) -> None:
        several = (DeviceRequest(gpu, 2), DeviceRequest(DeviceKind.VF, 4), DeviceRequest(gpu, 3, share=200))
        assert size_of(Needs(1.5, 0, 0, devices=several), True) == 2600
        assert size_of(Needs(1.5, 0, 0, devices=several), False) == 1500
        for profile, size in (("1g.10gb", 142), ("3g.40gb", 428), ("cpx", 125), ("who knows", 1000)):
            assert size_of(Needs(1, 0, 0, devices=(DeviceRequest(gpu, profile=profile),)), True) == size


def cluster() -> list[Provider]:
    """30 hosts, from many cores to few for each GPU, and some without GPUs."""
    hosts = []
    for number in range(30):
        cores, gpus = [(96, 8), (48, 8), (32, 4), (96, 4), (64, 2), (64, 0)][number % 6]
        devices = tuple(Device(f"0000:{slot:02x}:00.0", gpu, "T4") for slot in range(gpus))
        inventory = Inventory((NumaNode(0, tuple(range(cores)), 4 * cores * GiB),), 0, devices)
        hosts.append(Provider(f"h{number}", f"h{number}", "trace", HostState.ENABLED, 1, inventory))
    return hosts


def workload() -> list[Needs]:
    shares = [wants(6, share=810), wants(4, share=470), wants(2, share=320), wants(8, share=500), wants(1, share=190)]
    whole = [wants(10), wants(6), wants(16, 2), wants(48, 8), wants(24, 4)]
    return 8 * shares + 3 * whole + 8 * [wants(4, 0), wants(8, 0)]


class TestExperiment:
    def test_the_default_policy_places_more(self) -> None:
        def placed(policy: str) -> float:
            experiment = Experiment(cluster(), workload(), POLICIES[policy])
            return mean(last(experiment, seed).allocation[130] for seed in range(5))

        ours, best, first = (placed(policy) for policy in ("fragmentation", "best-fit", "first-fit"))
        assert ours > best + 0.5
        assert ours > first + 0.5

    @settings(max_examples=25, deadline=None)
    @given(
        st.lists(
            st.sampled_from([wants(2), wants(9, 4), wants(1, share=470), wants(30, 0), wants(64, 8), wants(1, 16)]),
            min_size=1,
            max_size=6,
        ),
        st.sampled_from(sorted(POLICIES)),
        st.integers(0, 3),
    )
    def test_numbers_add_up(self, requests: Sequence[Needs], policy: str, seed: int) -> None:
        experiment = Experiment(cluster()[:6], requests, POLICIES[policy])
        result = last(experiment, seed)
        assert result == last(experiment, seed)
        assert result.placed + result.refused.total() == result.decisions
        assert list(result.allocation) == [80, 90, 100, 130]
        values = list(result.allocation.values())
        assert values == sorted(values)
        assert 0 <= values[-1] <= min(100, result.offered + 1e-9)
        assert result.offered <= 130 + 1e-9

    @pytest.mark.parametrize("ratio", [1.0, 4.0])
    def test_without_gpus_cores_take_their_place(self, ratio: float) -> None:
        hosts = [small_host(f"h{n}", cpu_ratio=ratio) for n in range(3)]
        experiment = Experiment(hosts, [replace(wants(2, 0), memory=MiB), replace(wants(0.5, 0), memory=MiB)])
        assert not experiment.by_gpu
        assert experiment.capacity == 24_000 * ratio
        result = last(experiment)
        assert 98 < result.allocation[130] <= 100
        assert result.idle == {}
        assert math.isnan(last(experiment, curve=True).curve[-1].fragmented)

    def test_devices_that_are_no_gpus_do_not_count(self) -> None:
        vf = Device("0000:50:00.0", DeviceKind.VF)
        needs = Needs(1, MiB, 0, devices=(DeviceRequest(DeviceKind.VF),))
        assert not Experiment([small_host("h0", [small_gpu(1), vf])], [needs]).by_gpu

    def test_partitions_fill_devices_up_to_the_whole(self) -> None:
        needs = Needs(1, MiB, 0, devices=(DeviceRequest(gpu, profile="1g.10gb"),))
        result = last(Experiment([small_host("h0", [small_gpu(1, mode="mig")])], [needs]))
        assert result.placed == 7
        assert 99 < result.allocation[130] <= 100

    def test_marks_that_no_request_reaches(self) -> None:
        result = last(Experiment([small_host("h0", [small_gpu(n) for n in range(4)])], [wants(1, 4)]), demand=1.3)
        assert result.allocation == {80: 100, 90: 100, 100: 100, 130: 100}
        result = last(Experiment([small_host("h0", [small_gpu(n) for n in range(4)])], [wants(1, 3)]), demand=1.3)
        assert result.allocation == {80: 75, 90: 75, 100: 75, 130: 75}
        assert last(Experiment([small_host("h0")], [wants(2, 0)]), demand=0.8).allocation == {80: 75}

    def test_hosts_without_anything_are_refused(self) -> None:
        with pytest.raises(Invalid, match="hosts: have neither GPUs nor cores"):
            Experiment(hosts_of(HOSTS + "a,999,1,0,\n"), [wants(1)])

    def test_steps_and_the_curve(self) -> None:
        experiment = Experiment(cluster()[:6], workload())
        results = list(experiment.run(1, 1.0, every=5, curve=True))
        curve = results[-1].curve
        assert [point.decisions for point in curve[:2]] == [5, 10]
        assert [point.offered for point in curve] == sorted(point.offered for point in curve)
        assert all(0 <= point.fragmented <= 100 and point.allocated <= point.offered for point in curve)
        idle = results[-1].idle
        assert idle["whole"] + idle["parts"] + results[-1].allocation[100] == pytest.approx(100)
