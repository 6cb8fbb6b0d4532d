"""Picks free addresses. A guess from memory, made exact by the reservation in the same commit as the order."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator

from usina.core.errors import Conflict
from usina.core.network import candidates
from usina.store.store import Store


class Addresses:
    """Remembers, per network, which addresses this process believes to be taken."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._taken: dict[str, set[str]] = {}
        self._order: dict[str, Iterator[str]] = {}
        self._reading = asyncio.Lock()
        # Control planes begin their search at different places, so that they seldom guess the same.
        self._seed = secrets.token_hex(4)

    async def pick(self, network: str, cidr: str, field: str = "interfaces") -> str:
        """An address that is probably free. Raises `Conflict` when the network is full."""
        for fresh in (False, True):
            await self._read(network, cidr, fresh)
            taken = self._taken[network]
            for address in self._order[network]:
                if address not in taken:
                    taken.add(address)
                    return address
        raise Conflict(
            "the network has no free address",
            field=field,
            code="network-full",
        )

    async def _read(self, network: str, cidr: str, fresh: bool) -> None:
        async with self._reading:
            if fresh or network not in self._order:
                self._taken[network] = set(await self._store.resources.users_of(network))
                self._order[network] = candidates(cidr, network + self._seed)

    async def learn(self, network: str) -> None:
        """A guess was wrong: add what others have taken. What this process has given out meanwhile stays given out."""
        taken = await self._store.resources.users_of(network)
        self._taken.setdefault(network, set()).update(taken)
