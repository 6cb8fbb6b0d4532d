"""Where the volumes of a task may be seen. Pure."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePosixPath

from usina.core.errors import Invalid
from usina.core.names import check_range
from usina.core.task import WORK, File, Mount

MOST = 16
_HOSTS = (
    *("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/proc", "/dev", "/sys", "/etc"),
    *("/run", "/var/run", "/var/tmp"),  # noqa: S108
)
_RUNS = (WORK, "/tmp", "/var")  # noqa: S108  only below these


def check_mounts(mounts: Sequence[Mount], workdir: str, files: Sequence[File]) -> tuple[Mount, ...]:
    """The same with absolute paths; relative ones count from where the command begins. None is at another's place or
    within it, nor over what is the host's or another file's. Raises `Invalid` naming the one at fault."""
    check_range(len(mounts), 0, MOST, "volumes")
    placed = [replace(one, path=_place(one.path, workdir, f"volumes[{n}].path")) for n, one in enumerate(mounts)]
    for number, one in enumerate(placed):
        for earlier in placed[:number]:
            if within(one.path, earlier.path) or within(earlier.path, one.path):
                _refuse(f"volumes[{number}].path", f"{one.path} and {earlier.path} are one within the other")
    for number, file in enumerate(files):
        path = absolute(file.path, workdir)
        for mount in placed:
            if within(path, mount.path):
                _refuse(f"files[{number}].path", f"{mount.path} is a volume; files go elsewhere")
    return tuple(placed)


def absolute(path: str, workdir: str) -> str:
    return "/" + posixpath.normpath(posixpath.join(WORK, workdir, path)).lstrip("/")


def within(path: str, top: str) -> bool:
    """Whether it is `top`, or below it."""
    return PurePosixPath(path).is_relative_to(top)


def _place(path: str, workdir: str, field: str) -> str:
    parts = PurePosixPath(path).parts
    if not path or ".." in parts or not path.isprintable() or len(path) > 1024:
        _refuse(field, "a path without '..'")
    if any(len(part.encode()) > 255 for part in parts):
        _refuse(field, "a name in it is too long")
    found = absolute(path, workdir)
    if found == "/" or found in _RUNS or any(within(found, top) for top in _HOSTS):
        _refuse(field, f"{found} is not for a volume; try {WORK}/data or /data")
    return found


def _refuse(field: str, why: str) -> None:
    raise Invalid(f"{field}: {why}", field=field)
