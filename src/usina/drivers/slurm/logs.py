"""What runs said, copied from their files as it is found, stamped and masked, into the control plane's. No clock.

Slurm stamps no line, so a line has the time at which its file was last written when the line was found. The copy makes
positions lasting: whoever asks, and whatever becomes of the run's own files, the same position has the same bytes. It
is bounded: beyond `CHUNKS` files of `CHUNK` bytes the oldest goes. A crash between writing and noting how far it came
only writes the same again: what lies past the noted end is cut off.

Secrets are masked as they are copied; the copy never has them.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from usina.drivers.slurm.folder import Read
from usina.ports.tasks import LogPiece

CHUNK = 8 << 20
CHUNKS = 8
LINE = 16 << 10
_ENDLESS = 1 << 18  # bytes without a newline, after which what there is counts as a line


@dataclass(slots=True)
class Copied:
    """How far the copy of one run has come."""

    files: dict[str, int] = field(default_factory=dict)  # "say/o.3" -> bytes taken from it
    end: int = 0
    chunks: list[int] = field(default_factory=list)  # where each begins
    whole: bool = False  # it has ended, and all it said is here


class Logs:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._copied: dict[str, Copied] = {}

    def copied(self, handle: str) -> Copied:
        if handle not in self._copied:
            self._copied[handle] = self._load(handle)
        return self._copied[handle]

    def take(self, handle: str, reads: Iterable[Read], masks: Sequence[str], *, last: bool) -> None:
        """Add what was read. `last`: the run has ended, so that a line without an end is one, too."""
        copied = self.copied(handle)
        lines: list[bytes] = []
        for read in sorted(reads, key=lambda read: read.at):
            if read.name.startswith("say/") and read.start >= copied.files.get(read.name, 0):
                taken = _whole(read.data, last)
                lines += lines_of(read, taken, masks)
                copied.files[read.name] = read.start + taken
        if lines or last != copied.whole:
            copied.whole = last
            self._append(handle, copied, lines)

    def piece(self, handle: str, after: int, limit: int) -> LogPiece:
        """Whole lines past `after`; at least one where there is one."""
        copied = self.copied(handle)
        begins = max((start for start in copied.chunks if start <= after), default=(copied.chunks or [0])[0])
        start = max(after, begins)
        if not copied.chunks or start >= copied.end:
            return LogPiece(min(after, copied.end) if after > copied.end else start, b"")
        with self._chunk(handle, begins).open("rb") as file:
            file.seek(start - begins)
            data = file.read(min(limit, copied.end - start))
            if not data.endswith(b"\n") and b"\n" not in data:
                data += file.readline()
        return LogPiece(start, data[: data.rfind(b"\n") + 1]) if data else self._next(handle, copied, begins, limit)

    def _next(self, handle: str, copied: Copied, begins: int, limit: int) -> LogPiece:
        later = [start for start in copied.chunks if start > begins]
        return self.piece(handle, later[0], limit) if later else LogPiece(copied.end, b"")

    def forget(self, handle: str) -> None:
        self._copied.pop(handle, None)
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self._folder / handle)

    def _append(self, handle: str, copied: Copied, lines: list[bytes]) -> None:
        (self._folder / handle).mkdir(parents=True, exist_ok=True, mode=0o700)
        for line in lines:
            if not copied.chunks or copied.end - copied.chunks[-1] >= CHUNK:
                copied.chunks.append(copied.end)
            begins = copied.chunks[-1]
            with self._chunk(handle, begins).open("ab") as file:
                file.write(line)
            copied.end += len(line)
        gone, copied.chunks = copied.chunks[:-CHUNKS], copied.chunks[-CHUNKS:]
        new = self._folder / handle / "state.new"
        new.write_bytes(msgspec.json.encode(copied))
        new.replace(new.with_suffix(".json"))
        for begins in gone:
            self._chunk(handle, begins).unlink(missing_ok=True)

    def _load(self, handle: str) -> Copied:
        try:
            copied = msgspec.json.decode((self._folder / handle / "state.json").read_bytes(), type=Copied)
        except FileNotFoundError:
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(self._folder / handle)
            return Copied()
        for path in (self._folder / handle).glob("*.log"):
            begins = int(path.stem)
            if begins not in copied.chunks:
                path.unlink()
            elif begins == copied.chunks[-1]:
                with path.open("r+b") as file:
                    file.truncate(copied.end - begins)
        return copied

    def _chunk(self, handle: str, begins: int) -> Path:
        return self._folder / handle / f"{begins}.log"


def lines_of(read: Read, taken: int, masks: Sequence[str]) -> list[bytes]:
    """Bytes of a file → lines of a log."""
    _, _, kind = read.name.partition("/")
    stream, _, unit = kind.partition(".")
    head = f"{int(read.at * 1000)} {stream if stream in 'oes' else 's'} {f'[{unit}] ' if unit.isdecimal() else ''}"
    raw = read.data[:taken]
    texts = raw.removesuffix(b"\n").split(b"\n") if raw else []
    return [
        f"{head}{masked(text.decode(errors='replace').rstrip(chr(13)), masks)}".encode()[:LINE] + b"\n"
        for text in texts
    ]


def masked(text: str, masks: Sequence[str]) -> str:
    for value in masks:
        text = text.replace(value, "***")
    return text


def _whole(data: bytes, last: bool) -> int:
    """How much of it is whole lines."""
    if last or (len(data) >= _ENDLESS and b"\n" not in data):
        return len(data)
    return data.rfind(b"\n") + 1
