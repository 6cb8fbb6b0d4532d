"""The experiment of "Beware of Fragmentation" (USENIX ATC 2023): offer requests beyond capacity, count what is placed.

Requests are shuffled with a seed, then drawn again at random until the next one would exceed the demand wanted, as a
part of the capacity in GPUs. They are offered one by one and never leave; what does not fit is dropped. Where the hosts
have no GPUs, cores take their place.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from usina.core.capacity import Claim, DeviceKind, DeviceRequest, Needs, Provider
from usina.core.errors import Invalid
from usina.placement.choose import Chooser
from usina.placement.fleet import MILLI, WHOLE, Fleet
from usina.placement.mix import Mix
from usina.placement.partition.geometry import shipped
from usina.placement.policy import DEFAULT, Policy
from usina.placement.refusal import Refusal
from usina.placement.shape import Shape, form_of

MARKS = (80, 90, 100, 130)  # per cent of capacity offered, where the allocation is read
DRAWS = 50_000_000  # requests at most


@dataclass(frozen=True, slots=True)
class Point:
    """After one request was offered: per cent of capacity."""

    offered: float
    allocated: float
    fragmented: float  # of the idle capacity, what the mix could not use; NaN where it was not computed
    decisions: int


@dataclass
class Result:
    """What came of one run."""

    seed: int
    allocation: dict[int, float] = field(default_factory=dict)  # mark -> per cent allocated when so much was offered
    offered: float = 0.0  # per cent of capacity, so far
    decisions: int = 0
    placed: int = 0
    refused: Counter[str] = field(default_factory=Counter)  # reason of most hosts -> requests
    curve: list[Point] = field(default_factory=list)
    idle: Mapping[str, float] = field(default_factory=dict)  # at the end, in per cent of capacity


def size_of(needs: Needs, by_gpu: bool) -> int:
    """Thousandths of GPUs, or of cores."""
    if not by_gpu:
        return round(needs.cores * MILLI)
    return sum(one.count * _thousandths(one) for one in needs.devices if one.kind is DeviceKind.GPU)


def _thousandths(request: DeviceRequest) -> int:
    """Of one GPU: a partition counts by its compute slices; an unknown one as all of it."""
    if not request.profile:
        return request.share or WHOLE
    named = ((geometry, geometry.resolve(request.profile)) for geometry in shipped())
    parts = [WHOLE * geometry.named[name].compute // geometry.compute for geometry, name in named if name]
    return min(parts, default=WHOLE)


def shuffled(
    requests: Sequence[Needs], capacity: int, seed: int, demand: float | None, by_gpu: bool = True
) -> list[Needs]:
    """The requests of one run. `capacity` in thousandths; `demand` 1.3 is 130 % of it, None is each of them once."""
    source = random.Random(seed)  # noqa: S311 - an experiment, not a secret
    order = list(requests)
    source.shuffle(order)
    sizes = {id(needs): size_of(needs, by_gpu) for needs in requests}
    if demand is None or not any(sizes.values()):
        return order
    out: list[Needs] = []
    total, limit = 0, round(demand * capacity)
    while len(out) < DRAWS:
        needs = order[len(out)] if len(out) < len(order) else requests[source.randrange(len(requests))]
        total += sizes[id(needs)]
        if total > limit:
            break
        out.append(needs)
    return out


class Experiment:
    """One policy on one list of hosts and requests."""

    def __init__(self, hosts: Sequence[Provider], requests: Sequence[Needs], policy: Policy = DEFAULT) -> None:
        self._hosts, self._requests, self._policy = [_open(host) for host in hosts], requests, policy
        self._mix = Mix.of(requests)
        fleet = Fleet(hosts)
        gpus = int(fleet.count.sum())
        self.by_gpu = gpus > 0 and any(size_of(needs, by_gpu=True) for needs in requests)
        self.capacity = WHOLE * gpus if self.by_gpu else int(fleet.all_cpu.sum())
        if not self.capacity:
            raise Invalid("hosts: have neither GPUs nor cores", field="hosts")

    @property
    def demanded(self) -> float:
        """What all requests ask for, each once, as a part of the capacity."""
        return sum(size_of(needs, self.by_gpu) for needs in self._requests) / self.capacity

    def run(self, seed: int, demand: float | None = 1.3, *, every: int = 0, curve: bool = False) -> Iterator[Result]:
        """Offers the requests; yields the result as it grows, each `every` requests, with a point of the curve.

        The last one yielded is complete. Without `curve` no points are computed.
        """
        fleet = Fleet(self._hosts)
        chooser = Chooser(fleet, self._policy, mix=self._mix)
        result = Result(seed)
        offered = allocated = 0
        last = round((self.demanded if demand is None else demand) * 100)
        marks = [mark for mark in MARKS if mark < last]
        for needs in shuffled(self._requests, self.capacity, seed, demand, self.by_gpu):
            answer = chooser.choose(needs)
            size = size_of(needs, self.by_gpu)
            offered += size
            result.decisions += 1
            if isinstance(answer, Claim):
                fleet.take(answer)
                allocated += size
                result.placed += 1
            else:
                result.refused[_first(answer)] += 1
            while marks and offered >= marks[0] / 100 * self.capacity:
                result.allocation[marks.pop(0)] = 100 * allocated / self.capacity
            if every and result.decisions % every == 0:
                result.offered = 100 * offered / self.capacity
                if curve:
                    result.curve.append(self._point(fleet, offered, allocated, result.decisions))
                yield result
        for mark in (*marks, last):  # the next request would have gone beyond
            result.allocation[mark] = 100 * allocated / self.capacity
        result.offered = 100 * offered / self.capacity
        if curve:
            result.curve.append(self._point(fleet, offered, allocated, result.decisions))
        result.idle = self._idle(fleet)
        yield result

    def _point(self, fleet: Fleet, offered: int, allocated: int, decisions: int) -> Point:
        part = 100 / self.capacity
        return Point(offered * part, allocated * part, self._fragmented(fleet), decisions)

    def _fragmented(self, fleet: Fleet) -> float:
        """Per cent of the idle GPUs that one more request of the mix, on average, could not use (FGD's measure)."""
        if not self.by_gpu:
            return float("nan")
        idle = int(fleet.gpus.sum())
        if not idle:
            return 0.0
        usable = 0.0
        free = fleet.gpus[: fleet.size]
        for needs, weight in self._mix.weights.items():
            shape = Shape(form_of(needs))
            accepted = shape.accepted(fleet)[fleet.kind[: fleet.size]]
            able = np.where(accepted & (free >= shape.share), free, 0)
            fits = (fleet.cpu[: fleet.size] >= shape.cpu) & (fleet.memory[: fleet.size] >= shape.memory)
            fits &= (able > 0).sum(1) >= shape.count
            usable += weight * float(able[fits].sum())
        return 100 * (1 - usable / idle)

    def _idle(self, fleet: Fleet) -> dict[str, float]:
        if not self.by_gpu:
            return {}
        free = fleet.gpus[: fleet.size]
        part = 100 / self.capacity
        whole = float((free == WHOLE).sum()) * WHOLE
        return {"whole": whole * part, "parts": (float(free.sum()) - whole) * part}


def _open(host: Provider) -> Provider:
    """The host without its maintenance: on paper there is no time."""
    return replace(host, terms=replace(host.terms, maintenance=())) if host.terms.maintenance else host


def _first(refusal: Refusal) -> str:
    return max(refusal.reasons.items(), key=lambda item: item[1])[0] if refusal.reasons else "there are no hosts"
