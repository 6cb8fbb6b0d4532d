"""The port's verbs for tasks as processes of this host. What is behind them is the warden's; see its `__init__`.

Knows no process itself. What it remembers is only what the warden told over the connection that stands now.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import platform
import shutil
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from usina.core.capacity import Finding, Inventory
from usina.core.machine import Absent, Card, Unreachable, VolumePlan
from usina.core.task import Network, Sight, TaskPlan, Usage
from usina.drivers.process.client import Client
from usina.drivers.process.devices import Visible, visible
from usina.drivers.process.inventory import build_inventory
from usina.drivers.process.options import Options, read
from usina.drivers.process.sights import card_order, order, usage
from usina.drivers.process.terminal import ProcessTerminal
from usina.drivers.process.warden import seccomp
from usina.drivers.process.warden.spawn import NO_PROGRAM, PROGRAM
from usina.hardware import veth
from usina.hardware.folders import mounts
from usina.hardware.folders.shelf import Shelf
from usina.hardware.health import Readings, poll
from usina.ports.driver import DriverError, HostSettings, HostUnreachable
from usina.ports.tasks import LogPiece, Progress, Terminal

_OLD_WARDEN: Final = "the warden of this host is from before volumes; it ends when it has been idle for a while"
_SAFE: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


class ProcessDriver:
    """Tasks on this host."""

    def __init__(self, settings: HostSettings) -> None:
        self._options: Options = read(settings)
        self._tools = dict(settings.tools)
        folder = hashlib.sha256(os.fsencode(self._options.folder.absolute())).hexdigest()
        self.group = f"usina-{settings.factory}-{folder[:12]}".lower()  # of our groups
        self._client = Client(self._options.folder, self._settings())
        self._client.changed = self._tell
        self._shelf = Shelf(settings.state_dir)
        self._cards = veth.Cards(self._options.folder / "cards", settings.factory, settings.beside)
        self._starting: dict[str, asyncio.Lock] = {}
        self._watchers: set[asyncio.Queue[str]] = set()
        self._closed = False
        self._survey: Mapping[str, Sight] | None = None
        self._readings: Readings | None = None
        self._looking = asyncio.Lock()

    def _settings(self) -> dict[str, Any]:
        """What the warden is told once, when it starts."""
        options, machine = self._options, platform.machine()
        return {
            "group": self.group,
            "groups": options.control_groups,
            "uids": list(options.uids),
            "pids": options.pids,
            "log_limit": options.log_limit,
            "unpack_limit": options.unpack_limit,
            "read_only": [(folder, folder) for folder in options.read_only]
            + [(source, place) for tool in self._tools.values() for place, source in tool.folders.items()],
            "tools": sorted(self._tools),
            "idle": options.idle,
            "filter": seccomp.build(machine).hex() if machine in seccomp.ARCHITECTURES else "",
            "network_program": network_program(),
            "volumes": mounts.__file__,
        }

    def _tell(self, handle: str) -> None:
        self._survey = None
        for watcher in self._watchers:
            watcher.put_nowait(handle)

    # --- what there is

    async def inventory(self) -> Inventory:
        if not os.access(PROGRAM, os.X_OK):
            raise DriverError(NO_PROGRAM, detail=PROGRAM)
        await self._client.ensure()
        facts = self._client.facts
        volumes = await self._shelf.trouble() if facts.get("volumes") else _OLD_WARDEN
        return await asyncio.to_thread(
            build_inventory,
            self._options,
            str(facts["groups"]),
            str(facts["why"]),
            network_program(),
            volumes,
            self._usable_tools(),
        )

    def _usable_tools(self) -> list[str]:
        """Those that the warden knows as well, who may be older than we are."""
        return sorted({*self._tools} & {str(name) for name in self._client.facts.get("tools", ())})

    async def survey(self) -> Mapping[str, Sight]:
        await self._client.ensure()
        if self._survey is None:
            self._survey = dict(self._client.sights)
        return self._survey

    async def watch(self) -> AsyncIterator[str]:
        mine: asyncio.Queue[str] = asyncio.Queue()
        self._watchers.add(mine)
        try:
            with contextlib.suppress(DriverError):
                await self._client.ensure()
            while True:
                handle = await mine.get()
                if not handle and not self._closed:  # the connection is gone: make it again, so that more is told
                    with contextlib.suppress(DriverError):
                        await self._client.ensure()
                yield handle
        finally:
            self._watchers.discard(mine)

    async def observe(self, handle: str) -> Sight:
        try:
            await self._client.ensure()
        except HostUnreachable:
            return Unreachable()
        return self._client.sights.get(handle, Absent())

    # --- its life

    async def start(self, plan: TaskPlan, progress: Progress) -> None:
        if plan.tool:
            plan = await self._with_tool(plan)
        self._refuse(plan)
        seen = visible(plan.devices)
        if plan.volumes:
            await self._client.ensure()
            if not self._client.facts.get("volumes"):
                raise DriverError(_OLD_WARDEN)
        if plan.files:
            await progress(0.0, "putting files in place")
        if plan.card is None:
            await self._client.call("start", plan=self._order(plan, seen))
            return
        async with self._starting.setdefault(plan.handle, asyncio.Lock()):
            try:
                await self._start_plugged(plan, plan.card, seen)
            finally:
                self._starting.pop(plan.handle, None)

    async def _with_tool(self, plan: TaskPlan) -> TaskPlan:
        await self._client.ensure()
        if plan.tool not in self._usable_tools():
            raise DriverError(f"this host has no {plan.tool}", lasting=True)
        return replace(plan, command=(*self._tools[plan.tool].command, *plan.command))

    def _order(self, plan: TaskPlan, seen: Visible) -> dict[str, Any]:
        return order(plan, seen, [self._shelf.image(mount.volume) for mount in plan.volumes])

    async def _start_plugged(self, plan: TaskPlan, card: Card, seen: Visible) -> None:
        await self._client.ensure()
        if plan.handle in self._client.sights:
            return
        far = await self._cards.make(plan.handle, card)
        try:
            await self._client.call("start", plan={**self._order(plan, seen), "card": card_order(card, far)})
        except HostUnreachable:
            raise
        except DriverError:
            await self._cards.drop(plan.handle)
            raise

    def _refuse(self, plan: TaskPlan) -> None:
        """What can never be run here."""
        if not plan.handle or not _SAFE.issuperset(plan.handle) or plan.handle[0] in ".-" or plan.handle == "etc":
            raise DriverError("its handle is not a plain name", lasting=True)
        if not plan.command:
            raise DriverError("a process needs a command", lasting=True)
        if plan.image or plan.archive:
            raise DriverError("a process has no image; use a stack of containers", lasting=True)
        if plan.replicas > 1 or plan.indices:
            raise DriverError("a host runs arrays and gangs one by one", lasting=True)
        if any("\0" in word for word in (*plan.command, *plan.environment, *plan.environment.values())):
            raise DriverError("its command or environment holds a zero byte", lasting=True)
        if any(not name or "=" in name for name in plan.environment):
            raise DriverError("a name in its environment is empty or holds =", lasting=True)
        if plan.network is Network.HOST and not self._options.host_network:
            raise DriverError("this host's own network is not for tasks (option host_network)", lasting=True)
        if plan.network is Network.PROJECT and (plan.card is None or not veth.possible()):
            raise DriverError("a project's network needs root, ip and nsenter on this host", lasting=True)
        if plan.volumes and os.geteuid() != 0:
            raise DriverError("volumes need root on this host", lasting=True)
        if plan.network is Network.OUTBOUND and not network_program():
            raise DriverError("this host has neither pasta nor slirp4netns for outbound networks", lasting=True)

    async def stop(self, handle: str, *, grace: float) -> None:
        await self._client.call("stop", handle=handle, grace=grace)

    async def remove(self, handle: str) -> None:
        await self._client.call("remove", handle=_plain(handle))
        await self._cards.drop(handle)

    async def leftovers(self) -> Sequence[str]:
        await self._client.ensure()
        return [handle for handle in self._cards.handles() if handle not in self._client.sights]

    # --- volumes

    async def ensure_volume(self, plan: VolumePlan) -> None:
        await self._shelf.ensure(plan)

    async def remove_volume(self, handle: str) -> None:
        await self._shelf.remove(handle)

    # --- what it says and makes

    async def log(self, handle: str, after: int, limit: int) -> LogPiece:
        told = await self._client.call("log", handle=handle, after=after, limit=limit)
        return LogPiece(told["start"], told["data"])

    async def outputs(self, handle: str, patterns: tuple[str, ...]) -> AsyncIterator[bytes]:
        reader, writer = await self._client.handed("outputs", handle=handle, patterns=list(patterns))
        try:
            while size := int.from_bytes(await reader.readexactly(4), "big"):
                yield await reader.readexactly(size)
        except asyncio.IncompleteReadError as error:
            raise DriverError("its files could not be read to the end") from error
        finally:
            writer.close()

    async def usage(self, handle: str) -> Usage | None:
        return usage(await self._client.call("usage", handle=handle))

    # --- beside it

    async def exec(self, handle: str, command: tuple[str, ...], *, terminal: bool) -> Terminal:
        if not command:
            raise DriverError("there is no command", lasting=True)
        line = await self._client.handed("exec", handle=handle, command=list(command), terminal=terminal)
        return ProcessTerminal(*line)

    async def dial(self, handle: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        taken = await self._client.taken("dial", handle=handle, port=port)
        return await asyncio.open_connection(sock=taken)

    async def health(self) -> Sequence[Finding]:
        async with self._looking:  # a broken card may take its driver's whole time to answer
            self._readings, found = await asyncio.to_thread(poll, self._readings)
        return found

    async def close(self) -> None:
        self._closed = True
        await self._client.close()


def _plain(handle: str) -> str:
    if not handle or not _SAFE.issuperset(handle) or handle[0] in ".-" or handle == "etc":
        raise DriverError("its handle is not a plain name", lasting=True)
    return handle


def network_program() -> str:
    """What can give runs an outbound network here; "" if nothing. pasta is the faster one, but as the run's user it
    must be allowed to open /dev/net/tun."""
    pasta, slirp = shutil.which("pasta"), shutil.which("slirp4netns")
    if pasta and (os.geteuid() != 0 or _everybodys("/dev/net/tun")):
        return pasta
    return slirp or ""


def _everybodys(path: str) -> bool:
    try:
        return os.stat(path).st_mode & 0o006 == 0o006
    except OSError:
        return False
