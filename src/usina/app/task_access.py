"""What tasks say, use and leave, and ways into them while they run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from usina.app.context import Context
from usina.core.errors import Conflict, NotFound, Unavailable
from usina.core.names import check_range
from usina.core.resource import AnyResource, Kind
from usina.core.task import Usage, handle_of
from usina.core.task_decide import OVER, Task
from usina.core.tenancy import Action
from usina.core.units import KiB
from usina.ports.driver import DriverError
from usina.ports.tasks import LogPiece, TaskDriver, Terminal

PIECE = 256 * KiB
QUICK, SLOW = 0.1, 1.0  # seconds between looks for more of a log that is followed


@dataclass(frozen=True, slots=True)
class LogWish:
    """Which part of a log. `since` and `until` in milliseconds since the epoch; `run` 0 is the newest."""

    run: int = 0
    after: int = 0
    since: int = 0
    until: int = 0
    follow: bool = False


async def parts(context: Context, ref: str, project: str | None = None) -> list[AnyResource]:
    """The parts of an array or gang, in order."""
    task, _ = await context.find(Kind.TASK, ref, Action.RESOURCE_VIEW, project)
    return await context.store.tasks.part_rows(task.id)


async def logs(
    context: Context, ref: str, project: str | None, index: int | None, wish: LogWish
) -> AsyncIterator[bytes]:
    """Lines as `ports.tasks.LogPiece` has them, as they come. Of an array or gang without `index`: of all its parts,
    each line beginning with ``[index]``."""
    task, _ = await context.find(Kind.TASK, ref, Action.RESOURCE_VIEW, project)
    found = await context.store.tasks.part_rows(task.id)
    if index is not None:
        chosen = [part for part in found if part.spec.index == index]
        if not chosen:
            raise NotFound(f"index: there is no part {index}", field="index")
        return _between(wish, _lines(context, chosen[0].id, wish))
    if found:
        return _merged(context, task.id, found, wish)
    return _between(wish, _lines(context, task.id, wish))


async def _merged(context: Context, whole: str, parts: list[AnyResource], wish: LogWish) -> AsyncIterator[bytes]:
    """All parts: what there is now in the order of time, then, when followed, as it comes."""
    readers = {part.spec.index: _Reader(context, part.id, wish.run, 0) for part in parts}
    while True:
        news: list[tuple[bytes, bytes]] = []
        over = True
        for index, reader in readers.items():
            piece = await reader.more()
            over = over and reader.over
            for line in piece.data.splitlines():
                at, stream, text = (line.split(b" ", 2) + [b"", b""])[:3]
                news.append((at, b"%s %s [%d] %s\n" % (at, stream, index, text)))
        news.sort(key=lambda pair: pair[0])
        async for data in _between(wish, _once(b"".join(line for _, line in news))):
            yield data
        if not news and (over or not wish.follow):
            return
        if not news:
            await asyncio.sleep(SLOW)
        if not await context.house.doors.holds(context.actor):
            return  # the key of a stream that goes on was revoked


async def _once(data: bytes) -> AsyncIterator[bytes]:
    if data:
        yield data


async def _lines(context: Context, task: str, wish: LogWish) -> AsyncIterator[bytes]:
    """The log of one run; when followed, of the runs after it as well."""
    reader = _Reader(context, task, wish.run, wish.after)
    pause = QUICK
    while await context.house.doors.holds(context.actor):  # the key of a stream that goes on may be revoked
        piece = await reader.more()
        if piece.data:
            pause = QUICK
            yield piece.data
        elif reader.over and wish.follow and not wish.run and await reader.next_run():
            pause = QUICK
        elif reader.over or not wish.follow:
            return
        else:
            await asyncio.sleep(pause)
            pause = min(SLOW, pause * 1.3)


class _Reader:
    """Reads the log of one run from where it is: its stack while it runs, the store afterwards."""

    def __init__(self, context: Context, task: str, run: int, after: int) -> None:
        self._context, self._task, self._run, self._position = context, task, run, after
        self.over = False

    async def more(self) -> LogPiece:
        """The next piece; ``over`` says whether any more can come."""
        task = await self._context.store.resources.get(self._task)
        if task is None:
            self.over = True
            return LogPiece(self._position, b"")
        self._run = self._run or max(1, task.status.run)
        self.over = self._run < task.status.run or (task.phase in OVER and task.observed == task.generation)
        piece = await self._read(task)
        self._position = max(self._position, piece.end)
        return piece

    async def next_run(self) -> bool:
        """Go on with the run after this one, if there is one."""
        task = await self._context.store.resources.get(self._task)
        if task is None or task.status.run <= self._run:
            return False
        self._run, self._position, self.over = self._run + 1, 0, False
        return True

    async def _read(self, task: Task) -> LogPiece:
        if not self.over and task.provider is not None:
            try:
                driver = await self._context.house.hosts.tasks(task.provider, task.spec.on)
                return await driver.log(handle_of(task.id, self._run), self._position, PIECE)
            except DriverError:
                return LogPiece(self._position, b"")  # it does not answer now; later it does, or the run is over
        for kept in await self._context.store.tasks.log(task.id, self._run, self._position, limit=1):
            skip = max(0, self._position - kept.start)
            return LogPiece(kept.start + skip, kept.data[skip:])
        return LogPiece(self._position, b"")


async def _between(wish: LogWish, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Only lines from the time that was asked for."""
    async for data in pieces:
        if not wish.since and not wish.until:
            yield data
            continue
        lines = data.splitlines(keepends=True)
        good = [line for line in lines if wish.since <= _at(line) and (not wish.until or _at(line) < wish.until)]
        if good:
            yield b"".join(good)


def _at(line: bytes) -> int:
    return int(line.partition(b" ")[0])


# --- what it uses and leaves


async def usage(context: Context, ref: str, project: str | None = None) -> list[Usage]:
    """What the newest run has used, sampled, and now."""
    task, _ = await context.find(Kind.TASK, ref, Action.RESOURCE_VIEW, project)
    samples = await context.store.tasks.usage(task.id, task.status.run)
    if task.phase not in OVER and task.provider is not None and task.status.run:
        try:
            driver = await context.house.hosts.tasks(task.provider, task.spec.on)
            now = await driver.usage(handle_of(task.id, task.status.run))
        except DriverError:
            now = None
        samples += [now] if now is not None else []
    return samples


async def artifact(context: Context, ref: str, name: str, project: str | None = None) -> tuple[Path, int]:
    """Where something that a task left lies on this control plane, and its size."""
    task, _ = await context.find(Kind.TASK, ref, Action.RESOURCE_VIEW, project)
    for one in task.status.artifacts:
        if one.name == name:
            return context.house.blobs.path(one.digest), one.size
    raise NotFound("artifact not found")


# --- ways in


async def exec(
    context: Context, ref: str, command: tuple[str, ...], *, terminal: bool, index: int | None, project: str | None
) -> Terminal:
    """A command beside a running task."""
    task, driver = await _reach(context, ref, index, project)
    try:
        line = await driver.exec(handle_of(task.id, task.status.run), command, terminal=terminal)
    except DriverError as error:
        raise Unavailable(error.public, detail=error.detail) from error
    await _tell(context, task, f"{command[0][:60]} is run beside it")
    return _Attended(line, context, task)


async def tunnel(
    context: Context, ref: str, port: int, index: int | None = None, project: str | None = None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A TCP stream to a port that the task listens on."""
    check_range(port, 1, 65535, "port")
    task, driver = await _reach(context, ref, index, project)
    try:
        return await driver.dial(handle_of(task.id, task.status.run), port)
    except (DriverError, OSError) as error:
        raise Unavailable(f"port {port} of the task does not answer", detail=str(error)) from error


async def _reach(context: Context, ref: str, index: int | None, project: str | None) -> tuple[Task, TaskDriver]:
    task, _ = await context.find(Kind.TASK, ref, Action.TASK_ACCESS, project)
    if index is not None:
        for part in await context.store.tasks.part_rows(task.id):
            if part.spec.index == index:
                task = part
    if task.provider is None or task.phase in OVER:
        raise Conflict(f"the task is {task.phase.value}", code="not-running")
    try:
        return task, await context.house.hosts.tasks(task.provider, task.spec.on)
    except DriverError as error:
        raise Unavailable(error.public) from error


class _Attended:
    """A terminal that somebody is at: while bytes come and go, an idle limit begins anew."""

    def __init__(self, inner: Terminal, context: Context, task: Task) -> None:
        self._inner, self._context, self._task = inner, context, task
        self._every = task.spec.idle_limit / 4
        self._told = context.now
        self.resize, self.wait, self.close = inner.resize, inner.wait, inner.close

    async def read(self) -> bytes:
        data = await self._inner.read()
        await self._touch()
        return data

    async def write(self, data: bytes) -> None:
        await self._inner.write(data)
        await self._touch()

    async def _touch(self) -> None:
        if self._every and self._context.now - self._told >= self._every:
            self._told = self._context.now
            await _tell(self._context, self._task, "somebody is at its terminal")


async def _tell(context: Context, task: Task, text: str) -> None:
    """In its story; and what an idle limit counts from."""
    work = context.work()
    context.tell(work, task, "accessed", f"{text}, by {context.actor.name}")
    await work.commit()
