"""Partitions of GPUs that come and go, measured: how many requests for MIG profiles each policy accepts.

Requests arrive at random (Poisson) at hosts of 8 GPUs in MIG mode and leave after a random time (exponential); what
does not fit at once is refused. Every policy sees the same arrivals and lifetimes. Load is offered memory slices by
those there are. The first list is a real one of GPU shares (``--data``), each as the smallest profile with so much of
the compute slices; the others are made up. `planned` is ours with partitions moved within a GPU where that makes room.

`blocked` stands for the fragmentation-aware greedy of arXiv 2511.18906, of which we could read the abstract only: its
idea, the placement with the least growth of a measure of fragmentation, is theirs, and the measure is ours (see
`partition.states.blocked_of`). It takes the first device of equals.

Stranded are the idle slices that a request of the list, drawn at random, could not use, as an average over time.
`./dev bench partitions` ends with status 1 when a target is missed. Speed means something only on an idle machine.
"""

from __future__ import annotations

import argparse
import csv
import heapq
import os
import platform
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from usina.core.capacity import (
    Claim,
    Device,
    DeviceKind,
    DeviceRequest,
    HostState,
    Inventory,
    Needs,
    NumaNode,
    Part,
    Provider,
)
from usina.core.units import GiB
from usina.placement import Chooser, Fleet, Mix
from usina.placement.partition import Geometry, Move, cuts_of, geometry_of, moves_for, tables
from usina.placement.partition.states import Occupancy, fragmentation_of

MODEL = "NVIDIA H100 80GB HBM3"
PROFILES = ("1g.10gb", "2g.20gb", "3g.40gb", "4g.40gb", "7g.80gb")
MIXES = {"uniform": (0.2, 0.2, 0.2, 0.2, 0.2), "small": (0.5, 0.25, 0.12, 0.08, 0.05), "two sizes": (0.6, 0, 0.4, 0, 0)}
LOADS = (0.8, 0.9, 1.0, 1.1)
PEERS = ("first-fit", "best-fit", "blocked")
OURS, PLANNED = "usina", "usina, planned"
SAMPLED = 20  # arrivals from one reading of idle slices to the next
GPUS = 8  # of a host

out = Console(highlight=False, width=130)


@dataclass(frozen=True)
class Verdict:
    name: str
    good: bool


@dataclass(frozen=True, slots=True)
class Arrival:
    at: float  # in mean lifetimes
    profile: str
    stays: float


@dataclass
class Count:
    """Of one run, after it has warmed up."""

    moves: int = 0
    offered: Counter[str] = field(default_factory=Counter)
    accepted: Counter[str] = field(default_factory=Counter)
    stranded: list[float] = field(default_factory=list)  # slices of a GPU, on average over GPUs
    seconds: float = 0.0  # deciding, and taking note


@lru_cache(maxsize=1)
def geometry() -> Geometry:
    found = geometry_of(MODEL)
    assert found is not None
    return found


def width(profile: str) -> int:
    return geometry().named[profile].width


# --- what is asked for


def real_mix(data: Path) -> tuple[float, ...]:
    """The shares of a published list, each as the smallest profile with so much of the compute slices."""
    path = data / "pods_gpushare100.csv"
    if not path.exists():
        sys.exit(f"{path} is not there: name the folder of the published experiment with --data")
    found: Counter[str] = Counter()
    with path.open() as file:
        for row in csv.DictReader(file):
            if int(row["num_gpu"]):
                found[_profile(int(row["gpu_milli"]) / 1000 if row["num_gpu"] == "1" else 1.0)] += 1
    return tuple(found[profile] / found.total() for profile in PROFILES)


def _profile(share: float) -> str:
    named = geometry().named
    return next(name for name in PROFILES if named[name].compute >= share * geometry().compute)


def arrivals(mix: Sequence[float], load: float, slices: int, until: float, seed: int) -> Iterator[Arrival]:
    source = random.Random(seed)
    mean = sum(weight * width(profile) for weight, profile in zip(mix, PROFILES, strict=True))
    now = 0.0
    while (now := now + source.expovariate(load * slices / mean)) < until:
        yield Arrival(now, source.choices(PROFILES, mix)[0], source.expovariate(1.0))


def needs_of(profile: str) -> Needs:
    compute = geometry().named[profile].compute
    return Needs(compute, 8 * compute * GiB, 0, devices=(DeviceRequest(DeviceKind.GPU, profile=profile),))


def hosts(count: int) -> list[Provider]:
    gpus = tuple(Device(f"{n:04x}:00:00.0", DeviceKind.GPU, MODEL, memory=80 * GiB, mode="mig") for n in range(GPUS))
    inventory = Inventory((NumaNode(0, tuple(range(64)), 1024 * GiB),), 0, gpus)
    return [Provider(f"h{n}", f"h{n}", "bench", HostState.ENABLED, 1, inventory) for n in range(count)]


# --- policies


class Peer:
    """One device after the other: the first that costs least, by its mask."""

    moved = 0

    def __init__(self, policy: str, devices: int) -> None:
        self._masks = [0] * devices
        self._choices = {profile: _choices(policy, profile) for profile in PROFILES}
        self._windows: dict[str, tuple[int, int]] = {}  # ticket -> device and the slices it holds there

    def take(self, profile: str) -> str | None:
        choices, never = self._choices[profile], (sys.maxsize, -1)
        costs = [choices.get(mask, never)[0] for mask in self._masks]
        device = costs.index(min(costs))
        if costs[device] == sys.maxsize:
            return None
        window = geometry().named[profile].window(choices[self._masks[device]][1])
        self._masks[device] |= window
        ticket = f"{device} {window}"
        self._windows[ticket] = device, window
        return ticket

    def give_back(self, ticket: str) -> None:
        device, window = self._windows.pop(ticket)
        self._masks[device] &= ~window

    def masks(self) -> Sequence[int]:
        return self._masks


def _choices(policy: str, name: str) -> dict[int, tuple[int, int]]:
    """Mask -> cost and start, where the profile fits."""
    known, profile = tables(geometry()), geometry().named[name]
    found = {}
    for mask in range(geometry().full + 1):
        starts = [start for start in sorted(profile.starts) if not mask & profile.window(start)]
        if policy == "blocked":
            grown = [int(known.blocked[mask | profile.window(s)]) - int(known.blocked[mask]) for s in starts]
        else:
            grown = [int(known.free_slices[mask]) if policy == "best-fit" else 0] * len(starts)
        if starts:
            found[mask] = min(zip(grown, starts, strict=True))
    return found


class Ours:
    """The fleet and the chooser as the control plane has them; `planned` moves parts where that makes room."""

    def __init__(self, count: int, mix: Mix, planned: bool) -> None:
        self.moved = 0
        self._fleet = Fleet(hosts(count))
        self._chooser = Chooser(self._fleet, mix=mix)
        self._planned = planned
        self._needs = {profile: needs_of(profile) for profile in PROFILES}
        self._claims: dict[str, Claim] = {}  # ticket -> claim
        self._held: dict[tuple[str, str], dict[Part, str]] = {  # host and device -> part -> ticket
            (id, device.address): {} for id, row in self._fleet.rows.items() for device in self._fleet.gpus_of(row)
        }
        self._occupancies = cuts_of(geometry()).occupancies
        self._tickets = 0

    def take(self, profile: str) -> str | None:
        answer = self._chooser.choose(self._needs[profile])
        if not isinstance(answer, Claim) and self._planned and self._make_room(profile):
            answer = self._chooser.choose(self._needs[profile])
        if not isinstance(answer, Claim):
            return None
        self._tickets += 1
        self._hold(str(self._tickets), answer)
        return str(self._tickets)

    def give_back(self, ticket: str) -> None:
        claim = self._claims.pop(ticket)
        self._fleet.give_back(claim)
        part = Part.parse(claim.devices[0])
        del self._held[claim.provider, part.address][part]

    def masks(self) -> Sequence[int]:
        return [self._occupancies[number].mask for number in self._fleet.slices[: self._fleet.size].ravel().tolist()]

    def _hold(self, ticket: str, claim: Claim) -> None:
        self._fleet.take(claim)
        self._claims[ticket] = claim
        part = Part.parse(claim.devices[0])
        self._held[claim.provider, part.address][part] = ticket

    def _make_room(self, profile: str) -> bool:
        """Moves on the device that needs fewest slices moved; False where no moves on one device would do."""
        plans = [(_slices(plan), device, plan) for device, plan in self._plans(profile)]
        if not plans:
            return False
        _, device, plan = min(plans, key=lambda one: one[:2])
        for move in plan:
            part = replace(move.part, address=device[1])
            ticket = self._held[device][part]
            claim = self._claims[ticket]
            self.give_back(ticket)
            self._hold(ticket, replace(claim, devices=(str(replace(part, start=move.start)),)))
        self.moved += len(plan)
        return True

    def _plans(self, profile: str) -> Iterator[tuple[tuple[str, str], tuple[Move, ...]]]:
        for device, parts in self._held.items():
            if sum(width(part.profile) for part in parts) + width(profile) <= geometry().slices:
                plan = _plan(profile, tuple(sorted((replace(part, address="") for part in parts), key=str)))
                if plan:
                    yield device, plan


@cache
def _plan(profile: str, parts: tuple[Part, ...]) -> tuple[Move, ...] | None:
    return moves_for(geometry(), parts, profile)


def _slices(plan: Sequence[Move]) -> int:
    return sum(width(move.part.profile) for move in plan)


# --- one run


def run(policy: str, mix: Sequence[float], load: float, options: argparse.Namespace, seed: int) -> Count:
    """Counts the arrivals after the warm-up. Poisson arrivals see time averages: idle slices are read at them."""
    count, slices = Count(), options.hosts * GPUS * geometry().slices
    site: Peer | Ours = Peer(policy, options.hosts * GPUS)
    if policy in (OURS, PLANNED):
        expected = Mix.weighted({needs_of(profile): weight for profile, weight in zip(PROFILES, mix, strict=True)})
        site = Ours(options.hosts, expected, planned=policy == PLANNED)
    lost = _stranded(mix)
    held: list[tuple[float, int, str]] = []
    warm = False
    for number, one in enumerate(arrivals(mix, load, slices, options.warm_up + options.lifetimes, seed)):
        if not warm and one.at >= options.warm_up:
            warm, count = True, Count(moves=-site.moved)
        begun = time.perf_counter()
        while held and held[0][0] <= one.at:
            site.give_back(heapq.heappop(held)[2])
        if number % SAMPLED == 0:
            begun += _sample(count, site, lost)
        ticket = site.take(one.profile)
        count.seconds += time.perf_counter() - begun
        count.offered[one.profile] += 1
        if ticket is not None:
            count.accepted[one.profile] += 1
            heapq.heappush(held, (one.at + one.stays, number, ticket))
    count.moves += site.moved
    return count


def _sample(count: Count, site: Peer | Ours, lost: Sequence[float]) -> float:
    """Notes the slices stranded; gives the seconds that this took."""
    begun = time.perf_counter()
    count.stranded.append(statistics.fmean(lost[mask] for mask in site.masks()))
    return time.perf_counter() - begun


def _stranded(mix: Sequence[float]) -> list[float]:
    """By mask, the idle slices that a request of the mix could not use, in expectation."""
    weights = tuple(zip(PROFILES, mix, strict=True))
    full = geometry().full
    return [geometry().slices * fragmentation_of(geometry(), Occupancy(mask), weights) for mask in range(full + 1)]


def accepted(count: Count) -> float:
    """Per cent of the requests."""
    return 100 * count.accepted.total() / count.offered.total()


def served(count: Count) -> float:
    """Per cent of the slices asked for."""
    return 100 * _in_slices(count.accepted) / _in_slices(count.offered)


def _in_slices(counted: Mapping[str, int]) -> int:
    return sum(width(profile) * number for profile, number in counted.items())


# --- all runs


def main() -> None:
    options = _options()
    mixes = {"shares": real_mix(options.data), **MIXES}
    chosen = {name: mixes[name] for name in options.mixes}
    verdicts: list[Verdict] = []
    out.print(
        f"{time.strftime('%Y-%m-%d')}, {_processor()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    )
    told = f"{options.warm_up:g} to warm up, {options.lifetimes:g} counted, {options.seeds} seeds"
    out.print(f"{options.hosts} hosts × {GPUS} × {geometry().name}; mean lifetimes a run: {told}")
    for name, mix in chosen.items():
        parts = ", ".join(f"{profile} {100 * weight:.1f} %" for profile, weight in zip(PROFILES, mix, strict=True))
        out.rule(f"{name}: {parts}")
        verdicts += _one_mix(name, mix, options)
    for verdict in verdicts:
        out.print(("[green]met[/]    " if verdict.good else "[red]missed[/] ") + verdict.name)
    sys.exit(0 if all(verdict.good for verdict in verdicts) else 1)


def _one_mix(name: str, mix: Sequence[float], options: argparse.Namespace) -> Iterator[Verdict]:
    heads = ("requests %", "slices %", "± best fit", "7g %", "stranded", "moves/1,000", "decisions/s")
    table = Table("load", "policy", *heads, title_justify="left")
    gains: dict[str, list[float]] = {policy: [] for policy in (*PEERS, OURS, PLANNED)}
    for load in options.loads:
        runs = {
            policy: [run(policy, mix, load, options, seed) for seed in range(options.seeds)]
            for policy in track(gains, f"{name} {load}", transient=True)
        }
        for policy, counts in runs.items():
            gain = [served(mine) - served(fit) for mine, fit in zip(counts, runs["best-fit"], strict=True)]
            gains[policy] += gain
            table.add_row(f"{load:.1f}", policy, *_cells(counts, gain), style="bold" if policy == OURS else "")
        table.add_section()
    out.print(table)
    mean = {policy: statistics.fmean(found) for policy, found in gains.items()}
    best = max(PEERS, key=lambda policy: mean[policy])
    ahead = [mine - theirs for mine, theirs in zip(gains[OURS], gains[best], strict=True)]
    by = f"{statistics.fmean(ahead):+.2f} ± {_error(ahead):.2f} points of slices"
    yield Verdict(f"{name}: {by} over {best}, the best peer", statistics.fmean(ahead) >= -_error(ahead))
    planned = [mine - plain for mine, plain in zip(gains[PLANNED], gains[OURS], strict=True)]
    yield Verdict(
        f"{name}: planned moves gain {statistics.fmean(planned):+.2f} ± {_error(planned):.2f} more",
        statistics.fmean(planned) >= -_error(planned),
    )


def _cells(counts: Sequence[Count], gain: Sequence[float]) -> list[str]:
    large = [
        100 * one.accepted[PROFILES[-1]] / one.offered[PROFILES[-1]] for one in counts if one.offered[PROFILES[-1]]
    ]
    moves = 1000 * sum(one.moves for one in counts) / sum(one.accepted.total() for one in counts)
    return [
        f"{statistics.fmean(map(accepted, counts)):.2f}",
        f"{statistics.fmean(map(served, counts)):.2f}",
        f"{statistics.fmean(gain):+.2f} ± {_error(gain):.2f}",
        f"{statistics.fmean(large):.1f}" if large else "",
        f"{statistics.fmean(part for one in counts for part in one.stranded):.2f}",
        f"{moves:.1f}" if moves else "",
        f"{statistics.median(one.offered.total() / one.seconds for one in counts):,.0f}",
    ]


def _error(values: Sequence[float]) -> float:
    """Of the mean, twice its standard error: runs of one seed see the same arrivals, and are compared in pairs."""
    return 2 * statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "unknown processor")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./dev bench partitions", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared/data/gpu-placement")
    parser.add_argument("--hosts", type=int, default=25, help=f"of {GPUS} GPUs")
    parser.add_argument("--mixes", nargs="+", default=["shares", *MIXES], choices=["shares", *MIXES])
    parser.add_argument("--loads", nargs="+", type=float, default=list(LOADS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--lifetimes", type=float, default=7.0, help="mean lifetimes counted in each run")
    parser.add_argument("--warm-up", type=float, default=3.0, help="mean lifetimes before them")
    return parser.parse_args()


if __name__ == "__main__":
    main()
