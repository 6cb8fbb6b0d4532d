"""What each wish counts against a quota. The one place that says so, so that giving back equals taking."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from usina.core.capacity import DeviceKind
from usina.core.goods import VolumeSpec
from usina.core.machine import MachineSpec
from usina.core.resource import AnyResource, Kind
from usina.core.task import TaskSpec
from usina.core.tenancy import MEASURES, Amounts, Quota


def amounts_of(kind: Kind, spec: Any) -> Amounts:
    """What a resource of `kind` with `spec` counts."""
    match spec:
        case MachineSpec():
            gpus = sum(d.count for d in spec.devices if d.kind in (DeviceKind.GPU, DeviceKind.MDEV))
            return Amounts(machines=1, cores=spec.cores, memory=spec.memory, disk=spec.disk, gpus=gpus)
        case VolumeSpec(size=size):
            return Amounts(disk=size)
        case TaskSpec():
            return Amounts(tasks=1)
        case _:
            return Amounts(addresses=1) if kind is Kind.FORWARD else Amounts()


def amounts_placed(spec: Any) -> Amounts:
    """What a wish counts from its placing to its end, beside what it counts as long as it exists."""
    match spec:
        case TaskSpec(machine=machine) if machine:
            return Amounts()  # the machine counts already
        case TaskSpec():
            units = max(1, min(spec.at_once or len(spec.indices), len(spec.indices))) * spec.replicas
            gpus = sum(d.count for d in spec.devices if d.kind is DeviceKind.GPU)
            return Amounts(
                cores=spec.cores * units, memory=spec.memory * units, disk=spec.disk * units, gpus=gpus * units
            )
        case _:
            return Amounts()


def total(resources: Iterable[AnyResource]) -> Amounts:
    """What several resources count together."""
    counted = [amounts_of(one.kind, one.spec) for one in resources]
    return Amounts(**{measure: sum(getattr(one, measure) for one in counted) for measure in MEASURES})


def excess(quota: Quota, wanted: Amounts) -> list[tuple[str, float, float, float]]:
    """What does not fit: (measure, wanted, used, limit)."""
    found = []
    for measure in MEASURES:
        limit, used, more = quota.limits.get(measure), getattr(quota.used, measure), getattr(wanted, measure)
        if more > 0 and limit is not None and used + more > limit:
            found.append((measure, more, used, limit))
    return found
