"""The file of a volume as a mount for one run, by descriptors only.

A loop device that clears itself, a file system on it, a mount that is attached nowhere: each is held by the one after
it, and the last by the run. When the last run is gone, all of it is, after a crash and a kill as well.

Two loop devices over one file would destroy it. Who looks for one or makes one holds a lock on the file meanwhile, and
one that is there is known by the file's device and inode.

Owners on a volume have numbers of their own, `OWNERS`, which nobody has on the host. A mount shows them as the users of
its run (an idmapped mount), and no set-user-id bit or device node on it has any effect.

It may know the standard library and nothing else. Protocol: loop(4), <linux/loop.h>; fsopen(2), fsconfig(2),
fsmount(2), move_mount(2), mount_setattr(2), user_namespaces(7); Linux 5.12 or newer. Needs root.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import struct
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final

OWNERS: Final = (0x7100_0000, 65_536)
"""First number of the owners on a volume, and how many they are: as many as a container has."""

# Numbers of system calls are those of all architectures since 5.1, but for alpha.
_MOVE_MOUNT, _FSOPEN, _FSCONFIG, _FSMOUNT, _MOUNT_SETATTR = 429, 430, 431, 432, 442
_SET_FLAG, _SET_STRING, _CREATE = 0, 1, 6
_CLOEXEC: Final = 1
_RDONLY, _NOSUID, _NODEV, _IDMAP = 1, 2, 4, 0x100000
_FROM_EMPTY_PATH: Final = 4
_AT_EMPTY_PATH: Final = 0x1000
_AT_FDCWD: Final = -100
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8

_GET_STATUS, _CONFIGURE, _GET_FREE = 0x4C05, 0x4C0A, 0x4C82
_AUTOCLEAR: Final = 4
_STATUS: Final = struct.Struct("5Q4I64s64s32s2Q")  # loop_info64: device, inode, rdevice, offset, size limit, number …
_TRIES: Final = 50  # for a free loop device, where others take them too
_BLOCK: Final = 4096
_SUPERBLOCK: Final = 1024
_NO_LOST: Final = "rmdir lost+found\n"  # for debugfs; one that holds anything stays
_EVERYBODYS: Final = "set_inode_field / mode 040777\n"
_PATIENCE: Final = 3.0  # seconds for a lock that is held for milliseconds

_libc = ctypes.CDLL(None, use_errno=True)


class _Attributes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "namespace")]


def _call(what: str, number: int, *values: object) -> int:
    result = int(_libc.syscall(number, *values))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


# --- what runs are given


def mounted(image: str, users: Sequence[tuple[int, int, int]], *, read_only: bool) -> int:
    """A descriptor of a mount of a volume that is attached nowhere. `users`: (first on the volume, first on the host,
    how many). Raises `OSError`; `FileNotFoundError` where there is no such volume."""
    with locked(image):
        device, path = _attached(image)
    try:
        mount = _mount(path, _NOSUID | _NODEV | (_RDONLY if read_only else 0))
    finally:
        os.close(device)
    try:
        _map_users(mount, users)
    except BaseException:
        os.close(mount)
        raise
    return mount


def one_user(uid: int) -> tuple[tuple[int, int, int], ...]:
    """The volume's owner is a user of the host. Who else has something on the volume is nobody there: its own folders
    a user may still empty, as everywhere."""
    first, count = OWNERS
    return (first, uid, 1), (first + 1, first + 1, count - 1)


def many_users(host: int) -> tuple[tuple[int, int, int], ...]:
    """Owners are users of the host from `host` on, as those of a container are."""
    first, count = OWNERS
    return ((first, host, count),)


def move(mount: int, target: str) -> None:
    """Attach it at a folder."""
    _call("move_mount", _MOVE_MOUNT, mount, b"", _AT_FDCWD, os.fsencode(target), _FROM_EMPTY_PATH)


def unmount(target: str) -> None:
    """Lazily; what is not mounted stays as it is."""
    if _libc.umount2(os.fsencode(target), _MNT_DETACH | _UMOUNT_NOFOLLOW) < 0:
        code = ctypes.get_errno()
        if code not in (errno.EINVAL, errno.ENOENT):
            raise OSError(code, f"umount: {os.strerror(code)}")


def _mount(device: str, attributes: int) -> int:
    context = _call("fsopen", _FSOPEN, b"ext4", _CLOEXEC)
    try:
        _call("source", _FSCONFIG, context, _SET_STRING, b"source", device.encode(), 0)
        _call("discard", _FSCONFIG, context, _SET_FLAG, b"discard", None, 0)  # what is deleted there is free here
        _call("file system of the volume", _FSCONFIG, context, _CREATE, None, None, 0)
        return _call("fsmount", _FSMOUNT, context, _CLOEXEC, attributes)
    finally:
        os.close(context)


def _map_users(mount: int, users: Sequence[tuple[int, int, int]]) -> None:
    namespace = _user_namespace(users)
    try:
        wish = _Attributes(set=_IDMAP, namespace=namespace)
        _call("idmapped mount", _MOUNT_SETATTR, mount, b"", _AT_EMPTY_PATH, ctypes.byref(wish), ctypes.sizeof(wish))
    finally:
        os.close(namespace)


def _user_namespace(users: Sequence[tuple[int, int, int]]) -> int:
    """A descriptor of a user namespace, which a program is in only until its numbers are written."""
    text = "".join(f"{inner} {outer} {count}\n" for inner, outer, count in users)
    command = ("unshare", "--user", "cat")
    with (
        _there("unshare"),
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as program,
    ):
        assert program.stdin is not None and program.stdout is not None
        with program.stdin:
            with suppress(BrokenPipeError):
                program.stdin.write(b"x")
            if program.stdout.read(1) != b"x":  # it says it again once it is there
                raise OSError(errno.EPERM, "no user namespace can be made")
            for name in ("uid_map", "gid_map"):
                with open(f"/proc/{program.pid}/{name}", "w", encoding="ascii") as file:
                    file.write(text)
            return os.open(f"/proc/{program.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)


# --- loop devices


@contextmanager
def locked(image: str) -> Iterator[os.stat_result]:
    """Nobody else attaches, grows or removes it meanwhile. The lock is of a descriptor that the loop device does not
    have, or it would be held as long as that is there."""
    fd = os.open(image, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise OSError(errno.EBUSY, "the volume is being worked on") from None
                time.sleep(0.005)
        found = os.fstat(fd)
        if not os.path.samestat(found, os.stat(image, follow_symlinks=False)):  # raises where it is gone
            raise FileNotFoundError(errno.ENOENT, "the volume is another one now", image)
        yield found
    finally:
        os.close(fd)


def in_use(image: str) -> bool:
    """Whether a mount of it is anywhere. Only under its lock does the answer last."""
    device = _device_of(os.path.basename(image), os.stat(image, follow_symlinks=False))
    if device is None:
        return False
    os.close(device[0])
    return True


def _attached(image: str) -> tuple[int, str]:
    """An open loop device of the file, and its path. It stays while it is open or mounted."""
    backing = os.open(image, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return _device_of(os.path.basename(image), os.fstat(backing)) or _new_device(backing, image)
    finally:
        os.close(backing)


def _device_of(name: str, wanted: os.stat_result) -> tuple[int, str] | None:
    """The open loop device of a file that is called `name`. One that is just clearing itself is waited for."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        going = False
        for device in _devices_with(name):
            try:
                fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
            except OSError:
                going = True
                continue
            if _has(fd, wanted):  # open, it cannot clear itself any more
                return fd, device
            os.close(fd)
        if not going:
            return None
        if time.monotonic() > deadline:
            raise OSError(errno.EBUSY, "its loop device cannot be opened")
        time.sleep(0.002)


def _devices_with(name: str) -> list[str]:
    """Loop devices of files that are called so."""
    found = []
    for device in os.listdir("/sys/block"):
        if device.startswith("loop"):
            with suppress(OSError), open(f"/sys/block/{device}/loop/backing_file", "rb") as file:
                found += [f"/dev/{device}"] if os.path.basename(file.read().strip()) == name.encode() else []
    return found


def _has(device: int, wanted: os.stat_result) -> bool:
    try:
        told = _STATUS.unpack(fcntl.ioctl(device, _GET_STATUS, bytes(_STATUS.size)))
    except OSError:
        return False  # it has none any more
    return (told[0], told[1]) == (wanted.st_dev, wanted.st_ino)


@contextmanager
def _there(what: str) -> Iterator[None]:
    """What this machine lacks is not taken for a volume that is not there."""
    try:
        yield
    except FileNotFoundError as error:
        raise OSError(errno.ENODEV, f"this machine has no {what}") from error


def _new_device(backing: int, name: str) -> tuple[int, str]:
    info = _STATUS.pack(0, 0, 0, 0, 0, 0, 0, 0, _AUTOCLEAR, os.fsencode(name)[:63], b"", b"", 0, 0)
    wish = struct.pack("II", backing, 0) + info + bytes(64)
    with _there("loop devices"):
        control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(_TRIES):
            path = f"/dev/loop{fcntl.ioctl(control, _GET_FREE)}"
            with _there(path):
                fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.ioctl(fd, _CONFIGURE, wish)
                return fd, path
            except OSError as error:
                os.close(fd)
                if error.errno != errno.EBUSY:  # else somebody was quicker
                    raise
    finally:
        os.close(control)
    raise OSError(errno.EBUSY, "no loop device is free")


# --- the file


def make(image: str, size: int) -> None:
    """A new volume of `size` bytes, whole or not at all: the file has no name before it is done. One that is there
    stays as it is. Raises `OSError`."""
    fd = os.open(os.path.dirname(image), os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
    try:
        _format(fd, size)
        os.fsync(fd)
        with suppress(FileExistsError):
            os.link(f"/proc/self/fd/{fd}", image, src_dir_fd=fd, follow_symlinks=True)  # linkat(2), AT_SYMLINK_FOLLOW
    finally:
        os.close(fd)


def _format(fd: int, size: int) -> None:
    """Its root is everybody's who sees it, because users of a container are many, and has nothing in it."""
    os.truncate(fd, size)
    first, _ = OWNERS
    extended = f"lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner={first}:{first}"
    file = f"/proc/self/fd/{fd}"
    _run("mkfs.ext4", "-q", "-F", "-m", "0", "-b", str(_BLOCK), "-e", "remount-ro", "-E", extended, file, keep=fd)
    _run("debugfs", "-w", "-f", "/dev/stdin", file, keep=fd, told=_NO_LOST + _EVERYBODYS)


def _run(*command: str, keep: int, told: str = "", fine: Sequence[int] = (0,)) -> None:
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    with _there(command[0]):
        done = subprocess.run(
            command,
            input=told,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            pass_fds=(keep,),
            env={"PATH": path, "LC_ALL": "C.UTF-8"},
            check=False,
        )
    if done.returncode not in fine:
        raise OSError(errno.EIO, f"{command[0]}: {done.stdout.strip()[-300:]}")


def grow(image: str, size: int) -> bool:
    """At least `size` bytes, never less; what was cut short is finished. Whether it is so: not while anything uses it,
    for only who has CAP_SYS_RESOURCE may grow what is mounted. Raises `OSError`."""
    with locked(image) as found:
        if found.st_size >= size and _formatted(image) >= size - size % _BLOCK:
            return True
        if in_use(image):
            return False
        if found.st_size < size:
            os.truncate(image, size)
        fd = os.open(image, os.O_RDWR | os.O_CLOEXEC)
        try:
            file = f"/proc/self/fd/{fd}"
            _run("e2fsck", "-f", "-p", file, keep=fd, fine=(0, 1))  # replays its journal, too
            _run("resize2fs", file, keep=fd)
            _run("debugfs", "-w", "-f", "/dev/stdin", file, keep=fd, told=_NO_LOST)  # which the check has made again
            os.fsync(fd)
        finally:
            os.close(fd)
    return True


def _formatted(image: str) -> int:
    """Bytes that its file system has. https://docs.kernel.org/filesystems/ext4/super.html"""
    with open(image, "rb") as file:
        file.seek(_SUPERBLOCK)
        block = file.read(1024)
    low, shift, high = (int.from_bytes(block[at : at + 4], "little") for at in (0x4, 0x18, 0x150))
    return ((high << 32) + low) * (1024 << min(shift, 6))


def remove(image: str) -> bool:
    """Whether it is gone: not while anything uses it."""
    try:
        with locked(image):
            if in_use(image):
                return False
            os.unlink(image)
    except FileNotFoundError:
        pass
    return True


# --- whether all of this is possible


def trial(folder: str) -> None:
    """Do all of it with a file that never has a name, in the folder where volumes would lie. Raises `OSError`."""
    if tuple(int(part) for part in platform.release().split("-")[0].split(".")[:2]) < (5, 12):
        raise OSError(errno.ENOSYS, "Linux 5.12 or newer is needed")
    fd = os.open(folder, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
    try:
        _format(fd, 4 << 20)
        device, path = _new_device(fd, "trial")
        try:
            mount = _mount(path, _NOSUID | _NODEV)
        finally:
            os.close(device)
    finally:
        os.close(fd)
    try:
        _map_users(mount, one_user(1))
        if os.stat(".", dir_fd=mount).st_uid != 1:
            raise OSError(errno.ENOSYS, "idmapped mounts have no effect")
    finally:
        os.close(mount)
