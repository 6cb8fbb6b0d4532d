"""What a task needs next. Pure: a wish, a view and the time in; a decision out.

A single task (or one part of an array or gang) claims, starts, is watched, and finishes. The whole of an array or gang
holds nothing itself: it gives its parts their turn, and is over when they are. On stacks that run arrays themselves
there are no parts, and the whole is a single run with units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from usina.core.capacity import FOLDERS, GIVEN, Claim, DeviceRequest, Gang, Needs, has_tool, runs
from usina.core.lifecycle import (
    Admit,
    Again,
    Answer,
    Decision,
    EndParts,
    Finish,
    Forget,
    Place,
    PlaceTogether,
    Remove,
    Start,
    Stop,
    pause,
)
from usina.core.machine import Absent, Restart, Unreachable
from usina.core.resource import Phase, Resource
from usina.core.task import End, Ended, Network, Queued, Running, Sight, TaskSpec, TaskStatus
from usina.core.units import Instant

Task = Resource[TaskSpec, TaskStatus]

_REACHES = {Network.OUTBOUND: "task:outbound", Network.HOST: "task:host-network", Network.PROJECT: "task:network"}

LOOK_AGAIN = 5.0  # seconds between looks at a stack that does not answer
SLACK = 30.0  # seconds that a stack may be late in ending a run at its time limit, before it is told to
ASKING = 240  # parts of one whole that ask for their places at a time
LINE = 16  # that at least stand in line where there was no room for more
SOON = 0.1  # seconds until more of them may
_BEFORE = frozenset({Phase.PENDING, Phase.QUEUED, Phase.BUILDING})
OVER = frozenset({Phase.SUCCEEDED, Phase.FAILED, Phase.STOPPED})


@dataclass(frozen=True, slots=True)
class Gate:
    """What a task waits for before it may begin: nothing, something, or something that will never come."""

    waits_for: str = ""
    hopeless: str = ""
    host: str | None = None  # the only one on which it may
    unheard: bool = False  # nobody wakes it when what it waits for has come

    @property
    def holds(self) -> bool:
        return bool(self.waits_for or self.hopeless)


class Part(NamedTuple):
    """One element of an array or gang, as its whole sees it; in order of index."""

    id: str
    phase: Phase
    placed: bool = False
    settled: bool = True
    refused: bool = False  # there was no place for it when it asked last

    @property
    def over(self) -> bool:
        return self.phase in OVER and self.settled


_NOTHING = Absent()


@dataclass(frozen=True, slots=True)
class View:
    """How a task stands. `sight` is of its current run; `parts` are given for the whole of an array or gang."""

    sight: Sight = _NOTHING
    gate: Gate = Gate()
    parts: tuple[Part, ...] | None = None
    ending: bool = False  # the whole that it is a part of is over, or is to end
    idle_since: Instant | None = None
    well: bool | None = None  # its health, if it was asked just now


def needs_of(task: Task, now: Instant) -> Needs:
    """The capacity that a task, or each part of it, asks for. A stack with a queue of its own is asked for all."""
    spec = task.spec
    units = spec.replicas if spec.parent == "" else 1
    traits = {runs(spec.on), *spec.traits}
    if spec.network is not Network.NONE:
        traits.add(_REACHES[spec.network])
    if spec.volumes:
        traits.add(FOLDERS)
    if spec.tool:
        traits.add(has_tool(spec.tool))
    if spec.machine:  # which has claimed what its tasks use
        units, traits = 0, {runs(spec.on)}
    return Needs(
        cores=spec.cores * units,
        memory=spec.memory * units,
        disk=spec.disk * units,
        devices=tuple(_times(request, units) for request in spec.devices),
        traits=frozenset(traits),
        host=spec.host,
        tenant=task.tenant,
        priority=spec.priority,
        preemptible=spec.preemptible,
        begins=now,
        ends=now + spec.time_limit if spec.time_limit else float("inf"),
    )


def gang_of(task: Task, now: Instant, host: str | None = None) -> Gang:
    """The parts of a gang, as placement takes them, on `host` if that is given. A network of a project is one on each
    host: on it, a gang stays together."""
    alone = replace(task, spec=replace(task.spec, replicas=1))
    arrange = "same" if task.spec.network is Network.PROJECT else "pack"
    needs = needs_of(alone, now)
    return Gang(replace(needs, host=host or needs.host), task.spec.replicas, arrange=arrange)


def _times(request: DeviceRequest, units: int) -> DeviceRequest:
    return replace(request, count=request.count * units, traits=request.traits | {GIVEN})


def begun(task: Task) -> TaskStatus:
    """The status with which the next run of a wish begins: nothing is known of it yet."""
    status = task.status
    anew = status.run == 0 or task.spec.reruns > status.reruns
    return TaskStatus(
        run=status.run + 1,
        reruns=task.spec.reruns,
        failures=0 if anew else status.failures + 1,
        admitted=status.admitted,
    )


def decide(task: Task, claim: Claim | None, view: View, now: Instant) -> Decision:
    """The next steps of `task`, which holds `claim` and stands like `view`."""
    if view.parts is not None:
        return _whole(task, view.parts, view.gate, now)
    if claim is None:
        return _unplaced(task, view, now)
    match view.sight:
        case Unreachable(reason):
            answer = Answer("Reachable", False, "host-unreachable", reason)
            phase = Phase.DELETING if task.deleting else Phase.UNREACHABLE
            return Decision(phase, due=now + LOOK_AGAIN, answers=(answer,))
        case _ if task.deleting:
            return Decision(Phase.DELETING, steps=(Remove(), Forget()))
        case Absent():
            return _absent(task, view, now)
        case Ended() as end:
            return _ended(task, view, end, now)
        case Queued() | Running() if _unwanted(task, view):
            return Decision(Phase.STOPPING, steps=(Stop(task.spec.grace),))
        case Queued(reason):
            answer = Answer("Started", False, "queued", reason)
            return Decision(Phase.QUEUED, settled=True, answers=(_REACHED, answer))
        case Running(since):
            return _running(task, view, since, now)


_REACHED = Answer("Reachable", True, "answers")


def _unwanted(task: Task, view: View) -> bool:
    return task.spec.stopped or view.ending


def _unplaced(task: Task, view: View, now: Instant) -> Decision:
    if task.deleting:
        return Decision(Phase.DELETING, steps=(Forget(),))
    status = task.status
    if status.run > 0 and task.spec.reruns <= status.reruns:
        return Decision(task.phase, settled=True)  # it is over; what changed is not what it does
    if _unwanted(task, view):
        return Decision(Phase.STOPPED, settled=True, answers=(Answer("Finished", True, "never-started"),))
    if view.gate.hopeless:
        answer = Answer("Finished", False, "dependency-failed", view.gate.hopeless)
        return Decision(Phase.FAILED, settled=True, answers=(answer,))
    if view.gate.waits_for:
        answer = Answer("Started", False, "waiting", view.gate.waits_for)
        due = now + _patience(now - task.created_at) if view.gate.unheard else None
        return Decision(Phase.PENDING, due=due, answers=(answer,))
    needs = needs_of(task, now)
    return Decision(Phase.PENDING, steps=(Place(replace(needs, host=view.gate.host or needs.host)),))


def _patience(waited: float) -> float:
    """Seconds until it looks again: a machine or volume that was ordered just now is soon there."""
    return min(15.0, max(1.0, waited / 20))


def _absent(task: Task, view: View, now: Instant) -> Decision:
    if task.status.how is not None:  # it could not be begun
        return Decision(task.phase, steps=(Finish(Phase.FAILED),))
    if task.status.began_at is not None:  # it was there, and nobody here took it away
        return _ended(task, view, Ended(now, End.NODE_FAILED, message="the run is gone from its host"), now)
    if _unwanted(task, view):
        return Decision(Phase.STOPPING, steps=(Finish(Phase.STOPPED),))
    return Decision(Phase.BUILDING, steps=(Start(),))


def _running(task: Task, view: View, since: Instant, now: Instant) -> Decision:
    spec = task.spec
    limits = []
    if spec.time_limit:
        limits.append(since + spec.time_limit + spec.grace + SLACK)
    if spec.idle_limit and view.idle_since is not None:
        limits.append(view.idle_since + spec.idle_limit)
    if (limits and min(limits) <= now) or (is_unwell(task) and spec.restart is not Restart.NEVER):
        return Decision(Phase.STOPPING, steps=(Stop(spec.grace),))
    answers: tuple[Answer, ...] = (_REACHED, Answer("Started", True, "running"))
    if spec.health is not None:
        healthy, unwell = health_after(task, view, since, now)
        again = unwell >= spec.health.failures and spec.restart is not Restart.NEVER
        limits.append(now if again else now + asks_every(task, healthy, now))
        answers = (*answers, _healthy(unwell))
    return Decision(Phase.RUNNING, settled=True, due=min(limits, default=None), answers=answers)


SOONEST = 0.2  # seconds between two questions how a task is that has just begun


def asks_every(task: Task, healthy: bool | None, now: Instant) -> float:
    """Seconds between two questions how it is. One that is coming up is asked often at first, so that it is known to
    be well soon after it is."""
    health = task.spec.health
    if health is None or healthy:
        return health.every if health is not None else 0.0
    began = task.status.began_at if task.status.began_at is not None else now
    return min(health.every, max(SOONEST, (now - began) / 8))


def _healthy(unwell: int) -> Answer:
    if not unwell:
        return Answer("Healthy", True, "answers-well")
    return Answer("Healthy", False, "unwell", f"{unwell} answers in a row were not well")


def is_unwell(task: Task) -> bool:
    """Whether it has not been well for as often as its health check allows."""
    health = task.spec.health
    return health is not None and task.status.unwell >= health.failures


def health_after(task: Task, view: View, since: Instant, now: Instant) -> tuple[bool | None, int]:
    """(healthy, answers in a row that were not well) with the answer in `view`, if there is one."""
    health, status = task.spec.health, task.status
    if health is None or view.well is None:
        return status.healthy, status.unwell
    if view.well:
        return True, 0
    if now - since < health.patience and not status.healthy:
        return status.healthy, 0  # it is still coming up
    unwell = status.unwell + 1
    return unwell < health.failures and status.healthy, unwell


def _ended(task: Task, view: View, end: Ended, now: Instant) -> Decision:
    if wants_again(task, view, end):
        due = end.at + pause(task.status.failures + 1)
        if now < due:
            answer = Answer("Finished", False, end.how.value, f"{told(end)}; it is started again")
            return Decision(Phase.STARTING, due=due, answers=(answer,))
        return Decision(Phase.STARTING, steps=(Again(),))
    unwell = end.how is End.STOPPED and is_unwell(task) and not _unwanted(task, view)
    return Decision(task.phase, steps=(Finish(Phase.FAILED if unwell else phase_of(end)),))


def wants_again(task: Task, view: View, end: Ended) -> bool:
    """Whether the restart policy asks for another run."""
    spec = task.spec
    if _unwanted(task, view) or end.how is End.CANCELLED:
        return False
    if end.how is End.STOPPED and not is_unwell(task):
        return False
    if spec.restart is Restart.ALWAYS:
        return True
    failed = phase_of(end) is not Phase.SUCCEEDED
    return spec.restart is Restart.ON_FAILURE and failed and task.status.failures < spec.retries


def phase_of(end: Ended) -> Phase:
    """What a task is once its last run has ended so."""
    if end.how is End.EXITED:
        return Phase.SUCCEEDED if end.code == 0 else Phase.FAILED
    return Phase.STOPPED if end.how is End.STOPPED else Phase.FAILED


def told(end: Ended) -> str:
    """How a run ended, in one sentence."""
    if end.message:
        return end.message
    if end.how is End.EXITED:
        return f"exit code {end.code}"
    return _TOLD[end.how]


_TOLD = {
    End.TIME_LIMIT: "its time limit was over",
    End.MEMORY: "it used more memory than it asked for",
    End.STOPPED: "stopped",
    End.CANCELLED: "cancelled on its stack, not by Usina",
    End.NODE_FAILED: "what it ran on failed",
    End.NOT_STARTED: "it could not be started",
}


# --- arrays and gangs


def _whole(task: Task, parts: Sequence[Part], gate: Gate, now: Instant) -> Decision:
    if task.deleting:  # its parts were asked to go with it; the last one wakes it
        return Decision(Phase.DELETING, steps=() if parts else (Forget(),))
    if all(part.over for part in parts):
        return _all_over(task, parts)
    gang = task.spec.replicas > 1
    failed = [part for part in parts if part.over and part.phase is not Phase.SUCCEEDED]
    left = tuple(part.id for part in parts if not part.over)
    if (task.spec.stopped or (gang and failed)) and task.status.how is None:
        return Decision(Phase.STOPPING, steps=(EndParts(left),))
    if task.status.how is not None:
        return Decision(Phase.STOPPING)
    if gate.hopeless and not task.status.admitted:
        return Decision(Phase.STOPPING, steps=(EndParts(left),))
    if gate.waits_for and not task.status.admitted:
        due = now + _patience(now - task.created_at) if gate.unheard else None
        return Decision(Phase.PENDING, due=due, answers=(Answer("Started", False, "waiting", gate.waits_for),))
    if gang and not all(part.placed or part.over for part in parts):
        return Decision(task.phase, steps=(PlaceTogether(tuple(part.id for part in parts), gate.host),))
    return _turns(task, parts, now)


def _turns(task: Task, parts: Sequence[Part], now: Instant) -> Decision:
    """As many parts at work as may be, and only some of them asking for their places at a time. Once there was no room
    for all, twice as many as run stand in line."""
    admitted = task.status.admitted
    at_work = [part for part in parts[:admitted] if not part.over]
    room = (task.spec.at_once or len(parts)) - len(at_work)
    unplaced = sum(not part.placed for part in at_work)
    in_line = any(task.status.in_line or part.refused for part in at_work if not part.placed)
    asking = (min(ASKING, max(LINE, 2 * (len(at_work) - unplaced))) if in_line else ASKING) - unplaced
    if min(room, asking) > 0 and admitted < len(parts):
        some = parts[admitted : admitted + min(room, asking)]
        return Decision(task.phase, steps=(Admit(tuple(part.id for part in some), in_line),))
    begun = any(part.phase not in _BEFORE for part in parts)
    more = admitted < len(parts) and room > 0 and not in_line
    due = now + SOON if more else None if begun else now + 1  # parts wake it at their end, not when they begin
    return Decision(Phase.RUNNING if begun else Phase.PENDING, settled=True, due=due)


def _all_over(task: Task, parts: Sequence[Part]) -> Decision:
    failed = sum(part.phase is Phase.FAILED for part in parts)
    stopped = sum(part.phase is Phase.STOPPED for part in parts)
    if failed:
        answer = Answer("Finished", False, "parts-failed", f"{failed} of {len(parts)} failed")
        return Decision(Phase.FAILED, settled=True, answers=(answer,))
    if stopped:
        answer = Answer("Finished", True, "stopped", f"{stopped} of {len(parts)} were stopped")
        return Decision(Phase.STOPPED, settled=True, answers=(answer,))
    return Decision(Phase.SUCCEEDED, settled=True, answers=(Answer("Finished", True, "all-succeeded"),))
