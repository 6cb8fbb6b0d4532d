"""The mix of requests that is expected, and what a host is worth to it.

A mix is a list of typical requests with weights, from a workload's history or given. `Outlook.value` says how many GPUs
of a host such requests could still use: for each typical request, as many as the host's free GPUs, cores and memory
carry *together*, when it is filled with requests of that kind alone. Free GPUs without the cores to drive them are
worth nothing, and cores are worth something only beside GPUs. Parts of GPUs count at their price (see `prices`), and
requests for several GPUs count whole copies. The idea of measuring a host against typical requests is FGD's ("Beware
of Fragmentation", USENIX ATC 2023), which asks only whether one more would fit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from usina.core.capacity import DeviceKind, DeviceRequest, Needs
from usina.core.units import GiB
from usina.placement.fleet import WHOLE, Fleet, Floats, Ints, Rows
from usina.placement.partition import Geometry, Worth, worth_of
from usina.placement.prices import gap_values, prices
from usina.placement.shape import Shape, form_of

LEARN = 200  # requests for GPUs after which the mix is taken anew
REMEMBERED = 4000  # requests of a history; beyond, all count half
TYPES = 160  # typical requests at most; the rarest beyond are left out
BLOCK = 1024  # hosts valued at once: what fits a processor's cache
FEW = 128  # hosts for which it does not pay to look which of them matter
KINDS = 16  # so many kinds of them are told apart when a host is valued
SEVERAL = 2.0  # how much more a request for several GPUs counts than its share of the mix: it has fewer places to go
NEVER = 1e-9  # stands for "needs none of it" in a divisor


@dataclass(frozen=True)
class Mix:
    """Typical requests for GPUs, with weights that add up to one; partitions apart from the others."""

    weights: Mapping[Needs, float]
    parts: Mapping[str, float] = field(default_factory=dict)  # profiles as they are asked for; {} while none were

    @staticmethod
    def of(requests: Iterable[Needs]) -> Mix:
        """The mix of a history: every request counts alike. Requests without GPUs say nothing about GPUs."""
        return Mix.weighted(Counter(form_of(request) for request in requests))

    @staticmethod
    def weighted(counts: Mapping[Needs, float]) -> Mix:
        kept = sorted(((n, w) for n, w in counts.items() if Shape(n).count and w > 0), key=lambda pair: -pair[1])[
            :TYPES
        ]
        total = sum(weight for _, weight in kept)
        weights = {needs: weight / total for needs, weight in kept} if kept else USUAL.weights
        return Mix(weights, _parts(counts))

    @cached_property
    def prices(self) -> dict[int, float]:
        """Share -> price in devices."""
        demand: Counter[int] = Counter()
        for needs, weight in self.weights.items():
            shape = Shape(needs)
            if shape.share < WHOLE:
                demand[shape.share] += weight  # type: ignore[assignment]
        return prices(demand)

    @cached_property
    def gaps(self) -> Floats:
        """(1001) what a gap is worth in devices."""
        return gap_values(self.prices)


def _parts(counts: Mapping[Needs, float]) -> dict[str, float]:
    """The profiles asked for, the most wanted first."""
    wanted: dict[str, float] = {}
    for needs, weight in counts.items():
        for request in needs.devices:
            if request.profile and request.kind is DeviceKind.GPU and weight > 0:
                wanted[request.profile] = wanted.get(request.profile, 0.0) + weight * request.count
    kept = sorted(wanted.items(), key=lambda pair: -pair[1])[:TYPES]
    total = sum(weight for _, weight in kept)
    return {profile: weight / total for profile, weight in kept}


def _gpus(count: int, weight: float) -> tuple[Needs, float]:
    return Needs(8.0 * count, 32 * GiB * count, 0, devices=(DeviceRequest(DeviceKind.GPU, count),)), weight


USUAL = Mix(dict([_gpus(1, 0.7), _gpus(2, 0.1), _gpus(4, 0.1), _gpus(8, 0.1)]))
"""Before there is a history: mostly single GPUs, with 8 cores and 32 GiB to each."""


class History:
    """Requests as they come, so that what was asked for lately is what is expected. Old ones fade."""

    def __init__(self) -> None:
        self._counts: Counter[Needs] = Counter()
        self._since = 0

    def observe(self, needs: Needs) -> None:
        if any(request.kind is DeviceKind.GPU for request in needs.devices):
            self._counts[form_of(needs)] += 1
            self._since += 1

    def mix(self) -> Mix | None:
        """A new mix each time enough was seen to change it; else None."""
        if self._since < LEARN:
            return None
        self._since = 0
        mix = Mix.weighted(self._counts)
        if self._counts.total() > REMEMBERED:
            self._counts = Counter({needs: count // 2 for needs, count in self._counts.items() if count > 1})
        return mix


class Outlook:
    """A mix held against a fleet: what hosts are worth to it, in GPUs."""

    def __init__(self, fleet: Fleet, mix: Mix) -> None:
        self._fleet, self._mix = fleet, mix
        shapes = [Shape(needs) for needs in mix.weights]
        weight = np.array(list(mix.weights.values()))
        several = np.array([s.count > 1 and s.share == WHOLE for s in shapes])
        self._singles = _Types(
            [s for s, many in zip(shapes, several, strict=True) if not many], weight[~several], mix, KINDS
        )
        self._several = _Types(
            [s for s, many in zip(shapes, several, strict=True) if many], weight[several], mix, KINDS
        )
        self.gaps = mix.gaps
        self._classes = -1
        self._mark, self._worth = -1, np.zeros(0)
        self._shapes, self._weights = shapes, weight
        self._by_share: dict[int, _Types] = {}
        self._parts: dict[Geometry, Worth] = {}
        self._by_share_of = -1  # classes that it was made for

    def value(self, rows: Rows, cpu: Ints, memory: Ints, usable: Floats, whole: Ints) -> Floats:
        """GPUs that the mix could use on `rows`, were so much free there.

        `cpu` in thousandths, `memory` in bytes, `usable` the worth of the free parts in GPUs, `whole` free whole GPUs.
        """
        if len(rows) > BLOCK:
            parts = [slice(start, start + BLOCK) for start in range(0, len(rows), BLOCK)]
            return np.concatenate([self.value(rows[p], cpu[p], memory[p], usable[p], whole[p]) for p in parts])
        if self._classes != len(self._fleet.classes):
            self._classes = len(self._fleet.classes)
            self._singles.accept(self._fleet)
            self._several.accept(self._fleet)
        kind = self._fleet.kind[rows, 0]
        value: Floats = self._singles.fluid(kind, cpu, memory, usable)
        if len(self._several.count):
            least = int(self._several.count.min())
            some = np.flatnonzero(whole >= least) if len(rows) > FEW else slice(None)
            value[some] += SEVERAL * self._several.copies(kind[some], cpu[some], memory[some], whole[some])
        return value

    def parts(self, geometry: Geometry) -> Worth:
        """What devices of a geometry are worth by how they are cut."""
        known = self._parts.get(geometry)
        if known is None:
            mix: dict[str, float] = {}
            for profile, weight in self._mix.parts.items():
                name = geometry.resolve(profile)
                if name is not None:
                    mix[name] = mix.get(name, 0.0) + weight
            known = self._parts[geometry] = worth_of(geometry, tuple(sorted(mix.items())))
        return known

    def by_share(self) -> dict[int, _Types]:
        """The typical requests, by the share of a device they ask for (1000: whole devices)."""
        if self._by_share_of != len(self._fleet.classes):
            self._by_share_of = len(self._fleet.classes)
            for share in {shape.share for shape in self._shapes}:
                chosen = np.array([shape.share == share for shape in self._shapes])
                picked = [shape for shape in self._shapes if shape.share == share]
                self._by_share[share] = _Types(picked, self._weights[chosen], self._mix, TYPES)
                self._by_share[share].accept(self._fleet)
        return self._by_share

    def worth(self, rows: Rows) -> Floats:
        """What `rows` are worth as they are; remembered, for when there are many."""
        fleet = self._fleet
        if self._mark < 0 or len(self._worth) != fleet.size:
            self._worth = np.zeros(fleet.size)
            changed = np.arange(fleet.size)
        else:
            changed = fleet.changed_since(self._mark)
        self._mark = fleet.now
        if len(changed):
            free = fleet.gpus[changed]
            usable, whole = self.usable(free), (free == WHOLE).sum(1)
            self._worth[changed] = self.value(changed, fleet.cpu[changed], fleet.memory[changed], usable, whole)
        return self._worth[rows]

    def usable(self, free: NDArray[np.int16]) -> Floats:
        """What free parts (R, G) are worth in GPUs (R)."""
        return self.gaps[free].sum(1)  # type: ignore[no-any-return]

    def loss(self, free: NDArray[np.int16], share: int) -> Floats:
        """What each device (R, G) with at least `share` free loses by giving it, in GPUs."""
        return self.gaps[free] - self.gaps[np.maximum(free - share, 0)]


class _Types:
    """T kinds of typical requests as columns; requests that hardly differ are one kind, of their mean size."""

    def __init__(self, shapes: list[Shape], weight: Floats, mix: Mix, most: int) -> None:
        self._shapes, self.given = shapes, weight
        worth = np.array([s.count * mix.prices.get(s.share, 1.0) for s in shapes])
        sizes = np.array([[s.cpu, s.memory, s.count] for s in shapes], np.float64).reshape(-1, 3)
        self._kinds = _alike(np.column_stack([sizes, worth]), most)
        total = np.maximum(self._kinds.T @ weight, NEVER)
        mean = (self._kinds * weight[:, None]).T @ np.column_stack([sizes, worth]) / total[:, None]
        self.cpu, self.memory, self.count, worth = mean[:, 0], mean[:, 1], np.rint(mean[:, 2]), mean[:, 3]
        self._cpu, self._memory = np.maximum(self.cpu, NEVER), np.maximum(self.memory, NEVER)
        self._per_cpu = worth / self._cpu
        self._per_memory = worth / self._memory

    def accept(self, fleet: Fleet) -> None:
        """(C + 1, T): the weight of each kind on hosts whose devices are of a class; none without devices (-1)."""
        self._weight = np.zeros((len(fleet.classes) + 1, len(self.count)))
        if len(self._shapes):
            accepted = np.array([shape.accepted(fleet) for shape in self._shapes], np.float64)
            self._weight = (accepted * self.given[:, None]).T @ self._kinds

    def weight(self, kind: NDArray[np.int16]) -> Floats:
        """(R, T) the weight of each type on hosts of these classes."""
        return self._weight[kind]

    def fluid(self, kind: NDArray[np.int16], cpu: Ints, memory: Ints, usable: Floats) -> Floats:
        """Σ weight × min(usable, what the cores carry, what the memory carries), where one at least fits."""
        if not len(self.count):
            return np.zeros(len(kind))
        free_cpu, free_memory = cpu[:, None].astype(np.float64), memory[:, None].astype(np.float64)
        carried = free_cpu * self._per_cpu
        np.minimum(carried, free_memory * self._per_memory, out=carried)
        np.minimum(carried, usable[:, None], out=carried)
        carried *= (free_cpu >= self.cpu) & (free_memory >= self.memory)
        return np.einsum("rt,rt->r", carried, self.weight(kind))  # type: ignore[no-any-return]

    def copies(self, kind: NDArray[np.int16], cpu: Ints, memory: Ints, whole: Ints) -> Floats:
        """Σ weight × GPUs of as many whole copies as fit."""
        number = np.minimum(cpu[:, None] / self._cpu, memory[:, None] / self._memory)
        np.minimum(number, whole[:, None] / self.count, out=number)
        number = np.floor(number, out=number) * self.count
        return np.einsum("rt,rt->r", np.maximum(number, 0, out=number), self.weight(kind))  # type: ignore[no-any-return]


def _alike(sizes: Floats, most: int) -> Floats:
    """(S, T) 1 where shape S is of kind T: shapes within a factor of each other, as wide as needed for `most` kinds."""
    logs = np.log(np.maximum(sizes, NEVER))
    width = 0.0
    while True:
        firsts: list[int] = []
        kind = np.zeros(len(sizes), np.intp)
        for number, point in enumerate(logs):
            near = np.flatnonzero((np.abs(point - logs[firsts]) <= width).all(1))
            kind[number] = near[0] if len(near) else len(firsts)
            if not len(near):
                firsts.append(number)
        if len(firsts) <= most:
            return np.eye(max(len(firsts), 1))[kind][:, : len(firsts)]
        width = max(0.05, width * 1.5)
