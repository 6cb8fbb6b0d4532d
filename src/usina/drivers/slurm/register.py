"""Every run of this factory on one partition: Slurm's listing and our notes, made one.

One listing serves all who ask within a moment. A job is ours by its name, ``usina-<factory>:<handle>``, whoever
submitted it; it is on this provider if a note says so, or if it is in the partition and nobody knows of it here, which
is how a lost state folder heals.

How a run ended is settled once and then kept in its note: from the job's record, the run's own exit notes (read as the
member) and accounting, which is given a moment to hear of it (`_PATIENCE`). A job that the controller has forgotten is
looked for in accounting, then in the exit notes.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import structlog

from usina.core.task import Ended, Queued, Running, Sight, Unit, Usage
from usina.drivers.slurm import folder, sights
from usina.drivers.slurm.folder import Read
from usina.drivers.slurm.identity import Person, person_for
from usina.drivers.slurm.logs import Logs
from usina.drivers.slurm.notes import Note
from usina.drivers.slurm.records import JobRecord, PastRecord
from usina.drivers.slurm.request import handle_in
from usina.drivers.slurm.settings import Settings
from usina.drivers.slurm.wire import Wire
from usina.ports.driver import DriverError
from usina.ports.notes import Notes

_FRESH = 0.25  # seconds that a listing serves
_PATIENCE = 3.0  # seconds that accounting may need to hear of an end
_LOST = 60.0  # seconds that a job may be in accounting alone, as not yet over, before it counts as lost
_AT_ONCE = 8  # looks into folders at the same time

_log = structlog.get_logger(__name__)


class Register:
    def __init__(self, settings: Settings, wire: Wire, notes: Notes[Note], logs: Logs) -> None:
        self._settings = settings
        self._wire = wire
        self.notes = notes
        self._logs = logs
        self._lock = asyncio.Lock()
        self._listed = 0.0  # when the last listing began
        self._sights: Mapping[str, Sight] = {}
        self._jobs: Mapping[str, list[JobRecord]] = {}
        self._settling: dict[str, float] = {}  # handle -> since when it is known to be over
        self._extra: list[JobRecord] = []
        self._masks: dict[str, tuple[str, ...]] = {}

    async def look(self, *, fresh: bool = False) -> Mapping[str, Sight]:
        """handle → sight, the same mapping if nothing changed. `fresh`: as it is now, not a moment ago."""
        asked = time.monotonic()
        async with self._lock:
            if self._listed < (asked if fresh else asked - _FRESH):
                await self._list()
            return self._sights

    def jobs(self, handle: str) -> list[JobRecord]:
        """What the last listing has of a run."""
        return self._jobs.get(handle, [])

    def remember_masks(self, handle: str, values: Sequence[str]) -> None:
        self._masks[handle] = tuple(values)

    def forget(self, handle: str) -> None:
        self._masks.pop(handle, None)
        self._settling.pop(handle, None)
        self._logs.forget(handle)

    def stale(self) -> None:
        """The next look lists again."""
        self._listed = 0.0

    async def collect(self, note: Note, *, last: bool) -> list[Read]:
        """Copy what a run has said since; its exit notes come along."""
        if not self._settings.shared:
            return []
        try:
            return await self._collect(note, last=last)
        except DriverError as error:
            _log.warning("slurm.folder-unread", handle=note.handle, error=error.public)
            return []

    async def _collect(self, note: Note, *, last: bool) -> list[Read]:
        """In as many turns as it takes, where it is the last time."""
        person = _owner(self._settings, note.person)
        masks = await self._masks_of(note, person)
        while True:
            before = dict(self._logs.copied(note.handle).files)
            reads = await folder.read(person, note.place, before)
            if masks is not None:
                self._logs.take(note.handle, reads, masks, last=False)
            if not last or before == self._logs.copied(note.handle).files:
                break
        if last and masks is not None:
            self._logs.take(note.handle, reads, masks, last=True)
        return reads

    async def _masks_of(self, note: Note, person: Person) -> tuple[str, ...] | None:
        """The values to hide; None where they are not known any more, and so nothing may be shown."""
        if note.secret and note.handle not in self._masks:
            self._masks[note.handle] = await folder.secrets(person, note.place, note.secret)
        masks = self._masks.get(note.handle, ())
        return masks if len(masks) or not note.secret else None

    async def _list(self) -> None:
        began = time.monotonic()
        before = self.notes.all()  # before the listing: what is noted as submitted by now must be in it
        jobs = await self._wire.jobs()
        notes = {handle: self._now(note) for handle, note in before.items()}
        grouped = self._grouped(jobs, notes)
        for handle in grouped.keys() - notes.keys():
            with contextlib.suppress(DriverError):  # a user that this machine does not know
                notes[handle] = self._adopted(handle, grouped[handle])
        live, over = self._sorted(notes, grouped)
        await self._cancel_extra()
        for note in (n for n in notes.values() if n.removed and n.handle not in grouped):
            self.notes.drop(note.handle)
        found: dict[str, Sight] = {n.handle: n.ended for n in notes.values() if n.ended and not n.removed}
        found |= {note.handle: self._living(note, grouped.get(note.handle, [])) for note in live}
        found |= await self._settle(over, grouped)
        self._jobs, self._listed = grouped, began
        if found != self._sights:
            self._sights = found

    def _now(self, note: Note) -> Note:
        """As it is noted by now: that it is to stop, or is removed, may have been noted while Slurm was asked."""
        now = self.notes.get(note.handle)
        return now if now and now.job == note.job else note

    async def _cancel_extra(self) -> None:
        """Jobs under a handle that another job of it has: a submission was repeated while the first was on its way."""
        while self._extra:
            job = self._extra.pop()
            with contextlib.suppress(DriverError):
                await self._wire.cancel(job.user, [job.said_as])

    def _grouped(self, jobs: Sequence[JobRecord], notes: Mapping[str, Note]) -> dict[str, list[JobRecord]]:
        """Anybody may call a job as ours are called, so where we know whose it is, it must be theirs."""
        grouped: dict[str, list[JobRecord]] = {}
        for job in jobs:
            handle = handle_in(self._settings.factory, job.name)
            note = notes.get(handle)
            here = job.user in (note.person, "") if note else job.partition == self._settings.partition
            if handle and here:
                grouped.setdefault(handle, []).append(job)
        return grouped

    def _adopted(self, handle: str, jobs: Sequence[JobRecord]) -> Note:
        """A note for a job of ours that nothing here knows: another replica's, or ours before a disk was lost."""
        first = min(jobs, key=lambda job: job.array or job.id)
        person = _owner(self._settings, first.user)
        place = folder.place_for(self._settings.workdir, self._settings.factory, person, handle, "")
        indices = sorted(
            {job.index for job in jobs if job.index is not None} | {i for job in jobs for i in job.pending}
        )
        kind = "array" if first.array else ""
        note = Note(handle, first.user, place, first.submitted, first.array or first.id, kind, tuple(indices))
        return self.notes.put(note)

    def _sorted(self, notes: Mapping[str, Note], grouped: dict[str, list[JobRecord]]) -> tuple[list[Note], list[Note]]:
        """Runs that live and runs that are over and not settled. Jobs that do not count leave `grouped`."""
        live: list[Note] = []
        over: list[Note] = []
        for note in list(notes.values()):
            if note.removed or note.ended:
                continue
            jobs = [job for job in grouped.get(note.handle, []) if (job.array or job.id) not in note.dead]
            if not note.job and not jobs:
                continue  # an intent: nothing of it is there
            first = note.job or min((job.phase == "queued", job.array or job.id) for job in jobs)[1]
            self._extra += [job for job in jobs if (job.array or job.id) != first and job.phase != "ended"]
            grouped[note.handle] = [job for job in jobs if (job.array or job.id) == first]
            note = note if note.job else self.notes.put(replace(note, job=first))
            note = self._with_elements(note, grouped[note.handle])
            (over if self._is_over(note, grouped[note.handle]) else live).append(note)
        return live, over

    def _with_elements(self, note: Note, jobs: Sequence[JobRecord]) -> Note:
        """Slurm forgets each element of an array by itself, so those that are over are kept as they are seen."""
        since = note.since or min((job.start for job in jobs if job.phase == "running" and job.start), default=0.0)
        if note.kind != "array":
            return note if since == note.since else self.notes.put(replace(note, since=since))
        new = {
            job.index: job
            for job in jobs
            if job.index is not None and job.index not in note.done and job.phase == "ended"
        }
        done = {**note.done, **{i: sights.ended_unit(note, i, job, None) for i, job in new.items() if i is not None}}
        if not new and since == note.since:
            return note
        return self.notes.put(replace(note, done=done, since=since))

    def _is_over(self, note: Note, jobs: Sequence[JobRecord]) -> bool:
        return all(job.phase == "ended" for job in jobs)

    def _living(self, note: Note, jobs: Sequence[JobRecord]) -> Queued | Running:
        return sights.living(note, jobs)

    async def _settle(self, over: Sequence[Note], grouped: Mapping[str, list[JobRecord]]) -> dict[str, Sight]:
        """Sights of runs that are over. One that accounting does not know yet still runs, for a moment."""
        if not over:
            return {}
        past = await self._past(over)
        gate = asyncio.Semaphore(_AT_ONCE)

        async def one(note: Note) -> tuple[str, Sight]:
            async with gate:
                return note.handle, await self._settle_one(note, grouped.get(note.handle, []), past.get(note.job, []))

        return dict(await asyncio.gather(*(one(note) for note in over)))

    async def _past(self, over: Sequence[Note]) -> dict[int, list[PastRecord]]:
        found: dict[int, list[PastRecord]] = {}
        records = await self._wire.past([note.job for note in over])
        for record in records:
            found.setdefault(record.job.array or record.job.id, []).append(record)
        return found

    async def _settle_one(self, note: Note, jobs: Sequence[JobRecord], past: Sequence[PastRecord]) -> Sight:
        waited = time.monotonic() - self._settling.setdefault(note.handle, time.monotonic())
        known = [record for record in past if record.job.phase == "ended"]
        patience = _LOST if not jobs and len(known) < len(past) else _PATIENCE
        if waited < patience and not _told(note, jobs, known):
            before = self._sights.get(note.handle)
            return before if isinstance(before, Queued | Running) else Running(note.since or note.at, str(note.job))
        exits = _exits(await self.collect(note, last=True))
        note = self._now(note)
        ended = replace(_ended(note, jobs, known, exits), usage=_used(known, exits))
        self.notes.put(replace(note, ended=ended))
        self._settling.pop(note.handle, None)
        return ended


def _owner(settings: Settings, name: str) -> Person:
    """Who a run is, whatever the lowest uid is by now."""
    return person_for(replace(settings, min_uid=1), name)


def _told(note: Note, jobs: Sequence[JobRecord], known: Sequence[PastRecord]) -> bool:
    """Whether accounting has all of it, with what its steps used."""
    if note.kind == "array":
        return len(known) >= len(note.indices)
    return bool(known) and (known[0].usage is not None or not known[0].job.nodes)


def _exits(reads: Sequence[Read]) -> dict[int, sights.ExitNote]:
    found = {}
    for read in reads:
        kind, _, unit = read.name.partition("/")
        exit_ = sights.exit_note(read.data.decode(errors="replace")) if kind == "exit" and unit.isdecimal() else None
        if exit_:
            found[int(unit)] = exit_
    return found


def _ended(
    note: Note, jobs: Sequence[JobRecord], past: Sequence[PastRecord], exits: Mapping[int, sights.ExitNote]
) -> Ended:
    """From the controller's records where it has them, else from accounting's."""
    if note.kind == "array":
        return sights.ended_array(note, _elements(note, jobs, past, exits), str(note.job))
    records = [*jobs, *(record.job for record in past)]
    if not records:
        return sights.vanished(note, exits.get(0))
    if note.kind == "gang":
        return sights.ended_gang(note, records[0], exits)
    return sights.ended(note, records[0], exits.get(0))


def _elements(
    note: Note, jobs: Sequence[JobRecord], past: Sequence[PastRecord], exits: Mapping[int, sights.ExitNote]
) -> list[Unit]:
    """Every element of an array that is over. One that no record tells of was cancelled before it began."""
    records = {job.index: job for job in [*(record.job for record in past), *jobs] if job.index is not None}
    never = JobRecord(note.job, "", "", "", frozenset({"CANCELLED"}), array=note.job)
    units = []
    for index in note.indices:
        record = records.get(index)
        own = exits.get(index)
        if record is None and index in note.done and (own is None or own.how in ("exited", "asked")):
            units.append(note.done[index])
        elif record is None and index in exits:
            units.append(_by_itself(note, index, exits[index]))
        else:
            units.append(sights.ended_unit(note, index, record or never, exits.get(index)))
    return units


def _by_itself(note: Note, index: int, exit_: sights.ExitNote) -> Unit:
    end = sights.vanished(note, exit_)
    return Unit(index, "ended", end.code, end.how, "", end.since, end.at)


def _used(past: Sequence[PastRecord], exits: Mapping[int, sights.ExitNote]) -> Usage | None:
    """What accounting says, else what the runs themselves counted."""
    usages = [record.usage for record in past if record.usage]
    if usages:
        return Usage(sum(u.cpu for u in usages), 0, max(u.peak for u in usages), at=max(u.at for u in usages))
    if exits:
        return Usage(cpu=sum(e.cpu for e in exits.values()), at=max(e.ended for e in exits.values()))
    return None
