"""A request made ready to be held against all rows of a fleet at once."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from usina.core.capacity import DeviceKind, DeviceRequest, Needs, Numa
from usina.placement.fleet import MILLI, WHOLE, Fleet, Mask
from usina.placement.partition import Geometry, geometry_of
from usina.placement.within.devices import matches
from usina.placement.within.partitions import canonical

ALWAYS = float("inf")


@lru_cache(maxsize=65536)
def form_of(needs: Needs) -> Needs:
    """`needs` without what differs from one request to the next of the same form: who asks, when, beside whom."""
    return replace(
        needs, affinities=(), groups=frozenset(), priority=0, preemptible=False, begins=0.0, ends=ALWAYS, tenant=""
    )


class Cut(NamedTuple):
    """Where a partition can come from."""

    number: int  # of the class of device
    geometry: Geometry
    name: str  # canonical, of the profile there


@dataclass(eq=False)
class Shape:
    """The numbers of a request. `plain`: totals and the columns of GPUs say all, no exact search is needed."""

    needs: Needs
    cpu: int = field(init=False)  # thousandths of a core
    memory: int = field(init=False)
    disk: int = field(init=False)
    count: int = field(init=False)  # GPUs given plainly: whole ones, or one share
    share: int = field(init=False)  # thousandths of each
    gpu: DeviceRequest | None = field(init=False)  # the one request for plain GPUs
    others: tuple[DeviceRequest, ...] = field(init=False)  # every other device request
    part: DeviceRequest | None = field(init=False)  # the one partition, where nothing else is asked for
    plain: bool = field(init=False)
    _cuts: dict[DeviceRequest, list[Cut]] = field(init=False, default_factory=dict)
    _cut_of: int = field(init=False, default=-1)  # classes that it was made for
    _accepted: Mask = field(init=False, default_factory=lambda: np.zeros(0, np.bool_))

    def __post_init__(self) -> None:
        needs = self.needs
        self.cpu, self.memory, self.disk = round(needs.cores * MILLI), needs.memory, needs.disk
        plain = [r for r in needs.devices if r.kind is DeviceKind.GPU and not r.profile and not r.mdev_type]
        self.gpu = plain[0] if plain else None
        self.others = tuple(r for r in needs.devices if r is not self.gpu)
        self.count = self.gpu.count if self.gpu else 0
        self.share = (self.gpu.share or WHOLE) if self.gpu else 0
        bound = needs.pinned or needs.whole_cores or needs.hugepage or needs.numa_nodes or needs.numa is not Numa.NONE
        several_shares = self.share < WHOLE and self.count > 1
        one = len(needs.devices) == 1 and not self.gpu and _is_partition(needs.devices[0])
        self.part = needs.devices[0] if one and not bound else None
        alone = not self.others or self.part is not None
        self.plain = not bound and alone and not several_shares and not (self.gpu and self.gpu.linked)

    def accepted(self, fleet: Fleet) -> Mask:
        """By class of device, whether it is one asked for; one more at the end, False, for "no device" (-1)."""
        if len(self._accepted) != len(fleet.classes) + 1 and self.gpu is not None:
            asked = self.gpu
            self._accepted = np.array([*(matches(d, asked) for d in fleet.classes), False], np.bool_)
        return self._accepted

    def cut_from(self, fleet: Fleet, request: DeviceRequest) -> list[Cut]:
        """The classes of devices that a partition can be cut from."""
        if self._cut_of != len(fleet.classes):
            self._cut_of = len(fleet.classes)
            self._cuts.clear()
        found = self._cuts.get(request)
        if found is None:
            found = self._cuts[request] = [
                Cut(number, geometry, name)
                for number, device in enumerate(fleet.classes)
                if matches(device, request)
                and (geometry := geometry_of(device.model))
                and (name := canonical(device, request.profile or ""))
            ]
        return found


def _is_partition(request: DeviceRequest) -> bool:
    return request.kind is DeviceKind.GPU and bool(request.profile) and not request.mdev_type and request.count == 1
