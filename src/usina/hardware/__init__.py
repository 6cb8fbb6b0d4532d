"""What a host has, read from its /proc and /sys below a root: processors, memory, NUMA nodes, devices and their health.

Knows the standard library and `usina.core`, and `veth` and `folders` the port of drivers. Shared by drivers that run on
the host; the root makes it testable on recorded trees. NVIDIA's management library is asked only without a root.
"""

from __future__ import annotations

from usina.hardware.discover import devices, facts
from usina.hardware.nodes import read_nodes

__all__ = ["devices", "facts", "read_nodes"]
