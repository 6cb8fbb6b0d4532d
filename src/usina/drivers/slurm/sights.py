"""What Slurm says of a run → how it looks to Usina. Pure: records, exit notes and our own note in, a sight out.

Slurm knows whole seconds and a job's state; the run's own exit notes (see `script`) know fractions of a second, and
that it was Usina's watch, not Slurm's, that ended a run at its time limit. Where both speak, Slurm's state says whether
it is over, and the exit note how.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from usina.core.task import End, Ended, Queued, Running, Sight, Unit, Usage
from usina.core.units import Instant
from usina.drivers.slurm.notes import Note
from usina.drivers.slurm.records import JobRecord, expand

_STATES: Final = {
    "TIMEOUT": (End.TIME_LIMIT, ""),
    "DEADLINE": (End.TIME_LIMIT, "its deadline came"),
    "OUT_OF_MEMORY": (End.MEMORY, ""),
    "NODE_FAIL": (End.NODE_FAILED, "a node of it failed"),
    "BOOT_FAIL": (End.NODE_FAILED, "a node for it did not boot"),
    "RECONFIG_FAIL": (End.NODE_FAILED, "a node for it could not be made ready"),
    "PREEMPTED": (End.CANCELLED, "Slurm preempted it for another job"),
    "REVOKED": (End.CANCELLED, "Slurm revoked it, for another cluster has it"),
    "LAUNCH_FAILED": (End.NOT_STARTED, "Slurm could not launch it"),
}

_REASONS: Final = {
    "": "",
    "None": "",
    "Resources": "waits for free resources",
    "Priority": "others with a higher priority go first",
    "Dependency": "waits for another job",
    "DependencyNeverSatisfied": "waits for a job that did not end as it must",
    "JobHeldUser": "held by its user",
    "JobHeldAdmin": "held by an administrator",
    "BeginTime": "waits for its begin time",
    "Reservation": "waits for its reservation",
    "JobArrayTaskLimit": "so many of its array run already",
    "ReqNodeNotAvail": "a node that it needs is down, drained or reserved",
    "PartitionDown": "its partition is down",
    "PartitionInactive": "its partition is inactive",
    "PartitionTimeLimit": "its time limit is above the partition's",
    "PartitionNodeLimit": "it wants more nodes than the partition allows",
    "Licenses": "waits for a licence",
    "BadConstraints": "no node has the features that it wants",
}


@dataclass(frozen=True, slots=True)
class ExitNote:
    """What a unit's own script wrote when it ended."""

    how: str  # "exited" | "asked" | "late" | "not-started"
    code: int
    began: Instant
    ended: Instant
    cpu: float = 0.0
    restarts: int = 0  # how often Slurm had put its job back into the queue by then


def exit_note(text: str) -> ExitNote | None:
    """``exited 0 1700000000.1 1700000002.5 0``, then two lines of `times`. None where it is broken."""
    first, _, rest = text.partition("\n")
    match = re.fullmatch(r"(exited|asked|late|not-started) (\d{1,3}) (\d+[.,]?\d*) (\d+[.,]?\d*) (\d+)", first.strip())
    if not match:
        return None
    began, ended = (float(word.replace(",", ".")) for word in match.groups()[2:4])
    spent = (60 * int(m) + float(s.replace(",", ".")) for m, s in re.findall(r"(\d+)m([\d.,]+)s", rest))
    return ExitNote(match[1], int(match[2]), began, ended, sum(spent), int(match[5]))


def exit_code(status: int) -> int:
    """An exit status as `wait` gives it → exit code, 128 + signal for one that was killed."""
    signal = status & 0x7F
    return 128 + signal if signal else (status >> 8) & 0xFF


def reason_in_words(reason: str) -> str:
    words = _REASONS.get(reason, f"Slurm says: {reason}" if reason else "")
    return f"{words} ({reason})" if words and reason in _REASONS else words


def living(note: Note, records: Sequence[JobRecord]) -> Queued | Running:
    """A run that Slurm still has something to do for."""
    units = units_of(note, records)
    job = str(note.job or records[0].array or records[0].id) if note.job or records else ""
    running = [record for record in records if record.phase == "running"]
    if running or any(unit.state == "ended" for unit in units):
        since = note.since or min(
            (record.start for record in records if record.start and record.nodes), default=note.at
        )
        nodes = tuple(dict.fromkeys(node for record in running for node in expand(record.nodes)))
        return Running(since, job, nodes, units)
    waiting = [record for record in records if record.phase == "queued"]
    reason = next((reason_in_words(record.reason) for record in waiting), "")
    estimates = [record.start for record in waiting if record.start > 0]
    return Queued(reason, job, min(estimates, default=None), units)


def units_of(note: Note, records: Sequence[JobRecord]) -> tuple[Unit, ...]:
    """The elements of an array, or the ranks of a gang that is over or running as one."""
    if note.kind == "gang":
        state = records[0].phase if records else "ended"
        since = records[0].start if records and state == "running" else 0.0
        return tuple(Unit(rank, state, since=since) for rank in note.indices)
    if note.kind != "array":
        return ()
    one = {record.index: record for record in records if record.index is not None}
    return tuple(_element(note, index, one.get(index)) for index in note.indices)


def _element(note: Note, index: int, record: JobRecord | None) -> Unit:
    if index in note.done:
        return note.done[index]
    if record is None or record.phase == "queued":
        return Unit(index, "queued")
    return Unit(index, "running", node=next(iter(expand(record.nodes)), ""), since=record.start)


def ended_unit(note: Note, index: int, record: JobRecord, exit_: ExitNote | None) -> Unit:
    """An element of an array that is over."""
    end = ended(note, record, exit_)
    return Unit(index, "ended", end.code, end.how, next(iter(end.nodes), ""), end.since, end.at)


def ended(note: Note, record: JobRecord, exit_: ExitNote | None) -> Ended:
    """How one job, or one element of an array, ended."""
    if exit_ and record.restarts is not None and exit_.restarts != record.restarts:
        exit_ = None  # it is of an earlier attempt; this one never came to say anything
    how, message = _how(note, record, exit_)
    began = record.start if record.nodes else 0.0
    since = exit_.began if exit_ else began
    code = exit_.code if exit_ else _code(record) if since else None
    if how is End.TIME_LIMIT or how is End.MEMORY:
        code = code or (exit_code(record.status) if record.status else 128 + 9)
    at = exit_.ended if exit_ else record.end or record.start
    return Ended(at, how, code, message, since, None, record.said_as, expand(record.nodes))


def ended_array(note: Note, units: Sequence[Unit], job: str) -> Ended:
    """An array whose elements are all over: as bad as the first that is not well."""
    bad = next((unit for unit in units if unit.how is not End.EXITED or unit.code), None)
    how = (bad.how if bad else None) or End.EXITED
    began = [unit.since for unit in units if unit.since]
    nodes = tuple(dict.fromkeys(unit.node for unit in units if unit.node))
    code = bad.code if bad else 0
    at = max((unit.at for unit in units), default=note.at)
    return Ended(at, how, code, "", min(began, default=0.0), None, job, nodes, tuple(units))


def ended_gang(note: Note, record: JobRecord, exits: Mapping[int, ExitNote]) -> Ended:
    """A gang that is over; each rank's own exit note says how that one ended."""
    late = any(exit_.how == "late" for exit_ in exits.values())
    first = min((e for e in exits.values() if e.code and e.how != "asked"), key=lambda e: e.ended, default=None)
    whole = ended(note, record, None)
    if late:
        whole = replace(whole, how=End.TIME_LIMIT)
    elif note.stopping and whole.how is End.EXITED and (whole.code or any(e.how == "asked" for e in exits.values())):
        whole = replace(whole, how=End.STOPPED)
    elif first and whole.how is End.EXITED:  # the others were ended because of it, with codes that say only that
        never = first.how == "not-started"
        how, message = (End.NOT_STARTED, _missing(first.code)) if never else (End.EXITED, "")
        whole = replace(whole, how=how, code=first.code, message=message)
    began = [exit_.began for exit_ in exits.values()]
    at = max([exit_.ended for exit_ in exits.values()], default=whole.at)
    units = tuple(_rank(rank, exits.get(rank), whole) for rank in note.indices)
    return replace(whole, since=min(began, default=whole.since), at=at if began else whole.at, units=units)


def _rank(rank: int, exit_: ExitNote | None, whole: Ended) -> Unit:
    if exit_ is None:
        return Unit(rank, "ended", None, whole.how, "", whole.since, whole.at)
    how = {"late": End.TIME_LIMIT, "not-started": End.NOT_STARTED, "asked": whole.how}.get(exit_.how, End.EXITED)
    return Unit(rank, "ended", exit_.code, how, "", exit_.began, exit_.ended)


def vanished(note: Note, exit_: ExitNote | None) -> Ended:
    """A run that neither the controller nor accounting knows any more."""
    job = str(note.job)
    if exit_:
        how = {"late": End.TIME_LIMIT, "not-started": End.NOT_STARTED}.get(exit_.how, End.EXITED)
        how = End.STOPPED if note.stopping and exit_.how == "asked" else how
        return Ended(exit_.ended, how, exit_.code, "", exit_.began, Usage(cpu=exit_.cpu, at=exit_.ended), job)
    if note.stopping:
        return Ended(note.since or note.at, End.STOPPED, None, "", note.since, None, job)
    message = f"Slurm no longer knows job {job}, and nothing says how it ended"
    return Ended(note.since or note.at, End.NODE_FAILED, None, message, note.since, None, job)


def _how(note: Note, record: JobRecord, exit_: ExitNote | None) -> tuple[End, str]:
    for state in record.states & _STATES.keys():
        return _STATES[state]
    if exit_ and exit_.how == "late":
        return End.TIME_LIMIT, ""
    if "CANCELLED" in record.states:
        if note.stopping:
            return End.STOPPED, ""
        return End.CANCELLED, f"somebody cancelled job {record.said_as} on Slurm"
    if exit_ and exit_.how == "not-started":
        return End.NOT_STARTED, _missing(exit_.code)
    if note.stopping and (exit_.how == "asked" if exit_ else _code(record)):
        return End.STOPPED, ""
    if not exit_ and note.limit and _code(record) in (137, 143) and record.end - record.start >= note.limit - 1:
        return End.TIME_LIMIT, ""
    if record.reason == "JobLaunchFailure":
        return End.NOT_STARTED, "Slurm could not launch it"
    return End.EXITED, ""


def _missing(code: int) -> str:
    return "there is no such command" if code == 127 else "there is no such working directory"


def _code(record: JobRecord) -> int:
    """The exit code that Slurm knows; one that failed is never called well."""
    code = exit_code(record.status) if record.status is not None else 0
    return code or (1 if record.states & {"FAILED", "LAUNCH_FAILED"} else 0)


def is_over(sight: Sight) -> bool:
    return isinstance(sight, Ended)
