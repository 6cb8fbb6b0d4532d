"""A pretended host: guests are files in a folder. For tests, benchmarks and trying the API; runs nothing.

The folder outlives the control plane, so that a crash of Usina leaves the "host" standing, as a real one would, and
several control planes may share it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from usina.core.errors import Invalid
from usina.drivers.fake.driver import FakeDriver
from usina.drivers.fake.hardware import MOST_VFS
from usina.drivers.fake.tasks import STACK, FakeTasks
from usina.ports.driver import Check, Driver, DriverPlugin, HostSettings

_OPTIONS = {
    "cores": "logical CPUs to pretend (64)",
    "memory": "bytes of memory to pretend (256 GiB)",
    "disk": "bytes of disk to pretend (10 TiB)",
    "numa_nodes": "NUMA nodes to spread cores and memory over (1)",
    "gpus": "GPUs to pretend (0)",
    "gpu_model": "model of the pretended GPUs",
    "gpu_memory": "bytes of memory of each GPU (80 GiB)",
    "nvlink": "GPUs that each NVLink group joins; 0: none is joined (0)",
    "vfs": "virtual functions of a network card per NUMA node (0)",
    "threads": "hardware threads of each physical core (1)",
    "hugepages": "1 GiB pages per NUMA node (0)",
    "dir": "folder of the pretended host (default: inside the factory's data folder)",
    "delay": "seconds that making or starting a guest takes (0)",
}
_TEXTS = {"gpu_model", "dir"}


def check(options: Mapping[str, Any]) -> None:
    """Raises `Invalid` naming the option."""
    for name, value in options.items():
        if name not in _OPTIONS:
            raise Invalid(f"{name}: the fake driver has no such option", field=name)
        if name not in _TEXTS:
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1 << 50:
                raise Invalid(f"{name}: must be a number, not negative", field=name)
        elif not isinstance(value, str) or len(value) > 1000:
            raise Invalid(f"{name}: must be a text", field=name)
    for name in ("cores", "numa_nodes", "threads"):
        if name in options and (options[name] < 1 or options[name] != int(options[name])):
            raise Invalid(f"{name}: must be a whole number of at least 1", field=name)
    for name in ("gpu_memory", "nvlink", "vfs"):
        if options.get(name, 0) != int(options.get(name, 0)):
            raise Invalid(f"{name}: must be a whole number", field=name)
    if options.get("vfs", 0) > MOST_VFS:
        raise Invalid(f"vfs: at most {MOST_VFS}", field="vfs")


def open_host(settings: HostSettings) -> Driver:
    return FakeDriver(settings)


async def diagnose() -> list[Check]:
    return [Check("fake", True, "always there; runs nothing", needed=False)]


PLUGIN = DriverPlugin(
    name="fake",
    summary="A pretended host for tests and benchmarks; it runs nothing.",
    options=_OPTIONS,
    check=check,
    open=open_host,
    tasks=FakeTasks,
    stack=STACK,
    networks=True,
    volumes=True,
    diagnose=diagnose,
)
