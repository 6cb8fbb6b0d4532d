"""What an endpoint needs next. Pure: a wish, a view of its replicas and their load, and the time in; a decision out.

An endpoint holds nothing itself: its replicas are tasks, which have places and quota of their own. One step at a time:
how many replicas there shall be (`endpoint_scale`); what has failed is counted and replaced, after a pause; a new
variant is brought up beside the old one, which leaves as the new one becomes ready, and so are others for those on a
host that is being drained; what leaves is drained first. A
variant on trial has its share of the replicas, at least one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import NamedTuple

from usina.core import endpoint_scale
from usina.core.endpoint import EndpointSpec, EndpointStatus, Load, Recipe, Replica, ReplicaState, Variant
from usina.core.lifecycle import (
    AddReplicas,
    Answer,
    CountFailures,
    Decision,
    DrainReplicas,
    DropReplicas,
    Forget,
    Scale,
    Step,
    pause,
)
from usina.core.resource import Phase, Resource
from usina.core.task_decide import OVER
from usina.core.units import Instant

Endpoint = Resource[EndpointSpec, EndpointStatus]

HEARD = 3.0  # seconds until every gateway has heard that a replica drains, and has told what it has in flight there
LOST = 60.0  # seconds that the host of a replica may be silent, before another is made elsewhere
STEADY = 60.0  # seconds that a replica must be ready, until earlier failures are forgotten
GIVE_UP = 5  # failures in a row, with nothing ready, after which an endpoint is called failed; it tries on all the same
RETRY = 10.0  # seconds after which what a quota has refused is tried again
PARALLEL = 4  # replicas of a new variant that come up at a time, beside those of the old one


class Instance(NamedTuple):
    """A replica as its task shows it; in order of age, the oldest first."""

    id: str
    mark: str  # of the recipe it was made by
    variant: Variant
    phase: Phase = Phase.PENDING
    healthy: bool = False  # it runs, and its last answer was well
    unwell: bool = False  # it runs, and has not answered well for too long
    leaving: bool = False  # its task is being deleted
    trouble: str = ""  # why it has no place, or why it ended
    provider: str = ""
    stack: str = ""
    handle: str = ""
    port: int = 0
    silent_since: Instant = 0.0  # its host; 0: it answers
    evicted: bool = False  # its host is being drained
    adapters: tuple[str, ...] = ()

    @property
    def over(self) -> bool:
        return self.phase in OVER


_NO_LOAD = Load()


@dataclass(frozen=True, slots=True)
class View:
    instances: tuple[Instance, ...] = ()
    load: Load = _NO_LOAD


def decide(endpoint: Endpoint, view: View, now: Instant) -> Decision:
    if endpoint.deleting:
        return _leaving(view)
    if endpoint.spec.recipe is None:
        return Decision(Phase.READY, settled=True, answers=(_SCALED,))
    standing = _Standing(endpoint, view, now)
    step = (
        standing.failures()
        or standing.scaling()
        or standing.removals()
        or standing.additions()
        or standing.surplus()
        or standing.outdated()
    )
    if step is not None:
        return Decision(standing.phase, steps=(step,))
    return Decision(
        standing.phase,
        settled=standing.settled,
        due=standing.look_again(),
        answers=(standing.scaled(), standing.well()),
    )


_SCALED = Answer("Scaled", True, "as-wanted")


def _leaving(view: View) -> Decision:
    """Its replicas go with it; the last one wakes it."""
    staying = tuple(one.id for one in view.instances if not one.leaving)
    if staying:
        return Decision(Phase.DELETING, steps=(DropReplicas(staying),))
    return Decision(Phase.DELETING, steps=() if view.instances else (Forget(),))


def shares(spec: EndpointSpec, wanted: int) -> tuple[int, int]:
    """(replicas of the variant, replicas of the one on trial) of so many: by its weight, and at least one of each."""
    if spec.canary is None or spec.canary.weight <= 0 or not wanted:
        return wanted, 0
    trial = min(wanted, max(1, ceil(wanted * spec.canary.weight)))
    least = 0 if spec.canary.weight >= 1 else 1
    return max(least, wanted - trial), trial


class _Standing:
    """How an endpoint stands at one moment; each method is a row of the table, and answers a step or nothing."""

    def __init__(self, endpoint: Endpoint, view: View, now: Instant) -> None:
        spec = endpoint.spec
        assert spec.recipe is not None
        self.endpoint, self.spec, self.view, self.now = endpoint, spec, view, now
        self.status = after(endpoint, view, now)
        self.states = {one.id: one for one in self.status.replicas}
        self.live = [one for one in view.instances if one.id in self.states]
        self.main, self.trial = shares(spec, self.status.wanted)
        self.marks = {spec.recipe.mark: self.main}
        if spec.canary is not None and spec.canary.recipe is not None:
            self.marks.setdefault(spec.canary.recipe.mark, self.trial)

    # --- who is where

    def _is(self, one: Instance, state: ReplicaState) -> bool:
        return self.states[one.id].state is state

    def _of(self, mark: str) -> list[Instance]:
        """Replicas of a recipe that are to stay."""
        return [one for one in self._staying() if one.mark == mark and not one.evicted]

    def _staying(self) -> list[Instance]:
        return [one for one in self.live if not self._is(one, ReplicaState.DRAINING)]

    def _ready(self, mark: str | None = None) -> list[Instance]:
        """All that are ready; with `mark`, those of a recipe that are to stay."""
        among = self.live if mark is None else self._of(mark)
        return [one for one in among if self._is(one, ReplicaState.READY)]

    def _old(self) -> list[Instance]:
        """Replicas of no recipe that is wished for any more, or where none shall be any more."""
        return [one for one in self._staying() if one.mark not in self.marks or one.evicted]

    # --- the table

    def failures(self) -> Step | None:
        failed = [
            one
            for one in self.view.instances
            if not one.leaving and one.id != self.status.failed and (one.over or one.unwell or self._is_lost(one))
        ]
        if not failed:
            return None
        last = failed[-1]
        why = last.trouble or ("it did not answer well" if last.unwell else "its host does not answer")
        return CountFailures(tuple(one.id for one in failed), why)

    def _is_lost(self, one: Instance) -> bool:
        return one.silent_since > 0 and self.now - one.silent_since >= LOST

    def scaling(self) -> Step | None:
        number, why = endpoint_scale.wanted(self.spec, self.status, self.view.load, len(self._ready()), self.now)
        return Scale(number, why or "as was ordered") if number != self.status.wanted else None

    def removals(self) -> Step | None:
        """What has been drained."""
        done = [one.id for one in self.live if self._is(one, ReplicaState.DRAINING) and self._is_empty(one)]
        return DropReplicas(tuple(done)) if done else None

    def _is_empty(self, one: Instance) -> bool:
        drained = self.now - self.states[one.id].since
        idle = not self.view.load.by_replica.get(one.id, 0)
        return not one.healthy or drained >= self.spec.drain or (idle and drained >= HEARD)

    def additions(self) -> Step | None:
        if self.now < self._not_before():
            return None
        for mark, number in self.marks.items():
            has = self._of(mark)
            coming = len([one for one in has if not self._is(one, ReplicaState.READY)])
            room = max(0, PARALLEL - coming) if self._old() else number
            if (more := min(number - len(has), room)) > 0:
                return AddReplicas(more, canary=self.spec.recipe is None or mark != self.spec.recipe.mark)
        return None

    def _not_before(self) -> Instant:
        """When replicas may be added again, after failures and refusals."""
        after_failure = self.status.failed_at + pause(self.status.failures) if self.status.failures else 0.0
        return max(after_failure, self.status.refused_at + RETRY if self.status.refusal else 0.0)

    def surplus(self) -> Step | None:
        """More than are wanted: those first that are not ready, then those with the least to do, then the newest."""
        gone: list[str] = []
        for mark, number in self.marks.items():
            has = self._of(mark)
            order = sorted(reversed(has), key=lambda one: (self._is(one, ReplicaState.READY), self._load(one)))
            gone += [one.id for one in order[: max(0, len(has) - number)]]
        return DrainReplicas(tuple(gone)) if gone else None

    def _load(self, one: Instance) -> int:
        return self.view.load.by_replica.get(one.id, 0)

    def outdated(self) -> Step | None:
        """One of the old for each of the new that is ready. Where there is no room for a new one beside them, one of
        the old makes room, unless it is the last."""
        assert self.spec.recipe is not None
        old = self._old()
        fresh, number = self._of(self.spec.recipe.mark), self.main
        ready = len(self._ready(self.spec.recipe.mark))
        idle = sum(not self._is(one, ReplicaState.READY) for one in old)
        spare = max(idle, len(old) - max(0, number - ready))
        if spare <= 0 and any(one.trouble and not one.provider for one in fresh):
            spare = 1 if len(old) > 1 and len(old) + ready >= number else 0
        order = sorted(reversed(old), key=lambda one: (self._is(one, ReplicaState.READY), self._load(one)))
        return DrainReplicas(tuple(one.id for one in order[:spare])) if spare > 0 else None

    # --- how it is

    @property
    def phase(self) -> Phase:
        if self._ready() or endpoint_scale.current(self.spec, self.status) == 0:
            return Phase.READY
        if self.status.failures >= GIVE_UP:
            return Phase.FAILED
        return Phase.STARTING if any(one.provider for one in self.live) else Phase.PENDING

    @property
    def settled(self) -> bool:
        """Whether its wish is fulfilled: all are ready, and of what is wished for now."""
        as_wished = all(len(self._ready(mark)) == number for mark, number in self.marks.items())
        return (as_wished and len(self.live) == sum(self.marks.values())) or self.phase is Phase.FAILED

    def scaled(self) -> Answer:
        """Whether there are as many as wanted, and if not, why."""
        if self.status.refusal:
            return Answer("Scaled", False, "quota", self.status.refusal)
        waiting = [one for one in self.live if one.trouble and not one.provider]
        if waiting:
            more = f"{len(waiting)} of {sum(self.marks.values())} replicas have no place: {waiting[0].trouble}"
            return Answer("Scaled", False, "no-room", more)
        if not self.settled and self.phase is not Phase.FAILED:
            return Answer("Scaled", True, "on-the-way")
        return Answer("Scaled", True, "scaled-to-zero" if not self.status.wanted else "as-wanted")

    def well(self) -> Answer:
        if not self.status.failures:
            return Answer("Replicas", True, "well")
        last = next((one.trouble for one in self.view.instances if one.id == self.status.failed), "")
        times = f"{self.status.failures} replica{'s' if self.status.failures > 1 else ''} failed"
        return Answer("Replicas", False, "failed", f"{times}; the last: {last}" if last else times)

    def look_again(self) -> Instant | None:
        """When time alone changes something; replicas and gateways tell all else."""
        moments = [endpoint_scale.look_again(self.spec, self.status, self.view.load)]
        if any(len(self._of(mark)) < number for mark, number in self.marks.items()):
            moments.append(max(self.now + 1.0, self._not_before()))
        for one in self.live:
            replica = self.states[one.id]
            if replica.state is ReplicaState.DRAINING:
                moments += [replica.since + HEARD, replica.since + self.spec.drain]
            elif one.silent_since:
                moments.append(one.silent_since + LOST)
            elif replica.state is ReplicaState.READY and self.status.failures:
                moments.append(replica.since + STEADY)
        coming = [moment for moment in moments if moment is not None and moment > self.now]
        return min(coming, default=None)


# --- the status


def after(endpoint: Endpoint, view: View, now: Instant) -> EndpointStatus:
    """The status after a look."""
    spec, status = endpoint.spec, endpoint.status
    if spec.recipe is None:
        return replace(status, wanted=1, replicas=(_outside(endpoint),))
    replicas = tuple(_replica(one, status, now) for one in view.instances if _stays(one, status))
    steady = any(r.state is ReplicaState.READY and now - r.since >= STEADY for r in replicas)
    needed = endpoint_scale.is_needed(spec, status, view.load)
    return replace(
        status,
        replicas=replicas,
        formula=spec.recipe.formula,
        needed_at=now if needed else status.needed_at,
        failures=0 if steady or status.tried != endpoint.generation else status.failures,
        tried=endpoint.generation,
        refusal=status.refusal if now < status.refused_at + RETRY else "",
    )


def _stays(one: Instance, status: EndpointStatus) -> bool:
    return not (one.leaving or one.over or one.unwell or one.id == status.failed)


def _outside(endpoint: Endpoint) -> Replica:
    """What an endpoint of the runtime ``external`` has for a replica: itself."""
    known = next(iter(endpoint.status.replicas), None)
    fresh = Replica(endpoint.id, ReplicaState.READY, endpoint.spec.variant, since=endpoint.updated_at)
    return known if known is not None and known.variant == fresh.variant else fresh


def _replica(one: Instance, status: EndpointStatus, now: Instant) -> Replica:
    known = next((replica for replica in status.replicas if replica.id == one.id), None)
    state = ReplicaState.READY if one.healthy else ReplicaState.STARTING
    if known is not None and known.state is ReplicaState.DRAINING:
        state = ReplicaState.DRAINING
    since = known.since if known is not None and known.state is state else now
    return Replica(one.id, state, one.variant, one.provider, one.stack, one.handle, one.port, since, one.adapters)


def draining(status: EndpointStatus, ids: Sequence[str], now: Instant) -> EndpointStatus:
    """The status in which these get nothing new."""
    replicas = tuple(
        replace(one, state=ReplicaState.DRAINING, since=now) if one.id in ids else one for one in status.replicas
    )
    return replace(status, replicas=replicas)


def failed(status: EndpointStatus, ids: Sequence[str], now: Instant) -> EndpointStatus:
    """The status in which these have failed."""
    left = tuple(one for one in status.replicas if one.id not in ids)
    return replace(status, replicas=left, failures=status.failures + len(ids), failed=ids[-1], failed_at=now)


def recipe_of(spec: EndpointSpec, canary: bool) -> Recipe | None:
    """By which the replicas of the variant, or of the one on trial, are made."""
    if not canary:
        return spec.recipe
    return spec.canary.recipe if spec.canary is not None else None
