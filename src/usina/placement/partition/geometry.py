"""What a device model can be cut into: rows of data, read from the packaged tables in ``profiles/``.

Two schemes. In NVIDIA's MIG an instance is a run of memory slices that may begin at listed places only. On AMD
Instinct the whole device is in one mode, which cuts it into equal partitions. Both are one geometry here: a profile has
a width in slices and legal starts, and a start is a slice (MIG) or the index of a partition (AMD).

A new model is new rows; nothing here names a model.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.resources import files
from typing import Any, NamedTuple

from usina.core.units import GiB

MIG = "mig"
MODES = "modes"


class Placement(NamedTuple):
    """A partition of one device: canonical profile name and start."""

    profile: str
    start: int


@dataclass(frozen=True, slots=True)
class Profile:
    """One way to cut out a part. Width and compute in slices of the device, memory in bytes."""

    name: str
    compute: int
    width: int  # memory slices (MIG) or XCDs (AMD)
    starts: tuple[int, ...]  # the preferred one first
    most: int  # instances of it on one device
    memory: int
    stride: int = 1  # slices from one start to the next: the width where starts are indexes
    variant: str = ""  # "" plain; "me", "double", "gfx", "no-me": never chosen unless asked for
    aliases: tuple[str, ...] = ()  # what other drivers call it
    nps: tuple[int, ...] = ()  # AMD: memory modes that go with it

    @property
    def plain(self) -> bool:
        return not self.variant

    @property
    def media(self) -> bool:
        """Has all media extensions, of which a device has one set."""
        return self.variant == "me"

    def window(self, start: int) -> int:
        """Bit mask of the slices that an instance at `start` takes."""
        return ((1 << self.width) - 1) << (start * self.stride)


@dataclass(frozen=True, eq=False)
class Geometry:
    """What devices of one model can be cut into. Compared by identity: each is read once."""

    name: str
    scheme: str  # MIG or MODES
    models: tuple[str, ...]  # words that a model's name has, separated by spaces; the longest match wins
    sizes: tuple[str, ...]  # memory sizes in a model's name ("80gb") that are this one; () = any
    compute: int  # compute slices
    slices: int  # memory slices
    profiles: tuple[Profile, ...]

    @property
    def uniform(self) -> bool:
        """All parts of one device have the same profile."""
        return self.scheme == MODES

    @property
    def full(self) -> int:
        """Bit mask of all slices."""
        return (1 << self.slices) - 1

    @cached_property
    def named(self) -> Mapping[str, Profile]:
        """Canonical name → profile."""
        return {profile.name: profile for profile in self.profiles}

    @cached_property
    def _names(self) -> Mapping[str, str]:
        """Everything a profile may be called, in lower case → canonical name. Canonical names win, then the first."""
        names = {profile.name: profile.name for profile in self.profiles}
        for profile in self.profiles:
            for other in (*profile.aliases, _short(profile)):
                names.setdefault(other, profile.name)
        for other, name in list(names.items()):
            names.setdefault(other.replace("+", "."), name)  # as in Kubernetes' resource names
        return names

    def resolve(self, profile: str) -> str | None:
        return self._names.get(profile.strip().lower().removeprefix("mig ").removeprefix("mig-"))


def resolve(geometry: Geometry, profile: str) -> str | None:
    """The canonical name of `profile`: without case, by alias ("3g.39gb") or short ("1g", "1g+me"); None if unknown.

    A short name is never the double-memory 1g, which has to be named in full.
    """
    return geometry.resolve(profile)


def memory_of(geometry: Geometry, profile: str) -> int:
    """Bytes that an instance of `profile` has. Raises KeyError if the model has no such profile."""
    name = geometry.resolve(profile)
    if name is None:
        raise KeyError(profile)
    return geometry.named[name].memory


@lru_cache(maxsize=4096)
def geometry_of(model: str) -> Geometry | None:
    """The geometry of a device by its model's name as drivers and PCI databases write it, or None.

    A name that leaves the memory size open ("A100") means the smallest, so that nothing is promised that is not there.
    """
    words = re.findall(r"[a-z0-9]+", model.lower())
    sizes = {word for word in words if re.fullmatch(r"\d+gb", word)}
    return max(
        (geometry for geometry in shipped() if _score(geometry, frozenset(words), sizes)),
        key=lambda geometry: _score(geometry, frozenset(words), sizes),
        default=None,
    )


@lru_cache(maxsize=1)
def shipped() -> tuple[Geometry, ...]:
    """All geometries of the packaged tables, in order of file name and row."""
    tables = sorted(files(__package__).joinpath("profiles").iterdir(), key=lambda entry: entry.name)
    texts = (table.read_text(encoding="utf-8") for table in tables if table.name.endswith(".toml"))
    return tuple(geometry for text in texts for geometry in read(text))


def read(text: str) -> tuple[Geometry, ...]:
    """Geometries of a TOML table. Raises KeyError or ValueError, which name the row, if it makes no sense."""
    return tuple(_checked(_geometry(row)) for row in tomllib.loads(text)["geometry"])


def _score(geometry: Geometry, words: frozenset[str], sizes: set[str]) -> int:
    if geometry.sizes and not sizes <= set(geometry.sizes):
        return 0
    matches = (set(entry.split()) for entry in geometry.models)
    return max((len(entry) for entry in matches if entry <= words), default=0)


def _short(profile: Profile) -> str:
    """``1g.10gb+me`` → ``1g+me``; what has no short name keeps its own."""
    return profile.name if profile.variant == "double" else re.sub(r"\.\d+gb", "", profile.name)


def _geometry(row: Mapping[str, Any]) -> Geometry:
    modes = row["scheme"] == MODES
    slices = int(row["xcds"] if modes else row["slices"])
    return Geometry(
        name=str(row["name"]),
        scheme=str(row["scheme"]),
        models=tuple(row["models"]),
        sizes=tuple(row.get("sizes", ())),
        compute=slices if modes else int(row["compute"]),
        slices=slices,
        profiles=tuple(_modes(row)) if modes else tuple(_instance(profile) for profile in row["profiles"]),
    )


def _instance(row: Mapping[str, Any]) -> Profile:
    return Profile(
        name=str(row["name"]).lower(),
        compute=int(row["compute"]),
        width=int(row["slices"]),
        starts=tuple(row["starts"]),
        most=int(row["max"]),
        memory=int(row["gib"] * GiB),
        variant=str(row.get("variant", "")),
        aliases=tuple(row.get("aliases", ())),
    )


def _modes(row: Mapping[str, Any]) -> Iterable[Profile]:
    for mode in row["modes"]:
        count = int(mode["partitions"])
        width = int(row["xcds"]) // count
        memory = int(row["gib"] * GiB) // count
        starts = tuple(range(count))
        yield Profile(str(mode["name"]).lower(), width, width, starts, count, memory, width, nps=tuple(mode["nps"]))


def _checked(geometry: Geometry) -> Geometry:
    for profile in geometry.profiles:
        for start in profile.starts:
            if start < 0 or profile.window(start) & ~geometry.full:
                raise ValueError(f"{geometry.name}: {profile.name} at {start} is not on the device")
        # An occupancy counts no instances: the most there may be must follow from where they may lie.
        if profile.most < (1 if profile.media else _room(profile)):
            raise ValueError(f"{geometry.name}: max of {profile.name} is less than its starts allow")
    return geometry


def _room(profile: Profile) -> int:
    """How many instances lie side by side at most: by earliest end, which is optimal for runs of equal width."""
    count, end = 0, 0
    for start in sorted(profile.starts):
        if start * profile.stride >= end:
            count, end = count + 1, start * profile.stride + profile.width
    return count
