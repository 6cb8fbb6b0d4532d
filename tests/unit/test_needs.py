"""From an order's body to what placement is asked for, and what a host of the pretended kind has to give."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from usina.app.context import _digest
from usina.core.capacity import Affinity, DeviceKind, DeviceRequest, Needs, Numa
from usina.core.errors import Invalid
from usina.core.goods import NoStatus, VolumeSpec, volume_needs
from usina.core.machine import MachineSpec, MachineStatus
from usina.core.machine_decide import needs_of
from usina.core.resource import Kind, Resource
from usina.core.units import GiB
from usina.drivers import fake
from usina.drivers.fake.hardware import inventory
from usina.facades.native.machines import _order
from usina.facades.native.models import MachineIn

OTHER = "mch-" + "0" * 26
PLAIN = MachineSpec("img-1", cores=2, memory=GiB, disk=GiB)


def needs(spec: MachineSpec) -> Needs:
    return needs_of(Resource("mch-1", Kind.MACHINE, "tnt-1", "prj-1", "m", spec, MachineStatus(), 0.0, 0.0))


class TestNeeds:
    def test_without_wishes_only_the_tenant_is_added(self) -> None:
        assert needs(PLAIN) == Needs(2, GiB, GiB, tenant="tnt-1", traits=frozenset({"machine"}))

    def test_groups_are_the_projects_own_and_machines_stay_themselves(self) -> None:
        found = needs(replace(PLAIN, near=(OTHER, "web"), apart=("db",), group="web", spread_over="rack"))
        assert found.groups == {"prj-1/web"}
        assert found.affinities == (
            Affinity(OTHER),
            Affinity("prj-1/web"),
            Affinity("prj-1/db", apart=True),
            Affinity("prj-1/web", apart=True, level="rack"),
        )

    def test_whole_cores_are_pinned(self) -> None:
        assert needs(replace(PLAIN, whole_cores=True)).pinned

    def test_a_volume_is_its_tenants_too(self) -> None:
        volume = Resource("vol-1", Kind.VOLUME, "tnt-1", "prj-1", "v", VolumeSpec(GiB), NoStatus(), 0.0, 0.0)
        assert volume_needs(volume) == Needs(0, 0, GiB, tenant="tnt-1", traits=frozenset({"machine"}))

    def test_a_spec_of_an_earlier_release_is_one_without_wishes(self) -> None:
        old = {"image": "img-1", "cores": 2, "memory": GiB, "disk": GiB, "devices": [{"kind": "gpu", "count": 2}]}
        found = msgspec.json.decode(msgspec.json.encode(old), type=MachineSpec)
        assert found == replace(PLAIN, devices=(DeviceRequest(DeviceKind.GPU, 2),))


class TestOrders:
    def test_every_wish_of_a_body_is_in_the_order(self) -> None:
        device = {"model": "A|B", "memory": GiB, "linked": True, "traits": ["sxm", "ecc"]}
        wishes: dict[str, Any] = {
            "numa": "strict", "whole_cores": True, "near": ["a"], "apart": ["b"], "group": "g", "spread_over": "nvlink",
            "priority": -5, "preemptible": True,
        }  # fmt: skip
        body = MachineIn.model_validate_json(
            msgspec.json.encode({"name": "m", "image": "i", "devices": [device], **wishes})
        )
        order = _order(body)
        assert order.devices == (
            DeviceRequest(DeviceKind.GPU, 1, "A|B", memory=GiB, linked=True, traits=frozenset({"ecc", "sxm"})),
        )
        assert order.numa is Numa.STRICT
        assert {name: getattr(order, name) for name in wishes} == wishes | {"near": ("a",), "apart": ("b",)}

    def test_the_digest_of_an_order_is_the_same_in_every_process(self) -> None:
        """Though a set of texts is in another order in each."""
        names = [f"trait-{n}" for n in range(50)]
        wish = DeviceRequest(DeviceKind.GPU, traits=frozenset(names))
        in_order = msgspec.json.encode(wish, order="deterministic")
        assert msgspec.json.decode(in_order)["traits"] == sorted(names)
        assert _digest(wish) == hashlib.sha256(in_order).hexdigest()


class TestPretendedHardware:
    def test_links_memory_threads_and_functions(self) -> None:
        options = {"cores": 10, "numa_nodes": 2, "gpus": 4, "nvlink": 2, "gpu_memory": GiB, "threads": 2, "vfs": 9}
        fake.check(options)
        found = inventory(options)
        assert [node.siblings for node in found.nodes] == [((0, 1), (2, 3), (4,)), ((5, 6), (7, 8), (9,))]
        gpus = [device for device in found.devices if device.kind is DeviceKind.GPU]
        functions = [device for device in found.devices if device.kind is DeviceKind.VF]
        assert [(gpu.link, gpu.node, gpu.memory) for gpu in gpus] == [
            ("nvl0", 0, GiB), ("nvl0", 0, GiB), ("nvl1", 1, GiB), ("nvl1", 1, GiB),
        ]  # fmt: skip
        assert len({device.address for device in found.devices}) == len(found.devices) == 22
        assert [(one.address, one.parent) for one in functions if one.node == 1][-1] == ("0001:01:02.0", "0001:01:00.0")

    def test_without_options_none_of_it_is_there(self) -> None:
        found = inventory({"gpus": 1})
        assert (found.nodes[0].siblings, found.devices[0].link, len(found.devices)) == ((), None, 1)

    @pytest.mark.parametrize(
        ("options", "field"),
        [
            ({"threads": 0}, "threads"),
            ({"threads": 1.5}, "threads"),
            ({"nvlink": 0.5}, "nvlink"),
            ({"vfs": 249}, "vfs"),
            ({"gpu_memory": "80GiB"}, "gpu_memory"),
            ({"vfs": True}, "vfs"),
        ],
    )
    def test_a_wrong_option_is_named(self, options: dict[str, Any], field: str) -> None:
        with pytest.raises(Invalid) as caught:
            fake.check(options)
        assert caught.value.field == field
