"""Hosts: what operations may ask of open hosts without knowing who keeps them. Implemented by `engine.fleet`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from usina.core.capacity import Inventory
from usina.ports.driver import Driver, Part
from usina.ports.tasks import TaskDriver


class Hosts(Protocol):
    async def driver(self, host: str) -> Driver:
        """The open driver that makes machines on a host. Raises `HostUnreachable`."""
        ...

    async def tasks(self, host: str, stack: str) -> TaskDriver:
        """The open driver that runs tasks of a stack on a host. Raises `HostUnreachable`."""
        ...

    async def probe(self, id: str, name: str, drivers: Mapping[str, Mapping[str, Any]]) -> Inventory:
        """What a host that is not ours yet has, as all its drivers (name → options) see it. Raises `DriverError`."""
        ...

    async def parts(self, id: str, name: str, driver: str, options: Mapping[str, Any]) -> list[Part]:
        """The providers behind one connection; none where it is one provider itself. Raises `DriverError`."""
        ...
