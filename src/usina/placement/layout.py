"""Where the devices of a host have their columns, and of which class each is; made once for hosts alike."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from usina.core.capacity import Device, DeviceKind, Inventory
from usina.placement.partition import Cuts, cuts_of, geometry_of

WHOLE = 1000  # thousandths of a device
SPARE = 64  # layouts kept beyond those in use


@dataclass(frozen=True, slots=True)
class Layout:
    """What does not change while a host keeps its inventory."""

    inventory: Inventory
    slots: dict[str, int]  # address of a GPU -> column
    gpus: tuple[Device, ...]
    classes: NDArray[np.int16]  # class of each GPU
    base: NDArray[np.int16]  # thousandths that an untouched GPU offers plainly: all, or none where it is partitioned
    plain: bool  # no links and no nodes to choose GPUs by
    cuts: dict[int, Cuts]  # column -> the layouts that a GPU set up to be cut can have


class Layouts:
    """The layouts of a fleet. `classes` has one device of every class; classes differ in what requests ask."""

    def __init__(self) -> None:
        self.classes: list[Device] = []
        self._class_of: dict[tuple[object, ...], int] = {}
        self._known: dict[int, Layout] = {}

    def of(self, inventory: Inventory) -> Layout:
        """The layout of `inventory`; the same one for the same object."""
        known = self._known.get(id(inventory))
        if known is not None and known.inventory is inventory:
            return known
        gpus = tuple(device for device in inventory.devices if device.kind is DeviceKind.GPU)
        layout = self._known[id(inventory)] = Layout(
            inventory,
            {device.address: slot for slot, device in enumerate(gpus)},
            gpus,
            np.array([self._classify(device) for device in gpus], np.int16),
            np.array([0 if device.mode else WHOLE for device in gpus], np.int16),
            len({device.link for device in gpus}) < 2 and len({device.node for device in gpus}) < 2,
            {slot: cuts_of(found) for slot, d in enumerate(gpus) if d.mode and (found := geometry_of(d.model))},
        )
        return layout

    def keep(self, used: Iterable[Layout], count: int) -> None:
        """Forget the layouts of inventories that no host has any more, once there are many of them."""
        if len(self._known) > 2 * count + SPARE:
            self._known = {id(layout.inventory): layout for layout in used}

    def _classify(self, device: Device) -> int:
        key = (device.model, device.vendor, device.memory, device.mode, device.traits, tuple(device.mdev_types.items()))
        number = self._class_of.setdefault(key, len(self.classes))
        if number == len(self.classes):
            self.classes.append(device)
        return number
