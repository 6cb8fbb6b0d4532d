"""What a driver must remember of each run, on disk: one small JSON file per handle, replaced as a whole.

For drivers whose stack forgets its runs, or is not to be asked about each. Other processes may write notes of the same
folder, too, so files are looked at, not only remembered.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import msgspec


class OfRun(Protocol):
    """A note: plain data that says which run it is of."""

    @property
    def handle(self) -> str: ...


N = TypeVar("N", bound=OfRun)


class Notes(Generic[N]):
    """All notes of one provider, of one `kind`, in a folder of their own. Raises `OSError`."""

    def __init__(self, folder: Path, kind: type[N]) -> None:
        self._folder, self._kind = folder, kind
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._read: dict[str, tuple[int, N]] = {}  # handle -> (mtime, note)

    def all(self) -> dict[str, N]:
        """Every note, by handle."""
        found = {}
        with os.scandir(self._folder) as entries:
            for entry in entries:
                if entry.name.endswith(".json"):
                    note = self.get(entry.name.removesuffix(".json"))
                    if note is not None:
                        found[note.handle] = note
        for handle in self._read.keys() - found.keys():
            del self._read[handle]
        return found

    def get(self, handle: str) -> N | None:
        path = self._path(handle)
        try:
            changed = path.stat().st_mtime_ns
            known = self._read.get(handle)
            if not known or known[0] != changed:
                known = changed, msgspec.json.decode(path.read_bytes(), type=self._kind)
                self._read[handle] = known
        except FileNotFoundError:
            return None
        return known[1]

    def put(self, note: N) -> N:
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
        self._path(handle).unlink(missing_ok=True)
        self._read.pop(handle, None)

    def _path(self, handle: str) -> Path:
        return self._folder / f"{handle}.json"
