"""What tasks in machines add to their host: nothing but that they can be run. Their machines have claimed the rest."""

from __future__ import annotations

from importlib.metadata import version

from usina.core.capacity import Inventory, runs

STACK = "machine"


def nothing_of_its_own() -> Inventory:
    return Inventory(nodes=(), disk=0, traits=frozenset({runs(STACK)}), facts={"asyncssh": version("asyncssh")})
