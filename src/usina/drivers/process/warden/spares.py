"""What runs need, made beforehand or used again.

Folders of runs that are over and left them as they were: making and removing eight files and folders for each run is
what costs most of all on ext4, which looks at every inode removed in the last seconds before it gives one out. A folder
is kept only if nothing shows that anybody had it.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import shutil
import stat
import struct
from typing import Final

PREFIX: Final = "spare-"
_MOST: Final = 128
_BOX: Final = frozenset({"work", "tmp"})
_KEPT: Final = ("journal", "status")  # emptied
_LONGEST: Final = 1 << 16  # bytes of a file that is kept
_GETFLAGS: Final = 0x80086601
_SETTABLE: Final = 0x608300FF  # attributes that the owner of a folder may give it (lsattr)
_BLOCK: Final = 4096  # bytes of a folder that never held much


class Spares:
    """Pairs of a run's two folders. What a killed warden leaves of them the next one removes."""

    def __init__(self, state: str) -> None:
        self._state = state
        self._names: list[str] = []
        self._mark = os.urandom(4).hex()  # no other warden's are called the same
        self._numbers = itertools.count()

    def take(self, uid: int | None) -> str:
        """The name of a pair as fresh ones are, with folders that belong to `uid`."""
        name = self._names.pop() if self._names else self._new()
        for folder in _BOX:
            path = f"{self._state}/box/{name}/{folder}"
            if uid is not None:
                os.chown(path, uid, uid)
            os.chmod(path, 0o700)
        return name

    def _new(self) -> str:
        name = self._name()
        os.mkdir(f"{self._state}/runs/{name}", 0o700)
        box = f"{self._state}/box/{name}"
        os.mkdir(box)
        os.chmod(box, 0o711)  # noqa: S103 - users of runs pass through
        for folder in _BOX:
            os.mkdir(f"{box}/{folder}", 0o700)
        return name

    def _name(self) -> str:
        return f"{PREFIX}{self._mark}-{next(self._numbers)}"

    def give(self, name: str, handle: str) -> None:
        """Make a pair that of a run."""
        os.rename(f"{self._state}/runs/{name}", f"{self._state}/runs/{handle}")
        os.rename(f"{self._state}/box/{name}", f"{self._state}/box/{handle}")

    def keep(self, handle: str) -> bool:
        """Keep the pair of a run that is over, if it can be. False where it must be removed."""
        folder, box = f"{self._state}/runs/{handle}", f"{self._state}/box/{handle}"
        try:
            if len(self._names) >= _MOST or not _is_fresh(box) or not all(_is_short(f"{folder}/{f}") for f in _KEPT):
                return False
            name = self._name()
            for file in os.listdir(folder):
                if file in _KEPT:
                    _empty(f"{folder}/{file}")
                else:
                    os.unlink(f"{folder}/{file}")
            os.rename(box, f"{self._state}/box/{name}")
            os.rename(folder, f"{self._state}/runs/{name}")
        except OSError:
            return False
        self._names.append(name)
        return True

    def clear(self) -> None:
        for folder in ("box", "runs"):
            for name in os.listdir(f"{self._state}/{folder}"):
                if name.startswith(PREFIX):
                    shutil.rmtree(f"{self._state}/{folder}/{name}", ignore_errors=True)
        self._names = []


def _is_short(path: str) -> bool:
    return os.stat(path).st_size < _LONGEST


def _empty(path: str) -> None:
    """Nothing but empty lines, which say nothing: a file that is cut to nothing is written to the disk when it is
    closed next."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.pwrite(fd, b"\n" * os.fstat(fd).st_size, 0)
    finally:
        os.close(fd)


def _is_fresh(box: str) -> bool:
    return set(os.listdir(box)) == _BOX and all(_is_untouched(f"{box}/{folder}") for folder in _BOX)


def _is_untouched(path: str) -> bool:
    """An empty folder that is small and has neither attributes nor access lists."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        if not stat.S_ISDIR(found.st_mode) or found.st_size > _BLOCK or os.listdir(fd) or os.listxattr(fd):
            return False
        return not _flags(fd) & _SETTABLE
    finally:
        os.close(fd)


def _flags(fd: int) -> int:
    """0 on file systems that have none."""
    try:
        return int(struct.unpack("l", fcntl.ioctl(fd, _GETFLAGS, struct.pack("l", 0)))[0])
    except OSError:
        return 0
