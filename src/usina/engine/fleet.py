"""The hosts, open: one driver each, watched. A difference between a sight and the last one wakes the resource.

Hints carry no meaning; a survey every few seconds finds what a hint missed, and is the heartbeat of the host as well.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import structlog

from usina.core.capacity import FOR_MACHINES, GIVEN, MACHINES, Host, Inventory, merged, runs
from usina.core.clock import Clock
from usina.core.event import Event
from usina.core.machine import Absent, Card, Seen, Unreachable
from usina.core.task import Ended, task_of
from usina.ports.driver import Beside, Driver, DriverError, DriverPlugin, HostSettings, HostUnreachable, Part, Tool
from usina.ports.login_keys import LoginKeys
from usina.ports.tasks import TaskDriver
from usina.store import hosts as host_writers
from usina.store.store import Store

log = structlog.get_logger()

SURVEY_EVERY = 3.0
REFRESH_EVERY = 10.0
INVENTORY_EVERY = 300.0
GATHER = 0.1  # seconds that hints wait for each other
MOST_PATIENT = 10
SOON = 0.02  # the same for runs of tasks, whose ends somebody waits for

Wake = Callable[[list[str]], Awaitable[None]]
Opener = Callable[[HostSettings], "Driver | TaskDriver"]
Key = tuple[str, str]
"""Of a post: host, and "" for machines, or the stack for tasks."""


@dataclass(slots=True)
class _Post:
    """One driver of one host, under watch."""

    host: Host
    stack: str  # "" for machines
    name: str  # of the driver
    options: Mapping[str, Any]
    driver: Driver | TaskDriver
    leads: bool  # says whether the host answers, and when to count what it has
    reachable: bool = True
    known: dict[str, Any] = field(default_factory=dict)  # handle -> sight
    surveyed: Mapping[str, Any] | None = None  # what the driver gave last; the same object means "nothing new"
    touched: bool = False  # `known` was changed since
    hinted: set[str] = field(default_factory=set)  # handles to look at; "" for all of them
    hint: asyncio.Event = field(default_factory=asyncio.Event)
    awaited: dict[str, asyncio.Future[None]] = field(default_factory=dict)  # handles whose next hint is for one waiter
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
        login_keys: LoginKeys,
        survey_every: float = SURVEY_EVERY,
        tools: Mapping[str, Tool] | None = None,
    ) -> None:
        self._store, self._plugins, self._clock = store, plugins, clock
        self._data_dir, self._factory = data_dir, factory
        self.login_keys = login_keys
        self._survey_every = survey_every
        self._tools = tools or {}
        self._posts: dict[Key, _Post] = {}
        self._opening = asyncio.Lock()
        self.wake: Wake = _nobody

    async def driver(self, host: str) -> Driver:
        """The open driver that makes machines on a host. Raises `HostUnreachable` if the host is not (or no longer)
        ours."""
        return (await self._post(host, "")).driver  # type: ignore[return-value]  # by its key

    async def tasks(self, host: str, stack: str) -> TaskDriver:
        """The open driver that runs tasks of a stack on a host. Raises `HostUnreachable`."""
        return (await self._post(host, stack)).driver  # type: ignore[return-value]  # by its key

    async def shelf(self, host: str) -> TaskDriver:
        """An open driver that keeps the volumes of tasks on a host; all that do so have the same ones. Raises
        `HostUnreachable`."""
        stacks = sorted(plugin.stack for plugin in self._plugins.values() if plugin.volumes)
        if not any((host, stack) in self._posts for stack in stacks):
            await self.refresh()
        for stack in stacks:
            if (host, stack) in self._posts:
                return await self.tasks(host, stack)
        raise HostUnreachable("the host does not offer volumes for tasks any more")

    async def _post(self, host: str, stack: str) -> _Post:
        post = self._posts.get((host, stack))
        if post is None:
            async with self._opening:
                if (host, stack) not in self._posts:  # else somebody has opened it while we waited
                    await self._open_and_close()
            post = self._posts.get((host, stack))
        if post is None:
            raise HostUnreachable(f"the host does not offer {stack} any more" if stack else "the host is not known")
        return post

    def task_drivers(self) -> list[tuple[str, str, TaskDriver]]:
        """(host, stack, driver) of all that run tasks and answer."""
        posts = [post for post in self._posts.values() if post.stack and post.reachable]
        return [(post.host.id, post.stack, post.driver) for post in posts]  # type: ignore[misc]

    async def probe(self, id: str, name: str, drivers: Mapping[str, Mapping[str, Any]]) -> Inventory:
        """What a host that is not ours yet has. Raises `DriverError`."""
        found = []
        for driver, options in drivers.items():
            for stack, make in self._openers(driver):
                opened = make(self._settings(id, name, options))
                try:
                    found.append(await self._seen_by(stack, opened))
                finally:
                    with suppress(Exception):
                        await opened.close()
        return merged(found)

    async def parts(self, id: str, name: str, driver: str, options: Mapping[str, Any]) -> list[Part]:
        """The providers behind one connection. Raises `DriverError`."""
        ask = self._plugins[driver].parts
        return await ask(self._settings(id, name, options)) if ask is not None else []

    def _openers(self, name: str) -> list[tuple[str, Opener]]:
        """What a driver can do: ("" for machines, or the stack for tasks, how to open it)."""
        plugin = self._plugins[name]
        made: list[tuple[str, Opener]] = []
        if plugin.open is not None:
            made.append(("", plugin.open))
        if plugin.tasks is not None:
            made.append((plugin.stack, plugin.tasks))
        return made

    @staticmethod
    async def _seen_by(stack: str, opened: Driver | TaskDriver) -> Inventory:
        """What one driver sees, with what can be done there by it."""
        inventory = await opened.inventory()
        if not stack:
            return replace(inventory, traits=inventory.traits | {MACHINES})
        devices = [
            device if FOR_MACHINES in device.traits else replace(device, traits=device.traits | {GIVEN})
            for device in inventory.devices
        ]
        return replace(inventory, devices=tuple(devices), traits=inventory.traits | {runs(stack)})

    def saw(self, host: str, handle: str, seen: Any, stack: str = "") -> None:
        """The reconciler's own sight, so that a survey that agrees wakes nobody."""
        post = self._posts.get((host, stack))
        if post is None:
            return
        post.touched = True
        post.hinted.discard(handle)  # what was hinted at has been looked at with this
        if isinstance(seen, Absent):
            post.known.pop(handle, None)
        else:
            post.known[handle] = seen

    async def until_over(self, handle: str, host: str, stack: str, seconds: float) -> None:
        """Wait for the end of a run, or the next hint at it, or so many seconds (more where many begin at once). The
        caller looks at it then."""
        post = await self._post(host, stack)
        loop = asyncio.get_running_loop()
        waiter = post.awaited[handle] = loop.create_future()
        hinted = handle in post.hinted
        post.hinted.discard(handle)
        timer = loop.call_later(seconds * min(MOST_PATIENT, 1 + len(post.awaited) / 8), _over, waiter)
        try:
            if not (hinted and isinstance(await post.driver.observe(handle), Ended)):
                await waiter
        finally:
            timer.cancel()
            post.awaited.pop(handle, None)

    def _settings(self, id: str, name: str, options: Mapping[str, Any], beside: Beside | None = None) -> HostSettings:
        state_dir = self._data_dir / "hosts" / id
        state_dir.mkdir(parents=True, exist_ok=True)
        return HostSettings(id, name, self._factory, state_dir, options, beside, self._tools)

    async def refresh(self) -> None:
        """Open hosts that are new, close those that are gone."""
        async with self._opening:
            await self._open_and_close()

    async def _open_and_close(self) -> None:
        wanted: dict[Key, tuple[Host, str, Opener]] = {}
        for host in await self._store.hosts.all():
            known = [name for name in host.drivers if name in self._plugins]
            wanted |= {(host.id, stack): (host, name, make) for name in known for stack, make in self._openers(name)}
        for key, post in list(self._posts.items()):
            if key not in wanted or wanted[key][0].drivers[wanted[key][1]] != post.options:
                await self._close(self._posts.pop(key))
        for key, (host, name, make) in wanted.items():
            if key in self._posts:
                self._posts[key].host = host
            else:
                self._start(key, host, name, make)

    async def run(self) -> None:
        """Keep the fleet in step with the host rows, until cancelled."""
        try:
            while True:
                await self.refresh()
                await asyncio.sleep(REFRESH_EVERY)
        finally:
            for post in self._posts.values():
                await self._close(post)

    def _start(self, key: Key, host: Host, name: str, make: Opener) -> None:
        options = host.drivers[name]
        opened = make(self._settings(host.id, host.name, options, _Beside(self, host.id) if key[1] else None))
        leads = name == host.provider.driver and not any(p.host.id == host.id for p in self._posts.values())
        post = _Post(host, key[1], name, options, opened, leads, reachable=host.provider.reachable)
        self._posts[key] = post
        standing = {
            "survey": self._survey_forever(post),
            "watch": self._watch_forever(post),
            "look": self._look_forever(post),
        }
        if post.leads:
            standing["inventory"] = self._count_forever(post)
        where = f"{host.name} {post.name}"
        post.tasks = [asyncio.create_task(task, name=f"{what} {where}") for what, task in standing.items()]

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
        fresh: dict[str, Any] = {h: seen for h, seen in sights.items() if post.known.get(h) != seen}
        fresh |= {handle: Absent() for handle in post.known if handle not in sights}
        await self._tell(post, fresh)
        post.surveyed = sights

    async def _watch_forever(self, post: _Post) -> None:
        while True:
            try:
                async for handle in post.driver.watch():
                    waiter = post.awaited.get(handle)
                    if waiter is not None and not waiter.done():
                        waiter.set_result(None)
                        continue
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
            quiet = not post.hint.is_set()
            await post.hint.wait()
            await asyncio.sleep(GATHER if not post.stack else 0 if quiet else SOON)
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
        fresh: dict[str, Any] = {}
        for handle in hinted:
            seen = await post.driver.observe(handle)
            if isinstance(seen, Unreachable):
                break  # the survey tells that, of all of them at once
            if seen != post.known.get(handle, Absent()):
                fresh[handle] = seen
        await self._tell(post, fresh)

    async def _tell(self, post: _Post, fresh: Mapping[str, Any]) -> None:
        """Wake whose sight has changed, and only then take it for known: what could not be told is found again."""
        if fresh:
            await self.wake([task_of(handle) if post.stack else handle for handle in fresh])
            for handle, seen in fresh.items():
                self.saw(post.host.id, handle, seen, post.stack)

    async def _reached(self, post: _Post, reachable: bool, message: str) -> None:
        if reachable == post.reachable:
            return
        post.reachable = reachable
        if post.leads:
            await self._tell_reached(post, reachable, message)
        else:
            log.info("driver answers" if reachable else "driver does not answer", host=post.host.name, driver=post.name)
        await self.wake(list(await self._store.resources.on_provider(post.host.id)))

    async def _tell_reached(self, post: _Post, reachable: bool, message: str) -> None:
        now = self._clock.now()
        work = self._store.work()
        host_writers.seen(work, post.host.id, reachable=reachable, message=message, at=now)
        kind = "host.reachable" if reachable else "host.unreachable"
        text = "answers again" if reachable else f"does not answer: {message}"
        work.emit(Event(kind, post.host.id, now, f"{post.host.name} {text}", actor="engine"))
        await work.commit()

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
        inventory = await self._inventory(post)
        if inventory != post.host.provider.inventory:
            work = self._store.work()
            now = self._clock.now()
            host_writers.stock(work, post.host.id, inventory, now)
            work.emit(Event("host.counted", post.host.id, now, f"{post.host.name} has changed", actor="engine"))
            await work.commit()

    async def _inventory(self, post: _Post) -> Inventory:
        """What the host has, as all its drivers see it; one that does not answer offers nothing meanwhile."""
        found = [await self._seen_by(post.stack, post.driver)]
        for other in [p for p in self._posts.values() if p.host.id == post.host.id and p is not post]:
            try:
                found.append(await self._seen_by(other.stack, other.driver))
            except DriverError as error:
                log.warning("inventory failed", host=post.host.name, driver=other.name, error=error.public)
        return merged(found)


class _Beside:
    """The machines' driver of a host, found when it is needed: it may be opened later, and anew."""

    def __init__(self, fleet: Fleet, host: str) -> None:
        self._fleet, self._host = fleet, host

    async def observe(self, handle: str) -> Seen:
        return await (await self._fleet.driver(self._host)).observe(handle)

    def login_key(self, project: str) -> str:
        return self._fleet.login_keys.private(project)

    async def dial(self, handle: str, address: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await (await self._fleet.driver(self._host)).dial(handle, address, port)

    async def plug(self, handle: str, device: str, card: Card) -> None:
        await (await self._fleet.driver(self._host)).plug(handle, device, card)

    async def unplug(self, handle: str, device: str, card: Card) -> None:
        await (await self._fleet.driver(self._host)).unplug(handle, device, card)


def _over(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


async def _nobody(ids: list[str]) -> None:
    """Before the reconciler is there, nobody needs waking."""
