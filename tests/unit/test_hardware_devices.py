"""Devices of hosts, on trees and recordings made by hand: found once each, linked, cut up, broken."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hardware_recorded import RECORDINGS, Recorded, amd_host, function, nvidia_host, put
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from usina.core.capacity import Device, DeviceKind, DeviceRequest, HostState, Inventory, Needs, NumaNode, Provider
from usina.core.units import GiB
from usina.hardware import devices, facts, nvidia
from usina.hardware.discover import found
from usina.hardware.discover import told as facts_told
from usina.hardware.files import pci_address
from usina.hardware.libnvml import Library, _FabricInfo, _InstanceInfo, _Pci
from usina.hardware.nvml import NO_PERMISSION, NvmlError
from usina.placement.partition import geometry_of, pick_start
from usina.placement.within.choice import Choice

REQUEST = DeviceRequest(DeviceKind.GPU)


def recorded(root: Path, name: str) -> tuple[Device, ...]:
    answers = Recorded(name)
    return found(nvidia_host(root, answers), answers)


def sound(all_of_them: tuple[Device, ...]) -> None:
    """What holds of every host."""
    addresses = [device.address for device in all_of_them]
    assert addresses == sorted(set(addresses)) and all(pci_address(one) == one for one in addresses)
    assert all(size > 1 for link, size in Counter(device.link for device in all_of_them).items() if link)
    assert all(device.node is None or device.node >= 0 for device in all_of_them)
    assert all(geometry_of(device.model) for device in all_of_them if device.mode)


def on(one: tuple[Device, ...]) -> Provider:
    nodes = tuple(NumaNode(n, tuple(range(n * 8, n * 8 + 8)), 64 * GiB) for n in range(2))
    return Provider("p", "p", "process", HostState.ENABLED, 1, Inventory(nodes, GiB, one))


@pytest.mark.parametrize("name", RECORDINGS)
def test_every_recording_is_sound_with_and_without_the_library(name: str, tmp_path: Path) -> None:
    told = recorded(tmp_path, name)
    sound(told)
    plain = devices(str(tmp_path))
    sound(plain)
    assert [device.address for device in plain] == [device.address for device in told]
    assert {device.kind for device in told} == {DeviceKind.GPU} and all(device.model for device in plain)


def test_eight_gpus_behind_a_switch(tmp_path: Path) -> None:
    told = recorded(tmp_path, "hgx-h100")
    assert {device.link for device in told} == {"nvlink0"} and len(told) == 8
    assert [device.node for device in told] == [0] * 4 + [1] * 4
    assert told[0].model == "NVIDIA H100 80GB HBM3" and told[0].vendor == "10de:2330" and told[0].memory > 79 * GiB
    assert all(device.mode == "" and not device.traits for device in told), "a cluster of zeros is none"


def test_mig_is_a_mode_and_instances_are_facts(tmp_path: Path) -> None:
    told = recorded(tmp_path, "a100-mig")
    assert [device.mode for device in told] == ["mig", "mig", "", ""]
    assert [device.link for device in told] == [None, None, "nvlink0", "nvlink0"], "instances reach nobody"
    assert told[2].traits == {"mig-pending"} and not told[3].traits
    cards = nvidia.cards(Recorded("a100-mig"))
    at = nvidia.instance_at(cards, "0000:07:00.0", "3g.20gb", 4)
    assert at is not None and at.uuid.startswith("MIG-00000001")
    assert nvidia.instance_at(cards, "0000:07:00.0", "2g.10gb", 2) is None, "it is cut again"
    assert nvidia.instance_at(cards, "0000:07:00.0", "3g.20gb", 0) is None
    assert nvidia.instance_at(cards, "0000:4e:00.0", "3g.20gb", 4) is None


def test_names_of_profiles_are_rounded() -> None:
    assert (
        nvidia.alike("3g.39gb", "3g.40gb") and nvidia.alike("7g.189gb", "7g.186gb") and nvidia.alike("1G.5GB", "1g.5gb")
    )
    assert not nvidia.alike("1g.10gb", "1g.20gb") and not nvidia.alike("1g.10gb+me", "1g.10gb")
    assert not nvidia.alike("", "") and not nvidia.alike("2g.20gb", "1g.20gb")


def test_a_mig_gpu_that_was_found_can_be_cut(tmp_path: Path) -> None:
    answers = Recorded("hgx-h100")
    answers.gpus[0] |= {"mig": [1, 1], "instances": []}
    told = found(nvidia_host(tmp_path, answers), answers)
    assert told[0].mode == "mig" and pick_start(told[0].model, (), "1g.10gb") == 6
    choice = Choice(on(told), [DeviceRequest(DeviceKind.GPU, 2, profile="1g.10gb")])
    assert choice.lacking() is None
    chosen = choice.choose()
    assert chosen is not None and chosen.names[0].startswith("0000:1b:00.0/1g.10gb@")
    linked = Choice(on(told), [DeviceRequest(DeviceKind.GPU, 7, linked=True)])
    assert linked.choose() is not None and Needs(1, 1, 1).devices == ()


def test_neither_links_nor_cuts(tmp_path: Path) -> None:
    (one,) = recorded(tmp_path, "l4")
    assert (one.link, one.mode, one.node, one.model) == (None, "", None, "NVIDIA L4") and not one.traits


def test_a_fabric_beyond_the_host_is_a_trait(tmp_path: Path) -> None:
    told = recorded(tmp_path, "gb200-tray")
    assert {trait for device in told for trait in device.traits} == {"fabric:1f2e3d4c5b6a79880716253443526170.32766"}
    assert {device.link for device in told} == {"nvlink0"} and told[0].address == "0008:01:00.0"


def test_broken_cards_are_kept_and_marked(tmp_path: Path) -> None:
    told = recorded(tmp_path, "lost")
    assert ["broken" in device.traits for device in told] == [False, True, True, False]
    assert [device.link for device in told] == ["nvlink0", None, None, "nvlink0"]
    assert told[1].model == "NVIDIA H100 80GB HBM3", "its driver still knows"


def test_cards_kept_from_us_are_no_devices(tmp_path: Path) -> None:
    answers = Recorded("hgx-h100")
    root = nvidia_host(tmp_path, answers)
    for gpu in answers.gpus[2:]:
        (tmp_path / f"dev/nvidia{gpu['minor']}").unlink()
        gpu["lost"] = NO_PERMISSION
    assert [device.address for device in found(root, answers)] == ["0000:1b:00.0", "0000:43:00.0"]


def test_links_that_do_not_join_all_make_groups_that_do(tmp_path: Path) -> None:
    """Two quads joined at their corners, as in the first DGX."""
    answers = Recorded("hgx-h100")
    answers.told["nvlink"] = [[0, 1, 2, 3], [4, 5, 6, 7], [0, 4], [1, 5], [2, 6], [3, 7]]
    told = found(nvidia_host(tmp_path, answers), answers)
    assert [device.link for device in told] == ["nvlink0"] * 4 + ["nvlink1"] * 4


def test_what_is_bound_to_vfio_is_for_machines(tmp_path: Path) -> None:
    answers = Recorded("l4")
    root = nvidia_host(tmp_path, answers)
    function(tmp_path, "0000:81:00.0", "0x030200", "10de:2330", "vfio-pci", 1)
    put(
        tmp_path,
        {"usr/share/misc/pci.ids": "# c\n10de  NVIDIA Corporation\n\t2330  GH100 [H100 SXM5 80GB]\n\t\t10de 16c1  x\n"},
    )
    other, given_away = found(root, answers)
    assert given_away.traits == {"vfio"} and given_away.driver == "vfio-pci" and other.driver == "nvidia"
    assert given_away.model == "GH100 [H100 SXM5 80GB]" and geometry_of(given_away.model) is not None


@pytest.mark.parametrize(
    ("code", "ids", "kind"),
    [
        ("0x030000", "1234:1111", None),  # QEMU
        ("0x030000", "1af4:1050", None),  # virtio
        ("0x030000", "1013:00b8", None),  # Cirrus
        ("0x030000", "1a03:2000", None),  # ASPEED
        ("0x030000", "8086:4680", None),  # inside a processor
        ("0x038000", "8086:0bd5", DeviceKind.GPU),
        ("0x030000", "10de:26b9", DeviceKind.GPU),
        ("0x038000", "1002:740f", DeviceKind.GPU),
        ("0x120000", "1002:74a1", DeviceKind.GPU),
        ("0x120000", "1da3:1020", DeviceKind.ACCELERATOR),
        ("0x088000", "1d0f:7364", DeviceKind.ACCELERATOR),
        ("0x020000", "1d0f:ec20", None),  # a network card
        ("0x060400", "1da3:1020", None),
        ("0x068000", "10de:22a3", None),  # NVSwitch
        ("0x120000", "abcd:0001", DeviceKind.ACCELERATOR),
    ],
)
def test_kinds_by_class_and_vendor(code: str, ids: str, kind: DeviceKind | None, tmp_path: Path) -> None:
    told = devices(function(tmp_path, "0000:01:00.0", code, ids, "", -1))
    assert [device.kind for device in told] == ([kind] if kind else [])
    assert all(device.node is None and device.vendor == ids for device in told)


def test_virtual_functions_name_their_parent(tmp_path: Path) -> None:
    function(tmp_path, "0000:c1:00.0", "0x038000", "8086:56c0", "i915")
    root = function(tmp_path, "0000:c1:00.1", "0x038000", "8086:56c0", "vfio-pci")
    (tmp_path / "sys/bus/pci/devices/0000:c1:00.1/physfn").symlink_to("../0000:c1:00.0")
    assert [device.parent for device in devices(root)] == [None, "0000:c1:00.0"]


@pytest.mark.parametrize(("mode", "parts", "said"), [("SPX", 1, ""), ("CPX", 8, "cpx"), ("DPX", 2, "dpx")])
def test_amd_cards_by_sysfs(mode: str, parts: int, said: str, tmp_path: Path) -> None:
    told = devices(amd_host(tmp_path, mode=mode, parts=parts))
    sound(told)
    assert len(told) == 8 and {device.link for device in told} == {"xgmi-1a2b"}
    assert {(device.mode, device.memory, device.model) for device in told} == {
        (said, 206141652992, "AMD Instinct MI300X OAM")
    }
    assert told[7].traits == {"nps1"} and told[7].node == 1
    if said:
        assert Choice(on(told), [DeviceRequest(DeviceKind.GPU, parts, profile=said)]).choose() is not None


def test_an_amd_card_that_says_nothing_is_broken(tmp_path: Path) -> None:
    (one,) = devices(function(tmp_path, "0000:05:00.0", "0x120000", "1002:74a1", "amdgpu"))
    assert one.traits == {"broken"} and one.link is None and one.mode == ""


def test_facts(tmp_path: Path) -> None:
    root = nvidia_host(tmp_path, Recorded("l4"))
    put(tmp_path, {"sys/module/amdgpu/version": "6.8.5\n"})
    assert facts(root) == {"nvidia_driver": "550.54.15", "amdgpu": "6.8.5"}
    answers = Recorded("a100-mig")
    assert facts_told("", answers) | {"amdgpu": ""} == {
        "nvidia_driver": "550.54.15",
        "cuda": "12.4",
        "amdgpu": "",
        "mig_0000:07:00.0": "1g.5gb@0 3g.20gb@4",
        "mig_0000:0f:00.0": " ".join(f"1g.5gb@{n}" for n in range(7)),
    }
    assert facts(amd_host(tmp_path / "amd", 1)) == {"modes_0000:05:00.0": "spx dpx qpx cpx"}
    assert facts(str(tmp_path / "nothing")) == {} and devices(str(tmp_path / "nothing")) == ()


ODD = st.one_of(
    st.text(max_size=40), st.sampled_from(["-1", "0x", "0x030200", "0x10de", "0x1002", "1" * 30, "²", "SPX"])
)
FILES = ["class", "vendor", "device", "numa_node", "unique_id", "product_name", "current_compute_partition"]
FILES += ["current_memory_partition", "mem_info_vram_total", "xgmi_hive_info/xgmi_hive_id", "ras/umc_err_count"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(FILES), ODD), st.sampled_from(["nvidia", "amdgpu", ""]), ODD, ODD)
def test_nonsense_raises_nothing(
    tmp_path_factory: pytest.TempPathFactory, words: dict[str, str], driver: str, information: str, node: str
) -> None:
    root = tmp_path_factory.mktemp("odd")
    function(root, "0000:01:00.0", "0x030200", "10de:2330", driver)
    folder = root / "sys/bus/pci/devices/0000:01:00.0"
    put(folder, {name: text.encode("utf-8", "replace").decode() for name, text in words.items()})
    clean = [text.encode("utf-8", "replace").decode() for text in (information, node)]
    put(root, {"proc/driver/nvidia/gpus/0000:01:00.0/information": f"Device Minor: {clean[0]}"})
    put(root, {"sys/class/kfd/kfd/topology/nodes/0/properties": f"simd_count {clean[1]}\nlocation_id {clean[0]}\n"})
    sound(devices(str(root)))
    facts(str(root))


def test_layouts_are_those_of_the_documentation() -> None:
    """Sizes that nvml.h's own version numbers say (nvmlGpuFabricInfo_v2 is 0x02000024), and of what has none."""
    from ctypes import sizeof

    assert (sizeof(_FabricInfo), sizeof(_Pci), sizeof(_InstanceInfo)) == (0x24, 68, 24)


def test_no_library_is_an_error_that_discovery_takes() -> None:
    with pytest.raises(OSError):
        Library("libnvidia-ml-is-not-here.so")
    with nvidia.library("/recorded") as none:
        assert none is None


def test_a_library_without_the_functions_says_so() -> None:
    with pytest.raises(NvmlError, match="not known"):
        Library("libc.so.6")
