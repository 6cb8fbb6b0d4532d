"""The port's verbs for tasks in the machines of a host.

`request` and `scripts` say what is laid down and done in a machine, `link` is the way into it, `guest` watches it,
`logs` copies what its runs say, `notes` remember which machine each run is in.
"""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace

from usina.core.capacity import Finding, Inventory
from usina.core.machine import Absent, Unreachable, VolumePlan
from usina.core.task import Inside, Running, Sight, TaskPlan, Usage, secret_values
from usina.drivers.ssh import files, inventory, request, scripts, shared
from usina.drivers.ssh.guest import Guest
from usina.drivers.ssh.link import Done, Link, NotLetIn, Pins, Stranger
from usina.drivers.ssh.logs import Copies, masks, reading, taken
from usina.drivers.ssh.notes import MachineNotes, Note
from usina.drivers.ssh.settings import SHARED_LIMIT, check
from usina.drivers.ssh.terminal import SshTerminal
from usina.ports.driver import Beside, DriverError, HostSettings, HostUnreachable
from usina.ports.tasks import LogPiece, Progress, Terminal

_PATIENCE = 5.0  # seconds that a machine may take to be known before a survey goes on without it
_KILLED = 30.0  # seconds that killed processes may take to be gone
_AGAIN = 0.5  # seconds between looks while an end is awaited, besides the bell
_LINGER = 60.0  # seconds that a machine without runs stays connected: another one may follow
_USED = 2.0  # seconds for which what a run uses is taken as known


class MachineTasks:
    """Tasks in this host's machines."""

    def __init__(self, host: HostSettings) -> None:
        check(host.options)
        root = host.state_dir / "ssh"
        self._given = host.beside
        self._shared_limit = int(host.options.get("shared_limit", SHARED_LIMIT))
        self._notes = MachineNotes(root / "runs", Note)
        self._copies = Copies(root / "logs")
        self._pins = Pins(root / "hosts")
        self._guests: dict[str, Guest] = {}
        self._masks: dict[str, tuple[bytes, ...]] = {}
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._watchers: set[asyncio.Queue[str]] = set()
        self._leaving: set[asyncio.Task[None]] = set()
        self._survey: Mapping[str, Sight] | None = None

    @property
    def _beside(self) -> Beside:
        if self._given is None:
            raise HostUnreachable("there is no driver of machines beside it")
        return self._given

    def _tell(self, handle: str) -> None:
        for watcher in self._watchers:
            watcher.put_nowait(handle)

    # --- what there is

    async def inventory(self) -> Inventory:
        await self._forget_strangers()
        return inventory.nothing_of_its_own()

    async def survey(self) -> Mapping[str, Sight]:
        """No machine is asked for it: each has a watch. Those that are not known yet are waited for a little."""
        self._leave_idle()
        guests = [self._guest(note) for note in self._one_of_each()]
        await asyncio.gather(*(guest.known(_PATIENCE) for guest in guests))
        found: dict[str, Sight] = {}
        for guest in guests:
            found |= {handle: sight for handle, sight in guest.sights.items() if self._notes.get(handle) is None}
        for note in self._notes.all().values():
            sight = self._guest(note).of(note)
            if not note.removed and not isinstance(sight, Absent):
                found[note.handle] = sight
        if found != self._survey:
            self._survey = found
        assert self._survey is not None
        return self._survey

    async def leftovers(self) -> Sequence[str]:
        begun = await self.survey()
        noted = [note.handle for note in self._notes.all().values() if note.handle not in begun and not note.removed]
        return [
            *noted,
            *(handle for guest in self._guests.values() for handle in guest.making - self._notes.all().keys()),
        ]

    async def watch(self) -> AsyncIterator[str]:
        mine: asyncio.Queue[str] = asyncio.Queue()
        self._watchers.add(mine)
        try:
            while True:
                yield await mine.get()
        finally:
            self._watchers.discard(mine)

    async def observe(self, handle: str) -> Sight:
        note = self._notes.get(handle)
        if note is None or note.removed:
            return Absent()
        guest = self._guest(note)
        if note.ended is None:
            with contextlib.suppress(HostUnreachable):
                await guest.look()
        return guest.of(self._notes.get(handle) or note)

    # --- a run

    async def start(self, plan: TaskPlan, progress: Progress) -> None:
        inside = request.checked(plan)
        async with self._locks[plan.handle]:
            note = self._notes.get(plan.handle)
            if note is not None and note.launched and not isinstance(await self._seen(note), Absent):
                return
            await self._gone(inside)
            note = self._notes.put(_note(plan, inside))
            try:
                await self._begin(plan, note, progress)
            except HostUnreachable:
                raise  # it may have begun: the note stays
            except DriverError as error:
                if error.lasting:
                    await self._undo(note)
                raise

    async def _gone(self, inside: Inside) -> None:
        """Refuse a machine that is not there any more."""
        if isinstance(await self._beside.observe(inside.machine), Absent):
            raise DriverError("its machine is gone", lasting=True)

    async def _begin(self, plan: TaskPlan, note: Note, progress: Progress) -> None:
        guest = self._guest(note)
        folder, work = request.folder(plan.handle), request.work(plan.handle, plan.workdir)
        environment = request.environment(plan.environment).encode()
        payload = environment + request.run(plan).encode()
        self._masks[plan.handle] = masks(secret_values(plan))
        await progress(0.2, "getting into the machine")
        words = (folder, note.inside.user, scripts.KEEP, scripts.TOLD, str(len(environment)))
        limits = (plan.handle, folder, *request.properties(plan, note.inside.user))
        before = time.time()
        if plan.files:
            made = await guest.link.run(scripts.MAKE, *words, stdin=payload)
            _good(made, lasting=made.code == scripts.NO_SYSTEMD)
            for number, file in enumerate(plan.files):
                await progress(0.3 + 0.6 * number / len(plan.files), "putting files in place")
                if file.shared and not file.unpack:
                    await shared.link_to(guest.link, folder, work, file, request.inner(file.path))
                else:
                    await files.put(guest.link, work, file)
            if any(file.shared for file in plan.files):
                await shared.trim(guest.link, self._shared_limit)
            before = time.time()
            launched = await guest.link.run(scripts.LAUNCH, *limits)
        else:
            launched = await guest.link.run(scripts.BEGIN, *words, *limits, stdin=payload)
        now = time.time()
        _good(launched, lasting=launched.code == scripts.NO_SYSTEMD)
        told = launched.out.split()
        skew = float(told[0]) - (before + now) / 2 if len(told) == 3 else 0.0
        skew = 0.0 if abs(skew) < now - before + 0.5 else skew  # not known any better than that
        self._notes.put(replace(self._notes.get(plan.handle) or note, launched=now, skew=skew))

    async def _undo(self, note: Note) -> None:
        with contextlib.suppress(DriverError):
            await self._guest(note).link.run(scripts.REMOVE, note.handle)
        self._forget(note)

    async def stop(self, handle: str, *, grace: float) -> None:
        async with self._locks[handle]:
            for signal, patience in (("TERM", grace), ("KILL", _KILLED)):
                note = self._notes.get(handle)
                if note is None or not isinstance(await self._seen(note), Running):
                    return
                if patience > 0:
                    _good(await self._guest(note).link.run(scripts.END, handle, signal))
                    if await self._ended_within(note, patience):
                        return
        raise HostUnreachable(f"its processes have not ended within {_KILLED:g} s")

    async def _seen(self, note: Note) -> Sight:
        """Raises `HostUnreachable` where nothing is known."""
        sight = await self.observe(note.handle)
        if isinstance(sight, Unreachable):
            raise HostUnreachable(sight.reason)
        return sight

    async def _ended_within(self, note: Note, patience: float) -> bool:
        deadline = time.monotonic() + patience
        while isinstance(await self._seen(note), Running):
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(_AGAIN)
        return True

    async def remove(self, handle: str) -> None:
        async with self._locks[handle]:
            note = self._notes.get(handle)
            guest = self._guest(note) if note is not None else self._holder(handle)
            if guest is not None:
                await self._clear(guest, handle, note)
        self._locks.pop(handle, None)
        self._locks.pop(f"log {handle}", None)

    async def _clear(self, guest: Guest, handle: str, note: Note | None) -> None:
        try:
            _good(await guest.link.run(scripts.REMOVE, handle))
        except (NotLetIn, Stranger):
            pass  # whoever took the key away, or put another machine there, has what is in it
        except HostUnreachable:
            await guest.known(_PATIENCE)
            if not guest.over:
                raise
            if guest.off and note is not None and note.launched:
                self._notes.put(replace(note, removed=True))  # its folder goes when the machine is on again
                self._tell(handle)
                return
        guest.forget(handle)
        if note is not None:
            self._forget(note)

    async def _tidy(self, guest: Guest) -> None:
        """Remove what could not be when the machine was off."""
        for note in self._notes.of(guest.machine):
            if note.removed:
                with contextlib.suppress(DriverError):  # it is tried again when the machine answers next
                    _good(await guest.link.run(scripts.REMOVE, note.handle))
                    self._forget(note)

    def _forget(self, note: Note) -> None:
        self._notes.drop(note.handle)
        self._copies.drop(note.handle)
        self._masks.pop(note.handle, None)
        self._tell(note.handle)
        guest = self._guests.get(note.inside.machine)
        if guest is not None:
            guest.used_at = time.monotonic()

    async def ensure_volume(self, plan: VolumePlan) -> None:
        raise DriverError(request.NO_VOLUMES, lasting=True)

    async def remove_volume(self, handle: str) -> None:
        raise DriverError(request.NO_VOLUMES, lasting=True)

    # --- what it says, makes and uses

    async def log(self, handle: str, after: int, limit: int) -> LogPiece:
        note = self._notes.get(handle)
        if note is None:
            return LogPiece(after, b"")
        async with self._locks[f"log {handle}"]:
            mark = await asyncio.to_thread(self._copies.mark, handle)
            piece = await asyncio.to_thread(self._copies.piece, handle, after, limit)
            if piece.data or mark.whole:
                return piece
            try:
                await self._copy(note)
            except HostUnreachable:
                if note.ended is None or not self._guest(note).over:
                    raise
            return await asyncio.to_thread(self._copies.piece, handle, after, limit)

    async def _copy(self, note: Note) -> None:
        """Read on in the machine until there is nothing more."""
        guest = self._guest(note)
        if guest.over:
            raise HostUnreachable(guest.over)
        hidden = await self._hidden(note)
        for _ in range(64):
            mark = self._copies.mark(note.handle)
            words = (str(mark.o.at), str(mark.e.at), str(mark.ticks))
            done = await guest.link.run(scripts.LOG, note.handle, *words)
            read = reading(done.out)
            if read is None:
                return
            lines = taken(mark, read, hidden, int(note.skew * 1000))
            self._copies.add(note.handle, mark, lines)  # no thread, which would go on when who asked has left
            if read.complete:
                return

    async def _hidden(self, note: Note) -> tuple[bytes, ...]:
        """Its secrets; after a restart of ours, from its own environment."""
        if note.secret and note.handle not in self._masks:
            done = await self._guest(note).link.run('cat -- "$1"', f"{request.folder(note.handle)}/environment")
            _good(done)
            words = (word.partition("=") for word in shlex.split(done.out.decode()))
            self._masks[note.handle] = masks(value for name, _, value in words if name in note.secret)
        return self._masks.get(note.handle, ())

    async def outputs(self, handle: str, patterns: tuple[str, ...]) -> AsyncIterator[bytes]:
        note = self._noted(handle)
        guest = self._guest(note)
        if guest.over:
            raise DriverError(f"{guest.over}, and its files with it", lasting=True)
        async for chunk in files.pack(guest.link, request.work(handle, note.workdir), patterns):
            yield chunk

    async def usage(self, handle: str) -> Usage | None:
        note = self._notes.get(handle)
        if note is None or note.ended is not None:
            return None
        guest = self._guest(note)
        if time.monotonic() - guest.looked_at > _USED and not guest.trouble:
            with contextlib.suppress(HostUnreachable):
                await guest.look()
        return guest.usages.get(handle)

    # --- beside it

    async def exec(self, handle: str, command: tuple[str, ...], *, terminal: bool) -> Terminal:
        if not command:
            raise DriverError("there is no command", lasting=True)
        note = self._noted(handle)
        if not isinstance(await self._seen(note), Running):
            raise DriverError("the task does not run")
        words = (handle, note.inside.user, request.work(handle, note.workdir), *command)
        session = AsyncExitStack()
        kind = "xterm-256color" if terminal else ""
        process = await session.enter_async_context(
            self._guest(note).link.process(scripts.BESIDE, *words, terminal=kind)
        )
        return SshTerminal(process, session, terminal)

    async def dial(self, handle: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        note = self._noted(handle)
        if note.ended is not None:
            raise DriverError("the task does not run")
        return await self._guest(note).link.reach(port)

    async def health(self) -> Sequence[Finding]:
        return ()  # devices of a machine are its host's

    async def close(self) -> None:
        guests, self._guests = self._guests, {}
        await asyncio.gather(*(guest.close() for guest in guests.values()), *self._leaving)

    # --- machines

    def _noted(self, handle: str) -> Note:
        note = self._notes.get(handle)
        if note is None or note.removed:
            raise DriverError("the task does not run")
        return note

    def _guest(self, note: Note) -> Guest:
        """The machine of a run, as it was when the newest of its runs began."""
        machine = note.inside.machine
        guest = self._guests.get(machine)
        if guest is not None and guest.link.inside.rebuilds < note.inside.rebuilds:
            self._leave(guest)
            guest = None
        if guest is None:
            link = Link(note.inside, self._beside.login_key(note.project), self._beside.dial, self._pins)
            guest = self._guests[machine] = Guest(link, self._beside, self._notes, self._tell, self._tidy)
        return guest

    def _leave_idle(self) -> None:
        """Machines that have had no run for a while."""
        for machine, guest in list(self._guests.items()):
            if time.monotonic() - guest.used_at > _LINGER and not self._notes.of(machine):
                del self._guests[machine]
                self._leave(guest)

    def _leave(self, guest: Guest) -> None:
        leaving = asyncio.create_task(guest.close(), name=f"leave {guest.machine}")
        self._leaving.add(leaving)
        leaving.add_done_callback(self._leaving.discard)

    def _holder(self, handle: str) -> Guest | None:
        """The machine in which a run was found that no note is of."""
        found = (guest for guest in self._guests.values() if handle in guest.sights or handle in guest.making)
        return next(found, None)

    def _one_of_each(self) -> list[Note]:
        """A note of each machine, the newest instance's."""
        ordered = sorted(self._notes.all().values(), key=lambda note: note.inside.rebuilds)
        return list({note.inside.machine: note for note in ordered}.values())

    async def _forget_strangers(self) -> None:
        """Host keys of machines that are gone."""
        if self._given is None:
            return
        for machine in self._pins.machines() - {note.inside.machine for note in self._notes.all().values()}:
            with contextlib.suppress(DriverError):
                if isinstance(await self._given.observe(machine), Absent):
                    self._pins.forget(machine)


def _note(plan: TaskPlan, inside: Inside) -> Note:
    return Note(
        plan.handle, plan.project, inside, limit=plan.time_limit, memory=plan.memory, workdir=plan.workdir,
        secret=tuple(sorted(plan.secret)),
    )  # fmt: skip


def _good(done: Done, *, lasting: bool = False) -> None:
    """Raises `DriverError` in the machine's words."""
    if done.code:
        words = done.err.splitlines()[-1][:300] if done.err else f"exit code {done.code}"
        if "sudo" in words or "not found" in words:
            raise DriverError(f"Usina cannot become root in the machine: {words}", lasting=True, detail=done.err)
        raise DriverError(f"in the machine: {words}", lasting=lasting, detail=done.err)
