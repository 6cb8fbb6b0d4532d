"""The store as the rest of the house sees it: reads by subject, `work()` for writes."""

from __future__ import annotations

import asyncio

from usina.store.database import Database
from usina.store.events import Events
from usina.store.hosts import Hosts
from usina.store.identity import Identity
from usina.store.leases import Leases
from usina.store.llm import Llm
from usina.store.migrate import migrate
from usina.store.models import Models
from usina.store.resources import Resources
from usina.store.tasks import Tasks
from usina.store.work import Work


class Store:
    """An open store over one database URL (``sqlite:///path`` or ``postgresql://…``)."""

    def __init__(self, url: str) -> None:
        self.database = Database(url)
        self.resources = Resources(self.database)
        self.identity = Identity(self.database)
        self.hosts = Hosts(self.database)
        self.events = Events(self.database)
        self.tasks = Tasks(self.database)
        self.llm = Llm(self.database)
        self.models = Models(self.database)

    async def start(self) -> None:
        """Bring the schema to this release, then open for writing."""
        await migrate(self.database)
        await self.database.start()

    async def close(self) -> None:
        await self.database.close()

    def work(self) -> Work:
        return Work(self.database)

    def leases(self, owner: str) -> Leases:
        return Leases(self.database, owner)

    async def ping(self) -> None:
        """Raises if the database does not answer within two seconds."""
        async with asyncio.timeout(2):
            await self.events.last()
