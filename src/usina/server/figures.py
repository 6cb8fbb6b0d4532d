"""Figures for Prometheus that several processes have counted, added up as if one had."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec
from prometheus_client import Metric, generate_latest
from prometheus_client.registry import Collector

Labels = tuple[tuple[str, str], ...]


class Sample(msgspec.Struct, array_like=True):
    name: str
    labels: Labels
    value: float


class Family(msgspec.Struct, array_like=True):
    """A metric with all its labels' values."""

    name: str
    kind: str  # counter, gauge, histogram
    about: str
    samples: list[Sample]


def families(metrics: Iterable[Collector]) -> list[Family]:
    """What this process has counted."""
    return [
        Family(
            found.name, found.type, found.documentation,
            [Sample(one.name, tuple(sorted(one.labels.items())), one.value) for one in found.samples],
        )
        for metric in metrics
        for found in metric.collect()
    ]  # fmt: skip


def together(parts: Sequence[Sequence[Family]]) -> list[Family]:
    """The sums; of times at which counting began, the first."""
    found: dict[str, Family] = {}
    sums: dict[str, dict[tuple[str, Labels], float]] = {}
    for family in (family for part in parts for family in part):
        found.setdefault(family.name, Family(family.name, family.kind, family.about, []))
        mine = sums.setdefault(family.name, {})
        for one in family.samples:
            key = (one.name, one.labels)
            if key not in mine:
                mine[key] = one.value
            elif one.name.endswith("_created"):
                mine[key] = min(mine[key], one.value)
            else:
                mine[key] += one.value
    for name, family in found.items():
        family.samples = [Sample(*key, value) for key, value in sums[name].items()]
    return list(found.values())


def lasting(part: Sequence[Family]) -> list[Family]:
    """What still counts when the process that counted it has ended: all but what it was doing just then."""
    return [family for family in part if family.kind != "gauge"]


class _Page:
    def __init__(self, own: Iterable[Metric], summed: Sequence[Family]) -> None:
        self._own, self._summed = own, summed

    def collect(self) -> Iterable[Metric]:
        told = {family.name for family in self._summed}
        yield from (metric for metric in self._own if metric.name not in told)
        for family in self._summed:
            metric = Metric(family.name, family.about, family.kind)
            for one in family.samples:
                metric.add_sample(one.name, dict(one.labels), one.value)
            yield metric


def page(own: Iterable[Metric], summed: Sequence[Family]) -> bytes:
    """`own` in Prometheus's format, with what is `summed` in place of what has the same name."""
    return generate_latest(_Page(own, summed))
