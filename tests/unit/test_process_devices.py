"""What a task that holds a partition sees of the card: that partition, and nothing where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
from hardware_recorded import Recorded, amd_host, nvidia_host

from usina.core.capacity import DeviceKind
from usina.core.task import GivenDevice
from usina.drivers.process.devices import NOTHING, Visible, visible
from usina.ports.driver import DriverError


def seen(root: str, *parts: str, nvml: Recorded | None = None) -> Visible:
    return visible([GivenDevice(part, DeviceKind.GPU) for part in parts], root, nvml)


def test_a_mig_instance_by_its_uuid_and_its_capabilities(tmp_path: Path) -> None:
    answers = Recorded("a100-mig")
    root = nvidia_host(tmp_path, answers)
    told = seen(root, "0000:07:00.0/3g.20gb@4", nvml=answers)
    common = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/nvidia-uvm")
    assert told.nodes == (*common, "/dev/nvidia-caps/nvidia-cap12", "/dev/nvidia-caps/nvidia-cap13")
    uuid = "MIG-00000001-aaaa-5bbb-8ccc-dddddddddddd"
    assert told.environment == {"CUDA_VISIBLE_DEVICES": uuid, "NVIDIA_VISIBLE_DEVICES": uuid}


def test_instances_alike_are_told_apart_by_their_start(tmp_path: Path) -> None:
    answers = Recorded("a100-mig")
    root = nvidia_host(tmp_path, answers)
    told = [seen(root, f"0000:0f:00.0/1g.5gb@{start}", nvml=answers) for start in range(7)]
    assert len({one.environment["CUDA_VISIBLE_DEVICES"] for one in told}) == 7
    caps = [tuple(node for node in one.nodes if "caps" in node) for one in told]
    assert len({node for pair in caps for node in pair}) == 14


@pytest.mark.parametrize(
    "part",
    [
        "0000:07:00.0/3g.20gb@0",  # not there
        "0000:07:00.0/2g.10gb@2",  # cut again
        "0000:07:00.0/1g.10gb@0",  # another profile begins there
        "0000:47:00.0/1g.5gb@0",  # not in MIG mode
        "0000:07:00.0/cpx@0",
    ],
)
def test_what_is_no_instance_is_refused_for_good(part: str, tmp_path: Path) -> None:
    answers = Recorded("a100-mig")
    with pytest.raises(DriverError) as failure:
        seen(nvidia_host(tmp_path, answers), part, nvml=answers)
    assert failure.value.lasting and part in failure.value.public
    assert "0000:07:00.0/3g.20gb@4" in failure.value.detail


def test_without_the_library_no_instance_can_be_found(tmp_path: Path) -> None:
    root = nvidia_host(tmp_path, Recorded("a100-mig"))
    with pytest.raises(DriverError) as failure:
        seen(root, "0000:07:00.0/3g.20gb@4")
    assert failure.value.lasting


def test_an_instance_without_capabilities_is_not_given(tmp_path: Path) -> None:
    answers = Recorded("a100-mig")
    root = nvidia_host(tmp_path, answers)
    (tmp_path / "proc/driver/nvidia/capabilities/gpu0/mig/gi1/ci0/access").unlink()
    with pytest.raises(DriverError) as failure:
        seen(root, "0000:07:00.0/3g.20gb@4", nvml=answers)
    assert failure.value.lasting


def test_a_partition_of_amds_by_its_render_node(tmp_path: Path) -> None:
    root = amd_host(tmp_path, count=2, mode="CPX", parts=8)
    told = seen(root, "0000:15:00.0/cpx@3")
    assert told.nodes == ("/dev/dri/renderD139", "/dev/kfd")
    assert told.environment == {**NOTHING, "ROCR_VISIBLE_DEVICES": "0"}
    told = seen(root, "0000:15:00.0/cpx@3", "0000:05:00.0/cpx@0")
    assert told.environment["ROCR_VISIBLE_DEVICES"] == "0,1"
    for part in ("0000:15:00.0/cpx@8", "0000:15:00.0/dpx@0", "0000:ff:00.0/cpx@0"):
        with pytest.raises(DriverError) as failure:
            seen(root, part)
        assert failure.value.lasting


def test_a_whole_card_of_amds_by_its_own_name(tmp_path: Path) -> None:
    told = seen(amd_host(tmp_path, count=2), "0000:15:00.0")
    assert told.environment["ROCR_VISIBLE_DEVICES"] == "GPU-000000000000abc1"
    assert told.nodes == ("/dev/dri/card2", "/dev/dri/renderD129", "/dev/kfd")
