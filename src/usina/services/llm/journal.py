"""The gateway's own journal: what is reserved and what was used, appended to a file before it goes to the ledger.

What a request has used is written before the client gets the last of its answer; what it reserves, in the same turn of
the event loop. A process that is killed has thus written all it must answer for: what was settled is read back, and
what was reserved and not settled counts as used, so that no budget is ever overspent.
The file is not forced to disk; a machine that loses power may lose what the ledger was not told yet, about a second.

Segments are numbered; the ledger takes each once. A new segment begins with the reservations that are still open, so
that older ones can go.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import msgspec
import structlog

from usina.core.llm import Usage
from usina.ports.llm import Ledger, Spend
from usina.services.llm.purse import Hold

log = structlog.get_logger()

HELD, SETTLED = 0, 1
_SIZE = 4  # bytes that tell the length of a record
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode


class Numbered(Protocol):
    number: int


class Sums:
    """Usage by minute, key and endpoint, and what was spent of budgets, added up."""

    def __init__(self) -> None:
        self._usage: dict[tuple[Any, ...], list[Any]] = {}
        self._spent: dict[tuple[str, float], int] = {}

    def __bool__(self) -> bool:
        return bool(self._usage or self._spent)

    def add(self, usage: tuple[Any, ...]) -> None:
        """`usage`: the members of a `Usage`, in order."""
        found = self._usage.get(usage[:7])
        if found is None:
            self._usage[usage[:7]] = list(usage[7:])
        else:
            for n, amount in enumerate(usage[7:]):
                found[n] += amount

    def spend(self, scope: str, began_at: float, tokens: int) -> None:
        self._spent[scope, began_at] = self._spent.get((scope, began_at), 0) + tokens

    def usage(self) -> list[Usage]:
        return [Usage(*key, *amounts) for key, amounts in self._usage.items()]

    def spent(self) -> list[Spend]:
        return [Spend(scope, began_at, tokens) for (scope, began_at), tokens in self._spent.items()]


@dataclass(slots=True)
class Left:
    """What an earlier life of this gateway has left in its folder."""

    last: int = 0  # the newest segment
    sums: Sums = field(default_factory=Sums)
    open: int = 0  # reservations that were never settled


class Journal:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._buffer: list[bytes] = []
        self._open: dict[int, bytes] = {}  # number of a request -> its reservation as written
        self._file = -1
        self._segment = 0
        self.broken = False
        self.sums = Sums()  # of the segment that is being written

    # --- writing

    def start(self, segment: int) -> None:
        """Begin to write, with this segment."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._begin(segment)

    def hold(self, request: Numbered, hold: Hold) -> None:
        where = [(purse.scope, began_at) for purse, began_at in hold.purses]
        record = _framed(_encode((HELD, request.number, where, hold.tokens)))
        self._open[request.number] = record
        if not self._buffer:
            asyncio.get_running_loop().call_soon(self.flush)
        self._buffer.append(record)

    def settle(self, request: Numbered, usage: Usage, spent: list[Spend]) -> None:
        row = (
            usage.minute, usage.tenant, usage.project, usage.member, usage.key, usage.endpoint, usage.model,
            usage.requests, usage.failed, usage.prompt, usage.cached, usage.completion, usage.seconds,
        )  # fmt: skip
        where = [(one.scope, one.began_at, one.tokens) for one in spent]
        self._open.pop(request.number, None)
        self._buffer.append(_framed(_encode((SETTLED, request.number, row, where))))
        self.flush()
        self.sums.add(row)
        for one in spent:
            self.sums.spend(one.scope, one.began_at, one.tokens)

    def flush(self) -> None:
        """Write what has gathered; where the disk takes no more, it is `broken` until it does."""
        if not self._buffer:
            return
        data = b"".join(self._buffer)
        try:
            written = os.write(self._file, data)
        except OSError as error:
            self._fail(error)
            written = 0
        else:
            self.broken = False
        self._buffer = [] if written == len(data) else [data[written:]]

    def _fail(self, error: OSError) -> None:
        if not self.broken:
            log.error("the gateway's journal cannot be written; nothing is let in", reason=str(error))
        self.broken = True

    def rotate(self) -> tuple[int, Sums]:
        """End the segment: its number, and what is in it. The next one begins with what is still open. Raises `OSError`
        where that cannot be made; then nothing has changed."""
        self.flush()
        ended, sums, old = self._segment, self.sums, self._file
        rest = self._buffer  # what the disk has not taken yet
        self._begin(ended + 1)
        self._buffer += rest
        os.close(old)
        self.sums = Sums()
        return ended, sums

    def _begin(self, segment: int) -> None:
        try:
            self._file = os.open(self._path(segment), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError as error:
            self._fail(error)
            raise
        self._segment = segment
        self._buffer = list(self._open.values())
        self.flush()

    def close(self) -> None:
        if self._file >= 0:
            self.flush()
            os.close(self._file)
            self._file = -1

    # --- reading what was left

    def forget(self, last: int) -> None:
        """The ledger has all segments up to `last`."""
        for number in self._segments():
            if number <= last:
                self._path(number).unlink(missing_ok=True)

    def left(self, written: int) -> Left:
        """What stands in the segments after `written`, the last one that the ledger has."""
        found, held = Left(last=written), {}
        for number in self._segments():
            found.last = max(found.last, number)
            if number <= written:
                continue
            for record in _records(self._path(number).read_bytes()):
                if record[0] == HELD:
                    held[record[1]] = record
                    continue
                held.pop(record[1], None)
                found.sums.add(tuple(record[2]))
                for scope, began_at, tokens in record[3]:
                    found.sums.spend(scope, began_at, tokens)
        for _, _, where, tokens in held.values():
            for scope, began_at in where:
                found.sums.spend(scope, began_at, tokens)
        found.open = len(held)
        return found

    def _segments(self) -> list[int]:
        names = [path.name for path in self._folder.glob("segment-*")] if self._folder.is_dir() else []
        return sorted(int(name.partition("-")[2]) for name in names)

    def _path(self, number: int) -> Path:
        return self._folder / f"segment-{number:012d}"


async def hand_in(journal: Journal, ledger: Ledger) -> int:
    """Hand the ledger what an earlier life of a gateway has left in its journal, and give back what it had leased. The
    last segment that there was."""
    left = journal.left(await ledger.begin())
    if left.sums:
        await ledger.write(left.last, left.sums.usage(), left.sums.spent(), {})
        log.info("the journal of an earlier run is in the ledger", open_reservations=left.open)
    await ledger.give_back_all()
    journal.forget(left.last)
    return left.last


def _framed(record: bytes) -> bytes:
    return len(record).to_bytes(_SIZE, "big") + record


def _records(data: bytes) -> Iterator[Any]:
    """The records of a segment; one that was cut short by a crash is the last, and is left out."""
    at = 0
    while at + _SIZE <= len(data):
        size = int.from_bytes(data[at : at + _SIZE], "big")
        record = data[at + _SIZE : at + _SIZE + size]
        if len(record) < size:
            return
        yield _decode(record)
        at += _SIZE + size
