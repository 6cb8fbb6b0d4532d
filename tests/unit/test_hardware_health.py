"""What takes a single device out of service and what does not; the kernel log's Xids; readings on recorded hosts."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from hardware_recorded import Recorded, amd_host, nvidia_host, put
from hypothesis import given
from hypothesis import strategies as st

from usina.hardware.files import pci_address
from usina.hardware.health import Finding, Reading, Readings, gather, judge, poll
from usina.hardware.nvml import Remapped
from usina.hardware.xids import CORDON, WARN, Xid, kernel_log, parse, parse_all

A, B = "0000:3b:00.0", "0000:5e:00.0"
FALLEN = "NVRM: Xid (PCI:0000:3b:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus."


def reading(**more: object) -> Readings:
    return Readings({A: replace(Reading(), **more), B: Reading()})  # type: ignore[arg-type]


def reasons(before: Readings | None, now: Readings) -> list[tuple[str, bool]]:
    told = judge(before, now)
    assert all(finding.address == A for finding in told)
    return [(finding.reason, finding.cordon) for finding in told]


# --- the kernel log


@pytest.mark.parametrize(
    "line",
    [
        FALLEN,
        f"4,1182,93811233,-;{FALLEN}",
        f"[ 4909.922970] {FALLEN}",
        f"May  6 00:38:27 host kernel: [ 4909.922970] {FALLEN}",
        "NVRM: Xid (0000:3b:00): 79, GPU has fallen off the bus",
        "NVRM: Xid (PCI:0000:3B:00 GPU-I:05): 79",
    ],
)
def test_a_xid_in_its_shapes(line: str) -> None:
    xid = parse(line)
    assert xid is not None and (xid.address, xid.number, xid.fatal) == (A, 79, True)
    assert xid.sequence == (1182 if line.startswith("4,") else 0) and xid.reason == "Xid 79: GPU has fallen off the bus"


@pytest.mark.parametrize(
    "line",
    [
        "",
        "NVRM: loading NVIDIA UNIX x86_64 Kernel Module  550.54.15",
        "NVRM: Xid (PCI:zz): 79",
        "NVRM: Xid (PCI:0000:3b:00): ",
        f"12,1182,93811233,-;{FALLEN}",  # a program wrote it
        f"6,1182,93811233,-;audit: comm={FALLEN}",  # a name that a tenant chose
        f" DEVICE=+{FALLEN[6:]}",
    ],
)
def test_other_lines_tell_of_no_xid(line: str) -> None:
    assert parse(line) is None


@given(st.text())
def test_no_line_is_too_odd(line: str) -> None:
    parse(line)
    found = parse(f"NVRM: Xid (PCI:0000:3b:00): {line}")
    assert found is None or (found.address == A and isinstance(found.reason, str) and found.notable in (True, False))


@given(st.integers(0, 0xFFFF), st.integers(0, 255), st.integers(0, 31), st.integers(0, 99999), st.integers(0, 2**40))
def test_every_xid_is_read_back(domain: int, bus: int, slot: int, number: int, sequence: int) -> None:
    xid = parse(f"3,{sequence},17,-;NVRM: Xid (PCI:{domain:04x}:{bus:02x}:{slot:02x}): {number}, pid=1, text")
    assert xid == Xid(f"{domain:04x}:{bus:02x}:{slot:02x}.0", number, "pid=1, text", sequence)
    assert pci_address(xid.address) == xid.address


@pytest.mark.parametrize("number", [13, 31, 32, 43, 44, 45, 68, 69, 137, 106, 999])
def test_what_a_program_did_is_not_the_cards_fault(number: int) -> None:
    xid = Xid(A, number, "pid=1, name=python, Ch 00000008, Fatal")
    assert not xid.fatal and not xid.notable


def test_tables_do_not_overlap() -> None:
    assert not set(CORDON) & set(WARN) and {48, 64, 74, 79, 95, 119, 120, 140} <= set(CORDON) and {63, 94} <= set(WARN)


@pytest.mark.parametrize(
    ("number", "text", "notable", "fatal"),
    [
        (149, "NETIR_LINK_EVT  Fatal   XC0 i0 Link 08 (0x004505c6 0x00000000)", True, True),
        (149, "NETIR_LINK_EVT  Nonfatal   XC0 i0 Link 08 (0x004505c6 0x00000000)", True, False),
        (149, "NETIR_LINK_EVT  Non-fatal   XC0 i0 Link 08", True, False),
        (154, "GPU recovery action changed from 0x0 (None) to 0x2 (Node Reboot Required)", True, True),
        (154, "GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)", True, True),
        (154, "GPU recovery action changed from 0x0 (None) to 0x3 (Drain P2P)", True, False),
        (154, "GPU recovery action changed from 0x1 (GPU Reset Required) to 0x0 (None)", False, False),
        (154, "", False, False),
    ],
)
def test_xids_whose_line_decides(number: int, text: str, notable: bool, fatal: bool) -> None:
    xid = Xid(A, number, text)
    assert (xid.notable, xid.fatal) == (notable, fatal) and xid.reason.startswith(f"Xid {number}: ")


def test_the_kernels_own_ring_is_read_to_its_end(tmp_path: Path) -> None:
    assert list(kernel_log(str(tmp_path / "none"))) == []
    lines = list(kernel_log())
    assert all(line for line in lines) and isinstance(parse_all(lines), list)
    if os.access("/dev/kmsg", os.R_OK):
        assert lines


# --- judging


def test_nothing_wrong_is_no_finding() -> None:
    assert judge(None, reading()) == judge(reading(), reading()) == ()


@pytest.mark.parametrize(
    ("more", "cordon"),
    [
        ({"fault": "GPU is lost (NVML 15)"}, True),
        ({"retiring": True}, True),
        ({"remapped": Remapped(1, False, True)}, True),
        ({"remapped": Remapped(1, True, False)}, False),
        ({"slowed": 0x08}, False),
        ({"slowed": 0x40 | 0x01}, False),
        ({"slowed": 0x80 | 0x20}, False),
        ({"blocks": {"umc": 2}}, True),
    ],
)
def test_what_stands_is_said_once(more: dict[str, object], cordon: bool) -> None:
    bad = reading(**more)
    assert [one for _, one in reasons(None, bad)] == [one for _, one in reasons(reading(), bad)] == [cordon]
    assert judge(bad, bad) == (), "an operator may have put it back in service"
    assert judge(bad, reading()) == ()


@pytest.mark.parametrize("bits", [0, 0x01, 0x02, 0x04, 0x10, 0x20, 0x100])
def test_ordinary_slowness_is_none(bits: int) -> None:
    assert judge(None, reading(slowed=bits)) == ()


def test_errors_of_memory_that_grow() -> None:
    assert reasons(None, reading(uncorrected=2)) == [("2 uncorrected memory errors", False)], "of whoever was before us"
    assert reasons(reading(uncorrected=2), reading(uncorrected=5)) == [("3 uncorrected memory errors", True)]
    assert reasons(reading(uncorrected=5), reading(uncorrected=0)) == [], "the driver was loaded anew"
    assert reasons(reading(blocks={"umc": 1}), reading(blocks={"umc": 2})) == [("2 uncorrectable errors of umc", True)]


def test_what_is_not_said_for_a_while_is_not_forgotten(tmp_path: Path) -> None:
    """The library does not load while its driver is being replaced; a card may be with a guest."""
    answers = Recorded("hgx-h100")
    root = nvidia_host(tmp_path, answers)
    answers.gpus[2] |= {"uncorrected": 3, "remapped": [4, False, True]}
    first = gather(None, (), root, answers)
    silent = gather(first, (), root)
    again = gather(silent, (), root, answers)
    assert judge(None, first) and judge(first, silent) == judge(silent, again) == ()
    answers.gpus[2]["uncorrected"] = 4
    assert [one.cordon for one in judge(silent, gather(silent, (), root, answers))] == [True]
    late = gather(gather(None, (), root), (), root, answers)
    assert [one.cordon for one in judge(gather(None, (), root), late)] == [True, False], "a row failed; errors are old"


def test_errors_that_harmed_one_program_only_do_not_cordon() -> None:
    able = Remapped(1, True, False)
    now = replace(reading(uncorrected=1, remapped=able), xids=(Xid(A, 94, "Contained"),))
    told = reasons(reading(uncorrected=0, remapped=able), now)
    assert told == [("1 uncorrected memory errors", False), (f"Xid 94: {WARN[94]}", False)]
    failed = replace(reading(uncorrected=1, remapped=Remapped(1, True, True)), xids=now.xids)
    assert ("1 uncorrected memory errors", True) in reasons(reading(uncorrected=0, remapped=able), failed)


def test_devices_that_vanish() -> None:
    now = Readings({B: Reading()})
    assert judge(reading(), now) == (Finding(A, "it is no longer there"),) and judge(now, now) == ()


def test_xids_of_what_is_no_device_here_are_nobodys() -> None:
    assert judge(None, replace(reading(), xids=(Xid("0000:ff:00.0", 79),))) == ()
    assert reasons(None, replace(reading(), xids=(Xid(A, 13), Xid(A, 79)))) == [
        ("Xid 79: GPU has fallen off the bus", True)
    ]


# --- reading


def test_readings_of_a_host_that_is_well(tmp_path: Path) -> None:
    answers = Recorded("hgx-h100")
    root = nvidia_host(tmp_path, answers)
    first = gather(None, (), root, answers)
    assert len(first.devices) == 8 and judge(None, first) == ()
    answers.gpus[2]["uncorrected"] = 1
    answers.gpus[3]["remapped"] = [4, True, True]
    told = judge(first, gather(first, (), root, answers))
    assert [(one.address, one.cordon) for one in told] == [
        ("0000:52:00.0", True),
        ("0000:61:00.0", True),
        ("0000:61:00.0", False),
    ]


def test_broken_cards_are_found_by_their_silence(tmp_path: Path) -> None:
    answers = Recorded("lost")
    told = judge(None, gather(None, (), nvidia_host(tmp_path, answers), answers))
    assert told == (
        Finding("0000:43:00.0", "its driver has it, but it does not answer"),
        Finding("0000:52:00.0", "GPU requires a reset (NVML 16)"),
    )


def test_lines_of_the_log_count_once_until_the_next_boot(tmp_path: Path) -> None:
    answers = Recorded("hgx-h100")
    root = nvidia_host(tmp_path, answers)
    put(tmp_path, {"proc/sys/kernel/random/boot_id": "one\n"})
    lines = [f"4,{n},1,-;NVRM: Xid (PCI:0000:1b:00): {xid}, x" for n, xid in ((7, 79), (9, 31))]
    first = gather(None, lines, root, answers)
    assert first.mark == 9 and [one.reason for one in judge(None, first)] == ["Xid 79: GPU has fallen off the bus"]
    again = gather(first, lines, root, answers)
    assert again.xids == () and again.mark == 9 and judge(first, again) == ()
    later = gather(again, [*lines, "4,12,1,-;NVRM: Xid (PCI:0000:1b:00): 48, x"], root, answers)
    assert [xid.number for xid in later.xids] == [48]
    put(tmp_path, {"proc/sys/kernel/random/boot_id": "two\n"})
    assert [xid.number for xid in gather(later, lines, root, answers).xids] == [79, 31]


def test_amds_counters(tmp_path: Path) -> None:
    root = amd_host(tmp_path, count=2)
    first, told = poll(None, root)
    assert told == () and len(first.devices) == 2, "corrected errors are none"
    put(tmp_path, {"sys/bus/pci/devices/0000:15:00.0/ras/umc_err_count": "ue: 1\nce: 3\nde: 0\n"})
    second, told = poll(first, root)
    assert told == (Finding("0000:15:00.0", "1 uncorrectable errors of umc"),)
    assert poll(second, root)[1] == ()


def test_this_host_can_be_asked() -> None:
    now, _ = poll()
    assert now.boot and isinstance(poll(now)[1], tuple)
