"""One machine with runs in it: watched over one connection, for as long as any of its runs is not removed.

The watch (see `scripts.WATCH`) tells how all runs are whenever one ends, and whenever it is asked. Where it cannot be
had, the machines' driver says why: a machine that is off, gone or rebuilt has ended its runs; of one that only does
not answer nothing is known.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace

import asyncssh

from usina.core.machine import Absent, Power, Present, Unreachable
from usina.core.task import End, Ended, Running, Sight, Usage
from usina.drivers.ssh import scripts
from usina.drivers.ssh.link import Link, Process
from usina.drivers.ssh.notes import MachineNotes, Note
from usina.drivers.ssh.sights import Found, found
from usina.ports.driver import Beside, DriverError, HostUnreachable

EVERY = 3.0  # seconds between looks that nobody asked for
RARELY = 15.0  # the same where nothing runs, or nothing answers
ANSWER = 15.0  # seconds that a look may take
_PIECE = 65536
_LINE = 1 << 20  # bytes without an end of line
_LINES = 100_000  # of one look


@dataclass(slots=True)
class Guest:
    link: Link
    beside: Beside
    notes: MachineNotes
    changed: Callable[[str], None]  # told a handle that may have changed
    tidy: Callable[[Guest], Awaitable[None]]  # called when it answers again
    sights: dict[str, Running | Ended] = field(default_factory=dict)
    making: set[str] = field(default_factory=set)  # folders of runs that have not begun
    usages: dict[str, Usage] = field(default_factory=dict)
    trouble: str = "it has not answered yet"  # "": it answers
    over: str = ""  # what became of it, where no run can be in it any more
    off: bool = False  # it is only switched off: what is on its disk is still there
    used_at: float = field(default_factory=time.monotonic)  # when the last of its runs was removed
    looked_at: float = 0.0  # monotonic; of the last answer
    _watch: asyncio.Task[None] | None = None
    _process: Process | None = None
    _asked: dict[str, asyncio.Future[None]] = field(default_factory=dict)
    _number: int = 0
    _next: asyncio.Future[None] | None = None
    _asking: asyncio.Lock = field(default_factory=asyncio.Lock)
    _known: asyncio.Event = field(default_factory=asyncio.Event)  # how it is, well or not
    _soon: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def machine(self) -> str:
        return self.link.inside.machine

    def begin(self) -> None:
        if self._watch is None:
            self._watch = asyncio.create_task(self._forever(), name=f"watch {self.machine}")

    async def known(self, limit: float) -> None:
        """Until it is known how it is, at most `limit` seconds."""
        self.begin()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit):
                await self._known.wait()

    async def look(self) -> None:
        """A fresh look at all runs. Raises `HostUnreachable` where the machine does not answer."""
        self.begin()
        await self.known(ANSWER)
        if self._process is None:
            self._soon.set()
            raise HostUnreachable(self.trouble or "the machine does not answer")
        await self._ask(self._process)

    def of(self, note: Note) -> Sight:
        """How a run is, as far as is known."""
        if note.ended is not None:
            return note.ended
        if self.trouble and not (self.over and not note.launched):
            return Unreachable(self.trouble)
        return self.sights.get(note.handle, Absent())

    def forget(self, handle: str) -> None:
        self.sights.pop(handle, None)
        self.usages.pop(handle, None)
        self.making.discard(handle)

    async def close(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        await self.link.close()

    # --- the watch

    async def _forever(self) -> None:
        while True:
            try:
                await self._attend()
            except (DriverError, asyncssh.Error, OSError) as error:
                await self._failed(error.public if isinstance(error, DriverError) else "SSH in the machine broke off")
            self._soon.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EVERY if self._running() else RARELY):
                    await self._soon.wait()

    async def _attend(self) -> None:
        """Hold a watch, and ask it now and then, until it breaks."""
        async with self.link.process(scripts.WATCH) as process:
            reading = asyncio.create_task(self._read(process))
            try:
                async with asyncio.timeout(ANSWER * 2):
                    await self._first(process, reading)
                await self.tidy(self)
                while True:
                    await asyncio.wait([reading], timeout=EVERY if self._running() else RARELY)
                    if reading.done():
                        raise HostUnreachable("SSH in the machine broke off")
                    await self._ask(process)
            except TimeoutError:
                raise HostUnreachable("SSH in the machine does not answer") from None
            finally:
                self._process = None
                reading.cancel()
                for asked in self._asked.values():
                    if not asked.done():
                        asked.set_exception(HostUnreachable("SSH in the machine broke off"))
                self._asked.clear()

    async def _first(self, process: Process, reading: asyncio.Task[None]) -> None:
        hello = asyncio.get_running_loop().create_future()
        self._asked["hello"] = hello
        await asyncio.wait([hello, reading], return_when=asyncio.FIRST_COMPLETED)
        if not hello.done():
            hello.cancel()
            words = (await process.stderr.read(_PIECE)).decode(errors="replace").strip().splitlines()
            raise HostUnreachable(f"nothing can be done as root in the machine: {words[-1] if words else 'no words'}")

    async def _ask(self, process: Process) -> None:
        """A look that begins now or later; all who ask before it begins share it."""
        if self._next is None:
            self._next = asyncio.ensure_future(self._ask_next(process))
            self._next.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.shield(self._next)

    async def _ask_next(self, process: Process) -> None:
        async with self._asking:
            self._next = None
            self._number += 1
            word = str(self._number)
            answer = self._asked[word] = asyncio.get_running_loop().create_future()
            try:
                process.stdin.write(f"{word}\n".encode())
                async with asyncio.timeout(ANSWER):
                    await answer
            except (TimeoutError, asyncssh.Error, OSError) as error:
                raise HostUnreachable("SSH in the machine does not answer") from error
            finally:
                self._asked.pop(word, None)

    async def _read(self, process: Process) -> None:
        """Until it ends, or says more than any machine has to say."""
        lines: list[str] = []
        rest = b""
        with contextlib.suppress(asyncssh.Error, OSError):
            while (data := await process.stdout.read(_PIECE)) and len(rest) < _LINE and len(lines) < _LINES:
                *whole, rest = (rest + data).split(b"\n")
                for line in (raw.decode(errors="replace") for raw in whole):
                    if not line.startswith(". "):
                        lines.append(line)
                        continue
                    self._process = process
                    self._take(lines)
                    lines = []
                    answer = self._asked.get(line[2:])
                    if answer is not None and not answer.done():
                        answer.set_result(None)

    def _take(self, lines: list[str]) -> None:
        """All runs as they are now."""
        now = time.time()
        good: dict[str, Found] = {}
        for line in lines:
            note = self.notes.get(line.partition(" ")[0])
            if note is None or note.inside.machine == self.machine:  # a machine may only speak of its own runs
                one = found(line, note, now)
                good |= {one.handle: one} if one is not None else {}
        self.usages = {handle: one.usage for handle, one in good.items() if one.usage is not None}
        self.making = {handle for handle, one in good.items() if one.sight is None}
        self.looked_at = time.monotonic()
        self.trouble = self.over = ""
        self._known.set()
        self._set({handle: one.sight for handle, one in good.items() if one.sight is not None})

    def _set(self, sights: Mapping[str, Running | Ended]) -> None:
        before, self.sights = self.sights, dict(sights)
        for handle, sight in sights.items():
            note = self.notes.get(handle)
            if isinstance(sight, Ended) and note is not None:
                if note.ended is None:
                    self.notes.put(replace(note, ended=sight))
                self.sights[handle] = note.ended or sight
        for handle in before.keys() | self.sights.keys():
            if before.get(handle) != self.sights.get(handle):
                self.changed(handle)

    async def _failed(self, reason: str) -> None:
        """The machines' driver says what it means that there is no watch."""
        try:
            seen = await self.beside.observe(self.machine)
        except DriverError as error:
            seen = Unreachable(error.public)
        over, self.off = "", False
        match seen:
            case Absent():
                over = "its machine is gone"
            case Present(power=Power.OFF):
                over, self.off = "its machine was switched off", True
            case Present(power=Power.SUSPENDED):
                reason = "its machine is suspended"
            case Present(marks=marks) if marks.get("rebuilds", 0) > self.link.inside.rebuilds:
                over = "its machine was rebuilt"
            case Unreachable():
                reason = seen.reason or reason
        changed = (over or reason, over) != (self.trouble, self.over)
        self.trouble, self.over = over or reason, over
        self._known.set()
        for note in self.notes.of(self.machine):
            if over and note.ended is None and note.launched:
                now = time.time()
                self.notes.put(replace(note, ended=Ended(now, End.NODE_FAILED, message=over, since=note.launched)))
                self.changed(note.handle)
            elif changed:
                self.changed(note.handle)

    def _running(self) -> bool:
        return any(note.ended is None for note in self.notes.of(self.machine))
