"""The calls on NVIDIA's library, against a stand-in compiled from the documented prototypes. No GPU is asked."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator

import pytest
from hardware_recorded import TREES

from usina.hardware import nvidia
from usina.hardware.libnvml import Library
from usina.hardware.nvml import LOST, NO_FUNCTION, Fabric, Instance, NvmlError, Remapped

COMPILER = shutil.which("cc")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Library]:
    if COMPILER is None:
        pytest.skip("no C compiler")
    made = tmp_path_factory.mktemp("nvml") / "standin.so"
    subprocess.run([COMPILER, "-shared", "-fPIC", "-w", "-o", made, TREES / "nvml_standin.c"], check=True)
    opened = Library(str(made))
    yield opened
    opened.close()


def test_every_answer_arrives(library: Library) -> None:
    assert (library.driver(), library.cuda(), library.count()) == ("550.54.15", 12040, 2)
    assert (library.uuid(0), library.name(0)) == ("GPU-1", "NVIDIA A100-SXM4-40GB")
    assert library.bus(0) == "00000000:07:00.0" and library.memory(0) == 40 << 30 and library.mig(0) == (1, 1)
    assert library.instances(0) == [Instance("MIG-1", "NVIDIA A100-SXM4-40GB MIG 3g.20gb", 2, 0, 4)]
    assert library.linked(0, 0) and library.fabric(0) == Fabric(3, 0, "ab" * 16, 7)
    assert library.uncorrected(0) == 5_000_000_000 and library.remapped(0) == Remapped(2, True, False)
    assert library.slowed(0) == 0x48


def test_errors_keep_their_code(library: Library) -> None:
    with pytest.raises(NvmlError) as lost:
        library.name(1)
    with pytest.raises(NvmlError) as missing:
        library.retiring(0)
    assert (lost.value.code, missing.value.code) == (LOST, NO_FUNCTION)


def test_the_logic_takes_it(library: Library) -> None:
    (card,) = nvidia.cards(library)
    assert card.address == "0000:07:00.0" and card.mig and not card.fault and card.fabric == "ab" * 16 + ".7"
    assert nvidia.instance_at([card], card.address, "3g.20gb", 4) == card.instances[0]
