"""The ledger of one gateway, over the store; and the streams to replicas, over the fleet."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from urllib.parse import urlsplit

from usina.core.clock import Clock
from usina.core.endpoint import Load, Replica
from usina.core.llm import Usage
from usina.engine.fleet import Fleet
from usina.ports.llm import Offered, Outside, Slice, Spend, Streams
from usina.store.llm import WrittenAlready
from usina.store.store import Store

Reach = Callable[[str], Awaitable[str]]
"""URL → the checked address to connect to. Raises `Invalid` for one that may not be reached."""


class StoreLedger:
    def __init__(self, store: Store, clock: Clock, gateway: str) -> None:
        self._store, self._clock, self._gateway = store, clock, gateway

    async def begin(self) -> int:
        return await self._store.llm.begin(self._gateway, self._clock.now())

    async def write(
        self, batch: int, usage: Sequence[Usage], spent: Sequence[Spend], loads: Mapping[str, Load]
    ) -> None:
        now = self._clock.now()
        work = self._store.work()
        rows = [(one.scope, one.began_at, one.tokens) for one in spent]
        self._store.llm.write(work, self._gateway, batch, usage, rows, loads, now)
        with suppress(WrittenAlready):
            await work.commit()

    async def lease(self, wanted: Mapping[str, int]) -> Sequence[Slice]:
        return [Slice(*one) for one in await self._store.llm.lease(self._gateway, wanted, self._clock.now())]

    async def dry(self, scopes: Sequence[str]) -> Sequence[str]:
        return await self._store.llm.dry(scopes)

    async def give_back(self, slices: Sequence[Slice]) -> None:
        await self._store.llm.give_back(self._gateway, [(one.scope, one.began_at, one.tokens) for one in slices])

    async def give_back_all(self) -> None:
        await self._store.llm.give_back_all(self._gateway)


class CheckedOutside:
    """To an external upstream, at the address that was checked."""

    def __init__(self, reach: Reach) -> None:
        self._reach = reach
        self._tls = ssl.create_default_context()

    async def __call__(self, url: str) -> Streams:
        parts = urlsplit(url)
        address = await self._reach(url)
        if parts.scheme == "https":
            return await asyncio.open_connection(
                address, parts.port or 443, ssl=self._tls, server_hostname=parts.hostname
            )
        return await asyncio.open_connection(address, parts.port or 80)


class FleetDial:
    """To a port of a run by the driver of its stack; to an external upstream over the network."""

    def __init__(self, fleet: Fleet, outside: Outside) -> None:
        self._fleet, self._outside = fleet, outside

    async def __call__(self, endpoint: Offered, replica: Replica) -> Streams:
        if endpoint.spec.url:
            return await self._outside(endpoint.spec.url)
        driver = await self._fleet.tasks(replica.provider, replica.stack)
        return await driver.dial(replica.handle, replica.port)
