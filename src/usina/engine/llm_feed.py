"""Keeps a gateway's directory fresh: reads it anew when events tell that something in it has changed.

A key that is revoked opens nothing any more `EVERY` later at most, and at once where the same process revoked it. What
was just made is there for who asks for it: before a gateway says that it knows no such thing, it has a `look`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress

import structlog

from usina.core.endpoint import EndpointSpec
from usina.core.errors import UsinaError
from usina.core.resource import AnyResource, Kind
from usina.ports.llm import Directory, Offered
from usina.ports.runtime import RuntimePlugin
from usina.ports.vault import Vault
from usina.store.store import Store

log = structlog.get_logger()

EVERY = 0.4  # seconds between looks at what other processes did
TOLD_BY = ("key.", "member.", "project.", "tenant.", "endpoint.", "budget.")


class LlmFeed:
    def __init__(self, store: Store, vault: Vault, runtimes: Mapping[str, RuntimePlugin]) -> None:
        self._store, self._vault, self._runtimes = store, vault, runtimes
        self._seen = 0
        self._refresh: Callable[[Directory], None] = lambda directory: None
        self._begun = self._done = 0  # number of the last look that has begun, and that has ended well
        self._one_looks = asyncio.Lock()

    async def start(self, refresh: Callable[[Directory], None]) -> None:
        """`refresh` is given the directory now, and whenever it has changed."""
        self._refresh = refresh
        self._seen = await self._store.events.last()
        refresh(await self._read())

    async def run(self) -> None:
        while True:
            pulse = self._store.database.pulse
            try:
                await self.look()
            except Exception:
                log.exception("the gateway's directory could not be read")
            with suppress(TimeoutError):
                async with asyncio.timeout(EVERY):
                    await pulse.wait()

    async def look(self) -> None:
        """What was there when this was called has been told of when it returns. All who wait share one look."""
        begun = self._begun
        async with self._one_looks:
            if self._done <= begun:  # else one that has begun after this was called has ended
                number = self._begun = self._begun + 1
                await self._read_changes()
                self._done = number

    async def _read_changes(self) -> None:
        last, touched = await self._store.events.touched(self._seen, TOLD_BY)
        if touched:
            self._refresh(await self._read())
        self._seen = last

    async def _read(self) -> Directory:
        keys, members, projects = await self._store.identity.everybody()
        endpoints = await self._store.resources.every(Kind.ENDPOINT)
        budgets = await self._store.llm.budgets()
        return Directory(
            keys={key.id: key for key in keys},
            members={member.id: member for member in members},
            projects={project.id: project for project in projects},
            endpoints={one.id: self._offered(one) for one in endpoints if not one.deleting},
            budgets={budget.scope: budget for budget in budgets},
        )

    def _offered(self, endpoint: AnyResource) -> Offered:
        spec: EndpointSpec = endpoint.spec
        secret = ""
        if spec.secret and spec.url:  # that of others is for their replicas to find, not for requests
            try:
                secret = self._vault.open(spec.secret, endpoint.id)
            except UsinaError:
                log.warning("an endpoint's secret cannot be opened", endpoint=endpoint.id)
        runtime = self._runtimes.get(spec.runtime)
        return Offered(
            endpoint.id,
            endpoint.tenant,
            endpoint.project,
            endpoint.name,
            spec,
            endpoint.status.replicas,
            secret,
            messages=runtime is not None and runtime.messages,
            adapters_by=runtime.adapters_by if runtime is not None else "model",
        )
