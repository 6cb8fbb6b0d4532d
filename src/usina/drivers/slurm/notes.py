"""What this driver must remember of each run, on disk.

Written before a job is submitted (the intent), when its id is known, before it is cancelled on our wish (so that our
cancelling is told from anybody else's), when it has ended (Slurm forgets its jobs after minutes), and when it is
removed (Slurm still lists it for a while). No secret is in it, only the names of variables that are secret.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

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
