"""The log of a container, from the file that conmon writes, as lines of ours.

conmon's lines are ``<RFC 3339> stdout|stderr F|P <text>`` (F: a full line, P: a part of one). They are read on from
where the last reading ended and written, masked, into a spool of ours: positions are those of the spool, so they stay
when the container goes or its file is begun anew. Knows files only.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from usina.ports.tasks import LogPiece

LINE = 16 * 1024
CHUNK = 1 << 20
LATE = 2000.0  # milliseconds after which a line that goes on is told as far as it is


@dataclass(slots=True)
class Spool:
    """One run's log. Made anew from its files after a restart."""

    path: Path  # of the spool; beside it is a file that says how far conmon's was read
    secrets: tuple[bytes, ...]
    limit: int

    def take(self, source: str, over: bool) -> None:
        """Read on in conmon's file; `over` says that nothing more comes."""
        inode, offset, dropped = self._mark()
        while True:
            try:
                with open(source, "rb") as file:
                    found = os.fstat(file.fileno())
                    if found.st_ino != inode or found.st_size < offset:
                        inode, offset = found.st_ino, 0  # conmon began it anew
                    file.seek(offset)
                    news = file.read(CHUNK)
            except FileNotFoundError:
                return
            lines, read = self._lines(news, over and len(news) < CHUNK)
            if not read:
                return
            with self.path.open("ab") as out:
                out.write(lines)
            offset += read
            dropped = self._trimmed(dropped)
            self._note(inode, offset, dropped)

    def _lines(self, news: bytes, over: bool) -> tuple[bytes, int]:
        """Lines of ours, and how much of conmon's they are made of: never up to within a line that goes on, unless it
        has gone on for long, or is over."""
        parts: dict[str, tuple[str, bytes]] = {}  # stream -> when it began, and what there is of it
        out: list[bytes] = []
        good, read, position = 0, 0, 0  # good lines of `out`, what they are made of, where we are
        for line in news[: news.rfind(b"\n") + 1].splitlines(keepends=True):
            position += len(line)
            stamp, word, full, text = _parsed(line)
            begun, before = parts.pop(word, (stamp, b""))
            if full or len(before) + len(text) >= LINE:
                out.append(self._line(begun, word, before + text))
            else:
                parts[word] = (begun, before + text)
            if not parts:
                good, read = len(out), position
        late = time.time() * 1000 - LATE
        if parts and (over or all(_milliseconds(begun) < late for begun, _ in parts.values())):
            out += [self._line(begun, word, text) for word, (begun, text) in parts.items()]
            good, read = len(out), position
        return b"".join(out[:good]), read

    def piece(self, after: int, limit: int) -> LogPiece:
        """Whole lines past a position."""
        _, _, dropped = self._mark()
        start = max(after, dropped)
        try:
            with self.path.open("rb") as file:
                file.seek(start - dropped)
                data = file.read(max(limit, LINE * 4))
        except FileNotFoundError:
            return LogPiece(after, b"")
        return LogPiece(start, data[: data.rfind(b"\n") + 1])

    def _line(self, stamp: str, word: str, text: bytes) -> bytes:
        for secret in self.secrets:
            text = text.replace(secret, b"***")
        clean = text[:LINE].decode(errors="replace").replace("\n", " ").replace("\r", "").replace("\0", "")
        return f"{_milliseconds(stamp)} {word} {clean}\n".encode()

    def _trimmed(self, dropped: int) -> int:
        """Drop the older half once the spool is too long; how much is dropped in all."""
        size = self.path.stat().st_size if self.path.exists() else 0
        if size <= self.limit:
            return dropped
        data = self.path.read_bytes()
        keep = data[data.index(b"\n", size - self.limit // 2) + 1 :]
        scratch = self.path.with_suffix(".new")
        scratch.write_bytes(keep)
        os.replace(scratch, self.path)
        return dropped + size - len(keep)

    @property
    def _marks(self) -> Path:
        return self.path.with_suffix(".mark")

    def _mark(self) -> tuple[int, int, int]:
        try:
            inode, offset, dropped = self._marks.read_text().split()
        except (FileNotFoundError, ValueError):
            return 0, 0, 0
        return int(inode), int(offset), int(dropped)

    def _note(self, inode: int, offset: int, dropped: int) -> None:
        scratch = self._marks.with_suffix(".new-mark")
        scratch.write_text(f"{inode} {offset} {dropped}")
        os.replace(scratch, self._marks)

    def drop(self) -> None:
        for path in (self.path, self._marks):
            path.unlink(missing_ok=True)


def _parsed(line: bytes) -> tuple[str, str, bool, bytes]:
    """When, which stream, whether the line ends with it, and the text."""
    stamp, _, rest = line.removesuffix(b"\n").partition(b" ")
    stream, _, rest = rest.partition(b" ")
    kind, _, text = rest.partition(b" ")
    return stamp.decode(), "o" if stream == b"stdout" else "e", kind != b"P", text


def _milliseconds(stamp: str) -> int:
    """RFC 3339 with nanoseconds, as conmon writes it."""
    head, dot, tail = stamp.partition(".")
    if not dot:
        return int(datetime.fromisoformat(stamp).timestamp() * 1000)
    digits = len(tail) - len(tail.lstrip("0123456789"))
    zone = tail[digits:].replace("Z", "+00:00") or "+00:00"
    return int(datetime.fromisoformat(head + zone).timestamp() * 1000) + int(tail[:3].ljust(3, "0"))
