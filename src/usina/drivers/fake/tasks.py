"""The fake driver's tasks: a run is a line of a journal that says when it will have ended, and how. Runs nothing.

A pretended run understands ``true``, ``exit CODE``, ``sleep SECONDS [CODE]`` and ``echo WORDS``; anything else ends at
once with 127. It says what it does, so that logs can be read.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

import msgspec

from usina.core.capacity import FOLDERS, Finding, Inventory, runs
from usina.core.machine import Absent, Card, Unreachable, VolumePlan
from usina.core.task import End, Ended, Running, Sight, TaskPlan, Usage, secret_values
from usina.drivers.fake.hardware import inventory
from usina.drivers.fake.world import World
from usina.ports.driver import Beside, DriverError, HostSettings, HostUnreachable
from usina.ports.tasks import LogPiece, Progress, Terminal

STACK = "fake"
NEVER = 1e12


class Run(msgspec.Struct, omit_defaults=True):
    """A run as the pretended stack keeps it."""

    handle: str
    began: float = 0.0
    ends: float = NEVER
    how: End = End.EXITED
    code: int | None = 0
    log: str = ""
    gone: bool = False
    card: Card | None = None


_DECODER = msgspec.json.Decoder(Run)


class FakeTasks:
    """Pretended runs on one pretended host. Control planes that share a host share its journal."""

    def __init__(self, settings: HostSettings) -> None:
        self._settings = settings
        root = Path(settings.options.get("dir") or settings.state_dir / "fake")
        self._world = World(root)
        self._journal = os.open(root / "runs.jsonl", os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        self._read = 0
        self._runs: dict[str, Run] = {}
        self._changed: asyncio.Queue[str] = asyncio.Queue()

    async def inventory(self) -> Inventory:
        self._reach()
        return _with_stack(inventory(self._settings.options))

    async def survey(self) -> Mapping[str, Sight]:
        self._reach()
        return {handle: _sight(run) for handle, run in self._all().items()}

    async def watch(self) -> AsyncIterator[str]:
        while True:
            yield await self._changed.get()

    async def observe(self, handle: str) -> Sight:
        if not self._world.answers:
            return Unreachable("the pretended host is down")
        run = self._all().get(handle)
        return _sight(run) if run is not None else Absent()

    async def start(self, plan: TaskPlan, progress: Progress) -> None:
        self._reach()
        if plan.handle in self._all():
            return
        if plan.command[:1] == ("refuse",):
            raise DriverError("the pretended stack refuses it", lasting=True)
        for mount in plan.volumes:
            if self._world.read("volumes", mount.volume) is None:
                raise DriverError(f"volume {mount.volume} is not on this host", lasting=True)
        if plan.card is not None:
            await self._beside().plug(plan.handle, plan.handle, plan.card)
        run = _pretend(plan)
        self._save(run)
        if run.ends < NEVER:
            delay = max(0.0, run.ends - time.time())
            asyncio.get_running_loop().call_later(delay, self._changed.put_nowait, plan.handle)

    async def stop(self, handle: str, *, grace: float) -> None:
        self._reach()
        run = self._all().get(handle)
        if run is not None and isinstance(_sight(run), Running):
            self._save(Run(handle, run.began, time.time(), End.STOPPED, 143, run.log, card=run.card))

    async def remove(self, handle: str) -> None:
        self._reach()
        run = self._all().get(handle)
        if run is None:
            return
        if run.card is not None:
            await self._beside().unplug(handle, handle, run.card)
        self._save(Run(handle, gone=True))

    async def leftovers(self) -> Sequence[str]:
        return ()

    async def ensure_volume(self, plan: VolumePlan) -> None:
        self._reach()
        size = int(self._world.read("volumes", plan.handle) or 0)
        self._world.note("volumes", plan.handle, str(max(size, plan.size)))

    async def remove_volume(self, handle: str) -> None:
        self._reach()
        self._world.drop("volumes", handle)

    def _beside(self) -> Beside:
        if self._settings.beside is None:
            raise DriverError("the pretended host has no networks", lasting=True)
        return self._settings.beside

    async def log(self, handle: str, after: int, limit: int) -> LogPiece:
        self._reach()
        run = self._all().get(handle)
        data = run.log.encode() if run is not None else b""
        return LogPiece(after, data[after:])

    async def outputs(self, handle: str, patterns: tuple[str, ...]) -> AsyncIterator[bytes]:
        yield b"\0" * 1024  # a tar of nothing

    async def usage(self, handle: str) -> Usage | None:
        return None

    async def exec(self, handle: str, command: tuple[str, ...], *, terminal: bool) -> Terminal:
        raise DriverError("nothing runs beside a pretended task")

    async def dial(self, handle: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        raise DriverError("a pretended task has no ports")

    async def health(self) -> Sequence[Finding]:
        """A test writes ``ADDRESS REASON`` into a file named ``ailing``; it is told once."""
        path = self._world.root / "ailing"
        try:
            lines = path.read_text().splitlines()
        except FileNotFoundError:
            return ()
        path.unlink()
        return [Finding(*line.split(" ", 1)) for line in lines]  # type: ignore[arg-type]

    async def close(self) -> None:
        self._world.close()
        os.close(self._journal)

    # --- within

    def _reach(self) -> None:
        if not self._world.answers:
            raise HostUnreachable("the pretended host is down")

    def _save(self, run: Run) -> None:
        os.write(self._journal, msgspec.json.encode(run) + b"\n")
        self._changed.put_nowait(run.handle)

    def _all(self) -> dict[str, Run]:
        missing = os.fstat(self._journal).st_size - self._read
        if missing > 0:
            news = os.pread(self._journal, missing, self._read)
            whole = news[: news.rfind(b"\n") + 1]
            self._read += len(whole)
            for line in whole.splitlines():
                run = _DECODER.decode(line)
                if run.gone:
                    self._runs.pop(run.handle, None)
                else:
                    self._runs[run.handle] = run
        return self._runs


def _with_stack(found: Inventory) -> Inventory:
    return Inventory(found.nodes, found.disk, found.devices, found.traits | {runs(STACK), FOLDERS}, found.facts)


def _sight(run: Run) -> Sight:
    if run.ends > time.time():
        return Running(run.began)
    return Ended(run.ends, run.how, run.code, since=run.began)


def _pretend(plan: TaskPlan) -> Run:
    now = time.time()
    run = Run(plan.handle, now, now, card=plan.card)
    match plan.command:
        case ("true",):
            pass
        case ("exit", code):
            run.code = int(code)
        case ("sleep", seconds, *rest):
            run.ends, run.code = now + float(seconds), int(rest[0]) if rest else 0
        case ("echo", *words):
            text = " ".join(plan.environment.get(word[1:], "") if word[:1] == "$" else word for word in words)
            for value in secret_values(plan):
                text = text.replace(value, "***")
            run.log = f"{int(now * 1000)} o {text}\n"
        case _:
            run.code = 127
    if plan.time_limit and run.ends - now > plan.time_limit:
        run.ends, run.how, run.code = now + plan.time_limit, End.TIME_LIMIT, 143
    return run
