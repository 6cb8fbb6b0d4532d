"""The log of a container, from the file that conmon writes, as lines of ours.

conmon's lines are ``<RFC 3339> stdout|stderr F|P <text>`` (F: a full line, P: a part of one). They are read on from
where the last reading ended and written, masked, into a spool of ours: positions are those of the spool, so they stay
when the container goes or its file is begun anew. One reads at a time: two would both write what is new. A crash
between writing and noting how far it came only writes the same again. Knows files only.
"""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from usina.ports.tasks import LogPiece

LINE = 16 * 1024
CHUNK = 1 << 20
LATE = 2000.0  # milliseconds after which a line that goes on is told as far as it is


@dataclass(frozen=True, slots=True)
class Mark:
    """How far a log came: which of conmon's files was read up to where; and of all the bytes of ours that ever were,
    how many are dropped, and where they end."""

    inode: int = 0
    offset: int = 0
    dropped: int = 0
    end: int = 0


@dataclass(slots=True)
class Spool:
    """One run's log. Made anew from its files after a restart."""

    path: Path  # of the spool; beside it is a file that says how far conmon's was read
    secrets: tuple[bytes, ...]
    limit: int
    lock: threading.Lock  # of this run: a thread goes on when who asked has left

    def take(self, source: str, over: bool) -> None:
        """Read on in conmon's file; `over` says that nothing more comes."""
        with self.lock:
            while self._more(source, over):
                pass

    def _more(self, source: str, over: bool) -> bool:
        mark = self._mark()
        try:
            with open(source, "rb") as file:
                found = os.fstat(file.fileno())
                if found.st_ino != mark.inode or found.st_size < mark.offset:
                    mark = replace(mark, inode=found.st_ino, offset=0)  # conmon began it anew
                file.seek(mark.offset)
                news = file.read(CHUNK)
        except FileNotFoundError:
            return False
        lines, read = self._lines(news, over and len(news) < CHUNK)
        if not read:
            return False
        with self.path.open("ab") as out:
            size = mark.end - mark.dropped
            if out.tell() > size:
                out.truncate(size)  # a crash came before what was written was noted
            out.write(lines)
        mark = replace(mark, offset=mark.offset + read, end=mark.end + len(lines))
        self._note(mark)
        self._trim(mark)
        return True

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
        with self.lock:
            mark = self._mark()
            start = max(after, mark.dropped)
            try:
                with self.path.open("rb") as file:
                    file.seek(start - mark.dropped)
                    data = file.read(min(max(limit, LINE * 4), max(0, mark.end - start)))
            except FileNotFoundError:
                return LogPiece(after, b"")
        return LogPiece(start, data[: data.rfind(b"\n") + 1])

    def _line(self, stamp: str, word: str, text: bytes) -> bytes:
        for secret in self.secrets:
            text = text.replace(secret, b"***")
        clean = text[:LINE].decode(errors="replace").replace("\n", " ").replace("\r", "").replace("\0", "")
        return f"{_milliseconds(stamp)} {word} {clean}\n".encode()

    def _trim(self, mark: Mark) -> None:
        """Drop the older half once the spool is too long."""
        size = mark.end - mark.dropped
        if size <= self.limit:
            return
        data = self.path.read_bytes()
        keep = data[data.index(b"\n", size - self.limit // 2) + 1 :]
        scratch = self.path.with_suffix(".new")
        scratch.write_bytes(keep)
        os.replace(scratch, self.path)
        self._note(replace(mark, dropped=mark.end - len(keep)))

    @property
    def _marks(self) -> Path:
        return self.path.with_suffix(".mark")

    def _mark(self) -> Mark:
        """How far it came. A spool that is shorter than noted was trimmed just before a crash."""
        try:
            inode, offset, dropped, end = map(int, self._marks.read_text().split())
            return Mark(inode, offset, max(dropped, end - self.path.stat().st_size), end)
        except (FileNotFoundError, ValueError):
            return Mark()

    def _note(self, mark: Mark) -> None:
        scratch = self._marks.with_suffix(".new-mark")
        scratch.write_text(f"{mark.inode} {mark.offset} {mark.dropped} {mark.end}")
        os.replace(scratch, self._marks)

    def drop(self) -> None:
        with self.lock:
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
    return int(datetime.fromisoformat(head + zone).timestamp() * 1000) + int(tail[: min(digits, 3)].ljust(3, "0"))
