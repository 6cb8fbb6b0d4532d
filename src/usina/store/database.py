"""One database behind one URL, and the committer through which every write goes.

Writes are *units*: lists of guarded statements that commit together or not at all. A process commits the units that
arrive together as one transaction (group commit), merging equal statements, so that the price of a commit is shared;
where many come, it waits a moment for more.
If any guard in the batch fails, the batch is rolled back and its units are committed one by one; each then succeeds or
fails on its own. Transactions are serialized, by SQLite's write lock or by an advisory lock on PostgreSQL. That is
what gives both databases the same meaning, makes `seq` of events the order of commits, and rules out deadlocks.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import Connection, Engine, Executable, Insert, Row, create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, IntegrityError

from usina.core.errors import Conflict, Invalid, UsinaError

BATCH = 256
READERS = 4
MANY = 20  # units
WITHIN = 0.05  # seconds: where so many come in that time, others are waited for
GATHER = 0.003  # seconds

Result = TypeVar("Result")
# The driver of SQLite begins by itself only before the first change: too late for what is read before it, and not at
# all for a change of the schema.
_BEGIN = text("BEGIN IMMEDIATE")
_LOCK = f"SELECT pg_advisory_xact_lock({0x7573696E61})"  # "usina"


def _changed_meanwhile() -> UsinaError:
    return Conflict("the object changed meanwhile")


class Write(NamedTuple):
    """One guarded statement. `expect` is the number of rows it must touch (None: any).

    `rank` orders statements within a transaction: what frees comes before what takes.
    """

    rank: int
    statement: Executable
    values: Mapping[str, Any]
    expect: int | None = None
    failure: Callable[[], UsinaError] = _changed_meanwhile


class GuardFailed(Exception):
    """A write of the batch did not touch what it must; carries the write."""

    def __init__(self, write: Write) -> None:
        super().__init__()
        self.write = write


Unit = tuple[Sequence[Write], "asyncio.Future[None]"]


def driver_url(url: str) -> str:
    """``sqlite:///file`` or ``postgresql://…`` → the URL with the driver we use. Raises `Invalid`."""
    try:
        parsed = make_url(url)
    except ArgumentError:  # its own words show the URL, and with it the password
        raise Invalid("database: not a URL; it looks like postgresql://user@host/name", field="database") from None
    driver = {"sqlite": "sqlite+pysqlite", "postgresql": "postgresql+psycopg"}.get(parsed.get_backend_name())
    if driver is None:
        what = parsed.get_backend_name()
        raise Invalid(f"database: {what!r} is not one we know; use sqlite or postgresql", field="database")
    return parsed.set(drivername=driver).render_as_string(hide_password=False)


class Database:
    """An open database. `start` the committer before the first write; `close` drains it.

    The database is spoken to from threads: a read is one hop to a reader, a whole batch of units one hop to the
    writer. (An async database library hops for every cursor call, which costs more than the statements themselves.)
    """

    def __init__(self, url: str) -> None:
        url = driver_url(url)
        self.is_sqlite = url.startswith("sqlite")
        options: dict[str, Any] = {} if self.is_sqlite else {"pool_pre_ping": True}
        self.engine: Engine = create_engine(url, pool_size=READERS + 1, **options)
        if self.is_sqlite:
            event.listen(self.engine, "connect", _tune_sqlite)
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="reader")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._queue: asyncio.Queue[Unit] = asyncio.Queue()
        self._compiled: dict[int, _Compiled] = {}
        self._came: deque[float] = deque(maxlen=MANY)  # when the last units were taken
        self._committer: asyncio.Task[None] | None = None
        self.pulse = asyncio.Event()
        """Set, and replaced by a new one, with every commit of this process, and when it is told of others."""

    async def start(self) -> None:
        self._committer = asyncio.create_task(self._commit_forever(), name="committer")

    async def close(self) -> None:
        if self._committer:
            await self._queue.join()
            self._committer.cancel()
        for threads in (self._readers, self._writer):
            await asyncio.to_thread(threads.shutdown)
        self.engine.dispose()

    # --- reading

    async def read(self, work: Callable[[Connection], Result]) -> Result:
        """Run `work` on a connection for reading, in a thread."""

        def run() -> Result:
            with self.engine.connect() as connection:
                return work(connection)

        return await asyncio.get_running_loop().run_in_executor(self._readers, run)

    async def fetch(self, query: Executable, values: Mapping[str, Any] | None = None) -> Sequence[Row[Any]]:
        """Every row of one query."""
        return await self.read(lambda connection: connection.execute(query, values or {}).all())

    async def first(self, query: Executable, values: Mapping[str, Any] | None = None) -> Row[Any] | None:
        """The first row of one query."""
        return await self.read(lambda connection: connection.execute(query, values or {}).first())

    # --- writing

    async def commit(self, writes: Sequence[Write]) -> None:
        """Commit one unit. Raises the failure of the first guard that does not hold; then nothing was written."""
        if not writes:
            return
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait((writes, done))
        await done

    async def transact(self, work: Callable[[Connection], Result]) -> Result:
        """Run `work` alone in one serialized transaction (leases, migrations); returns its result."""

        def run() -> Result:
            with self._transaction() as connection:
                return work(connection)

        return await asyncio.get_running_loop().run_in_executor(self._writer, run)

    async def _commit_forever(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            units = [await self._queue.get()]
            if self._many_come(loop.time()):
                await asyncio.sleep(GATHER)
            while len(units) < BATCH and not self._queue.empty():
                units.append(self._queue.get_nowait())
            self._came.extend([loop.time()] * len(units))
            live = [unit for unit in units if not unit[1].cancelled()]
            try:
                answers = await loop.run_in_executor(self._writer, self._commit_all, [writes for writes, _ in live])
                for (_, done), error in zip(live, answers, strict=True):
                    _settle(done, error)
            finally:
                for _ in units:
                    self._queue.task_done()
            self.beat()

    def beat(self) -> None:
        """Something was committed, here or elsewhere."""
        beat, self.pulse = self.pulse, asyncio.Event()
        beat.set()

    def _many_come(self, now: float) -> bool:
        return len(self._came) == MANY and now - self._came[0] < WITHIN

    def _commit_all(self, units: list[Sequence[Write]]) -> list[Exception | None]:
        """All together if that works, else each alone; the error of each unit, or None."""
        groups: dict[int, list[Write]] = {}
        for write in sorted((write for unit in units for write in unit), key=_by_rank):
            groups.setdefault(id(write.statement), []).append(write)
        try:
            if self.is_sqlite:
                with self._transaction() as connection:
                    for group in groups.values():
                        self._execute(connection, group)
            else:
                with self.engine.begin() as connection:
                    self._execute_together(connection, list(groups.values()))
        except Exception:
            return [self._commit_alone(unit) for unit in units]
        return [None] * len(units)

    def _commit_alone(self, unit: Sequence[Write]) -> Exception | None:
        """One unit, statement by statement, so that the guard that fails is the one that is told."""
        try:
            with self._transaction() as connection:
                for write in sorted(unit, key=_by_rank):
                    self._execute(connection, [write])
        except GuardFailed as error:
            return error.write.failure()
        except Exception as error:
            return error
        return None

    def _execute(self, connection: Connection, group: list[Write]) -> None:
        """Equal statements as one executemany; the sum of touched rows must be the sum expected."""
        sql, values = self._compile(group)
        try:
            result = connection.exec_driver_sql(sql, values if len(values) > 1 else values[0])
        except IntegrityError as error:
            raise GuardFailed(group[0]) from error
        _check_touched(group, result.rowcount)

    def _execute_together(self, connection: Connection, groups: list[list[Write]]) -> None:
        """The lock and all groups in one round trip, in PostgreSQL's pipeline mode."""
        raw: Any = connection.connection.driver_connection  # psycopg's, which is not loaded where SQLite is all
        with raw.pipeline():
            raw.execute(_LOCK)
            cursors = [raw.cursor() for _ in groups]
            for cursor, group in zip(cursors, groups, strict=True):
                cursor.executemany(*self._compile(group))
        for cursor, group in zip(cursors, groups, strict=True):
            _check_touched(group, cursor.rowcount)
            cursor.close()

    def _compile(self, group: list[Write]) -> tuple[Any, list[Any]]:
        """The statement that a group shares as the driver reads it, and a row of values for each write."""
        first = group[0]
        compiled = self._compiled.get(id(first.statement))
        if compiled is None:
            compiled = _Compiled(self.engine, first.statement, list(first.values))
            self._compiled[id(first.statement)] = compiled
        return compiled.text, [compiled.row(write.values) for write in group]

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        with self.engine.begin() as connection:
            connection.execute(_BEGIN if self.is_sqlite else text(_LOCK))
            yield connection


class _Compiled:
    """A statement as the database reads it, with the values it carries itself; made once, so that rows are cheap."""

    def __init__(self, engine: Engine, statement: Any, names: Sequence[str]) -> None:
        keys = list(names) if isinstance(statement, Insert) and statement.select is None else None
        compiled = statement.compile(dialect=engine.dialect, column_keys=keys)
        self.statement = statement  # kept alive, as its identity is the key it is found by
        self.text = str(compiled)
        self._own = {name: value for name, value in compiled.params.items() if name not in names}
        self._order: list[str] | None = compiled.positiontup

    def row(self, values: Mapping[str, Any]) -> Any:
        """One row's values as the driver wants them: a tuple in order, or a dictionary."""
        if self._order is None:
            return {**self._own, **values}
        own = self._own
        return tuple([values[name] if name in values else own[name] for name in self._order])


def _check_touched(group: list[Write], touched: int) -> None:
    """Raises `GuardFailed` unless a group touched as many rows as it must."""
    expected = [write.expect for write in group if write.expect is not None]
    if len(expected) == len(group) and touched != sum(expected):
        raise GuardFailed(group[0])


def _by_rank(write: Write) -> int:
    return write.rank


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
