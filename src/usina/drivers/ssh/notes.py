"""Which machine each run is in, on disk before anything is done.

No secret is in it, only the names of variables that are secret.
"""

from __future__ import annotations

from dataclasses import dataclass

from usina.core.task import Ended, Inside
from usina.core.units import Instant
from usina.ports.notes import Notes


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


class MachineNotes(Notes[Note]):
    def of(self, machine: str) -> list[Note]:
        """Those of the runs in one machine."""
        return [note for note in self.all().values() if note.inside.machine == machine]
