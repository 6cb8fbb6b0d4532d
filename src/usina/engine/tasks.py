"""The hand for tasks: steps of a decision become calls of the driver of their stack."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

import structlog

from usina.core import task_decide
from usina.core.capacity import Claim
from usina.core.clock import Clock
from usina.core.grant import Lease
from usina.core.lifecycle import Admit, Again, Decision, EndParts, Remove, Start, Step, Stop
from usina.core.machine import Absent, Restart
from usina.core.quota import amounts_placed
from usina.core.resource import Phase
from usina.core.task import Artifact, End, Ended, Fulfils, Queued, Running, TaskStatus, handle_of
from usina.core.task_decide import OVER, Gate, Task, View
from usina.core.units import GiB, Instant, KiB, MiB
from usina.engine.faults import fault
from usina.engine.fleet import Fleet
from usina.engine.hand import Held, Report
from usina.engine.probe import is_well
from usina.engine.task_machines import gate_of_machine
from usina.engine.task_plans import TaskPlans
from usina.engine.task_volumes import gate_of_volumes
from usina.ports.blobs import Blobs
from usina.ports.driver import DriverError, HostUnreachable
from usina.ports.tasks import TaskDriver
from usina.store import tasks as writers
from usina.store.store import Store
from usina.store.work import Work

log = structlog.get_logger()

PIECE = 256 * KiB
LOG_KEPT = 4 * MiB  # of each run, the newest
OUTPUTS_LIMIT = 16 * GiB
TRIES = 6  # of a start
REPORT_EVERY = 1.0
IN_LINE = 5.0  # seconds after which a part in line asks for its place, if nothing that ended has called it before
HEARS = 2500  # parts of an array, for each second in which it is told only once that some of them are over
BREATH = 0.03  # seconds in which what has just begun may be over

OUTPUTS = "outputs.tar"


class TaskHand:
    gives_up = False  # what cannot be begun is ended by `_start`; all else must come to its end

    def __init__(
        self,
        store: Store,
        fleet: Fleet,
        clock: Clock,
        plans: TaskPlans,
        blobs: Blobs,
        native: Mapping[str, bool],
    ) -> None:
        self._store, self._fleet, self._clock = store, fleet, clock
        self._plans, self._blobs = plans, blobs
        self._native = native  # stack -> whether it runs arrays and gangs itself
        self._clearing: set[asyncio.Task[None]] = set()

    # --- looking

    async def look(self, task: Task, held: Held) -> View:
        if self._is_whole(task):
            parts = await self._store.tasks.parts(task.id)
            return View(parts=parts, gate=Gate() if task.status.admitted else await self._gate_of_whole(task))
        if held.claim is None:
            view = _in_its_whole(task, held)
            anew = task.status.run == 0 or task.spec.reruns > task.status.reruns
            if anew and not task.spec.parent:
                view = replace(view, gate=await self._gate(task))
            if task.spec.machine and anew and not view.gate.holds:
                view = replace(view, gate=await gate_of_machine(self._store, task))
            if task.spec.volumes and anew and not view.gate.holds:
                view = replace(view, gate=await gate_of_volumes(self._store, task))
            return view
        driver = await self._fleet.tasks(held.claim.provider, task.spec.on)
        handle = handle_of(task.id, task.status.run)
        sight = await driver.observe(handle)
        self._fleet.saw(held.claim.provider, handle, sight, task.spec.on)
        if isinstance(sight, Ended) and task.spec.restart is Restart.NEVER:
            return View(sight)  # nothing else matters any more
        view = _in_its_whole(task, held)
        idle = await self._idle_since(task) if task.spec.idle_limit and isinstance(sight, Running) else None
        well = await self._ask(driver, task, handle) if isinstance(sight, Running) else None
        return replace(view, sight=sight, idle_since=idle, well=well)

    async def _ask(self, driver: TaskDriver, task: Task, handle: str) -> bool | None:
        """How it is, if it is time to ask."""
        health = task.spec.health
        now = self._clock.now()
        if health is None or task.spec.stopped:
            return None
        if now < task.status.asked_at + 0.9 * task_decide.asks_every(task, task.status.healthy, now):
            return None
        return await is_well(driver, handle, health)

    def _is_whole(self, task: Task) -> bool:
        many = bool(task.spec.indices) or task.spec.replicas > 1
        return many and not task.spec.parent and not self._native.get(task.spec.on, False)

    async def _gate_of_whole(self, task: Task) -> Gate:
        gate = await self._gate(task)
        return await gate_of_volumes(self._store, task) if task.spec.volumes and not gate.holds else gate

    async def _gate(self, task: Task) -> Gate:
        """What it waits for in others."""
        if not task.spec.after:
            return Gate()
        found = await self._store.resources.get_many([one.task for one in task.spec.after])
        waits = []
        for one in task.spec.after:
            other = found.get(one.task)
            if other is None:
                return Gate(hopeless=f"{one.task}, which it waits for, is gone")
            over = other.phase in OVER and other.observed == other.generation
            if not over:
                waits.append(other.name)
            elif one.on is Fulfils.SUCCESS and other.phase is not Phase.SUCCEEDED:
                return Gate(hopeless=f"{other.name}, which it waits for, has {other.phase.value}")
        return Gate(waits_for=f"waits for {', '.join(waits)}" if waits else "")

    async def _idle_since(self, task: Task) -> Instant:
        last = await self._store.events.last_at(task.id, "task.accessed")
        return max(last, task.status.began_at or task.updated_at)

    def decide(self, task: Task, held: Held, view: View, now: Instant) -> Decision:
        return task_decide.decide(task, held.claim, view, now)

    def presences(self, task: Task) -> tuple[str, ...]:
        return (task.spec.interface.network,) if task.spec.interface is not None else ()

    def placing(self, task: Task) -> TaskStatus:
        return task_decide.begun(task)

    def status(self, task: Task, view: View | None) -> TaskStatus:
        status: TaskStatus = task.status
        match view.sight if view is not None else None:
            case Queued(_, job, estimate, units):
                return replace(status, job=job, estimate=estimate, units=units)
            case Running(since, job, nodes, units):
                now = self._clock.now()
                healthy, unwell = task_decide.health_after(task, view, since, now) if view is not None else (None, 0)
                asked = now if view is not None and view.well is not None else status.asked_at
                return replace(
                    status, job=job, nodes=nodes, units=units, began_at=since, estimate=None, progress=1.0, doing="",
                    healthy=healthy, unwell=unwell, asked_at=asked,
                )  # fmt: skip
            case _:
                return status

    # --- doing

    async def do(self, step: Step, task: Task, held: Held, report: Report) -> None:
        match step:
            case Admit(parts, in_line):
                status = replace(task.status, admitted=task.status.admitted + len(parts), in_line=in_line)
                await report(status, self._waking(parts, IN_LINE if in_line else 0))
                return
            case EndParts(parts):
                await report(replace(task.status, how=End.STOPPED), self._waking(parts))
                return
        assert held.claim is not None  # decide asks for nothing else without one
        driver = await self._fleet.tasks(held.claim.provider, task.spec.on)
        handle = handle_of(task.id, task.status.run)
        match step:
            case Start():
                await self._start(driver, task, held.claim, report)
            case Stop(grace):
                await driver.stop(handle, grace=grace)
            case Remove():
                await driver.remove(handle)
            case Again():
                await self._again(driver, task, report)
            case _:
                raise AssertionError(f"no hand for {step}")

    def _waking(self, ids: tuple[str, ...], seconds: float = 0) -> Callable[[Work, Lease], None]:
        def more(work: Work, lease: Lease) -> None:
            for id in ids:
                writers.wake(work, id, self._clock.now() + seconds)

        return more

    async def _start(self, driver: TaskDriver, task: Task, claim: Claim, report: Report) -> None:
        """Begin the run; one that can never begin is noted as ended, so that it holds its place no longer."""
        progress = _Progress(task.status, report)
        try:
            plan = await self._plans.of(task, claim)
            fault("after:plan")
            await driver.start(plan, progress.tell)
        except HostUnreachable:
            raise
        except DriverError as error:
            if not error.lasting and task.attempts < TRIES:
                raise
            log.info("task cannot be started", task=task.id, reason=error.public, detail=error.detail)
            await report(replace(task.status, how=End.NOT_STARTED, message=error.public))
            return
        # What does little is over before anybody could read that it runs: then that need not be written.
        await self._fleet.until_over(plan.handle, claim.provider, task.spec.on, BREATH)

    async def _again(self, driver: TaskDriver, task: Task, report: Report) -> None:
        pieces = await self._log(driver, task)

        def more(work: Work, lease: Lease) -> None:
            for start, data in pieces:
                writers.keep_log(work, task.id, task.status.run, start, data, lease)

        await report(task_decide.begun(task), more)
        await driver.remove(handle_of(task.id, task.status.run))

    # --- the end

    async def finish(self, task: Task, held: Held, view: View, work: Work, lease: Lease) -> TaskStatus:
        """Keep log and outputs, free its address, and tell who waits for it."""
        end = self._end(task, view)
        status: TaskStatus = self._final(task, end)
        if isinstance(view.sight, Ended) and task.provider is not None:
            driver = await self._fleet.tasks(task.provider, task.spec.on)
            for start, data in () if view.sight.silent else await self._log(driver, task):
                writers.keep_log(work, task.id, status.run, start, data, lease)
            if task.spec.outputs:
                status = await self._keep_outputs(driver, task, status, work, lease)
        if end.usage is not None:
            writers.keep_sample(work, task.id, status.run, end.usage)
        if task.spec.interface is not None:
            writers.free_interface(work, task.id, task.name, task.spec.interface, lease)
        self._let_go(task, work, lease)
        self._tell_others(task, work, _patience(held.whole if task.spec.parent else None))
        return status

    def _end(self, task: Task, view: View) -> Ended:
        now, status = self._clock.now(), task.status
        if isinstance(view.sight, Ended):
            return view.sight
        if status.how is not None:
            return Ended(now, status.how, message=status.message)
        if status.began_at is not None:
            return Ended(now, End.NODE_FAILED, message="the run is gone from its host")
        return Ended(now, End.STOPPED)

    @staticmethod
    def _final(task: Task, end: Ended) -> TaskStatus:
        good = end.how is End.EXITED and end.code == 0
        return replace(
            task.status,
            job=end.job or task.status.job,
            nodes=end.nodes or task.status.nodes,
            units=end.units,
            began_at=end.since or task.status.began_at,
            ended_at=end.at,
            estimate=None,
            how=end.how,
            code=end.code,
            message="" if good else task_decide.told(end),
            usage=end.usage,
            healthy=None,
            doing="",
        )

    def _tell_others(self, task: Task, work: Work, patience: float = 0) -> None:
        now = self._clock.now()
        writers.wake_dependents(work, task.id, now)
        writers.wake_waiting(work, now, amounts_placed(task.spec).cores)
        if task.parent:
            writers.wake(work, task.parent, now + patience)

    async def _log(self, driver: TaskDriver, task: Task) -> list[tuple[int, bytes]]:
        """The newest part of what the run said, in pieces."""
        handle = handle_of(task.id, task.status.run)
        pieces: list[tuple[int, bytes]] = []
        size = after = 0
        try:
            while (piece := await driver.log(handle, after, PIECE)).data:
                pieces.append((piece.start, piece.data))
                size, after = size + len(piece.data), piece.end
                while size - len(pieces[0][1]) > LOG_KEPT:
                    size -= len(pieces.pop(0)[1])
        except HostUnreachable:
            raise
        except DriverError as error:
            log.warning("log was not kept", task=task.id, error=error.public)
        return pieces

    async def _keep_outputs(
        self, driver: TaskDriver, task: Task, status: TaskStatus, work: Work, lease: Lease
    ) -> TaskStatus:
        handle = handle_of(task.id, task.status.run)
        try:
            digest, size = await self._blobs.receive(driver.outputs(handle, task.spec.outputs), limit=OUTPUTS_LIMIT)
        except HostUnreachable:
            raise
        except Exception as error:
            log.warning("outputs were not kept", task=task.id, error=str(error))
            return replace(status, message=f"{status.message}; outputs were not kept: {error}".lstrip("; "))
        writers.own_blob(work, task.project, digest, size, self._clock.now(), lease)
        writers.use_blob(work, task.project, digest, task.id, f"outputs.{status.run}", lease)
        return replace(status, artifacts=(Artifact(OUTPUTS, digest, size),))

    def cleared(self, task: Task, held: Held) -> None:
        if held.claim is None:
            return
        clearing = asyncio.create_task(self._clear(held.claim.provider, task), name=f"clear {task.id}")
        self._clearing.add(clearing)
        clearing.add_done_callback(self._clearing.discard)

    async def _clear(self, host: str, task: Task) -> None:
        """What this misses, the search for orphans finds."""
        handle = handle_of(task.id, task.status.run)
        try:
            driver = await self._fleet.tasks(host, task.spec.on)
            await driver.remove(handle)
            self._fleet.saw(host, handle, Absent(), task.spec.on)
        except Exception as error:
            log.info("run is cleared later", handle=handle, error=str(error))

    def settled(self, task: Task, work: Work, lease: Lease) -> None:
        """Also the end of one that never began, and of an array or gang."""
        if task.phase in OVER:
            self._let_go(task, work, lease)

    def changed(self, before: Task, task: Task, work: Work, lease: Lease) -> bool:
        """An endpoint minds whether its replica has a place, runs and is well. Parts of arrays tell their end only."""
        if not task.parent or task.spec.parent or _looks(before) == _looks(task):
            return False
        writers.wake(work, task.parent, self._clock.now())
        return True

    @staticmethod
    def _let_go(task: Task, work: Work, lease: Lease) -> None:
        """It needs its volumes no more; those of a part are held by its whole."""
        if task.spec.volumes and not task.spec.parent:
            volumes = [mount.volume for mount in task.spec.volumes]
            writers.let_go_of_volumes(work, task.id, task.generation, volumes, lease)

    def leave(self, task: Task, work: Work, lease: Lease) -> None:
        writers.forget(work, task.id, lease)
        self._tell_others(task, work)


def _in_its_whole(task: Task, held: Held) -> View:
    """What the array or gang that a task is a part of means for it."""
    whole = held.whole
    if not task.spec.parent:
        return View()
    if whole is None or whole.deleting or whole.spec.stopped or whole.status.how is not None:
        return View(ending=True)
    if whole.spec.replicas > 1:
        return View(gate=Gate("waits for its gang"))
    admitted = whole.spec.indices[: whole.status.admitted]
    turn = bool(admitted) and task.spec.index <= admitted[-1]
    return View(gate=Gate("" if turn else "waits for its turn"))


def _looks(task: Task) -> tuple[object, ...]:
    """What of it an endpoint minds."""
    told = tuple((c.kind, c.ok, c.message) for c in task.conditions if c.kind in ("Placed", "Reachable"))
    return task.phase, task.provider, task.status.run, task.status.healthy, task_decide.is_unwell(task), told


def _patience(whole: Task | None) -> float:
    """Seconds after which the whole of a part that is over looks at all its parts: the sooner the fewer there are, and
    soon where the last of them are at work."""
    if whole is None:
        return 0
    count = len(whole.spec.indices)
    return count / HEARS if whole.status.admitted < count else min(0.1, count / HEARS)


class _Progress:
    """Tells how far a start is, at most once a second."""

    def __init__(self, status: TaskStatus, report: Report) -> None:
        self._status, self._report = status, report
        self._last = time.monotonic()

    async def tell(self, share: float, doing: str) -> None:
        if time.monotonic() - self._last >= REPORT_EVERY:
            self._last = time.monotonic()
            await self._report(replace(self._status, progress=share, doing=doing))
