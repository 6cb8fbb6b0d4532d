"""What runs said, copied from their machines, stamped and masked, into files of the control plane.

A machine keeps the bytes of both streams and, a few times a second, a *tick*: how much there was of each at a time. A
line has the time of the first tick that knows its end. What has no tick yet has the time of the reading, and keeps it:
the copy makes positions and stamps lasting, and secrets are masked before it is written.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from usina.ports.tasks import LogPiece

LINE: Final = 16 << 10  # bytes of one line's text; the rest of it is dropped
LIMIT: Final = 16 << 20  # bytes of one copy
_MASK: Final = b"***"
_SHORTEST_LINE: Final = 8  # of a secret of several lines; shorter ones would hide common words


@dataclass(slots=True)
class Stream:
    """How far one of `o` and `e` is copied."""

    at: int = 0  # where the first line begins that is not
    skipping: bool = False  # the rest of a line that was too long


@dataclass(slots=True)
class Mark:
    """How far the copy has come. What lies past `end` was not noted, and is cut off."""

    o: Stream
    e: Stream
    ticks: int = 0  # bytes of `t` that are known
    dropped: int = 0  # bytes of the copy's beginning
    end: int = 0
    whole: bool = False  # it has ended, and all it said is here


@dataclass(frozen=True, slots=True)
class Reading:
    """What `scripts.LOG` answers: pieces of t, o and e, where they begin, and how much there is of each."""

    now: int  # milliseconds
    over: bool
    o_from: int
    e_from: int
    t_from: int
    sizes: tuple[int, int, int]  # of o, e and t
    o: bytes
    e: bytes
    t: bytes

    @property
    def complete(self) -> bool:
        """Whether it reaches to the end of all three."""
        ends = (self.o_from + len(self.o), self.e_from + len(self.e), self.t_from + len(self.t))
        return all(end >= size for end, size in zip(ends, self.sizes, strict=True))


def reading(answer: bytes) -> Reading | None:
    """None where nothing is there, or it was broken off."""
    head, _, rest = answer.partition(b"\n")
    try:
        now, over, of, on, ef, en, tf, tn, *sizes = (int(word) for word in head.split())
    except ValueError:
        return None
    if len(rest) != on + en + tn or len(sizes) != 3:
        return None
    t, o, e = rest[:tn], rest[tn : tn + on], rest[tn + on :]
    return Reading(now, bool(over), of, ef, tf, (sizes[0], sizes[1], sizes[2]), o, e, t)


def masks(secrets: Iterable[str]) -> tuple[bytes, ...]:
    """What is hidden, the longest first: each secret, and the lines of one that has several."""
    found = {secret.encode() for secret in secrets if secret}
    found |= {
        line for secret in found if b"\n" in secret for line in secret.splitlines() if len(line) >= _SHORTEST_LINE
    }
    return tuple(sorted((value for value in found if b"\n" not in value), key=lambda value: (-len(value), value)))


def taken(mark: Mark, read: Reading, hidden: Sequence[bytes], skew: int) -> list[bytes]:
    """The new lines of a reading; `mark` is moved past them. `skew`: milliseconds that the machine is ahead."""
    lines: list[bytes] = []
    for at, o, e, size in _ticks(read):
        o_end, e_end = read.o_from + len(read.o), read.e_from + len(read.e)
        _lines(lines, mark.o, b"o", at - skew, read.o, read.o_from, min(o, o_end), hidden)
        _lines(lines, mark.e, b"e", at - skew, read.e, read.e_from, min(e, e_end), hidden)
        if o > o_end or e > e_end:
            break  # the next reading has the rest of what it tells of
        mark.ticks += size
    else:
        last = read.over and read.complete
        for stream, word, data, start in ((mark.o, b"o", read.o, read.o_from), (mark.e, b"e", read.e, read.e_from)):
            _lines(lines, stream, word, read.now - skew, data, start, start + len(data), hidden, last=last)
        mark.whole = last
    return lines


def _ticks(read: Reading) -> Iterable[tuple[int, int, int, int]]:
    """(milliseconds, size of o, size of e, bytes of the tick itself), as far as they are whole."""
    for line in read.t[: read.t.rfind(b"\n") + 1].splitlines(keepends=True):
        words = line.split()
        if len(words) == 3 and all(word.isdigit() and len(word) < 16 for word in words):
            yield int(words[0]), int(words[1]), int(words[2]), len(line)
        else:
            yield 0, 0, 0, len(line)


def _lines(
    lines: list[bytes], stream: Stream, word: bytes, at: int, data: bytes, start: int, end: int,
    hidden: Sequence[bytes], *, last: bool = False,
) -> None:  # fmt: skip
    """Whole lines of `data`, which begins at `start`, up to `end`; with `last`, one that has no end as well."""
    edge = max((len(secret) for secret in hidden), default=1) - 1  # bytes of a secret that was cut through
    if stream.at < start:
        stream.at, stream.skipping = start, start > 0  # the machine has dropped what was between
    here, stop = stream.at - start, end - start
    while here < stop:
        newline = data.find(b"\n", here, stop)
        if stream.skipping:
            here = newline + 1 if newline >= 0 else stop
            stream.skipping = newline < 0
        elif newline >= 0:
            lines.append(_line(at, word, data[here:newline], hidden))
            here = newline + 1
        elif stop - here > LINE + edge:
            lines.append(_line(at, word, data[here : here + LINE + edge], hidden, edge))
            stream.skipping = True
        elif last:
            lines.append(_line(at, word, data[here:stop], hidden))
            here = stop
        else:
            break
    stream.at = start + here


def _line(at: int, word: bytes, text: bytes, hidden: Sequence[bytes], edge: int = 0) -> bytes:
    """`edge` bytes at the end may be the beginning of a secret, and are not shown."""
    for secret in hidden:
        text = text.replace(secret, _MASK)
    if edge:
        text = text[:-edge]
    clean = text.decode(errors="replace").replace("\r", "").encode()[:LINE].decode(errors="ignore")
    return f"{at} {word.decode()} {clean}\n".encode()


class Copies:
    """The copies of all runs of a host: ``<handle>.log``, and ``<handle>.mark``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def mark(self, handle: str) -> Mark:
        try:
            return msgspec.json.decode(self._path(handle, "mark").read_bytes(), type=Mark)
        except FileNotFoundError:
            return Mark(Stream(), Stream())

    def add(self, handle: str, mark: Mark, lines: Sequence[bytes]) -> None:
        """Write new lines, and note how far that is."""
        path = self._path(handle, "log")
        with path.open("r+b" if path.exists() else "w+b") as file:
            file.truncate(mark.end - mark.dropped)
            file.seek(0, os.SEEK_END)
            file.write(b"".join(lines))
        mark.end += sum(len(line) for line in lines)
        if mark.end - mark.dropped > LIMIT:
            self._halve(path, mark)
        new = self._path(handle, "mark.new")
        new.write_bytes(msgspec.json.encode(mark))
        os.replace(new, self._path(handle, "mark"))

    def _halve(self, path: Path, mark: Mark) -> None:
        data = path.read_bytes()
        keep = data[data.index(b"\n", len(data) - LIMIT // 2) + 1 :]
        new = path.with_suffix(".new")
        new.write_bytes(keep)
        os.replace(new, path)
        mark.dropped = mark.end - len(keep)

    def piece(self, handle: str, after: int, limit: int) -> LogPiece:
        """Whole lines past a position; at least one where there is one."""
        mark = self.mark(handle)
        start = max(after, mark.dropped)
        if start >= mark.end:
            return LogPiece(min(after, mark.end), b"") if after > mark.end else LogPiece(start, b"")
        with self._path(handle, "log").open("rb") as file:
            file.seek(start - mark.dropped)
            data = file.read(min(max(1, limit), mark.end - start))
            if b"\n" not in data:
                data += file.readline()
        return LogPiece(start, data[: data.rfind(b"\n") + 1])

    def drop(self, handle: str) -> None:
        for kind in ("log", "mark", "mark.new", "new"):
            self._path(handle, kind).unlink(missing_ok=True)

    def _path(self, handle: str, kind: str) -> Path:
        return self._folder / f"{handle}.{kind}"
