"""Cutting a device up anew, planned before anything is touched: what has to stop, what goes, what stays, what comes.

A plan disturbs as little as it can. Switching MIG mode on or off and changing an AMD mode need the whole device idle;
within MIG mode only the parts in the way have to go.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from usina.core.capacity import Device, Part
from usina.placement.partition.geometry import MIG, Geometry, Placement, Profile, geometry_of
from usina.placement.partition.states import Occupancy, after, fragmentation_of, placement_of


@dataclass(frozen=True, slots=True)
class Repartition:
    """The steps, in their order: drain, destroy, change the mode, create."""

    address: str
    before: str  # mode as `Device.mode` has it: "" whole, "mig", or an AMD mode
    after: str
    drain: tuple[Part, ...] = ()  # in use and in the way: what holds them stops first
    destroy: tuple[Part, ...] = ()  # partitions that cease to be
    keep: tuple[Part, ...] = ()  # go on undisturbed
    create: tuple[Part, ...] = ()
    idle: bool = False  # nothing may run on any part of the device meanwhile
    nps: int = 0  # AMD: the memory mode it has afterwards; to change it reloads the driver. 0 = not AMD


@dataclass(frozen=True, slots=True)
class _Case:
    """What a plan starts from. `idling` are partitions that exist and that nobody uses."""

    geometry: Geometry
    device: Device
    used: tuple[Part, ...]
    idling: tuple[Part, ...]

    @property
    def parts(self) -> tuple[Part, ...]:
        return self.used + self.idling

    @property
    def before(self) -> str:
        """The mode now. A device that says none and yet has partitions is in theirs."""
        modes = (placement.profile for part in self.parts if (placement := placement_of(self.geometry, part)))
        found = next(modes, "")
        return self.device.mode.lower() or (found if self.geometry.uniform or not found else MIG)


def plan_repartition(
    device: Device, taken: Sequence[Part], wanted: Sequence[str], *, present: Sequence[Part] = (), fresh: bool = False
) -> Repartition | str:
    """How `device` comes to have every partition in `wanted`, or in a short sentence why it cannot.

    `wanted` are MIG profiles, or AMD modes that are all the same; nothing or "" is the whole device. A part of `taken`
    (in use) that is wanted counts as one of them, unless `fresh`: then the wanted ones come on top of those in use.
    Other parts stay where they are not in the way. `present` are the partitions that exist, used or not, if known.
    Least is drained in slices, then in parts; then least is destroyed; then the device is left least fragmented.
    """
    geometry = geometry_of(device.model)
    if geometry is None:
        return f"it is not known how to partition {device.model or 'this device'}"
    names = _resolved(geometry, wanted)
    if isinstance(names, str):
        return names
    used = tuple(sorted((part for part in taken if part.address == device.address), key=_order))
    idling = tuple(sorted((p for p in present if p.address == device.address and p not in used), key=_order))
    case = _Case(geometry, device, used, idling)
    if geometry.uniform:
        return _change_mode(case, names, fresh)
    return _cut(case, names, fresh) if names else _whole(case)


def _resolved(geometry: Geometry, wanted: Sequence[str]) -> tuple[str, ...] | str:
    asked = [profile for profile in wanted if profile]
    if asked and len(asked) < len(wanted):
        return "the whole device and parts of it cannot be wanted together"
    names = []
    for profile in asked:
        name = geometry.resolve(profile)
        if name is None:
            return f"{geometry.name} has no profile {profile}; it has {', '.join(geometry.named)}"
        names.append(name)
    return tuple(names)


def _whole(case: _Case) -> Repartition:
    """MIG mode off."""
    address, before = case.device.address, case.before
    if not before:
        return Repartition(address, "", "", keep=case.used)
    return Repartition(address, before, "", drain=case.used, destroy=_partitions(case, case.parts), idle=True)


def _cut(case: _Case, names: Sequence[str], fresh: bool) -> Repartition | str:
    """MIG instances, after MIG mode is switched on if need be."""
    address, before = case.device.address, case.before
    stays = case.parts if before == MIG else ()
    found = _arrange(case, [part for part in stays if placement_of(case.geometry, part)], names, fresh)
    if found is None:
        return f"{' + '.join(names)} do not go together on one {case.geometry.name}"
    keep, created = found
    return Repartition(
        address,
        before,
        MIG,
        drain=tuple(part for part in case.used if part not in keep),
        destroy=_partitions(case, (part for part in stays if part not in keep)),
        keep=keep,
        create=tuple(
            Part(address, profile=name, start=start) for name, start in sorted(created, key=lambda p: p.start)
        ),
        idle=before != MIG,
    )


def _change_mode(case: _Case, names: Sequence[str], fresh: bool) -> Repartition | str:
    """One AMD mode for the device; its partitions come into being with it."""
    geometry, address, before = case.geometry, case.device.address, case.before
    if len(set(names)) > 1:
        return f"all partitions of one {geometry.name} are alike, and {' and '.join(sorted(set(names)))} are not"
    whole = next(profile for profile in geometry.profiles if profile.most == 1)
    mode = geometry.named[names[0]] if names else whole
    if len(names) > mode.most:
        return f"{geometry.name} has {mode.most} partitions in mode {mode.name}, not {len(names)}"
    nps = _nps(case.device, mode)
    if (before or whole.name) == mode.name:
        spare = mode.most - len(case.used)
        drain = case.used[max(0, len(case.used) - max(0, len(names) - spare)) :] if fresh else ()
        keep = tuple(part for part in case.parts if part not in drain)
        return Repartition(address, before, before, drain=drain, keep=keep, nps=nps)
    create = tuple(Part(address, profile=mode.name, start=start) for start in mode.starts)
    gone = _partitions(case, case.parts)
    return Repartition(
        address, before, mode.name if names else "", case.used, gone, create=create if names else (), idle=True, nps=nps
    )


def _nps(device: Device, mode: Profile) -> int:
    """The memory mode that the device's traits name ("nps4") if it goes with `mode`, else the first that does."""
    now = {int(trait[3:]) for trait in device.traits if re.fullmatch(r"nps\d+", trait)}
    return next((nps for nps in mode.nps if nps in now), mode.nps[0])


def _arrange(
    case: _Case, parts: Sequence[Part], names: Sequence[str], fresh: bool
) -> tuple[tuple[Part, ...], tuple[Placement, ...]] | None:
    """What of `parts` stays, and where the rest of `names` goes; None if there is no way at all."""
    best: tuple[tuple[float, ...], tuple[Part, ...], tuple[Placement, ...]] | None = None
    for cost, keep in sorted(_keeps(case, parts), key=lambda choice: choice[0]):
        if best is not None and cost > best[0][:-1]:
            break
        counted = Counter(part.profile for part in keep if not (fresh and part in case.used))
        rest = Counter(names) - Counter(_canonical(case.geometry, counted))
        before = after(case.geometry, _placements(case.geometry, keep))
        for created, full in _fill(case.geometry, before, _by_width(case.geometry, rest)):
            ranked = (*cost, fragmentation_of(case.geometry, full))
            if best is None or ranked < best[0]:
                best = ranked, keep, created
    return best[1:] if best else None


def _keeps(case: _Case, parts: Sequence[Part]) -> Iterator[tuple[tuple[float, ...], tuple[Part, ...]]]:
    """Every choice of `parts` to keep, and its cost: slices and parts drained, then slices and parts destroyed."""
    for count in range(len(parts) + 1):
        for keep in combinations(parts, count):
            gone = [part for part in parts if part not in keep]
            drained = [part for part in gone if part in case.used]
            yield (_width(case, drained), len(drained), _width(case, gone), len(gone)), keep


def _fill(
    geometry: Geometry, occupancy: Occupancy | None, names: Sequence[str], least: int = 0
) -> Iterator[tuple[tuple[Placement, ...], Occupancy]]:
    """Every way to place `names`, which are sorted. `least`: of profiles alike the later one comes later in order."""
    if occupancy is None:
        return
    if not names:
        yield (), occupancy
        return
    profile = geometry.named[names[0]]
    for index, start in enumerate(profile.starts):
        if index >= least and occupancy.fits(geometry, profile, start):
            next_least = index + 1 if names[1:2] == names[:1] else 0
            for others, full in _fill(geometry, occupancy.plus(geometry, profile, start), names[1:], next_least):
                yield (Placement(profile.name, start), *others), full


def _by_width(geometry: Geometry, names: Counter[str]) -> tuple[str, ...]:
    return tuple(sorted(names.elements(), key=lambda name: (-geometry.named[name].width, name)))


def _canonical(geometry: Geometry, counted: Counter[str]) -> Counter[str]:
    names: Counter[str] = Counter()
    for profile, count in counted.items():
        names[geometry.resolve(profile) or profile] += count
    return names


def _placements(geometry: Geometry, parts: Iterable[Part]) -> list[Placement]:
    return [placement for part in parts if (placement := placement_of(geometry, part))]


def _partitions(case: _Case, parts: Iterable[Part]) -> tuple[Part, ...]:
    return tuple(part for part in parts if placement_of(case.geometry, part))


def _width(case: _Case, parts: Iterable[Part]) -> int:
    return sum(case.geometry.named[name].width for name, _ in _placements(case.geometry, parts))


def _order(part: Part) -> tuple[int, str]:
    return part.start, str(part)
