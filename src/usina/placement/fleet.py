"""Many hosts as columns: what is free on each, kept up to date claim by claim.

A fleet is a snapshot that moves: `put` a provider, `take` a claim, `give_back` it. Columns are NumPy arrays with a row
per host, so that one request is held against all hosts at once; whoever keeps answers per row reads `changed_since` to
learn which rows to look at again. The exact picture of one host is still a `Provider` (`provider(row)`), folded from
the claims taken meanwhile only when somebody asks.

Cores are counted in thousandths, memory and disk in bytes, devices in thousandths of each. Invariant: the columns equal
those of a fleet made anew from `provider(row)` of all rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from usina.core.capacity import LEVELS, QUEUE, Claim, Device, Holding, HostState, Inventory, Part, Provider
from usina.placement.layout import WHOLE, Layout, Layouts
from usina.placement.within import held_with, held_without

MILLI = 1000  # thousandths of a core
LOG = 1_000_000  # changes remembered at most

__all__ = ["MILLI", "WHOLE", "Fleet", "Floats", "Ints", "Mask", "Rows"]

Rows = NDArray[np.intp]
Mask = NDArray[np.bool_]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class Fleet:
    """Hosts by row. Rows are never reused; a host that is dropped leaves a row that is not `present`."""

    def __init__(self, providers: Iterable[Provider] = ()) -> None:
        self.rows: dict[str, int] = {}
        self.holdings: dict[str, Holding] = {}
        self.members: dict[str, Counter[int]] = {}  # resource or group -> rows, how often
        self._known_on: dict[str, int] = {}  # resource -> row that `members` counts it on
        self.size = 0  # rows in use
        self.width = 1  # columns of devices
        self.settled = 0  # how often a host came, went, or was replaced: what claims do not change
        self._layouts = Layouts()
        self._domain_of: dict[str, dict[str, int]] = {level: {} for level in LEVELS}
        self._traits: dict[str, Mask] = {}
        self._log: list[int] = []
        self._dropped = 0  # entries that the log began with
        self._providers: list[Provider] = []
        self._pending: dict[int, list[tuple[Claim, int]]] = {}
        self._layout: list[Layout] = []
        self._maintained: set[int] = set()
        self.tenants: dict[frozenset[str], int] = {frozenset(): 0}  # set that rows are dedicated to -> its number
        self.groups: dict[str, int] = {"": 0}  # provider group -> its number
        self._room = 0
        self._grow(64)
        for provider in providers:
            self.put(provider)

    # --- columns

    def _grow(self, room: int) -> None:
        def longer(name: str, dtype: type, fill: int = 0, columns: bool = False) -> None:
            old = getattr(self, name, None)
            new: NDArray[Any] = np.full((room, self.width) if columns else room, fill, dtype)
            if old is not None:
                new[tuple(slice(0, n) for n in old.shape)] = old
            setattr(self, name, new)

        for name in ("cpu", "memory", "disk", "all_cpu", "all_memory", "all_disk", "price"):
            longer(name, np.int64)
        for name in ("present", "enabled", "draining", "reachable", "plain"):
            longer(name, np.bool_)
        longer("terms", np.int16)  # which set of dedicated tenants; 0 = everybody
        longer("group", np.int16)
        longer("count", np.int16)  # GPUs
        longer("gpus", np.int16, columns=True)  # thousandths free for whole devices and shares; 0 where not for these
        longer("kind", np.int16, -1, columns=True)  # class of device
        longer("slices", np.int16, -1, columns=True)  # how a device is cut, see `Cuts`; -1 where no part can be had
        for level in LEVELS:
            longer(f"at_{level}", np.int32, -1)
        for name, column in self._traits.items():
            self._traits[name] = np.concatenate([column, np.zeros(room - len(column), np.bool_)])
        self._room = room

    cpu: Ints
    memory: Ints
    disk: Ints
    all_cpu: Ints
    all_memory: Ints
    all_disk: Ints
    price: Ints
    present: Mask
    enabled: Mask
    draining: Mask
    reachable: Mask
    plain: Mask
    terms: NDArray[np.int16]
    group: NDArray[np.int16]
    count: NDArray[np.int16]
    gpus: NDArray[np.int16]
    kind: NDArray[np.int16]
    slices: NDArray[np.int16]

    def domain(self, level: str) -> NDArray[np.int32]:
        """Of every row in use, the number of its domain at a level; -1 where the operator named none."""
        column: NDArray[np.int32] = getattr(self, f"at_{level}")
        return column[: self.size]

    def trait(self, name: str) -> Mask:
        """Which rows have a trait."""
        column = self._traits.get(name)
        if column is None:
            column = np.zeros(self._room, np.bool_)
            for row, provider in enumerate(self._providers):
                column[row] = name in provider.inventory.traits
            self._traits[name] = column
        return column

    @property
    def classes(self) -> list[Device]:
        """One device of every class that the fleet has seen; a class only ever comes."""
        return self._layouts.classes

    @property
    def hosts(self) -> int:
        return len(self.rows)

    # --- who is there

    def provider(self, row: int) -> Provider:
        """The exact picture of one host, with everything taken here."""
        for claim, sign in self._pending.pop(row, ()):
            change = held_with if sign > 0 else held_without
            self._providers[row] = change(self._providers[row], claim)
        return self._providers[row]

    def inventory(self, row: int) -> Inventory:
        return self._providers[row].inventory

    def gpus_of(self, row: int) -> tuple[Device, ...]:
        """The devices behind the columns of a row."""
        return self._layout[row].gpus

    def id(self, row: int) -> str:
        return self._providers[row].id

    def name(self, row: int) -> str:
        return self._providers[row].name

    @property
    def has_maintenance(self) -> bool:
        return bool(self._maintained)

    def maintained(self) -> Iterable[tuple[int, Provider]]:
        """Rows with maintenance announced."""
        return ((row, self._providers[row]) for row in self._maintained if self.present[row])

    def put(self, provider: Provider) -> int:
        """A host as it is now, new or changed; gives its row. One with a queue of its own is never full: what is on it
        is for its queue to mind."""
        if QUEUE in provider.inventory.traits:
            provider = _emptied(provider)
        row = self.rows.get(provider.id)
        if row is None:
            row = self.size
            if row == self._room:
                self._grow(2 * self._room)
            self.size += 1
            self.rows[provider.id] = row
            self._providers.append(provider)
            self._layout.append(self._layouts.of(provider.inventory))
        self._pending.pop(row, None)
        self._providers[row] = provider
        self.settled += 1
        self._settle(row, provider)
        self._load(row, provider)
        return row

    def drop(self, id: str) -> None:
        """Forget a host."""
        row = self.rows.pop(id)
        self.settled += 1
        self.present[row] = False
        self._maintained.discard(row)
        self._note(row)

    # --- claims

    def take(self, claim: Claim) -> None:
        """Capacity taken on a host. Placement found it free; nothing is checked here."""
        self._change(claim, 1)

    def give_back(self, claim: Claim) -> None:
        self._change(claim, -1)

    def hold(self, holding: Holding) -> None:
        """A claim, with who holds it: what affinity and preemption go by."""
        self.take(holding.claim)
        self.know(holding)

    def know(self, holding: Holding) -> None:
        """Who holds a claim that the snapshot contains already."""
        if holding.resource in self.holdings:
            self._forget(holding.resource)
        self.holdings[holding.resource] = holding
        row = self.rows.get(holding.claim.provider)
        if row is not None:
            self._known_on[holding.resource] = row
            for name in {holding.resource, *holding.groups}:
                self.members.setdefault(name, Counter())[row] += 1

    def know_only(self, holdings: Iterable[Holding]) -> None:
        """Who holds all the claims that the snapshot contains; whatever was known before is forgotten."""
        self.holdings, self.members, self._known_on = {}, {}, {}
        for holding in holdings:
            self.know(holding)

    def release(self, resource: str) -> Holding:
        """Give back what a resource holds. Raises KeyError if it holds nothing."""
        holding = self._forget(resource)
        if holding.claim.provider in self.rows:
            self.give_back(holding.claim)
        return holding

    def _forget(self, resource: str) -> Holding:
        holding, row = self.holdings.pop(resource), self._known_on.pop(resource, None)
        if row is not None:
            for name in {resource, *holding.groups}:
                self.members[name] -= Counter({row: 1})
                if not self.members[name]:
                    del self.members[name]
        return holding

    def _change(self, claim: Claim, sign: int) -> None:
        row = self.rows[claim.provider]
        if QUEUE in self._providers[row].inventory.traits:
            return
        self._pending.setdefault(row, []).append((claim, sign))
        if claim.cpus or claim.nodes or claim.hugepage or not self._change_devices(row, claim.devices, sign):
            self._load(row, self.provider(row))
            return
        self.cpu[row] -= sign * round(claim.cores * MILLI)
        self.memory[row] -= sign * claim.memory
        self.disk[row] -= sign * claim.disk
        self._note(row)

    def _change_devices(self, row: int, names: Sequence[str], sign: int) -> bool:
        """The columns of GPUs, changed in place; False where the row must be loaded anew, and nothing changed."""
        if not names:
            return True
        layout = self._layout[row]
        if self._providers[row].cordoned_devices:
            return False
        found: list[tuple[int, Part]] = []
        for name in names:
            part = Part.parse(name)
            slot = layout.slots.get(part.address)
            if slot is None or part.mdev_type or bool(part.profile) == bool(layout.base[slot]):
                return False
            found.append((slot, part))
        if len(found) == 1 and found[0][1].profile:
            return self._cut(row, layout, *found[0], sign)
        if any(part.profile for _, part in found):
            return False
        for slot, part in found:
            self.gpus[row, slot] -= sign * (part.share or WHOLE)
        return True

    def _cut(self, row: int, layout: Layout, slot: int, part: Part, sign: int) -> bool:
        """The column of one partition that comes or goes; False where it has no place in what is known."""
        if slot not in layout.cuts:
            return False
        number = layout.cuts[slot].changed(int(self.slices[row, slot]), part, sign)
        if number >= 0:
            self.slices[row, slot] = number
        return number >= 0

    # --- what changed

    @property
    def now(self) -> int:
        """A mark in the log of changes."""
        return self._dropped + len(self._log)

    def changed_since(self, mark: int) -> Rows:
        """Rows that may differ from what they were at `mark`, each once."""
        behind = self.now - mark
        if not behind:
            return np.empty(0, np.intp)
        if behind > 2 * self.size or behind > len(self._log):
            return np.arange(self.size)
        return np.array(sorted(set(self._log[-behind:])), np.intp)

    def _note(self, row: int) -> None:
        self._log.append(row)
        if len(self._log) > LOG:
            self._dropped += LOG // 2
            del self._log[: LOG // 2]

    # --- from a provider to its row

    def _settle(self, row: int, provider: Provider) -> None:
        """What the operator says, and what claims do not change."""
        inventory, terms = provider.inventory, provider.terms
        if self._layout[row].inventory is not inventory:
            self._layout[row] = self._layouts.of(inventory)
            self._layouts.keep(self._layout, self.size)
        layout = self._layout[row]
        self.present[row] = True
        self.enabled[row] = provider.state is HostState.ENABLED
        self.draining[row] = provider.state is HostState.DRAINING
        self.reachable[row] = provider.reachable
        self.plain[row] = layout.plain
        self.price[row] = terms.price
        self.all_cpu[row] = int(inventory.cores * provider.cpu_ratio * MILLI)
        self.all_memory[row] = int(inventory.memory * terms.memory_ratio)
        self.all_disk[row] = inventory.disk
        self.terms[row] = self.tenants.setdefault(terms.tenants, len(self.tenants))
        self.group[row] = self.groups.setdefault(terms.group, len(self.groups))
        for level in LEVELS:
            name = provider.id if level == "host" else terms.topology.get(level)
            known = self._domain_of[level]
            getattr(self, f"at_{level}")[row] = -1 if name is None else known.setdefault(name, len(known))
        for trait, column in self._traits.items():
            column[row] = trait in inventory.traits
        if terms.maintenance:
            self._maintained.add(row)
        else:
            self._maintained.discard(row)
        if len(layout.gpus) > self.width:
            self.width = len(layout.gpus)
            self._grow(self._room)
        self.count[row] = len(layout.gpus)
        self.kind[row] = -1
        self.kind[row, : len(layout.gpus)] = layout.classes

    def _load(self, row: int, provider: Provider) -> None:
        """What is free, counted from the start."""
        layout = self._layout[row]
        pinned = len(provider.taken_cpus)
        shared = round((provider.used_cores - pinned) * MILLI)
        self.cpu[row] = int((provider.inventory.cores - pinned) * provider.cpu_ratio * MILLI) - shared
        self.memory[row] = int(provider.inventory.memory * provider.terms.memory_ratio) - provider.used_memory
        self.disk[row] = provider.inventory.disk - provider.used_disk
        count = len(layout.gpus)
        self.gpus[row] = 0
        self.gpus[row, :count] = layout.base
        self.slices[row] = -1
        parts: dict[int, list[Part]] = {slot: [] for slot in layout.cuts}
        for name, times in provider.taken_devices.items():
            self._occupy(row, layout, Part.parse(name), times, parts)
        for slot, taken in parts.items():
            self.slices[row, slot] = layout.cuts[slot].number(taken)
        for address in provider.cordoned_devices:
            if address in layout.slots:
                self.gpus[row, layout.slots[address]] = 0
                self.slices[row, layout.slots[address]] = -1
        self._note(row)

    def _occupy(self, row: int, layout: Layout, part: Part, times: int, parts: dict[int, list[Part]]) -> None:
        slot = layout.slots.get(part.address)
        if slot is None:
            return
        if slot in parts:
            parts[slot] += [part] * times
        if part.share:
            self.gpus[row, slot] = max(0, self.gpus[row, slot] - times * part.share)
        else:
            self.gpus[row, slot] = 0


def _emptied(provider: Provider) -> Provider:
    return replace(
        provider,
        used_cores=0,
        used_memory=0,
        used_disk=0,
        taken_cpus=frozenset(),
        taken_devices={},
        used_hugepages={},
        bound_memory={},
    )
