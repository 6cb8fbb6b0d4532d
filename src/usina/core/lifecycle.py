"""Decisions: what a pure `decide(resource, seen, now)` answers, and the steps it may ask for.

A step is data. The engine turns it into one claim, one idempotent driver call or one release, and then looks again;
so a decision never assumes that a step worked.
"""

from __future__ import annotations

from dataclasses import dataclass

from usina.core.capacity import Needs
from usina.core.resource import Phase
from usina.core.units import Instant


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to do. The class name is its word in the story."""


@dataclass(frozen=True, slots=True)
class Place(Step):
    """Claim capacity on a provider (or change the claim held)."""

    needs: Needs


@dataclass(frozen=True, slots=True)
class Forget(Step):
    """Nothing of it is left anywhere: release its claims, names, addresses and quota, and drop the row."""


@dataclass(frozen=True, slots=True)
class Define(Step):
    pass


@dataclass(frozen=True, slots=True)
class Start(Step):
    pass


@dataclass(frozen=True, slots=True)
class Stop(Step):
    grace: float = 30.0


@dataclass(frozen=True, slots=True)
class Suspend(Step):
    pass


@dataclass(frozen=True, slots=True)
class Resume(Step):
    pass


@dataclass(frozen=True, slots=True)
class Reboot(Step):
    token: int


@dataclass(frozen=True, slots=True)
class Rebuild(Step):
    token: int


@dataclass(frozen=True, slots=True)
class Snapshot(Step):
    name: str


@dataclass(frozen=True, slots=True)
class Restore(Step):
    name: str
    token: int


@dataclass(frozen=True, slots=True)
class DropSnapshot(Step):
    name: str


@dataclass(frozen=True, slots=True)
class AttachVolume(Step):
    volume: str


@dataclass(frozen=True, slots=True)
class DetachVolume(Step):
    volume: str


@dataclass(frozen=True, slots=True)
class AttachInterface(Step):
    mac: str


@dataclass(frozen=True, slots=True)
class DetachInterface(Step):
    mac: str


@dataclass(frozen=True, slots=True)
class Again(Step):
    """Take what is left of the run that ended off its stack, and note that the next one begins."""


@dataclass(frozen=True, slots=True)
class Finish(Step):
    """It is over: keep what it leaves, release its claim, and show `phase`."""

    phase: Phase


@dataclass(frozen=True, slots=True)
class Admit(Step):
    """Let so many more parts of an array have their turn. Those `in_line` are looked at when something has ended."""

    parts: tuple[str, ...]
    in_line: bool = False


@dataclass(frozen=True, slots=True)
class PlaceTogether(Step):
    """Claim capacity for all parts of a gang, or for none."""

    parts: tuple[str, ...]
    host: str | None = None  # the only one on which they may be


@dataclass(frozen=True, slots=True)
class EndParts(Step):
    """The whole is over: wake the parts that are left, so that they end too."""

    parts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Scale(Step):
    """Have so many replicas from now on."""

    wanted: int
    why: str


@dataclass(frozen=True, slots=True)
class AddReplicas(Step):
    """Order so many more tasks of an endpoint, of its variant or of the one on trial."""

    count: int
    canary: bool = False


@dataclass(frozen=True, slots=True)
class DrainReplicas(Step):
    """Send them nothing new, and let them end what they have begun."""

    replicas: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DropReplicas(Step):
    """Have their tasks deleted."""

    replicas: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CountFailures(Step):
    """They have failed: count them, drop the tasks of all but the last, and keep that for its log."""

    replicas: tuple[str, ...]
    why: str


@dataclass(frozen=True, slots=True)
class Apply(Step):
    """Make it, or bring it to the wish (volumes, networks, images, filters)."""


@dataclass(frozen=True, slots=True)
class Remove(Step):
    """Take it, and all it alone owns, off its provider."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A condition as a decision states it; the engine adds the time."""

    kind: str
    ok: bool
    reason: str
    message: str = ""


@dataclass(frozen=True, slots=True)
class Decision:
    """The phase to show now, the steps to take, and when to look again.

    `settled` says that this generation of the wish is answered. `due` is None when only a hint should wake it.
    """

    phase: Phase
    steps: tuple[Step, ...] = ()
    settled: bool = False
    due: Instant | None = None
    answers: tuple[Answer, ...] = ()


def pause(attempts: int) -> float:
    """Seconds before the next try after `attempts` failures: 1, 2, 4 … at most 60."""
    return float(min(60, 2 ** max(0, attempts - 1)))
