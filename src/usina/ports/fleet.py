"""Hosts: what operations may ask of open hosts without knowing who keeps them. Implemented by `engine.fleet`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from usina.core.capacity import Inventory
from usina.ports.driver import Driver


class Hosts(Protocol):
    async def driver(self, host: str) -> Driver:
        """The open driver of a host. Raises `HostUnreachable`."""
        ...

    async def probe(self, id: str, name: str, driver: str, options: Mapping[str, Any]) -> Inventory:
        """What a host that is not ours yet has. Raises `DriverError`."""
        ...
