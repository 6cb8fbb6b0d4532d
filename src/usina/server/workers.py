"""The gateway workers as the main process sees them: started, started again when they die, answered, and stopped."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from itertools import count
from typing import Any

import structlog
from prometheus_client import REGISTRY

from usina.core.errors import UsinaError
from usina.ports.driver import DriverError
from usina.ports.llm import Streams
from usina.server.figures import Family, families, lasting, page, together
from usina.server.link import Link
from usina.server.messages import Begin, Count, Dial, Dialled, Figures, Look, Ready, TakeOver, ToMain, packed
from usina.server.process import GRACE
from usina.server.settings import Settings
from usina.services.llm.meters import ALL
from usina.services.llm.shared import Table

log = structlog.get_logger()

PAUSE, LONGEST = 0.25, 30.0  # seconds before one that died is started again; doubled each time
STEADY = 60.0  # seconds after which one that dies has not failed to start
COUNTING = 2.0  # seconds that a worker has to tell its figures
DIAL = 10.0

DialReplica = Callable[[Dial], Awaitable[Streams]]
TakeOn = Callable[[socket.socket, bytes], None]
"""Goes on with a client's connection of which this was read."""


class Workers:
    """`run` is their whole life; `all_ready` is set once every one of them has served."""

    def __init__(
        self, settings: Settings, table: Table, lanes: Sequence[str], dial: DialReplica, take_on: TakeOn
    ) -> None:
        self._settings, self._table, self._lanes = settings, table, list(lanes)
        self._dial, self._take_on = dial, take_on
        self._at_work: dict[int, _Worker] = {}
        self._ended: list[Family] = []  # what was counted by those that have ended
        self._never_ready = set(range(1, settings.gateway_workers))
        self._stopping = asyncio.Event()
        self.all_ready = asyncio.Event()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for number in sorted(self._never_ready):
                tasks.create_task(self._keep(number))

    async def _keep(self, number: int) -> None:
        loop, pause = asyncio.get_running_loop(), PAUSE
        while not self._stopping.is_set():
            began = loop.time()
            worker = self._at_work[number] = _Worker(self._dial, self._take_on, lambda: self._is_ready(number))
            begin = Begin(packed(self._settings), number, self._lanes)
            try:
                status = await worker.live(begin, os.dup(self._table.descriptor))
            except OSError as error:
                status = error.errno or -1
            del self._at_work[number]
            self._table.clear(number)
            self._ended = together([self._ended, lasting(worker.counted)])
            if self._stopping.is_set():
                return
            pause = PAUSE if loop.time() - began > STEADY else pause
            log.warning("a gateway worker has ended, and is started again", worker=number, status=status, pause=pause)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._stopping.wait()
            pause = min(LONGEST, 2 * pause)

    def _is_ready(self, number: int) -> None:
        self._never_ready.discard(number)
        if not self._never_ready:
            self.all_ready.set()

    def stop(self) -> None:
        """They end as the main process does: with a grace for requests under way. `run` ends with the last of them."""
        self._stopping.set()
        for worker in self._at_work.values():
            worker.stop()

    def look(self) -> None:
        """The directory has changed; they would find out by themselves a moment later."""
        for worker in self._at_work.values():
            worker.look()

    async def figures(self) -> bytes:
        """For Prometheus: all that the main process counts, and of models the sums over all processes."""
        told = await asyncio.gather(*(worker.count() for worker in list(self._at_work.values())))
        return page(REGISTRY.collect(), together([families(ALL), self._ended, *told]))


class _Worker:
    """One life of one worker."""

    def __init__(self, dial: DialReplica, take_on: TakeOn, ready: Callable[[], None]) -> None:
        self._dial, self._take_on, self._ready = dial, take_on, ready
        self._process: asyncio.subprocess.Process | None = None
        self._link: Link | None = None
        self._asked: dict[int, asyncio.Future[None]] = {}
        self._numbers = count()
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped = False
        self.counted: list[Family] = []  # when it last told

    async def live(self, begin: Begin, shared: int) -> int:
        """From its start to its end; its status. Takes the descriptor of the shared memory. Raises `OSError`."""
        ours, theirs = socket.socketpair()
        self._link = Link(ours, ToMain, self._received, self._lost)
        self._link.send(begin, shared)
        try:
            with theirs:
                self._process = await asyncio.create_subprocess_exec(
                    sys.executable, "-P", "-m", "usina.server.worker", str(theirs.fileno()), str(os.getpid()),
                    stdin=asyncio.subprocess.DEVNULL, pass_fds=(theirs.fileno(),), start_new_session=True,
                )  # fmt: skip
            if self._stopped:
                self.stop()
            return await self._process.wait()
        finally:
            self._link.close()
            for task in list(self._tasks):
                task.cancel()

    def stop(self) -> None:
        self._stopped = True
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGTERM)
            asyncio.get_running_loop().call_later(3 * GRACE, self._lost)

    def _lost(self) -> None:
        """It does not listen to us any more."""
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.kill()

    def look(self) -> None:
        if self._link is not None:
            self._link.send(Look())

    async def count(self) -> list[Family]:
        """What it has counted; as it told last, where it does not answer."""
        number = next(self._numbers)
        asked = self._asked[number] = asyncio.get_running_loop().create_future()
        with suppress(TimeoutError):
            async with asyncio.timeout(COUNTING):
                if self._link is not None and self._link.send(Count(number)):
                    await asked
        self._asked.pop(number, None)
        return self.counted

    def _received(self, message: Any, descriptor: int) -> None:
        if isinstance(message, TakeOver):
            self._take_on(socket.socket(fileno=descriptor), message.data)
        elif isinstance(message, Dial):
            task = asyncio.create_task(self._answer(message))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif isinstance(message, Figures):
            self.counted = message.families
            asked = self._asked.pop(message.id, None)
            if asked is not None and not asked.done():
                asked.set_result(None)
        elif isinstance(message, Ready):
            self._ready()

    async def _answer(self, dial: Dial) -> None:
        assert self._link is not None
        try:
            async with asyncio.timeout(DIAL):
                streams = await self._dial(dial)
        except (OSError, UsinaError, DriverError) as error:
            self._link.send(Dialled(dial.id, error.public if isinstance(error, DriverError) else "it does not answer"))
        except Exception:
            log.exception("a replica could not be dialled for a worker")
            self._link.send(Dialled(dial.id, "it cannot be dialled"))
        else:
            self._link.send(Dialled(dial.id), await descriptor_of(streams))


async def descriptor_of(streams: Streams) -> int:
    """A descriptor that stands for these streams, on which nothing was said yet: of their own socket; where they are
    not of one, of a pair whose other end is pumped."""
    reader, writer = streams
    found = writer.get_extra_info("socket")
    if (
        found is not None
        and found.family in (socket.AF_INET, socket.AF_INET6)
        and not writer.get_extra_info("sslcontext")
    ):
        descriptor = os.dup(found.fileno())
        writer.transport.abort()  # it goes on in the copy
        return descriptor
    ours, theirs = socket.socketpair()
    near = await asyncio.open_unix_connection(sock=ours)
    for task in (asyncio.create_task(_pump(reader, near[1])), asyncio.create_task(_pump(near[0], writer))):
        _pumps.add(task)
        task.add_done_callback(_pumps.discard)
    return theirs.detach()


_pumps: set[asyncio.Task[None]] = set()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Until either side ends, which then ends the other."""
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()
