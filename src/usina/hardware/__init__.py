"""What a host has, read from its /proc and /sys below a root: processors, memory, NUMA nodes, devices.

Knows the standard library and `usina.core`. Shared by drivers that run on the host itself; the root makes it testable
on recorded trees.
"""

from __future__ import annotations

from usina.core.capacity import Device
from usina.hardware.nodes import read_nodes

__all__ = ["devices", "read_nodes"]


def devices(root: str = "") -> tuple[Device, ...]:
    """Devices that a task can be given."""
    return ()
