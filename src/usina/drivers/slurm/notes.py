"""What this driver must remember of each run, on disk: one small JSON file per handle, replaced as a whole.

Written before a job is submitted (the intent), when its id is known, before it is cancelled on our wish (so that our
cancelling is told from anybody else's), when it has ended (Slurm forgets its jobs after minutes), and when it is
removed (Slurm still lists it for a while). No secret is in it, only the names of variables that are secret.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from usina.core.task import Ended, Unit
from usina.core.units import Instant
from usina.drivers.slurm.script import Place


@dataclass(frozen=True, slots=True)
class Note:
    handle: str
    person: str
    place: Place
    at: Instant  # of the intent
    job: int = 0  # 0: nobody knows yet whether it was taken
    kind: str = ""  # "array" | "gang" | ""
    indices: tuple[int, ...] = ()  # of an array, or the ranks of a gang
    ports: tuple[int, ...] = ()
    limit: float = 0.0
    secret: tuple[str, ...] = ()
    stopping: bool = False  # Usina was asked to end it
    done: Mapping[int, Unit] = field(default_factory=dict)  # elements seen to have ended
    since: Instant = 0.0  # when it was first seen running
    ended: Ended | None = None
    removed: bool = False
    dead: tuple[int, ...] = ()  # jobs of this handle that no longer count


class Notes:
    """All notes of one provider. Other processes may write them, too, so files are looked at, not only remembered."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._read: dict[str, tuple[int, Note]] = {}  # handle -> (mtime, note)

    def all(self) -> dict[str, Note]:
        """Every note, by handle, those of removed runs among them."""
        found = {}
        with os.scandir(self._folder) as entries:
            for entry in entries:
                if entry.name.endswith(".json"):
                    note = self.get(entry.name.removesuffix(".json"))
                    if note:
                        found[note.handle] = note
        for handle in self._read.keys() - found.keys():
            del self._read[handle]
        return found

    def get(self, handle: str) -> Note | None:
        path = self._path(handle)
        try:
            changed = path.stat().st_mtime_ns
            known = self._read.get(handle)
            if not known or known[0] != changed:
                known = changed, msgspec.json.decode(path.read_bytes(), type=Note)
                self._read[handle] = known
        except FileNotFoundError:
            return None
        return known[1]

    def put(self, note: Note) -> Note:
        """Write it, so that it is there after a crash of this machine."""
        path = self._path(note.handle)
        new = path.with_suffix(".new")
        with new.open("wb") as file:
            file.write(msgspec.json.encode(note))
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
        self._read[note.handle] = path.stat().st_mtime_ns, note
        return note

    def drop(self, handle: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._path(handle).unlink()
        self._read.pop(handle, None)

    def _path(self, handle: str) -> Path:
        return self._folder / f"{handle}.json"
