"""Slurm: tasks as jobs of an existing cluster, as the member's own Unix user. Nothing of the cluster is changed.

Read `driver.py` first: it is the port's verbs. A cluster is reached by slurmrestd (`rest`) or by its commands
(`commands`); both tell the same records (`records`), of which `sights` makes what Usina sees.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from usina.drivers.slurm.checks import diagnose
from usina.drivers.slurm.driver import SlurmDriver, wire_for
from usina.drivers.slurm.settings import OPTIONS, check, read
from usina.ports.driver import DriverPlugin, HostSettings, Part


async def parts(host: HostSettings) -> list[Part]:
    """The cluster's partitions; none where one is named, which then is all that there is."""
    settings = read(host)
    if settings.partition:
        return []
    wire = wire_for(settings)
    try:
        found = sorted(partition.name for partition in await wire.partitions())
    finally:
        await wire.close()
    return [Part(label(name), {**host.options, "partition": name}) for name in found]


def realm(options: Mapping[str, Any]) -> str:
    """The cluster, whose partitions share one set of accounts."""
    return str(options.get("url") or options.get("conf") or "")


def label(partition: str) -> str:
    """A partition's name as a DNS label."""
    return re.sub(r"[^a-z0-9]+", "-", partition.lower()).strip("-")[:40] or "partition"


PLUGIN = DriverPlugin(
    name="slurm",
    summary="Tasks as jobs of an existing Slurm cluster, as the member's own Unix user",
    options=OPTIONS,
    check=check,
    diagnose=diagnose,
    tasks=SlurmDriver,
    stack="slurm",
    queues=True,
    people=True,
    parts=parts,
    realm=realm,
    routes=frozenset({"partition"}),
)
