"""The reconciler: lease what is due, look, decide, take one step at a time, record what was seen.

Every deed is idempotent on a handle chosen beforehand and every record is guarded by the lease, so this process may
die anywhere: whoever leases the row next looks again and goes on from what is really there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import structlog

from usina.core import task_decide
from usina.core.clock import Clock
from usina.core.errors import QuotaExceeded, Stale, Unavailable
from usina.core.event import Event
from usina.core.grant import Lease
from usina.core.ids import is_id
from usina.core.lifecycle import (
    Answer,
    Apply,
    AttachInterface,
    Decision,
    Define,
    Finish,
    Forget,
    Place,
    PlaceTogether,
    Rebuild,
    Step,
    pause,
)
from usina.core.machine_decide import LOOK_AGAIN
from usina.core.quota import amounts_of, amounts_placed
from usina.core.resource import AnyResource, Kind, Phase, with_condition
from usina.core.units import Instant
from usina.engine.faults import fault
from usina.engine.hand import Finisher, Hand, Held
from usina.engine.pace import Pace
from usina.engine.placer import Placer
from usina.engine.plans import NotReadyYet
from usina.placement import Refusal
from usina.ports.driver import DriverError, HostUnreachable
from usina.store.leases import TTL, Leased, Leases
from usina.store.store import Store
from usina.store.work import LeaseLost, Work

log = structlog.get_logger()

ROUNDS = 24  # looks per lease; a resource that needs more is leased again
PARALLEL = 256
IDLE = 4  # resources under way, while a new order is begun at once
POLL = 0.5  # seconds between sweeps for what no hint announced
SLOW = 0.5  # seconds after which a step is told at once
_BRINGING = (Define, Rebuild, AttachInterface)
GIVE_UP = 8  # failed tries before a wish is called failed (never for deletions)


@dataclass(slots=True)
class Job:
    """One leased resource and how it stands in memory."""

    resource: AnyResource
    held: Held
    lease: Lease
    before: Phase
    first: AnyResource  # as it was when it was leased, or told of last
    told: list[Event] = field(default_factory=list)  # steps done, not yet written


class Reconciler:
    """One per control plane. `run` it; `hint` wakes it at once."""

    def __init__(self, store: Store, leases: Leases, clock: Clock, placer: Placer, hands: Mapping[Kind, Hand]) -> None:
        self._store, self._leases, self._clock = store, leases, clock
        self._placer, self._hands = placer, hands
        self._hint = asyncio.Event()
        self._pace = Pace()
        self._running: set[asyncio.Task[None]] = set()
        self._at_work = False

    def lease(self, id: str) -> Lease | None:
        """For an order that comes while there is little to do."""
        idle = self._at_work and len(self._running) < IDLE
        return self._leases.of(id, self._clock.now() + TTL) if idle else None

    def hint(self, leased: Sequence[Leased] = ()) -> None:
        """Something was ordered. Forgetting to call it costs at most one poll; or, of what is leased, its lease."""
        self._pace.ordered()
        self._begin(leased)
        if not leased:  # else there is nothing to look for
            self._hint.set()

    async def wake(self, ids: list[str]) -> None:
        """Look at these now, or soon."""
        if not self._at_work:
            return await self._leases.wake(ids, self._clock.now())
        leased = await self._leases.take_these(ids, self._clock.now(), PARALLEL - len(self._running))
        self._begin(leased)
        if len(leased) < len(ids):
            self._hint.set()

    def _begin(self, leased: Iterable[Leased]) -> None:
        for one in leased:
            task = asyncio.create_task(self._guarded(one), name=one.resource.id)
            self._running.add(task)
            task.add_done_callback(self._finished)

    async def run(self) -> None:
        """Work until cancelled; then let what is under way finish its step and return the leases."""
        renewing = asyncio.create_task(self._renew_forever(), name="renew leases")
        self._at_work = True
        try:
            while True:
                await self._sweep()
        finally:
            self._at_work = False
            renewing.cancel()
            for task in self._running:
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)
            await asyncio.shield(self._leases.let_go())

    async def _sweep(self) -> None:
        await self._pace.turn()
        self._hint.clear()
        room = PARALLEL - len(self._running)
        leased = await self._take(room) if room > 0 else []
        self._pace.took(len(leased) if room > 0 else PARALLEL)
        if len(leased) < room:
            self._pace.rested()
        self._begin(leased)
        if not leased:
            try:
                async with asyncio.timeout(POLL):
                    await self._hint.wait()
            except TimeoutError:
                return

    async def _take(self, room: int) -> list[Leased]:
        try:
            return await self._leases.take(self._clock.now(), room)
        except Exception:
            log.exception("the database does not answer; trying again")
            await asyncio.sleep(POLL)
            return []

    def _finished(self, task: asyncio.Task[None]) -> None:
        was_full = len(self._running) >= PARALLEL
        self._running.discard(task)
        if was_full:
            self._hint.set()

    async def _renew_forever(self) -> None:
        while True:
            await asyncio.sleep(TTL / 3)
            if self._running:
                try:
                    await self._leases.renew(self._clock.now())
                except Exception:
                    log.exception("leases were not renewed")

    # --- one resource

    async def _guarded(self, leased: Leased) -> None:
        """Nothing that goes wrong with one resource may hurt another."""
        capacity = next((c for c in leased.claims if c.cores or c.memory or c.disk), None)
        if capacity is None and leased.resource.provider:
            capacity = next((c for c in leased.claims if c.provider == leased.resource.provider), None)
        resource = leased.resource
        job = Job(resource, Held(capacity, leased.claims, leased.whole), leased.lease, resource.phase, resource)
        try:
            await self._reconcile(job)
        except LeaseLost:
            log.info("lease lost", resource=job.resource.id)
        except HostUnreachable as error:
            answer = Answer("Reachable", False, "host-unreachable", error.public)
            phase = job.resource.phase if job.resource.deleting else Phase.UNREACHABLE
            await self._record(job, Decision(phase, due=self._now() + LOOK_AGAIN, answers=(answer,)))
        except NotReadyYet as error:
            answer = Answer("Working", True, "waiting", error.public)
            await self._record(job, Decision(job.resource.phase, due=self._now() + 1, answers=(answer,)))
        except DriverError as error:
            log.warning("step failed", resource=job.resource.id, error=error.public, detail=error.detail)
            await self._failed(job, error.public, lasting=error.lasting)
        except QuotaExceeded as error:
            whose = "tenant" if is_id(str(error.data.get("scope")), "tenant") else "project"
            await self._waits(job, "quota", f"the {whose}'s quota is used up; it waits until some is free")
        except (Stale, Unavailable) as error:
            await self._failed(job, error.message, lasting=False)
        except Exception as error:
            log.exception("reconciling failed", resource=job.resource.id)
            await self._failed(job, f"an internal error ({type(error).__name__})", lasting=False)

    async def _reconcile(self, job: Job) -> None:
        hand = self._hands[job.resource.kind]
        for _ in range(ROUNDS):
            seen = await hand.look(job.resource, job.held)
            decision = hand.decide(job.resource, job.held, seen, self._now())
            if not decision.steps:
                job.resource = replace(job.resource, status=hand.status(job.resource, seen))
                await self._record(job, decision)
                return
            await self._show(job, decision.phase)
            for step in decision.steps:
                if not await self._take_step(job, hand, step, seen):
                    return
        await self._record(job, Decision(job.resource.phase, due=self._now() + 1))

    async def _take_step(self, job: Job, hand: Hand, step: Step, seen: Any) -> bool:
        """Take one step; False when the lease has ended with it."""
        if isinstance(step, Forget):
            fault("before:Forget")
            await self._forget(job)
            return False
        if isinstance(step, Place):
            return await self._place(job, hand, step)
        if isinstance(step, PlaceTogether):
            return await self._place_together(job, step)
        if isinstance(step, Finish):
            await self._finish(job, hand, step, seen)
            return False
        word = type(step).__name__
        started = time.monotonic()

        async def report(status: Any, more: Callable[[Work, Lease], None] | None = None) -> None:
            changed = replace(job.resource, status=status, updated_at=self._now())
            work = self._store.work()
            work.observe(changed, job.lease, keep=True)
            if more is not None:
                more(work, job.lease)
            await work.commit()
            job.resource = changed
            if more is not None:
                self._hint.set()  # it may have woken others

        if isinstance(step, _BRINGING) and job.resource.generation > 1:
            await self._bring(job, hand)
        fault(f"before:{word}")
        await hand.do(step, job.resource, job.held, report)
        fault(f"after:{word}")
        if isinstance(step, Apply):  # what is applied is what was wished; there is nothing else to look at
            job.resource = replace(job.resource, observed=job.resource.generation)
        took = round(time.monotonic() - started, 3)
        job.told.append(self._event(job, "step", _told(step), {"step": word, "seconds": took}))
        if took > SLOW:
            await self._tell(job)
        return True

    async def _bring(self, job: Job, hand: Hand) -> None:
        """A changed wish may bring another network or image to the provider: note it first, as placing does."""
        if job.held.claim is not None:
            work = self._store.work()
            for one in hand.presences(job.resource):
                work.note_presence(job.held.claim.provider, one, job.lease)
            await work.commit()

    async def _tell(self, job: Job) -> None:
        """Write the steps told so far; quick ones wait for the next record of their resource."""
        work = self._store.work()
        self._add_told(job, work)
        await work.commit()

    @staticmethod
    def _add_told(job: Job, work: Work) -> None:
        for event in job.told:
            work.emit(event)
        job.told.clear()

    async def _place(self, job: Job, hand: Hand, step: Place) -> bool:
        presences = hand.presences(job.resource)
        fault("before:Place")
        wanted = replace(job.resource, status=hand.placing(job.resource))
        answer = await self._placer.claim(wanted, step.needs, job.held.claim, presences, job.lease)
        fault("after:Place")
        if isinstance(answer, Refusal):
            await self._refused(job, answer)
            return False
        job.resource, claim = answer
        job.held = replace(job.held, claim=claim, everywhere=(claim,))
        return True

    async def _place_together(self, job: Job, step: PlaceTogether) -> bool:
        parts = await self._store.resources.get_many(step.parts)
        if len(parts) < len(step.parts):
            raise Stale("a part is gone")
        fault("before:PlaceTogether")
        begun = [replace(parts[id], status=task_decide.begun(parts[id])) for id in step.parts]
        gang = task_decide.gang_of(job.resource, self._now(), step.host)
        presences = self._hands[job.resource.kind].presences(job.resource)
        answer = await self._placer.claim_together(job.resource, begun, gang, presences, job.lease)
        fault("after:PlaceTogether")
        if isinstance(answer, Refusal):
            await self._refused(job, answer)
            return False
        job.told.append(self._event(job, "step", _told(step), {"step": "PlaceTogether"}))
        self._hint.set()
        return True

    async def _finish(self, job: Job, hand: Hand, step: Finish, seen: Any) -> None:
        """The end of a run: what it leaves, its claim, its quota and its last phase in one commit."""
        finisher = cast(Finisher, hand)
        now = self._now()
        work = self._store.work()
        fault("before:Finish")
        status = await finisher.finish(job.resource, job.held, seen, work, job.lease)
        resource = job.resource
        good = step.phase is Phase.SUCCEEDED
        conditions = with_condition(resource.conditions, "Finished", good, step.phase.value, status.message, now)
        held, job.held = job.held, Held(None)
        job.resource = replace(
            resource,
            status=status,
            phase=step.phase,
            observed=resource.generation,
            attempts=0,
            conditions=with_condition(conditions, "Working", True, "settled", "", now),
            updated_at=now,
        )
        self._add_told(job, work)
        work.observe(job.resource, job.lease)
        work.drop_claims(resource.id, list(held.everywhere), job.lease)
        for scope in (resource.tenant, resource.project):
            work.charge(scope, amounts_placed(resource.spec).negative(), job.lease)
        text = f"is {step.phase.value}" + (f": {status.message}" if status.message else "")
        work.emit(self._event(job, step.phase.value, text, {"code": status.code} if status.code is not None else {}))
        await self._commit(work)
        fault("after:Finish")
        finisher.cleared(job.resource, held)
        self._hint.set()

    async def _show(self, job: Job, phase: Phase) -> None:
        """Let people see the phase while its steps are under way."""
        if phase is job.resource.phase:
            return
        job.resource = replace(job.resource, phase=phase, updated_at=self._now())
        work = self._store.work()
        self._add_told(job, work)
        work.observe(job.resource, job.lease, keep=True)
        work.emit(self._event(job, phase.value, f"is {phase.value}"))
        job.before = phase
        await work.commit()

    # --- records

    async def _record(self, job: Job, decision: Decision) -> None:
        """The end of a look: phase, conditions, when to look again; the lease is returned."""
        now = self._now()
        resource = job.resource
        conditions = resource.conditions
        for answer in decision.answers:
            conditions = with_condition(conditions, answer.kind, answer.ok, answer.reason, answer.message, now)
        if decision.settled:
            conditions = with_condition(conditions, "Working", True, "settled", "", now)
        work = self._store.work()
        self._add_told(job, work)
        job.resource = replace(
            resource,
            phase=decision.phase,
            conditions=conditions,
            observed=resource.generation if decision.settled else resource.observed,
            attempts=0 if decision.settled else resource.attempts,
            updated_at=now,
        )
        work.observe(job.resource, job.lease, due=decision.due)
        if decision.settled:
            self._hands[resource.kind].settled(job.resource, work, job.lease)
        woken = self._tell_change(job, work)
        if decision.settled and resource.observed != resource.generation > 1:
            work.free_given_up(resource.id, resource.generation, job.lease)
        if decision.phase is not job.before:
            bad = next((a.message for a in decision.answers if not a.ok and a.message), "")
            text = f"is {decision.phase.value}" + (f": {bad}" if bad else "")
            work.emit(self._event(job, decision.phase.value, text))
        fault("before:Record")
        await self._commit(work)
        if woken or (decision.due is not None and decision.due <= now):
            self._hint.set()
        fault("after:Record")

    def _tell_change(self, job: Job, work: Work) -> bool:
        """Whether others are woken by how it looks now."""
        before, job.first = job.first, job.resource
        return self._hands[job.resource.kind].changed(before, job.resource, work, job.lease)

    async def _refused(self, job: Job, refusal: Refusal) -> None:
        what = "cannot be placed" if job.held.claim is None else "cannot grow"  # a resize: it stays what it is
        await self._waits(job, "no-room", refusal.message, what, refusal.reasons)

    async def _waits(
        self, job: Job, reason: str, message: str, what: str = "waits", reasons: Mapping[str, int] | None = None
    ) -> None:
        """There is no place for it now: say why, once, and try again."""
        now = self._now()
        resource = job.resource
        told = next((c for c in resource.conditions if c.kind == "Placed"), None)
        work = self._store.work()
        attempts = resource.attempts + 1
        job.resource = replace(
            resource,
            attempts=attempts,
            conditions=with_condition(resource.conditions, "Placed", False, reason, message, now),
            updated_at=now,
        )
        work.observe(job.resource, job.lease, due=now + min(10.0, pause(attempts)))
        if told is None or told.message != message:
            data = {"reasons": dict(reasons)} if reasons else {}
            work.emit(self._event(job, "refused", f"{what}: {message}", data))
        woken = self._tell_change(job, work)
        await self._commit(work)
        if woken:
            self._hint.set()

    async def _failed(self, job: Job, message: str, *, lasting: bool) -> None:
        now = self._now()
        resource = job.resource
        attempts = resource.attempts + 1
        over = (lasting or attempts >= GIVE_UP) and not resource.deleting and self._hands[resource.kind].gives_up
        job.resource = replace(
            resource,
            attempts=attempts,
            phase=Phase.FAILED if over else resource.phase,
            observed=resource.generation if over else resource.observed,
            conditions=with_condition(resource.conditions, "Working", False, "step-failed", message, now),
            updated_at=now,
        )
        work = self._store.work()
        self._add_told(job, work)
        work.observe(job.resource, job.lease, due=None if over else now + pause(attempts))
        tail = "gave up" if over else f"next try in {pause(attempts):.0f} s"
        work.emit(self._event(job, "failed", f"{message} ({tail})", {"attempt": attempts}))
        await self._commit(work)

    async def _forget(self, job: Job) -> None:
        resource = job.resource
        work = self._store.work()
        self._add_told(job, work)
        work.forget(resource, job.lease)
        self._hands[resource.kind].leave(resource, work, job.lease)
        work.drop_claims(resource.id, list(job.held.everywhere), job.lease)
        amounts = amounts_of(resource.kind, resource.spec)
        if job.held.everywhere:
            amounts = amounts.plus(amounts_placed(resource.spec))
        for scope in (resource.tenant, resource.project):
            work.charge(scope, amounts.negative(), job.lease)
        work.emit(self._event(job, "deleted", "is gone; everything it held is free"))
        await self._commit(work)
        fault("after:Forget")
        self._hint.set()

    async def _commit(self, work: Work) -> None:
        try:
            await work.commit()
        except LeaseLost:
            log.info("lease lost at the record")

    def _event(self, job: Job, verb: str, text: str, data: Mapping[str, Any] | None = None) -> Event:
        resource = job.resource
        return Event(
            f"{resource.kind.value}.{verb}",
            resource.id,
            self._now(),
            text,
            related=resource.provider,
            tenant=resource.tenant,
            project=resource.project,
            actor="engine",
            cause=f"generation {resource.generation}",
            data=data or {},
        )

    def _now(self) -> Instant:
        return self._clock.now()


def _told(step: Step) -> str:
    """A step in the words of a story: ``Start``, ``AttachVolume vol-…``."""
    values = [getattr(step, name) for name in step.__dataclass_fields__ if name not in ("grace", "token", "host")]
    told = [f"{len(value)} parts" if isinstance(value, tuple) else str(value) for value in values]
    return " ".join([type(step).__name__, *told])
