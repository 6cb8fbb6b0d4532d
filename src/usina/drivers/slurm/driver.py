"""The task driver of a Slurm partition: the port's verbs. What they mean to Slurm is in the modules below.

`wire` (by `rest` or `commands`) speaks to the cluster, `script` and `request` say what is submitted, `folder` keeps a
run's files as the member, `register` tells what runs are like, `notes` remembers.

*Starting once.* A note is written before a job is submitted, and the job is called by its handle, so a start that was
cut short looks for that job, in the controller and in accounting, before it submits one. What remains is a submission
that is still on its way when the next start looks. Then two jobs have the same name: only the first to begin does
anything (`script`), and the others are cancelled as soon as they are seen (`register`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from usina.core.capacity import Finding, Inventory
from usina.core.machine import Absent, Unreachable, VolumePlan
from usina.core.task import Ended, Queued, Running, Sight, TaskPlan, Usage, secret_values
from usina.drivers.slurm import folder, inventory, text
from usina.drivers.slurm.commands import Commands
from usina.drivers.slurm.identity import Person, becoming, person_for
from usina.drivers.slurm.logs import Logs
from usina.drivers.slurm.notes import Note
from usina.drivers.slurm.records import JobRecord, NodeRecord, PartitionRecord
from usina.drivers.slurm.register import Register
from usina.drivers.slurm.request import JobRequest, checked_dialect, job_name, job_request
from usina.drivers.slurm.rest import Rest
from usina.drivers.slurm.script import EMBEDDED, Place, batch_script, embed, environment_file, path_word
from usina.drivers.slurm.settings import Settings, read
from usina.drivers.slurm.terminal import open_pipes, open_terminal
from usina.drivers.slurm.wire import AT_ONCE, TERM, Wire
from usina.ports.driver import DriverError, HostSettings, HostUnreachable
from usina.ports.notes import Notes
from usina.ports.tasks import LogPiece, Progress, Terminal

_NO_VOLUMES = "jobs of a cluster have no volumes"
_REMEMBERED = 60.0  # seconds that the cluster's shape is taken as known
_LOOK = 0.3  # seconds between looks while something is awaited
_WATCH = 1.5  # seconds between looks of `watch`
_AT_ONCE = 4.0  # seconds that a run may take to be gone once its own script kills it
_END = 90.0  # seconds that Slurm may take to cancel a job: its KillWait is half a minute at most sites


def wire_for(settings: Settings) -> Wire:
    return Rest(settings) if settings.url else Commands(settings)


class SlurmDriver:
    def __init__(self, host: HostSettings) -> None:
        self._settings = read(host)
        if not self._settings.partition:
            raise DriverError("partition: say which one of the cluster's partitions this is", lasting=True)
        root = host.state_dir / "slurm"
        self._wire = wire_for(self._settings)
        self._notes = Notes(root / "runs", Note)
        self._logs = Logs(root / "logs")
        self._register = Register(self._settings, self._wire, self._notes, self._logs)
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._shape: tuple[float, PartitionRecord, list[NodeRecord]] | None = None

    # --- what there is

    async def inventory(self) -> Inventory:
        self._shape = None
        partition, nodes = await self._known_shape()
        version = await self._wire.version()
        topology = await self._wire.topology()
        return inventory.inventory(partition, nodes, version=version, wire=self._wire.name, topology=topology)

    async def survey(self) -> Mapping[str, Sight]:
        return await self._register.look()

    async def watch(self) -> AsyncIterator[str]:
        """Asks for a look at everything when something has changed. While nothing runs, it looks more rarely."""
        before: Mapping[str, Sight] = {}
        while True:
            with contextlib.suppress(DriverError):
                now = await self._register.look()
                if now is not before:
                    before = now
                    yield ""
            busy = any(not isinstance(sight, Ended) for sight in before.values())
            await asyncio.sleep(_WATCH if busy else 4 * _WATCH)

    async def observe(self, handle: str) -> Sight:
        try:
            return (await self._register.look()).get(handle, Absent())
        except HostUnreachable as error:
            return Unreachable(error.public)

    # --- a run

    async def start(self, plan: TaskPlan, progress: Progress) -> None:
        person = person_for(self._settings, plan.identity)
        async with self._locks[plan.handle]:
            note = self._notes.get(plan.handle)
            if note and not note.removed and (note.job or note.ended):
                return
            checked_dialect(plan, self._settings)
            if plan.image or plan.archive:
                raise DriverError("a task on Slurm is a command; it has no image", lasting=True)
            if plan.volumes:
                raise DriverError(_NO_VOLUMES, lasting=True)
            # What has no note was begun by nobody; or by another control plane, which the script makes harmless.
            unheard_of = note is None and self._settings.shared
            if unheard_of or not await self._submitted(plan, note):
                await self._submit(plan, person, note, progress)
            self._register.stale()

    async def _submitted(self, plan: TaskPlan, note: Note | None) -> bool:
        """Whether an earlier start, of ours or another replica's, came as far as a job."""
        await self._register.look(fresh=True)
        noted = self._notes.get(plan.handle)
        if noted and not noted.removed and noted.job:
            return True
        if not note or note.removed:
            return False
        past = await self._wire.past((), job_name(self._settings.factory, plan.handle))
        ours = (
            record.job for record in past if record.job.user == note.person and record.job.submitted >= note.at - 60
        )
        jobs = [job.array or job.id for job in ours if (job.array or job.id) not in note.dead]
        if jobs:
            self._notes.put(replace(note, job=min(jobs)))
        return bool(jobs)

    async def _submit(self, plan: TaskPlan, person: Person, old: Note | None, progress: Progress) -> None:
        place = folder.place_for(self._settings.workdir, self._settings.factory, person, plan.handle, plan.workdir)
        _, nodes = await self._known_shape()
        request = self._request(plan, place, nodes, person)
        note = self._notes.put(_note(plan, person, place, old))
        self._register.remember_masks(plan.handle, secret_values(plan))
        try:
            if self._settings.shared:
                await progress(0.3, "writing its files")
                environment = environment_file(plan.environment)
                limit = self._settings.shared_limit
                await folder.make(person, place, environment, plan.files, plan.project, limit)
            await progress(0.8, "handing it to Slurm")
            job = await self._wire.submit(person, request)
        except HostUnreachable:
            raise  # it may have been taken: the note stays, and the next start looks for it
        except DriverError:
            await self._undo(note, person)
            raise
        self._notes.put(replace(note, job=job))

    def _request(self, plan: TaskPlan, place: Place, nodes: list[NodeRecord], person: Person) -> JobRequest:
        shared, output = self._settings.shared, "/dev/null"
        if shared:
            output = f"{place.folder}/say/s{'.%a' if plan.indices else ''}"
        environment = environment_file(plan.environment)  # refuses what cannot be, before anything is written
        paths = [folder.inside(file.path) for file in plan.files]
        embedded = "" if shared else embed(environment, _contents(plan, paths))
        script = batch_script(plan, place, embedded)
        return job_request(plan, self._settings, nodes, script, output, person.environment)

    async def _undo(self, note: Note, person: Person) -> None:
        if self._settings.shared:
            with contextlib.suppress(DriverError):
                await folder.drop(person, note.place)
        if note.dead:
            self._notes.put(replace(note, removed=True))
        else:
            self._notes.drop(note.handle)

    async def stop(self, handle: str, *, grace: float) -> None:
        async with self._locks[handle]:
            await self._end(handle, grace)

    async def _end(self, handle: str, grace: float) -> None:
        sight = (await self._register.look(fresh=True)).get(handle)
        note = self._notes.get(handle)
        if not note or not isinstance(sight, Queued | Running):
            return
        self._notes.put(replace(note, stopping=True))
        for signal, patience in ((TERM, grace), (AT_ONCE, _AT_ONCE), ("", _END)):
            if patience > 0:
                await self._signal(handle, signal)
                if await self._ended_within(handle, patience):
                    return
        raise HostUnreachable(f"Slurm has not ended job {note.job} within {_END:g} s")

    async def _signal(self, handle: str, signal: str) -> None:
        """To all that runs; what has not begun never will. Without a signal, Slurm cancels in its own way.

        Elements of an array that wait go first, so that none begins in the place of one that ends, and are named one by
        one: the name of the array means those that run as well.
        """
        jobs = self._register.jobs(handle)
        waiting = [f"{job.said_as}_{n}" for job in jobs for n in job.pending if job.phase == "queued"]
        waiting += [job.said_as for job in jobs if job.phase == "queued" and not job.pending]
        running = [job.said_as for job in jobs if job.phase == "running" and "COMPLETING" not in job.states]
        for names, how in ((waiting, ""), (running, signal)):
            if names:
                await self._wire.cancel(jobs[0].user, names, how)

    async def _ended_within(self, handle: str, patience: float) -> bool:
        deadline = time.monotonic() + patience
        while isinstance((await self._register.look(fresh=True)).get(handle), Queued | Running):
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(_LOOK)
        return True

    async def remove(self, handle: str) -> None:
        async with self._locks[handle]:
            await self._end(handle, 0)
            note = self._notes.get(handle)
            if note and not note.removed:
                await self._drop(note)
            self._register.forget(handle)
        self._locks.pop(handle, None)
        self._locks.pop(f"log {handle}", None)

    async def _drop(self, note: Note) -> None:
        if self._settings.shared:
            await folder.drop(person_for(replace(self._settings, min_uid=1), note.person), note.place)
        jobs = {note.job, *note.dead, *(job.array or job.id for job in self._register.jobs(note.handle))} - {0}
        self._notes.put(replace(note, removed=True, ended=None, job=0, dead=tuple(sorted(jobs))))
        self._register.stale()

    # --- what it says, makes and uses

    async def leftovers(self) -> Sequence[str]:
        return ()  # a job is begun whole, or not at all

    async def ensure_volume(self, plan: VolumePlan) -> None:
        raise DriverError(_NO_VOLUMES, lasting=True)

    async def remove_volume(self, handle: str) -> None:
        raise DriverError(_NO_VOLUMES, lasting=True)

    async def log(self, handle: str, after: int, limit: int) -> LogPiece:
        note = self._notes.get(handle)
        if not note or note.removed:
            return LogPiece(after, b"")
        if not self._settings.shared:
            return _elsewhere(note, after)
        if not self._logs.copied(handle).whole:
            async with self._locks[f"log {handle}"]:
                await self._register.collect(note, last=note.ended is not None)
        return self._logs.piece(handle, after, limit)

    async def outputs(self, handle: str, patterns: tuple[str, ...]) -> AsyncIterator[bytes]:
        note = self._noted(handle)
        if not self._settings.shared:
            raise DriverError(
                f"its files lie in {note.place.folder} on the cluster, which Usina does not see", lasting=True
            )
        async for chunk in folder.pack(person_for(self._settings, note.person), note.place, patterns):
            yield chunk

    async def usage(self, handle: str) -> Usage | None:
        sight = await self.observe(handle)
        if not isinstance(sight, Running) or not self._settings.has_commands:
            return None
        found = [text.used(await Commands(self._settings).usage(job.said_as)) for job in self._running(handle)]
        known = [usage for usage in found if usage]
        if not known:
            return None
        memory = sum(usage.memory for usage in known)
        return Usage(sum(usage.cpu for usage in known), memory, memory, at=time.time())

    # --- beside it

    async def exec(self, handle: str, command: tuple[str, ...], *, terminal: bool) -> Terminal:
        if not self._settings.has_commands:
            raise DriverError(
                "Slurm's commands are needed on Usina's machine for that, and only slurmrestd is known", lasting=True
            )
        note, job = await self._one_running(handle)
        person = person_for(self._settings, note.person)
        environment = {**person.environment, **Commands(self._settings).environment, "TERM": "xterm-256color"}
        words = (
            *becoming(person, environment),
            "srun", f"--jobid={job}", "--overlap", "--quiet", "--nodes=1", "--ntasks=1", "--chdir=/", "--export=ALL",
            *(("--pty",) if terminal else ("--unbuffered",)),
            "/bin/bash", "-c", _beside(note.place), "usina", *command,
        )  # fmt: skip
        if terminal:
            return await open_terminal(words, environment, person.uid if os.geteuid() == 0 else os.geteuid())
        return await open_pipes(words, environment)

    async def dial(self, handle: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        note, _ = await self._one_running(handle)
        if port not in note.ports:
            raise DriverError(f"port {port} is not one that this task said it listens on", lasting=True)
        host = next((job.batch_host or job.nodes for job in self._running(handle)), "")
        _, nodes = await self._known_shape()
        address = next((node.address for node in nodes if node.name == host), host)
        try:
            async with asyncio.timeout(10):
                return await asyncio.open_connection(address, port)
        except (OSError, TimeoutError) as error:
            raise DriverError(f"nothing answers on port {port} of node {host}", detail=repr(error)) from error

    async def health(self) -> Sequence[Finding]:
        return ()  # Slurm looks after its own nodes

    async def close(self) -> None:
        await self._wire.close()

    # --- below

    def _noted(self, handle: str) -> Note:
        note = self._notes.get(handle)
        if not note or note.removed:
            raise DriverError(f"there is no run {handle} here", lasting=True)
        return note

    def _running(self, handle: str) -> list[JobRecord]:
        return [job for job in self._register.jobs(handle) if job.phase == "running"]

    async def _one_running(self, handle: str) -> tuple[Note, str]:
        """The run, and what Slurm calls the first of its jobs that runs."""
        await self._register.look(fresh=True)
        running = self._running(handle)
        if not running:
            raise DriverError("it does not run now")
        return self._noted(handle), running[0].said_as

    async def _known_shape(self) -> tuple[PartitionRecord, list[NodeRecord]]:
        if not self._shape or time.monotonic() - self._shape[0] > _REMEMBERED:
            partitions = await self._wire.partitions()
            found = next((p for p in partitions if p.name == self._settings.partition), None)
            if found is None:
                raise DriverError(f"the cluster has no partition {self._settings.partition}", lasting=True)
            self._shape = time.monotonic(), found, inventory.members(found, await self._wire.nodes())
        return self._shape[1], self._shape[2]


def _note(plan: TaskPlan, person: Person, place: Place, old: Note | None) -> Note:
    kind = "array" if plan.indices else "gang" if plan.replicas > 1 else ""
    indices = plan.indices or (tuple(range(plan.replicas)) if kind else ())
    return Note(
        plan.handle, person.name, place, time.time(), 0, kind, indices, plan.ports, plan.time_limit,
        tuple(sorted(plan.secret & plan.environment.keys())), dead=old.dead if old else (),
    )  # fmt: skip


def _contents(plan: TaskPlan, paths: list[str]) -> list[tuple[str, bytes, int, bool]]:
    """The files of a plan, where they are small enough to travel in a script."""
    size = sum(Path(file.source).stat().st_size for file in plan.files)
    if size > EMBEDDED:
        mib = f"{EMBEDDED >> 20} MiB"
        raise DriverError(
            f"its files are more than {mib}, which a Slurm cluster without shared files takes", lasting=True
        )
    return [(path, Path(f.source).read_bytes(), f.mode, f.unpack) for path, f in zip(paths, plan.files, strict=True)]


def _elsewhere(note: Note, after: int) -> LogPiece:
    """Where files are not shared, nothing of what it says comes here; it says so once."""
    line = f"{int(note.at * 1000)} s what it says lies in {note.place.folder}/say on the cluster\n".encode()
    return LogPiece(after, line[after:]) if after < len(line) else LogPiece(after, b"")


def _beside(place: Place) -> str:
    """Shell that goes where a run is, takes its environment, and becomes the command that follows."""
    home, work = path_word(place.folder), path_word(place.absolute_work)
    return f'if [ -f {home}/environment ]; then . {home}/environment; fi; cd -- {work} && exec -- "$@" 2>&1'
