"""The system call filter of every run: classic BPF for x86_64 and aarch64, put together here. Pure.

A deny list, because tasks are any program there is: what reaches kernel code that a computation never needs, or opens
new namespaces (the way to most privilege holes), fails with EPERM; `clone3` with ENOSYS, so that libraries fall back to
`clone`, whose flags can be looked at. Calls of another architecture kill the process: their numbers mean other things.

`ptrace` is allowed: a run sees only processes of its own, of its own user, under this very filter, and the kernel
applies the filter again after a tracer changed a call (since 4.8). Debuggers and profilers need it.

Numbers: arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h of Linux; layout of the data:
include/uapi/linux/seccomp.h.
"""

from __future__ import annotations

import struct
from typing import Final

ALLOW: Final = 0x7FFF0000
KILL: Final = 0x80000000
EPERM: Final = 0x00050000 | 1
ENOSYS: Final = 0x00050000 | 38

ARCHITECTURES: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32: Final = 0x40000000  # calls of the x32 flavour of x86_64 have this bit
_NEW_NAMESPACES: Final = 0x7E020000  # every CLONE_NEW… flag of `clone`
_TIOCSTI: Final = 0x5412
_TIOCLINUX: Final = 0x541C

# name: (x86_64, aarch64); None where the architecture has none
DENIED: Final[dict[str, tuple[int | None, int | None]]] = {
    "acct": (163, 89),
    "add_key": (248, 217),
    "adjtimex": (159, 171),
    "bpf": (321, 280),
    "chroot": (161, 51),
    "clock_adjtime": (305, 266),
    "clock_settime": (227, 112),
    "create_module": (174, None),
    "delete_module": (176, 106),
    "fanotify_init": (300, 262),
    "finit_module": (313, 273),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "init_module": (175, 105),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "ioperm": (173, None),
    "iopl": (172, None),
    "kcmp": (312, 272),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "lookup_dcookie": (212, 18),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "nfsservctl": (180, 42),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "perf_event_open": (298, 241),
    "pivot_root": (155, 41),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "setdomainname": (171, 162),
    "sethostname": (170, 161),
    "setns": (308, 268),
    "settimeofday": (164, 170),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "syslog": (103, 116),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
    "uselib": (134, None),
    "vhangup": (153, 58),
}
_CLONE: Final = {"x86_64": 56, "aarch64": 220}
_IOCTL: Final = {"x86_64": 16, "aarch64": 29}
_CLONE3: Final = 435

_LOAD: Final = 0x20  # a 32-bit word of the data
_EQUAL: Final = 0x15
_AT_LEAST: Final = 0x35
_ANY_BIT: Final = 0x45
_RETURN: Final = 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENT_0, _ARGUMENT_1 = 0, 4, 16, 24  # places in the data; low halves, little endian


def _code(operation: int, value: int, yes: int = 0, no: int = 0) -> bytes:
    return struct.pack("<HBBI", operation, yes, no, value)


def _returned_if(operation: int, value: int, result: int) -> bytes:
    return _code(operation, value, 0, 1) + _code(_RETURN, result)


def build(machine: str) -> bytes:
    """The filter for a machine as `platform.machine()` names it, as `struct sock_filter`s. Raises `KeyError`."""
    column = 0 if machine == "x86_64" else 1
    parts = [
        _code(_LOAD, _ARCHITECTURE) + _code(_EQUAL, ARCHITECTURES[machine], 1, 0) + _code(_RETURN, KILL),
        _code(_LOAD, _NUMBER),
        _returned_if(_AT_LEAST, _X32, ENOSYS) if machine == "x86_64" else b"",
        _returned_if(_EQUAL, _CLONE3, ENOSYS),
        *(_returned_if(_EQUAL, n, EPERM) for n in sorted(_numbers(column))),
        _argument(_CLONE[machine], _ARGUMENT_0, _returned_if(_ANY_BIT, _NEW_NAMESPACES, EPERM)),
        _argument(
            _IOCTL[machine],
            _ARGUMENT_1,
            _returned_if(_EQUAL, _TIOCSTI, EPERM) + _returned_if(_EQUAL, _TIOCLINUX, EPERM),
        ),
        _code(_RETURN, ALLOW),
    ]
    return b"".join(parts)


def _numbers(column: int) -> set[int]:
    return {number for pair in DENIED.values() if (number := pair[column]) is not None}


def _argument(call: int, place: int, tests: bytes) -> bytes:
    """`tests` on an argument of one call, which is allowed where none of them holds."""
    inside = _code(_LOAD, place) + tests + _code(_RETURN, ALLOW)
    return _code(_EQUAL, call, 0, len(inside) // 8) + inside
