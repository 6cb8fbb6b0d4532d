"""One database behind one URL, and the committer through which every write goes.

Writes are *units*: lists of guarded statements that commit together or not at all. A process commits the units that
arrive together as one transaction (group commit), merging equal statements, so that the price of a commit is shared.
If any guard in the batch fails, the batch is rolled back and its units are committed one by one; each then succeeds or
fails on its own. Transactions are serialized, by SQLite's write lock or by an advisory lock on PostgreSQL. That is
what gives both databases the same meaning, makes `seq` of events the order of commits, and rules out deadlocks.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Executable, event, text
from sqlalchemy.engine import CursorResult, make_url
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from usina.core.errors import Conflict, UsinaError

BATCH = 256
_COMMIT_LOCK = 0x7573696E61  # "usina"


@dataclass(frozen=True, slots=True)
class Write:
    """One guarded statement. `expect` is the number of rows it must touch (None: any).

    `rank` orders statements within a transaction: what frees comes before what takes.
    """

    rank: int
    statement: Executable
    values: Mapping[str, Any]
    expect: int | None = None
    failure: Callable[[], UsinaError] = field(default=lambda: Conflict("the object changed meanwhile"))


class GuardFailed(Exception):
    """A write of the batch did not touch what it must; carries the write."""

    def __init__(self, write: Write) -> None:
        super().__init__()
        self.write = write


Unit = tuple[Sequence[Write], "asyncio.Future[None]"]


def async_url(url: str) -> str:
    """``sqlite:///file`` or ``postgresql://…`` → the URL with the async driver we use."""
    parsed = make_url(url)
    driver = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+psycopg"}.get(parsed.get_backend_name())
    if driver is None:
        raise ValueError(f"{parsed.get_backend_name()!r} is not a database we know; use sqlite or postgresql")
    return parsed.set(drivername=driver).render_as_string(hide_password=False)


class Database:
    """An open database. `start` the committer before the first write; `close` drains it."""

    def __init__(self, url: str) -> None:
        self.is_sqlite = make_url(url).get_backend_name() == "sqlite"
        options: dict[str, Any] = {} if self.is_sqlite else {"pool_pre_ping": True}
        self.engine: AsyncEngine = create_async_engine(async_url(url), pool_size=4, max_overflow=8, **options)
        if self.is_sqlite:
            event.listen(self.engine.sync_engine, "connect", _tune_sqlite)
        self._queue: asyncio.Queue[Unit] = asyncio.Queue()
        self._turn = asyncio.Lock()
        self._committer: asyncio.Task[None] | None = None
        self.pulse = asyncio.Event()
        """Set, and replaced by a new one, with every commit of this process."""
        self._writer: AsyncConnection | None = None

    async def start(self) -> None:
        self._committer = asyncio.create_task(self._commit_forever(), name="committer")

    async def close(self) -> None:
        if self._committer:
            await self._queue.join()
            self._committer.cancel()
        if self._writer is not None:
            await self._writer.close()
        await self.engine.dispose()

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A connection for reading, outside any transaction that others could wait for."""
        async with self.engine.connect() as connection:
            yield connection

    async def commit(self, writes: Sequence[Write]) -> None:
        """Commit one unit. Raises the failure of the first guard that does not hold; then nothing was written."""
        if not writes:
            return
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait((writes, done))
        await done

    async def transact(self, work: Callable[[AsyncConnection], Awaitable[Any]]) -> Any:
        """Run `work` alone in one serialized transaction (leases, migrations of data); returns its result."""
        async with self._turn, self._transaction() as connection:
            return await work(connection)

    # --- the committer

    async def _commit_forever(self) -> None:
        while True:
            units = [await self._queue.get()]
            while len(units) < BATCH and not self._queue.empty():
                units.append(self._queue.get_nowait())
            try:
                async with self._turn:
                    await self._commit_all(units)
            finally:
                for _ in units:
                    self._queue.task_done()

    async def _commit_all(self, units: list[Unit]) -> None:
        live = [unit for unit in units if not unit[1].cancelled()]
        try:
            await self._commit_together([write for writes, _ in live for write in writes])
        except Exception as error:
            if len(live) <= 1:
                for _, done in live:
                    _settle(done, _public(error))
                return
            for unit in live:
                await self._commit_all([unit])
            return
        for _, done in live:
            _settle(done, None)
        beat, self.pulse = self.pulse, asyncio.Event()
        beat.set()

    async def _commit_together(self, writes: list[Write]) -> None:
        groups: dict[int, list[Write]] = {}
        for write in sorted(writes, key=lambda w: w.rank):
            groups.setdefault(id(write.statement), []).append(write)
        async with self._transaction() as connection:
            for group in groups.values():
                await _execute(connection, group)

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[AsyncConnection]:
        connection = await self._writing()
        try:
            if not self.is_sqlite:
                await connection.execute(text(f"SELECT pg_advisory_xact_lock({_COMMIT_LOCK})"))
            yield connection
            await connection.commit()
        except BaseException:
            await connection.rollback()
            if connection.invalidated:
                await connection.close()
                self._writer = None
            raise

    async def _writing(self) -> AsyncConnection:
        if self._writer is None:
            self._writer = await self.engine.connect()
        return self._writer


async def _execute(connection: AsyncConnection, group: list[Write]) -> None:
    """Equal statements as one executemany; the sum of touched rows must be the sum expected."""
    try:
        values = [dict(write.values) for write in group]
        result: CursorResult[Any] = await connection.execute(
            group[0].statement, values if len(values) > 1 else values[0]
        )
    except IntegrityError as error:
        raise GuardFailed(group[0]) from error
    expected = [write.expect for write in group if write.expect is not None]
    if len(expected) == len(group) and result.rowcount != sum(expected):
        raise GuardFailed(group[0])


def _public(error: Exception) -> Exception:
    return error.write.failure() if isinstance(error, GuardFailed) else error


def _settle(done: asyncio.Future[None], error: Exception | None) -> None:
    if done.cancelled():
        return
    if error is None:
        done.set_result(None)
    else:
        done.set_exception(error)


def _tune_sqlite(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",
        "busy_timeout=10000",
        "foreign_keys=ON",
        "cache_size=-16000",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
