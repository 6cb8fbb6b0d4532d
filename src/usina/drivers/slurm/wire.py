"""How the driver speaks to a cluster: what `rest` and `commands` both can, and how their failures look alike."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol

from usina.drivers.slurm.identity import Person
from usina.drivers.slurm.records import JobRecord, NodeRecord, PartitionRecord, PastRecord
from usina.drivers.slurm.request import JobRequest
from usina.ports.driver import DriverError, HostUnreachable

TERM = "TERM"
AT_ONCE = "USR2"  # a run's own script takes it for a SIGKILL (see `script`)

_AWAY = re.compile(
    r"unable to contact slurm|socket timed out|connection refused|zero bytes|communication|connection failure|"
    r"no route|timed out|munge|not (?:be )?responding|persistent connection|failed to (?:receive|send)|slurm_load_",
    re.IGNORECASE,
)
_LATER = re.compile(
    r"temporarily|MaxSubmit|SubmitJobs|try again|Resource busy|too many|limit.*submit|submit.*limit|in standby",
    re.IGNORECASE,
)
_GONE = re.compile(
    r"invalid job id|already (?:completed|completing|finished)|job/step already|job can not be altered now",
    re.IGNORECASE,
)


class Wire(Protocol):
    """Raises `HostUnreachable` where the cluster does not answer, `DriverError` in Slurm's words where it refuses."""

    name: str  # "slurmrestd" | "commands"

    async def version(self) -> str:
        """Slurm's version, and that of the wire."""
        ...

    async def jobs(self) -> Sequence[JobRecord]:
        """Jobs of this factory that the controller knows, by their names; those ended lately among them."""
        ...

    async def past(self, jobs: Sequence[int], name: str = "") -> Sequence[PastRecord]:
        """Jobs by id, or all called `name`, as accounting has them; none where there is no accounting."""
        ...

    async def nodes(self) -> Sequence[NodeRecord]: ...

    async def partitions(self) -> Sequence[PartitionRecord]: ...

    async def topology(self) -> str:
        """The switches, for people; "" where there is none to be known."""
        ...

    async def submit(self, person: Person, request: JobRequest) -> int:
        """Hand it in as `person`; the job's id."""
        ...

    async def cancel(self, person: str, jobs: Sequence[str], signal: str = "") -> None:
        """Cancel jobs, or send their scripts a signal, as `person`. One that is over is left as it is."""
        ...

    async def close(self) -> None: ...


def failure(words: str, doing: str) -> DriverError:
    """An error from what Slurm said."""
    line = plain(words)
    if _AWAY.search(line):
        return HostUnreachable(f"Slurm does not answer: {line}", detail=words)
    return DriverError(f"Slurm refused {doing}: {line}", lasting=not _LATER.search(line), detail=words)


def is_over(words: str) -> bool:
    """Whether it only says that there is nothing left to do."""
    return not words or bool(_GONE.search(words))


def plain(words: str) -> str:
    """The last thing that was said, without the name of the program."""
    lines = [
        re.sub(r"^(?:\w+: )?(?:error: |fatal: )+", "", line.strip()) for line in words.splitlines() if line.strip()
    ]
    chosen = [line for line in lines if not re.match(r"(?:Batch job submission failed)?:?\s*Unspecified error", line)]
    return (chosen or lines or ["no reason given"])[-1][:400]
