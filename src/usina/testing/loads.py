"""What a gateway would have measured, written as one would write it."""

from __future__ import annotations

import time
from typing import Any

import msgspec

from usina.core.endpoint import Load
from usina.store.store import Store
from usina.store.tables import gateways


async def measured(store: Store, endpoint: str, load: Load, gateway: str = "gateway") -> None:
    """One gateway, alive now, has measured this of an endpoint, and nothing of others."""
    row = {"id": gateway, "batch": 1, "seen_at": time.time(), "loads": msgspec.json.encode({endpoint: load})}

    def write(connection: Any) -> None:
        connection.execute(gateways.delete().where(gateways.c.id == gateway))
        connection.execute(gateways.insert().values(**row))

    await store.database.transact(write)
