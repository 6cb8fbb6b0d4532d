"""What several gateways of one machine count together, in memory they share: rates of keys, and requests at replicas.

A row is a key's or a replica's: what the buckets of a key hold, and how many requests each gateway has at work for it.
It is read, changed and written under its own lock, a few microseconds in all. Locks are the kernel's (`fcntl`), which
frees those of a process that dies. Whatever has nothing at work and full buckets needs no row: another may have it.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from collections.abc import Callable
from zlib import crc32

from usina.core.llm import Limits
from usina.services.llm.rates import MINUTE, Bucket, Rates

ROWS = 16_384
NEAR = 32  # rows in which a key may have its place
_NAME = 40  # bytes
_BUCKETS = struct.Struct("<6d")  # of requests, and of tokens: size (0: none), level, when
_COUNT = struct.Struct("<i")
_EMPTY = bytes(_NAME)


class Table:
    """The shared memory, and this gateway's column in it."""

    def __init__(self, descriptor: int, gateways: int, mine: int = 0) -> None:
        """Takes the descriptor: of `made`, or handed over by who made it."""
        self.descriptor = descriptor
        self.gateways, self.mine = gateways, mine
        self._columns = struct.Struct(f"<{gateways}i")
        self._row = _NAME + _BUCKETS.size + self._columns.size
        os.ftruncate(descriptor, self._row * ROWS)
        self._memory = mmap.mmap(descriptor, self._row * ROWS)

    @classmethod
    def made(cls, gateways: int) -> Table:
        return cls(os.memfd_create("usina-rates", os.MFD_CLOEXEC), gateways)

    def close(self) -> None:
        self._memory.close()
        os.close(self.descriptor)

    def clear(self, gateway: int) -> None:
        """That gateway has nothing at work any more."""
        at = _NAME + _BUCKETS.size + 4 * gateway
        for row in range(0, self._row * ROWS, self._row):
            if self._memory[row : row + _NAME] != _EMPTY:
                self._memory[row + at : row + at + 4] = bytes(4)

    def lock(self, name: bytes, found: int, now: float) -> int:
        """Where the row of that name begins, locked until `unlock`; `found`: where it was last (-1: not known). -1, and
        nothing locked, where there is no place for it."""
        while True:
            if found >= 0:
                fcntl.lockf(self.descriptor, fcntl.LOCK_EX, 1, found)
                if self._memory[found : found + _NAME] == name:
                    return found
                self.unlock(found)
            found = self.place(name, now)
            if found < 0:
                return -1

    def unlock(self, row: int) -> None:
        fcntl.lockf(self.descriptor, fcntl.LOCK_UN, 1, row)

    def place(self, name: bytes, now: float) -> int:
        """The row that somebody has, or one that it can have from now on."""
        past_the_end = self._row * ROWS
        fcntl.lockf(self.descriptor, fcntl.LOCK_EX, 1, past_the_end)
        try:
            first = crc32(name)
            rows = [(first + n) % ROWS * self._row for n in range(NEAR)]
            for row in rows:
                if self._memory[row : row + _NAME] == name:
                    return row
            for row in rows:
                if self._take(row, name, now):
                    return row
            return -1
        finally:
            self.unlock(past_the_end)

    def _take(self, row: int, name: bytes, now: float) -> bool:
        fcntl.lockf(self.descriptor, fcntl.LOCK_EX, 1, row)
        try:
            size, level, at, size2, level2, at2 = _BUCKETS.unpack_from(self._memory, row + _NAME)
            used = any(self._columns.unpack_from(self._memory, row + _NAME + _BUCKETS.size))
            if used or not (_is_full(size, level, at, now) and _is_full(size2, level2, at2, now)):
                return False
            self._memory[row : row + self._row] = name + bytes(self._row - _NAME)
            return True
        finally:
            self.unlock(row)

    def others(self, row: int, name: bytes) -> int:
        """Requests that other gateways have at work; -1 where the row is of another name by now. Without a lock."""
        if self._memory[row : row + _NAME] != name:
            return -1
        running = self._columns.unpack_from(self._memory, row + _NAME + _BUCKETS.size)
        return int(sum(running) - running[self.mine])

    def count(self, row: int, running: int) -> None:
        """`running`: what this gateway has at work."""
        _COUNT.pack_into(self._memory, row + _NAME + _BUCKETS.size + 4 * self.mine, running)

    def read(self, row: int) -> tuple[tuple[float, ...], int]:
        """(the buckets, requests that other gateways have at work)."""
        running = self._columns.unpack_from(self._memory, row + _NAME + _BUCKETS.size)
        return _BUCKETS.unpack_from(self._memory, row + _NAME), sum(running) - running[self.mine]

    def write(self, row: int, buckets: tuple[float, ...], running: int) -> None:
        """`running`: what this gateway has at work."""
        _BUCKETS.pack_into(self._memory, row + _NAME, *buckets)
        self.count(row, running)


class SharedRates(Rates):
    """`Rates` of a key in all gateways together. Without limits it costs nothing."""

    __slots__ = ("_mine", "_name", "_now", "_row", "_table")

    def __init__(self, table: Table, key: str, limits: Limits, now: float) -> None:
        super().__init__(limits, now)
        self._table, self._name = table, _name(key)
        self._row = -1
        self._mine = 0  # requests at work here
        self._now = now

    def enter(self, tokens: int, now: float) -> None:
        self._now = now
        row = self._read()
        try:
            super().enter(tokens, now)
            self._mine += 1
        finally:
            self._write(row)

    def leave(self, estimated: int, used: int) -> None:
        row = self._read()
        super().leave(estimated, used)
        self._mine -= 1
        self._write(row)

    def _read(self) -> int:
        """Go by what stands in the row, which is locked until `_write`. -1: go by what this gateway knows."""
        limits = self.limits
        if self._row < 0 and not (limits.requests or limits.tokens or limits.concurrency):
            return -1
        row = self._row = self._table.lock(self._name, self._row, self._now)
        if row < 0:  # more keys at work than there are rows
            self.running = self._mine
            return -1
        (size, level, at, size2, level2, at2), others = self._table.read(row)
        self.running = self._mine + others
        _load(self.requests, size, level, at)
        _load(self.tokens, size2, level2, at2)
        return row

    def _write(self, row: int) -> None:
        if row >= 0:
            self._table.write(row, (*_kept(self.requests), *_kept(self.tokens)), self._mine)
            self._table.unlock(row)


class SharedCount:
    """Requests at one replica, of all gateways together."""

    __slots__ = ("_clock", "_name", "_row", "_table", "_told")

    def __init__(self, table: Table, replica: str, clock: Callable[[], float]) -> None:
        self._table, self._name, self._clock = table, _name(replica), clock
        self._row = -1
        self._told = 0

    def others(self) -> int:
        """What the other gateways have there; as far as there are rows for it."""
        found = self._table.others(self._row, self._name) if self._row >= 0 else -1
        if found < 0:
            self._row = self._table.place(self._name, self._clock())
            found = self._table.others(self._row, self._name) if self._row >= 0 else 0
        return max(0, found)

    def tell(self, running: int) -> None:
        """What this gateway has there now."""
        if not self._told:  # else nobody can have taken the row meanwhile
            self._row = self._table.lock(self._name, self._row, self._clock())
        if self._row >= 0:
            self._table.count(self._row, running)
            if not self._told:
                self._table.unlock(self._row)
        self._told = running


def _name(id: str) -> bytes:
    return id.encode()[:_NAME].ljust(_NAME, b"\0")


def _load(bucket: Bucket | None, size: float, level: float, at: float) -> None:
    """As it stands in a row; where that is of another limit, as full as that was."""
    if bucket is not None and size:
        bucket.level, bucket.at = (level if size == bucket.size else level * bucket.size / size), at


def _kept(bucket: Bucket | None) -> tuple[float, float, float]:
    return (bucket.size, bucket.level, bucket.at) if bucket is not None else (0.0, 0.0, 0.0)


def _is_full(size: float, level: float, at: float, now: float) -> bool:
    return not size or level + (now - at) * size / MINUTE >= size
