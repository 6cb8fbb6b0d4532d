"""Files of a run: into its working directory before it starts, out of it, and away.

Whatever touches a working directory while its task may have been there does so as the task's own user, in a process of
its own, and opens every name without following links, one folder after the other. A planted link, FIFO or device then
leads nowhere that the task could not go by itself, and nothing at all is read through it.
"""

from __future__ import annotations

import encodings.idna  # noqa: F401  what is imported late would be imported by a user who cannot read it
import gzip  # noqa: F401
import os
import shutil
import stat
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, Final

_CHUNK: Final = 256 << 10
_DEEPEST: Final = 64  # folders below the working directory that outputs are looked for in
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class Refused(Exception):
    """Cannot be done, in words for people; `lasting`: nor ever."""

    def __init__(self, message: str, *, lasting: bool = True) -> None:
        super().__init__(message)
        self.lasting = lasting


def become(uid: int | None) -> None:
    """Be a run's user for good. None: the warden is not root, and every run is of its own user."""
    if uid is not None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)


# --- in


def put(files: Sequence[Mapping[str, Any]], sources: Sequence[int], root: str, most: int) -> None:
    """Copy and unpack, as the run's user. `sources` are open already, by one who may read them; `most` bounds all bytes
    written. Raises `Refused`."""
    budget = [most]
    for file, source in zip(files, sources, strict=True):
        target = _inside(root, file["path"] or ".")
        try:
            if file["unpack"]:
                _unpack(source, target, budget)
            else:
                _copy(source, target, int(file["mode"]), budget)
        except (OSError, EOFError, tarfile.TarError) as error:
            what = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise Refused(f"{'the archive' if file['path'] in ('', '.') else file['path']}: {what}") from error


def link(source: str, root: str, path: str, uid: int) -> bool:
    """Give a run a name for a file that others have too, and nobody may write; folders on the way are the run's. False
    where it must be copied, on another file system for example. `root` must not have been the run's to change yet."""
    target = os.path.normpath(os.path.join(root, path))
    if not target.startswith(f"{root}/"):
        raise Refused(f"{path}: leads out of the working directory")
    try:
        _make_folders(os.path.dirname(target), root, uid)
        os.chmod(source, 0o444)  # who owns it keeps it in a folder that nobody else enters
        os.link(source, target)
    except OSError:
        return False
    return True


def _make_folders(path: str, root: str, uid: int) -> None:
    if path == root or os.path.isdir(path):
        return
    _make_folders(os.path.dirname(path), root, uid)
    os.mkdir(path, 0o755)
    os.chown(path, uid, uid)


def _inside(root: str, path: str) -> str:
    """Where a relative path lies; links that were unpacked before it must not lead outside."""
    target = os.path.normpath(os.path.join(root, path))
    real, top = os.path.realpath(target), os.path.realpath(root)
    if real != top and not real.startswith(top + "/"):
        raise Refused(f"{path}: leads out of the working directory")
    return target


def _copy(source: int, target: str, mode: int, budget: list[int]) -> None:
    os.makedirs(os.path.dirname(target), exist_ok=True)
    out = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        while data := os.read(source, _CHUNK):
            _spend(budget, len(data))
            _write_all(out, data)
        os.fchmod(out, mode & 0o777)
    finally:
        os.close(out)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _spend(budget: list[int], size: int) -> None:
    budget[0] -= size
    if budget[0] < 0:
        raise Refused("the files are larger than the task's disk")


def _unpack(source: int, target: str, budget: list[int]) -> None:
    """By the rules of `tarfile.data_filter`: nothing absolute, no way up, no devices, no links that lead outside."""
    if not hasattr(tarfile, "data_filter"):
        raise Refused("this host's Python is too old to unpack archives safely")
    os.makedirs(target, exist_ok=True)

    def looked_at(member: tarfile.TarInfo, where: str) -> tarfile.TarInfo | None:
        _spend(budget, max(0, member.size) + 512)
        kept = tarfile.data_filter(member, where)
        if not (member.isreg() or member.isdir() or member.issym() or member.islnk()):
            raise Refused(f"{member.name}: only files, folders and links can be unpacked")
        return kept

    with os.fdopen(os.dup(source), "rb") as file, tarfile.open(fileobj=file, mode="r:gz") as archive:
        for member in archive:
            archive.extract(member, target, filter=looked_at)


# --- out


def outputs(work: int, patterns: Sequence[str]) -> Iterator[bytes]:
    """One tar of the plain files below a folder's descriptor that match, as the run's user."""
    for path, fd, found in _walk(work, PurePosixPath(), tuple(patterns), 0):
        try:
            yield from _entry(path, fd, found)
        finally:
            os.close(fd)
    yield b"\0" * 1024


def matches(path: PurePosixPath, patterns: Sequence[str]) -> bool:
    """The path itself matches, or a folder that it is in."""
    return any(part.match(pattern) for pattern in patterns for part in (path, *path.parents) if part.name)


def _walk(
    folder: int, path: PurePosixPath, patterns: tuple[str, ...], depth: int
) -> Iterator[tuple[PurePosixPath, int, os.stat_result]]:
    """Open descriptors of plain files; what changes kind between listing and opening is left out."""
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries)
    for name in names:
        here = path / name
        try:
            fd = os.open(name, _FILE, dir_fd=folder)
        except OSError:
            continue  # a link, a socket, gone, or not the task's to read
        found = os.fstat(fd)
        if stat.S_ISDIR(found.st_mode) and depth < _DEEPEST:
            try:
                yield from _walk(fd, here, patterns, depth + 1)
            finally:
                os.close(fd)
        elif stat.S_ISREG(found.st_mode) and matches(here, patterns):
            yield here, fd, found
        else:
            os.close(fd)


def _entry(path: PurePosixPath, fd: int, found: os.stat_result) -> Iterator[bytes]:
    """A file that grows or shrinks meanwhile has the size that it had at first."""
    info = tarfile.TarInfo(str(path).encode("utf-8", "surrogateescape").decode("utf-8", "replace"))
    info.size, info.mode, info.mtime = found.st_size, stat.S_IMODE(found.st_mode) & 0o777, int(found.st_mtime)
    yield info.tobuf(tarfile.PAX_FORMAT)
    left = info.size
    while left > 0:
        data = os.read(fd, min(_CHUNK, left)) or b"\0" * min(_CHUNK, left)
        left -= len(data)
        yield data
    yield b"\0" * (-info.size % 512)


# --- away


def clear(folder: str, spawn: Callable[[Sequence[str]], int]) -> int | None:
    """Remove a folder that a task had. A small one at once (None); else by a program, whose number is returned: a task
    can make millions of files, or folders deeper than Python recurses."""
    try:
        if _small(folder):
            shutil.rmtree(folder)
            return None
    except FileNotFoundError:
        return None
    except OSError:
        pass
    return spawn(("/bin/rm", "-rf", "--one-file-system", "--", folder))


def _small(folder: str, most: int = 32) -> bool:
    count = 0
    for name in os.listdir(folder):
        below = f"{folder}/{name}"
        if stat.S_ISDIR(os.lstat(below).st_mode):
            with os.scandir(below) as entries:
                for entry in entries:
                    count += 1
                    if count > most or entry.is_dir(follow_symlinks=False):
                        return False
    return True


# --- /etc as runs see it

_ETC_COPIED: Final = ("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "alternatives", "ssl/certs", "ssl/openssl.cnf")
_ETC_COPIED_TOO: Final = ("localtime", "timezone", "mime.types", "protocols", "services", "pki/tls/certs", "terminfo")
_ETC_WRITTEN: Final = {
    "passwd": "root:x:0:0:root:/nonexistent:/usr/sbin/nologin\ntask:x:1000:1000:task:/work:/bin/sh\n"
    "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    "group": "root:x:0:\ntask:x:1000:\nnogroup:x:65534:\n",
    "hosts": "127.0.0.1 localhost task\n::1 localhost\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\nprotocols: files\nservices: files\n",
    "host.conf": "multi on\n",
    "shells": "/bin/sh\n",
}


def make_etc(target: str, resolver: str, source: str = "/etc") -> None:
    """A small /etc: users, names, certificates and the linker's list. Never the host's own users, keys or secrets."""
    fresh = f"{target}.new"
    shutil.rmtree(fresh, ignore_errors=True)
    os.makedirs(fresh, 0o755)
    for name in _ETC_COPIED + _ETC_COPIED_TOO:
        _copy_public(f"{source}/{name}", f"{fresh}/{name}")
    for name, text in {**_ETC_WRITTEN, "resolv.conf": resolver}.items():
        with open(f"{fresh}/{name}", "w", encoding="ascii") as file:
            file.write(text)
    os.makedirs(f"{target}.old", exist_ok=True)
    shutil.rmtree(f"{target}.old")
    if os.path.exists(target):
        os.rename(target, f"{target}.old")
    os.rename(fresh, target)
    shutil.rmtree(f"{target}.old", ignore_errors=True)


def _copy_public(source: str, target: str) -> None:
    """Only what everybody may read; links stay links."""
    try:
        found = os.lstat(source)
        if stat.S_ISDIR(found.st_mode) and found.st_mode & 0o005 == 0o005:
            os.makedirs(target, exist_ok=True)
            for name in os.listdir(source):
                _copy_public(f"{source}/{name}", f"{target}/{name}")
        elif stat.S_ISLNK(found.st_mode) or (stat.S_ISREG(found.st_mode) and found.st_mode & 0o004):
            os.makedirs(os.path.dirname(target), exist_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)
    except OSError:
        pass  # not there, or not for everybody: runs do without it
