"""Which machine each run is in: one small JSON file per handle, replaced as a whole, written before anything is done.

No secret is in it, only the names of variables that are secret.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from usina.core.task import Ended, Inside
from usina.core.units import Instant


@dataclass(frozen=True, slots=True)
class Note:
    handle: str
    project: str
    inside: Inside
    limit: float = 0.0
    memory: int = 0
    workdir: str = ""
    secret: tuple[str, ...] = ()
    skew: float = 0.0  # seconds that the machine's clock was ahead when the run began
    launched: Instant = 0.0  # 0: it may not have begun
    ended: Ended | None = None  # once it was seen to have: it stays so whatever becomes of its machine
    removed: bool = False  # its machine was off, so its folder is still there


class Notes:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._all = {note.handle: note for path in folder.glob("*.json") for note in _read(path)}

    @property
    def all(self) -> Mapping[str, Note]:
        return self._all

    def get(self, handle: str) -> Note | None:
        return self._all.get(handle)

    def of(self, machine: str) -> list[Note]:
        return [note for note in self._all.values() if note.inside.machine == machine]

    def put(self, note: Note) -> Note:
        """Write it, so that it is there after a crash of this machine."""
        path = self._path(note.handle)
        new = path.with_suffix(".new")
        with new.open("wb") as file:
            file.write(msgspec.json.encode(note))
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
        self._all[note.handle] = note
        return note

    def drop(self, handle: str) -> None:
        self._path(handle).unlink(missing_ok=True)
        self._all.pop(handle, None)

    def _path(self, handle: str) -> Path:
        return self._folder / f"{handle}.json"


def _read(path: Path) -> list[Note]:
    try:
        return [msgspec.json.decode(path.read_bytes(), type=Note)]
    except FileNotFoundError:  # removed by somebody else meanwhile
        return []
