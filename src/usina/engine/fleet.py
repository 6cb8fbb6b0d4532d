"""The hosts, open: one driver each, watched. A difference between a sight and the last one wakes the resource.

Hints carry no meaning; a survey every few seconds finds what a hint missed, and is the heartbeat of the host as well.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from usina.core.capacity import Host, Inventory
from usina.core.clock import Clock
from usina.core.event import Event
from usina.core.machine import Absent, Seen, Unreachable
from usina.ports.driver import Driver, DriverError, DriverPlugin, HostSettings, HostUnreachable
from usina.store import hosts as host_writers
from usina.store.store import Store

log = structlog.get_logger()

SURVEY_EVERY = 3.0
REFRESH_EVERY = 10.0
INVENTORY_EVERY = 300.0
GATHER = 0.1  # seconds that hints wait for each other

Wake = Callable[[list[str]], Awaitable[None]]


@dataclass(slots=True)
class _Post:
    """One host under watch."""

    host: Host
    driver: Driver
    reachable: bool = True
    known: dict[str, Seen] = field(default_factory=dict)
    surveyed: Mapping[str, Seen] | None = None  # what the driver gave last; the same object means "nothing new"
    touched: bool = False  # `known` was changed since
    hinted: set[str] = field(default_factory=set)  # handles to look at; "" for all of them
    hint: asyncio.Event = field(default_factory=asyncio.Event)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)


class Fleet:
    """Opens drivers for the host rows and watches them. `wake` makes resources due."""

    def __init__(
        self,
        store: Store,
        plugins: Mapping[str, DriverPlugin],
        clock: Clock,
        data_dir: Path,
        factory: str,
        survey_every: float = SURVEY_EVERY,
    ) -> None:
        self._store, self._plugins, self._clock = store, plugins, clock
        self._data_dir, self._factory = data_dir, factory
        self._survey_every = survey_every
        self._posts: dict[str, _Post] = {}
        self._opening = asyncio.Lock()
        self.wake: Wake = _nobody

    async def driver(self, host: str) -> Driver:
        """The open driver of a host. Raises `HostUnreachable` if the host is not (or no longer) ours."""
        post = self._posts.get(host)
        if post is None:
            async with self._opening:
                if host not in self._posts:  # else somebody has opened it while we waited
                    await self._open_and_close()
            post = self._posts.get(host)
        if post is None:
            raise HostUnreachable("the host is not known")
        return post.driver

    async def probe(self, id: str, name: str, driver: str, options: Mapping[str, Any]) -> Inventory:
        """What a host that is not ours yet has. Raises `DriverError`."""
        opened = self._plugins[driver].open(self._settings(id, name, options))
        try:
            return await opened.inventory()
        finally:
            with suppress(Exception):
                await opened.close()

    def saw(self, host: str, handle: str, seen: Seen) -> None:
        """The reconciler's own sight, so that a survey that agrees wakes nobody."""
        post = self._posts.get(host)
        if post is None:
            return
        post.touched = True
        post.hinted.discard(handle)  # what was hinted at has been looked at with this
        if isinstance(seen, Absent):
            post.known.pop(handle, None)
        else:
            post.known[handle] = seen

    def open(self, host: Host) -> Driver:
        """A driver for a host row, not yet watched."""
        return self._plugins[host.provider.driver].open(self._settings(host.id, host.name, host.options))

    def _settings(self, id: str, name: str, options: Mapping[str, Any]) -> HostSettings:
        state_dir = self._data_dir / "hosts" / id
        state_dir.mkdir(parents=True, exist_ok=True)
        return HostSettings(id, name, self._factory, state_dir, options)

    async def refresh(self) -> None:
        """Open hosts that are new, close those that are gone."""
        async with self._opening:
            await self._open_and_close()

    async def _open_and_close(self) -> None:
        current = {host.id: host for host in await self._store.hosts.all()}
        for gone in set(self._posts) - set(current):
            await self._close(self._posts.pop(gone))
        for id, host in current.items():
            if id in self._posts:
                self._posts[id].host = host
            elif host.provider.driver in self._plugins:
                self._start(host)

    async def run(self) -> None:
        """Keep the fleet in step with the host rows, until cancelled."""
        try:
            while True:
                await self.refresh()
                await asyncio.sleep(REFRESH_EVERY)
        finally:
            for post in self._posts.values():
                await self._close(post)

    def _start(self, host: Host) -> None:
        post = _Post(host, self.open(host), reachable=host.provider.reachable)
        self._posts[host.id] = post
        post.tasks = [
            asyncio.create_task(self._survey_forever(post), name=f"survey {host.name}"),
            asyncio.create_task(self._watch_forever(post), name=f"watch {host.name}"),
            asyncio.create_task(self._look_forever(post), name=f"look {host.name}"),
            asyncio.create_task(self._count_forever(post), name=f"inventory {host.name}"),
        ]

    async def _close(self, post: _Post) -> None:
        for task in post.tasks:
            task.cancel()
        await asyncio.gather(*post.tasks, return_exceptions=True)
        with suppress(Exception):
            await post.driver.close()

    # --- watching

    async def _survey_forever(self, post: _Post) -> None:
        while True:
            try:
                await self._survey(post)
            except HostUnreachable as error:
                await self._reached(post, False, error.public)
            except DriverError as error:
                log.warning("survey failed", host=post.host.name, error=error.public, detail=error.detail)
            except Exception:
                log.exception("survey failed", host=post.host.name)
            await asyncio.sleep(self._survey_every)

    async def _survey(self, post: _Post) -> None:
        sights = await post.driver.survey()
        await self._reached(post, True, "")
        if sights is post.surveyed and not post.touched:
            return
        post.touched = False
        fresh: dict[str, Seen] = {h: seen for h, seen in sights.items() if post.known.get(h) != seen}
        fresh |= {handle: Absent() for handle in post.known if handle not in sights}
        await self._tell(post, fresh)
        post.surveyed = sights

    async def _watch_forever(self, post: _Post) -> None:
        while True:
            try:
                async for handle in post.driver.watch():
                    post.hinted.add(handle)
                    post.hint.set()
            except DriverError:
                await asyncio.sleep(self._survey_every)
            except Exception:
                log.exception("watch failed", host=post.host.name)
                await asyncio.sleep(self._survey_every)

    async def _look_forever(self, post: _Post) -> None:
        """Look where hints point, a moment later: most are echoes of the reconciler's own deeds, which it has seen."""
        while True:
            await post.hint.wait()
            await asyncio.sleep(GATHER)
            post.hint.clear()
            hinted, post.hinted = post.hinted, set()
            try:
                await self._look(post, hinted)
            except DriverError as error:  # the survey tells it, if it lasts
                log.info("look failed", host=post.host.name, error=error.public)
            except Exception:
                log.exception("look failed", host=post.host.name)

    async def _look(self, post: _Post, hinted: set[str]) -> None:
        if "" in hinted:
            await self._survey(post)
            return
        fresh: dict[str, Seen] = {}
        for handle in hinted:
            seen = await post.driver.observe(handle)
            if isinstance(seen, Unreachable):
                break  # the survey tells that, of all of them at once
            if seen != post.known.get(handle, Absent()):
                fresh[handle] = seen
        await self._tell(post, fresh)

    async def _tell(self, post: _Post, fresh: Mapping[str, Seen]) -> None:
        """Wake whose sight has changed, and only then take it for known: what could not be told is found again."""
        if fresh:
            await self.wake(list(fresh))
            for handle, seen in fresh.items():
                self.saw(post.host.id, handle, seen)

    async def _reached(self, post: _Post, reachable: bool, message: str) -> None:
        if reachable == post.reachable:
            return
        post.reachable = reachable
        now = self._clock.now()
        work = self._store.work()
        host_writers.seen(work, post.host.id, reachable=reachable, message=message, at=now)
        kind = "host.reachable" if reachable else "host.unreachable"
        text = "answers again" if reachable else f"does not answer: {message}"
        work.emit(Event(kind, post.host.id, now, f"{post.host.name} {text}", actor="engine"))
        await work.commit()
        await self.wake(list(await self._store.resources.on_provider(post.host.id)))

    async def _count_forever(self, post: _Post) -> None:
        while True:
            try:
                await self._count(post)
            except DriverError as error:
                log.warning("inventory failed", host=post.host.name, error=error.public)
            except Exception:
                log.exception("inventory failed", host=post.host.name)
            await asyncio.sleep(INVENTORY_EVERY)

    async def _count(self, post: _Post) -> None:
        inventory = await post.driver.inventory()
        if inventory != post.host.provider.inventory:
            work = self._store.work()
            now = self._clock.now()
            host_writers.stock(work, post.host.id, inventory, now)
            work.emit(Event("host.counted", post.host.id, now, f"{post.host.name} has changed", actor="engine"))
            await work.commit()


async def _nobody(ids: list[str]) -> None:
    """Before the reconciler is there, nobody needs waking."""
