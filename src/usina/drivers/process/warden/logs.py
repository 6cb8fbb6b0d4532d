"""A run's log: lines stamped when they are read, secrets masked, on disk in two segments that turn over.

A segment is called ``log.<position of its first byte>``, so that positions count as if nothing was ever dropped and the
folder alone says all. Lines are masked whole, before they are written: a secret split over two reads is still hidden.
What was read of an unfinished line is lost when the warden is killed; nothing else is.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from typing import Final

LONGEST: Final = 16 << 10  # bytes of one line's text; the rest of it is dropped
_MASK: Final = b"***"
_SHORTEST_LINE: Final = 8  # of a secret of several lines; shorter ones would hide common words


def masks(secrets: Iterable[str]) -> tuple[bytes, ...]:
    """What is hidden, the longest first: each secret, and the lines of one that has several."""
    found = {secret.encode() for secret in secrets if secret}
    found |= {
        line for secret in found if b"\n" in secret for line in secret.splitlines() if len(line) >= _SHORTEST_LINE
    }
    return tuple(sorted((value for value in found if b"\n" not in value), key=lambda v: (-len(v), v)))


class Lines:
    """Bytes in, whole masked lines out. One for each stream."""

    def __init__(self, stream: str, secrets: Sequence[bytes]) -> None:
        self._stream = stream.encode()
        self._secrets = secrets
        self._edge = max((len(secret) for secret in secrets), default=1) - 1  # bytes of a secret that was cut through
        self._room = LONGEST + self._edge
        self._rest = b""
        self._skipping = False  # the rest of a line that was too long

    def feed(self, data: bytes) -> list[bytes]:
        lines = data.split(b"\n")
        lines[0] = self._rest + lines[0]
        self._rest = lines.pop()
        done = []
        for line in lines:
            if self._skipping:
                self._skipping = False
            else:
                done.append(self._shown(line))
        if self._skipping:
            self._rest = b""
        elif len(self._rest) > self._room:
            done.append(self._shown(self._rest, self._edge))
            self._rest, self._skipping = b"", True
        return done

    def finish(self) -> list[bytes]:
        """The last line, where no line end followed."""
        rest, self._rest = self._rest, b""
        self._skipping = False
        return [self._shown(rest)] if rest else []

    def _shown(self, line: bytes, edge: int = 0) -> bytes:
        """`edge` bytes at the end may be the beginning of a secret, and are not shown."""
        for secret in self._secrets:
            if secret in line:
                line = line.replace(secret, _MASK)
        if edge:
            line = line[:-edge]
        return b"%d %s %s\n" % (time.time() * 1000, self._stream, _valid(line[:LONGEST]))


def _valid(line: bytes) -> bytes:
    """UTF-8, broken bytes replaced. ASCII, which most of it is, stays as it is."""
    if line.isascii():
        return line
    text = line.decode("utf-8", "replace").encode()
    return text if len(text) <= LONGEST else text[:LONGEST].decode("utf-8", "ignore").encode()


class Log:
    """The segments in a run's folder. `limit` bytes are kept at most, half of it in each of two segments."""

    def __init__(self, folder: str, limit: int) -> None:
        self._folder = folder
        self._half = max(LONGEST * 2, limit // 2)
        self._starts = sorted(int(n[4:]) for n in os.listdir(folder) if n.startswith("log.") and n[4:].isdecimal())
        self._fd = -1
        self.end = self._starts[-1] + os.stat(self._path(self._starts[-1])).st_size if self._starts else 0

    def _path(self, start: int) -> str:
        return f"{self._folder}/log.{start}"

    def write(self, lines: Sequence[bytes]) -> None:
        """Raises `OSError` (a full disk)."""
        if not lines:
            return
        if self._fd < 0:
            self._open()
        if self.end - self._starts[-1] >= self._half:
            self._turn()
        data = b"".join(lines)
        self.end += os.write(self._fd, data)

    def _open(self) -> None:
        if not self._starts:
            self._starts = [0]
        self._fd = os.open(self._path(self._starts[-1]), os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._mend()

    def _mend(self) -> None:
        """A line that a killed warden did not finish gets its end."""
        start = self._starts[-1]
        if self.end > start:
            with open(self._path(start), "rb") as file:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    self.end += os.write(self._fd, b"\n")

    def _turn(self) -> None:
        os.close(self._fd)
        self._starts.append(self.end)
        self._fd = os.open(self._path(self.end), os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        while len(self._starts) > 2:
            os.unlink(self._path(self._starts.pop(0)))

    def read(self, after: int, limit: int) -> tuple[int, bytes]:
        """Whole lines past a position, and where they begin. At least one line, where there is any."""
        if not self._starts or after >= self.end:
            return self.end if after > self.end else after, b""
        start = max((s for s in self._starts if s <= after), default=self._starts[0])
        with open(self._path(start), "rb") as file:
            if after > start:
                file.seek(after - start - 1)
                file.readline()  # the rest of a line that was begun; of a whole one, its end
            position = start + file.tell()
            data = file.read(max(1, limit))
            if not data.endswith(b"\n"):
                data += file.readline()
        return (position, data) if data else self.read(position, limit)

    def last(self, most: int = 4096) -> list[bytes]:
        """The newest lines of the log."""
        return self.read(max(0, self.end - most), most)[1].splitlines()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
