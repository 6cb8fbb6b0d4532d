"""Whether single devices should be taken out of service: `gather` reads, `judge` compares and is pure.

`judge` says what is new since the reading before, so that a device which an operator put back in service, knowing of
its fault, stays there until something else happens to it. Without a reading before, all that stands is new.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from usina.core.capacity import Finding
from usina.hardware import amd, nvidia
from usina.hardware.discover import BROKEN, found
from usina.hardware.files import text
from usina.hardware.nvml import Nvml, NvmlError, Remapped
from usina.hardware.pci import functions
from usina.hardware.xids import Xid, kernel_log, parse_all

T = TypeVar("T")
U = TypeVar("U")

# Bits of nvmlClocksEventReasons that are no choice of power management.
_SLOWED: Final = {0x08: "slowed down by its hardware", 0x40: "too hot", 0x80: "power brake of the host is on"}
_CONTAINED: Final = 94


@dataclass(frozen=True, slots=True)
class Reading:
    """What one device says of itself. None: it did not say, so that what it said before still holds."""

    fault: str = ""  # why it cannot be used at all
    uncorrected: int | None = None  # memory errors since its driver was loaded
    retiring: bool | None = None
    remapped: Remapped | None = None
    slowed: int = 0
    blocks: Mapping[str, int] | None = None  # AMD: part of the card → uncorrectable errors

    def after(self, before: Reading) -> Reading:
        return replace(
            self,
            uncorrected=before.uncorrected if self.uncorrected is None else self.uncorrected,
            retiring=before.retiring if self.retiring is None else self.retiring,
            remapped=self.remapped or before.remapped,
            blocks=before.blocks if self.blocks is None else self.blocks,
        )


@dataclass(frozen=True, slots=True)
class Readings:
    """Of all devices of a host at one time."""

    devices: Mapping[str, Reading]
    xids: tuple[Xid, ...] = ()  # since the readings before
    boot: str = ""
    mark: int = 0  # the last line of the kernel log that counts as read


def poll(before: Readings | None = None, root: str = "") -> tuple[Readings, tuple[Finding, ...]]:
    """Read this host, and judge. Blocking: each broken card can take a driver's timeout."""
    with nvidia.library(root) as nvml:
        now = gather(before, () if root else kernel_log(), root, nvml)
    return now, judge(before, now)


def gather(before: Readings | None, lines: Iterable[str], root: str = "", nvml: Nvml | None = None) -> Readings:
    """`lines`: of the kernel log; those with a number are taken once, by `before`."""
    boot = text(f"{root}/proc/sys/kernel/random/boot_id")
    mark = before.mark if before is not None and before.boot == boot else 0
    xids = [xid for xid in parse_all(lines) if not xid.sequence or xid.sequence > mark]
    readings = {device.address: Reading(_broken(device.traits)) for device in found(root, nvml)}
    readings |= _of_amd(readings, root)
    readings |= _of_nvidia(readings, nvml) if nvml is not None else {}
    if before is not None:
        readings = {one: reading.after(before.devices.get(one, Reading())) for one, reading in readings.items()}
    return Readings(readings, tuple(xids), boot, max([mark, *(xid.sequence for xid in xids)]))


def _broken(traits: frozenset[str]) -> str:
    return "its driver has it, but it does not answer" if BROKEN in traits else ""


def _of_amd(known: Mapping[str, Reading], root: str) -> dict[str, Reading]:
    ours = [one for one in functions(root) if one.driver == "amdgpu" and one.address in known]
    return {one.address: Reading(known[one.address].fault, blocks=amd.uncorrected(one.folder)) for one in ours}


def _of_nvidia(known: Mapping[str, Reading], nvml: Nvml) -> dict[str, Reading]:
    return {card.address: _reading(nvml, card) for card in nvidia.cards(nvml) if card.address in known}


def _reading(nvml: Nvml, card: nvidia.Card) -> Reading:
    index = card.index
    return Reading(
        fault=card.fault,
        uncorrected=_ask(lambda: nvml.uncorrected(index), None),
        retiring=_ask(lambda: nvml.retiring(index), None),
        remapped=_ask(lambda: nvml.remapped(index), None),
        slowed=_ask(lambda: nvml.slowed(index), 0),
    )


def _ask(question: Callable[[], T], otherwise: U) -> T | U:
    try:
        return question()
    except NvmlError:
        return otherwise


def judge(before: Readings | None, now: Readings) -> tuple[Finding, ...]:
    """What came to light since `before`, by address; cordons before warnings of the same device."""
    told = {finding for address in now.devices for finding in _of(address, before, now)}
    told |= {Finding(x.address, x.reason, x.fatal) for x in now.xids if x.notable and x.address in now.devices}
    gone = set(before.devices) - set(now.devices) if before is not None else set()
    told |= {Finding(address, "it is no longer there") for address in gone}
    return tuple(sorted(told, key=lambda one: (one.address, not one.cordon, one.reason)))


def _of(address: str, before: Readings | None, now: Readings) -> set[Finding]:
    then, this = before.devices.get(address) if before is not None else None, now.devices[address]
    new = _standing(address, this) - (_standing(address, then) if then is not None else set())
    known = then.uncorrected if then is not None else None
    grown = (this.uncorrected or 0) - (known or 0)
    if grown > 0:  # what came before the first reading may be long dealt with
        new.add(Finding(address, f"{grown} uncorrected memory errors", known is not None and not _held(address, now)))
    return new


def _held(address: str, now: Readings) -> bool:
    """Whether the errors harmed one application only, and the memory they are in is used no more."""
    remapped = now.devices[address].remapped
    contained = any(xid.address == address and xid.number == _CONTAINED for xid in now.xids)
    return contained and remapped is not None and not remapped.failed


def _standing(address: str, reading: Reading) -> set[Finding]:
    """All that is wrong with a device as it is, whatever was before."""
    told = {Finding(address, reading.fault)} if reading.fault else set()
    if reading.retiring:
        told.add(Finding(address, "memory pages wait for a reset to be retired"))
    if reading.remapped is not None and reading.remapped.failed:
        told.add(Finding(address, "a memory row could not be remapped: no spare row is left"))
    if reading.remapped is not None and reading.remapped.pending:
        told.add(Finding(address, "memory rows wait for a reset to be remapped", cordon=False))
    told |= {Finding(address, reason, False) for bit, reason in _SLOWED.items() if reading.slowed & bit}
    return told | {
        Finding(address, f"{count} uncorrectable errors of {block}") for block, count in (reading.blocks or {}).items()
    }
