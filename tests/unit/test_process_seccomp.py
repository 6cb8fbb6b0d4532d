"""The system call filter, run by a small interpreter of classic BPF: what each call of each machine comes to."""

from __future__ import annotations

import platform
import struct
import subprocess

import pytest

from usina.drivers.process.warden import seccomp
from usina.drivers.process.warden.seccomp import ALLOW, ARCHITECTURES, DENIED, ENOSYS, EPERM, KILL

MACHINES = {"x86_64": 0, "aarch64": 1}
NEWUSER, SIGCHLD = 0x10000000, 17


def run(program: bytes, architecture: int, number: int, *arguments: int) -> int:
    """Interpret a program over one call's `struct seccomp_data`."""
    padded = [*arguments, *(0,) * (6 - len(arguments))]
    data = struct.pack("<IIQ6Q", number & 0xFFFFFFFF, architecture, 0, *(a & (1 << 64) - 1 for a in padded))
    code = [struct.unpack_from("<HBBI", program, at) for at in range(0, len(program), 8)]
    accumulator, at = 0, 0
    for _ in range(len(code) + 1):
        operation, yes, no, value = code[at]
        at += 1
        match operation:
            case 0x20:
                accumulator = struct.unpack_from("<I", data, value)[0]
            case 0x15:
                at += yes if accumulator == value else no
            case 0x35:
                at += yes if accumulator >= value else no
            case 0x45:
                at += yes if accumulator & value else no
            case 0x06:
                return value
            case _:
                raise AssertionError(f"no such operation {operation:#x}")
    raise AssertionError("it does not end")


@pytest.mark.parametrize("machine", MACHINES)
def test_every_denied_call_fails_and_every_other_passes(machine: str) -> None:
    program, column = seccomp.build(machine), MACHINES[machine]
    denied = {pair[column] for pair in DENIED.values()} - {None}
    for number in range(600):
        expected = EPERM if number in denied else ENOSYS if number == 435 else ALLOW
        assert run(program, ARCHITECTURES[machine], number) == expected, number


@pytest.mark.parametrize(("machine", "clone", "ioctl"), [("x86_64", 56, 16), ("aarch64", 220, 29)])
def test_arguments_are_looked_at(machine: str, clone: int, ioctl: int) -> None:
    program, architecture = seccomp.build(machine), ARCHITECTURES[machine]
    assert run(program, architecture, clone, SIGCHLD) == ALLOW
    assert run(program, architecture, clone, 0x3D0F00) == ALLOW  # a thread of glibc
    for flag in (0x00020000, 0x02000000, 0x04000000, 0x08000000, NEWUSER, 0x20000000, 0x40000000):
        assert run(program, architecture, clone, flag | SIGCHLD) == EPERM
    assert run(program, architecture, ioctl, 0, 0x5413) == ALLOW
    for request in (0x5412, 0x541C, 0x5412 | 1 << 40):  # the kernel ignores the upper half
        assert run(program, architecture, ioctl, 0, request) == EPERM


def test_calls_of_another_architecture_kill_and_those_of_x32_are_unknown() -> None:
    program = seccomp.build("x86_64")
    assert run(program, 0x40000003, 21) == KILL  # i386
    assert run(program, ARCHITECTURES["aarch64"], 0) == KILL
    assert run(program, ARCHITECTURES["x86_64"], 0x40000000 | 165) == ENOSYS
    assert run(seccomp.build("aarch64"), ARCHITECTURES["x86_64"], 0) == KILL


def test_a_machine_that_is_not_known_has_no_filter() -> None:
    with pytest.raises(KeyError):
        seccomp.build("riscv64")


def test_numbers_agree_with_this_machines_own_headers() -> None:
    header = {"x86_64": "asm/unistd_64.h"}.get(platform.machine())
    if header is None:
        pytest.skip("no list to compare with")
    try:
        done = subprocess.run(["cpp", "-dM", "-include", header, "/dev/null"], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no compiler here")
    lines = (line.split() for line in done.stdout.splitlines() if line.startswith("#define __NR_"))
    numbers = {fields[1].removeprefix("__NR_"): int(fields[2]) for fields in lines if fields[2].isdecimal()}
    if not numbers:
        pytest.skip("no headers here")
    wrong = {name: (pair[0], numbers[name]) for name, pair in DENIED.items() if numbers.get(name, pair[0]) != pair[0]}
    assert not wrong
