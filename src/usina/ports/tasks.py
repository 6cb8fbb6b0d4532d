"""Task driver: runs tasks on one kind of provider, a *stack*. It shares a folder, and `PLUGIN`, with what else its kind
of provider can do.

Contract (held by `usina.testing.task_contract`):
- Every call is idempotent on the handle, which Usina chose beforehand and never uses for two runs: starting what was
  started, even what has ended since, does nothing; removing what is not there succeeds. A call cut short may be
  repeated.
- What runs goes on, and what it says is kept, while no control plane is there. A time limit holds all the same.
- A run that has ended stays `Ended`, with its log and its files, until `remove`, which leaves nothing behind.
- A stack that does not answer is `Unreachable` from `observe`, and raises `HostUnreachable` from everything else.
- Volumes are a host's, not a driver's: those that one of its drivers makes, all of them give to their runs.
- Nothing here knows tenants, quotas or the database.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from usina.core.capacity import Finding, Inventory
from usina.core.machine import VolumePlan
from usina.core.task import Sight, TaskPlan, Usage

Progress = Callable[[float, str], Awaitable[None]]
"""How far a start is (0 to 1) and what it does: "pulling docker.io/library/debian:12"."""


@dataclass(frozen=True, slots=True)
class LogPiece:
    """A piece of what a run said, in whole lines of ``<milliseconds since the epoch> <o|e|s> <text>\\n``.

    o: standard output, e: standard error, s: a word of the stack itself. Text is UTF-8, broken bytes replaced, a line
    of more than 16 KiB cut. Positions are bytes of the whole log as if nothing was ever dropped: `start` may lie
    beyond what was asked for where a bounded log has dropped its oldest part. Where runs have several units, a text
    begins with ``[index] ``.
    """

    start: int
    data: bytes

    @property
    def end(self) -> int:
        return self.start + len(self.data)


class Terminal(Protocol):
    """A command beside a running task, both ways."""

    async def read(self) -> bytes:
        """The next bytes it says; ``b""`` when it has ended."""
        ...

    async def write(self, data: bytes) -> None:
        """Bytes for its standard input; ``b""`` ends it."""
        ...

    async def resize(self, rows: int, columns: int) -> None: ...

    async def wait(self) -> int:
        """Its exit code, once it has ended."""
        ...

    async def close(self) -> None:
        """End it if it still runs."""
        ...


class TaskDriver(Protocol):
    """One open stack on one provider. Made by `Plugin.tasks`; closed by `close`, which ends no run."""

    async def inventory(self) -> Inventory:
        """What the provider has for tasks; its traits say ``task:<stack>``."""
        ...

    async def survey(self) -> Mapping[str, Sight]:
        """Every run of this factory that is not removed, in one cheap call: handle → sight. The same mapping object as
        before says that nothing has changed."""
        ...

    def watch(self) -> AsyncIterator[str]:
        """Handles of runs that may have changed, as it happens; ``""`` means "look at all of them"."""
        ...

    async def observe(self, handle: str) -> Sight: ...

    async def start(self, plan: TaskPlan, progress: Progress) -> None:
        """Begin the run, or hand it to the stack's queue. Raises `DriverError`, with `lasting` where the stack will
        never take it (an unknown account, an image that does not exist); then nothing of it is left."""
        ...

    async def stop(self, handle: str, *, grace: float) -> None:
        """Ask everything in the run to end (SIGTERM); kill it after `grace` seconds (0 = at once). Returns when it has
        ended. One that has ended, or was never started, is left as it is."""
        ...

    async def remove(self, handle: str) -> None:
        """End the run and leave nothing of it: no process, container, job, folder, control group, network device or
        packet filter."""
        ...

    async def leftovers(self) -> Sequence[str]:
        """Handles of which something is there, though no run is: starts that were cut short. `remove` clears them."""
        ...

    # --- volumes, on hosts with the trait ``task:volumes``; elsewhere, both raise a lasting `DriverError`
    async def ensure_volume(self, plan: VolumePlan) -> None:
        """Make a volume of files, whose size is a hard limit, or grow it to ``plan.size``; never shrinks. Runs that
        name it in `TaskPlan.volumes` see its files, own what other runs made on it, and keep it to their end. Raises
        `DriverError` where it would have to grow while a run has it."""
        ...

    async def remove_volume(self, handle: str) -> None:
        """Remove a volume and what is on it. Raises `DriverError` while a run has it."""
        ...

    # --- what it says and makes
    async def log(self, handle: str, after: int, limit: int) -> LogPiece:
        """At most about `limit` bytes of the log past position `after`; no data where there is nothing new."""
        ...

    def outputs(self, handle: str, patterns: tuple[str, ...]) -> AsyncIterator[bytes]:
        """The files in the working directory that match one of the patterns (as `pathlib.PurePath.match`, a folder
        meaning all within), as the bytes of one tar. Links are not followed, and nothing outside is ever read."""
        ...

    async def usage(self, handle: str) -> Usage | None:
        """What the run uses now; None where it does not run or nothing is known."""
        ...

    async def exec(self, handle: str, command: tuple[str, ...], *, terminal: bool) -> Terminal:
        """A command where the run is: its files, its environment, its user, its limits."""
        ...

    async def dial(self, handle: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A TCP stream to a port that the run listens on."""
        ...

    async def health(self) -> Sequence[Finding]:
        """What came to light about devices since it was asked last; nothing on stacks that look after their own."""
        ...

    async def close(self) -> None: ...
