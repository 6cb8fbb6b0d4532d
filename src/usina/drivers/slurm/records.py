"""What both wires say of a cluster, in one form. Pure.

Whatever the version and the wire, the rest of the driver knows only these. Times are seconds since the epoch (0: not
known), sizes bytes, time limits seconds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from usina.core.task import Usage
from usina.core.units import Instant

QUEUED: Final = frozenset(
    {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
)
RUNNING: Final = frozenset(
    {"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "RESIZING", "SIGNALING", "STAGE_OUT", "EXPEDITING"}
)


@dataclass(frozen=True, slots=True)
class JobRecord:
    """A job, an element of an array, or all pending elements of one (`pending`)."""

    id: int
    name: str
    user: str
    partition: str
    states: frozenset[str]
    reason: str = ""
    status: int | None = None  # as `wait` gives it: code * 256 + signal
    submitted: Instant = 0.0
    start: Instant = 0.0
    end: Instant = 0.0
    nodes: str = ""
    batch_host: str = ""
    array: int = 0  # job id of the array; 0: not of one
    index: int | None = None
    pending: tuple[int, ...] = ()  # elements that this record stands for
    restarts: int | None = 0  # None: not known

    @property
    def phase(self) -> str:
        """ "queued" | "running" | "ended". What is queued again after a run may still be completing it."""
        if self.states & QUEUED:
            return "queued"
        return "running" if self.states & RUNNING else "ended"

    @property
    def said_as(self) -> str:
        """What Slurm's commands call it."""
        return f"{self.array}_{self.index}" if self.array and self.index is not None else str(self.array or self.id)


@dataclass(frozen=True, slots=True)
class PastRecord:
    """A job, or an element of an array, as accounting has it."""

    job: JobRecord
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class NodeRecord:
    name: str
    address: str
    cpus: int
    memory: int
    gres: str = ""
    features: tuple[str, ...] = ()
    arch: str = ""
    states: frozenset[str] = frozenset()
    version: str = ""

    @property
    def up(self) -> bool:
        return not self.states & {
            "DOWN",
            "DRAIN",
            "DRAINING",
            "DRAINED",
            "FAIL",
            "FAILING",
            "NOT_RESPONDING",
            "UNKNOWN",
        }


@dataclass(frozen=True, slots=True)
class PartitionRecord:
    name: str
    nodes: str
    states: frozenset[str] = frozenset()
    limits: Mapping[str, str] = field(default_factory=dict)  # "MaxTime" -> "1-00:00:00"; only those that limit


def expand(hosts: str, most: int = 100_000) -> tuple[str, ...]:
    """A host list → its hosts: ``n[1-3,07],g1`` → n1, n2, n3, n07, g1."""
    found: list[str] = []
    for item in _split(hosts):
        found += _expand_one(item, most - len(found))
    return tuple(found)


def numbers(text: str, most: int = 100_000) -> tuple[int, ...]:
    """Indices of an array as Slurm writes them: ``0-3,7,9-15:2%4`` → all of them. What is cut short ("...") ends it."""
    found: list[int] = []
    for item in text.partition("%")[0].split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", item.strip())
        if match:
            last, step = int(match[2] or match[1]), int(match[3] or 1)
            found += range(int(match[1]), min(last, int(match[1]) + (most - len(found)) * step) + 1, max(1, step))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Gres:
    """A generic resource: ``gpu:h100:2`` → gpu, h100, 2."""

    name: str
    type: str
    count: int


def gres_of(text: str) -> tuple[Gres, ...]:
    """``gpu:h100:2(S:0-1),gpu:1g.10gb:4,nic:1`` → its parts. What cannot be read is left out."""
    found = []
    for item in _split(re.sub(r"\([^)]*\)", "", text)):
        words = item.removeprefix("gres/").split(":")
        count = _count(words[-1])
        if count is None:
            words, count = [*words, "1"], 1
        if words[0] and words[0].lower() != "null" and len(words) in (2, 3):
            found.append(Gres(words[0], words[1] if len(words) == 3 else "", count))
    return tuple(found)


def _count(text: str) -> int | None:
    match = re.fullmatch(r"(\d+)([KkMmGg]?)", text)
    return int(match[1]) * 1024 ** " KMG".index(match[2].upper() or " ") if match else None


def _split(text: str) -> Iterable[str]:
    """At the commas that are in no bracket."""
    return [item for item in re.split(r",(?![^\[]*\])", text.strip()) if item and item not in ("(null)", "None")]


def _expand_one(item: str, most: int) -> list[str]:
    match = re.match(r"([^\[]*)\[([^\]]+)\](.*)\Z", item)
    if not match:
        return [item][:most]
    names = []
    for span in match[2].split(","):
        first, _, last = span.partition("-")
        if first.isdecimal() and (last or first).isdecimal():
            width = len(first)
            stop = min(int(last or first), int(first) + most)
            names += [f"{match[1]}{number:0{width}d}" for number in range(int(first), stop + 1)]
    return [full for name in names for full in _expand_one(name + match[3], most)][:most]
