"""Writes a cpio archive in the "newc" form that Linux takes as its initial root.

Format: Documentation/driver-api/early-userspace/buffer-format.rst of Linux. Owners are root and times are
zero, so that the same files give the same bytes.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass, field


@dataclass(slots=True)
class Archive:
    """Files by their absolute path; folders above them are made as needed."""

    _parts: list[bytes] = field(default_factory=list)
    _folders: set[str] = field(default_factory=set)
    _count: int = 0

    def file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        self._above(path)
        self._entry(path, stat.S_IFREG | mode, data)

    def link(self, path: str, target: str) -> None:
        """A symbolic link at `path` that points to `target`."""
        self._above(path)
        self._entry(path, stat.S_IFLNK | 0o777, target.encode())

    def folder(self, path: str, mode: int = 0o755) -> None:
        if path in self._folders:
            return
        self._above(path)
        self._folders.add(path)
        self._entry(path, stat.S_IFDIR | mode, b"")

    def device(self, path: str, major: int, minor: int, mode: int = 0o600) -> None:
        """A character device."""
        self._above(path)
        self._entry(path, stat.S_IFCHR | mode, b"", major, minor)

    def closed(self) -> bytes:
        """The whole archive, closed by its trailer and padded to 512 bytes."""
        whole = b"".join(self._parts) + _record("TRAILER!!!", 0, 0, b"", 0, 0)
        return whole + b"\0" * (-len(whole) % 512)

    def _above(self, path: str) -> None:
        parent = path.rpartition("/")[0]
        if parent:
            self.folder(parent)

    def _entry(self, path: str, mode: int, data: bytes, major: int = 0, minor: int = 0) -> None:
        self._count += 1
        self._parts.append(_record(path.lstrip("/"), self._count, mode, data, major, minor))


def _record(name: str, number: int, mode: int, data: bytes, major: int, minor: int) -> bytes:
    encoded = name.encode() + b"\0"
    fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, major, minor, len(encoded), 0)
    head = b"070701" + b"".join(b"%08X" % value for value in fields) + encoded
    return _padded(head) + _padded(data)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)
