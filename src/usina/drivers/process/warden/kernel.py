"""What Python 3.11 does not wrap of Linux, and how /proc writes what we read of it.

Knows nothing of runs. A process is named by number and start time, so that a number used again is never mistaken.
"""

from __future__ import annotations

import ctypes
import os
import resource
import select
import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Final

NEWNS: Final = 0x00020000
NEWCGROUP: Final = 0x02000000
NEWUTS: Final = 0x04000000
NEWIPC: Final = 0x08000000
NEWUSER: Final = 0x10000000
NEWPID: Final = 0x20000000
NEWNET: Final = 0x40000000

MS_BIND: Final = 4096
MS_REC: Final = 16384
MS_SLAVE: Final = 1 << 19
_MNT_DETACH: Final = 2
_NS_GET_USERNS: Final = 0xB701
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NAME: Final = 15
_PR_SET_SECCOMP: Final = 22
_PR_CAPBSET_DROP: Final = 24
_PR_SET_NO_NEW_PRIVS: Final = 38
_SECCOMP_FILTER: Final = 2
_LAST_CAPABILITY: Final = 63
_PIECE: Final = 64 << 10

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def setns(fd: int, kinds: int) -> None:
    _checked(_libc.setns(fd, kinds))


def unshare(kinds: int) -> None:
    _checked(_libc.unshare(kinds))


def mount(source: str, target: str, flags: int) -> None:
    _checked(_libc.mount(os.fsencode(source), os.fsencode(target), None, ctypes.c_ulong(flags), None))


def unmount(target: str) -> None:
    """Lazily: gone at once, for who is in our mount namespace."""
    _checked(_libc.umount2(target.encode(), _MNT_DETACH))


def _prctl(option: int, *values: object) -> int:
    padded = [*values, *(ctypes.c_ulong(0),) * (4 - len(values))]
    return int(_libc.prctl(option, *padded))


def die_with_parent() -> None:
    """Killed when the parent dies. The caller looks afterwards whether it has died already."""
    _checked(_prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL)))


def set_name(name: str) -> None:
    """What `ps` calls this process: 15 bytes."""
    _checked(_prctl(_PR_SET_NAME, ctypes.c_char_p(name.encode())))


def owner_of(namespace: int) -> int:
    """A descriptor of the user namespace that owns the namespace of a descriptor."""
    return _checked(_libc.ioctl(namespace, _NS_GET_USERNS))


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


class _CapHeader(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


def give_up_privileges(program: bytes) -> None:
    """No capabilities, none to be had, and the system call filter."""
    for capability in range(_LAST_CAPABILITY + 1):
        _prctl(_PR_CAPBSET_DROP, ctypes.c_ulong(capability))  # fails beyond the last that the kernel knows
    header = _CapHeader(0x20080522, 0)
    _checked(_libc.capset(ctypes.byref(header), (ctypes.c_uint32 * 6)()))
    _checked(_prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1)))
    if not program:
        return
    code = _Program(len(program) // 8, program)
    _checked(_prctl(_PR_SET_SECCOMP, ctypes.c_ulong(_SECCOMP_FILTER), ctypes.byref(code)))


@dataclass(frozen=True, slots=True)
class Stat:
    """A line of /proc/<pid>/stat, as far as we need it."""

    state: str
    parent: int
    ticks: int  # of the processor: its own and its dead children's
    start: int  # clock ticks since the machine began; with the number, the name of a process


def parse_stat(text: str) -> Stat:
    """The command's name stands in brackets and may hold anything, brackets and spaces too: the last ``)`` ends it."""
    fields = text[text.rindex(")") + 2 :].split()
    return Stat(fields[0], int(fields[1]), sum(map(int, fields[11:15])), int(fields[19]))


def content(path: str) -> bytes:
    """All of a file. What Python's own files cost is felt where a run reads a dozen of them."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        pieces = []
        while data := os.read(fd, _PIECE):
            pieces.append(data)
        return b"".join(pieces)
    finally:
        os.close(fd)


def stat_of(pid: int) -> Stat | None:
    try:
        return parse_stat(content(f"/proc/{pid}/stat").decode("utf-8", "replace"))
    except (OSError, ValueError, IndexError):
        return None


@cache
def boot_id() -> str:
    """Another one after each start of the machine; process start times count from there."""
    try:
        return content("/proc/sys/kernel/random/boot_id").decode("ascii").strip()
    except OSError:
        return ""


def open_process(pid: int, start: int) -> int | None:
    """A pidfd of the process of this number and start time; None where it is gone."""
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        return None
    found = stat_of(pid)
    if found is None or found.start != start:
        os.close(fd)
        return None
    return fd


def kill(pidfd: int, number: int = signal.SIGKILL) -> None:
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, number)


def has_ended(pidfd: int, patience: float = 0.0) -> bool:
    """Whether its process has; waits for it for so many seconds. By poll, as a busy warden's descriptors have numbers
    that select cannot do with."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(max(0.0, patience) * 1000))


def kill_all_of(pids: Sequence[int], uid: int) -> None:
    """SIGKILL for those of the processes that belong to `uid`. Safe against numbers used again: the descriptor is
    opened before the owner is looked at."""
    for pid in pids:
        try:
            fd = os.pidfd_open(pid)
        except OSError:
            continue
        try:
            if os.stat(f"/proc/{pid}").st_uid == uid:
                kill(fd)
        except OSError:
            pass
        finally:
            os.close(fd)


def set_own_limits() -> int:
    """As many open files as allowed, for three of every run, and no core files, neither of ours nor of runs. Returns
    the limit of open files that was there."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return soft
