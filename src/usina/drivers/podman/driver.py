"""The Podman driver: every verb of the port as requests to Podman's service.

A run is a container and a volume of the same name. What Podman does not remember of a run (that we asked it to end, and
why) is a small file in our folder, written before the deed.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from weakref import WeakValueDictionary

import msgspec

from usina.core.capacity import FOLDERS, Finding, Inventory, runs
from usina.core.machine import Absent, Card, Unreachable, VolumePlan
from usina.core.task import WORK, End, Ended, FilePlan, Running, Sight, TaskPlan, Usage, secret_values
from usina.drivers.podman import body, images, netns, outputs, service, settings, sights
from usina.drivers.podman.api import Api, Missing
from usina.drivers.podman.logs import Spool
from usina.drivers.podman.mounts import Mounts, sees_ours
from usina.drivers.podman.terminal import ExecTerminal
from usina.hardware import devices, read_nodes, veth
from usina.hardware.folders.shelf import Shelf
from usina.ports.driver import DriverError, HostSettings, HostUnreachable
from usina.ports.tasks import LogPiece, Progress, Terminal

STACK = "container"


class Note(msgspec.Struct, omit_defaults=True):
    """What we know of a run and Podman does not."""

    secrets: list[str] = []
    limit: float = 0.0
    grace: float = 10.0
    memory: int = 0
    stopped: str = ""  # why we ended it


class PodmanDriver:
    """One Podman on this machine."""

    def __init__(self, host: HostSettings) -> None:
        self._settings = settings.read(host)
        self._settings.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._shelf = Shelf(host.state_dir)
        self._mounts = Mounts(self._settings.folder / "mounts", self._shelf, self._settings.uids[0])
        self._cards = veth.Cards(self._settings.folder / "cards", host.factory, host.beside)
        self._api: Api | None = None
        self._finding = asyncio.Lock()
        self._ended: dict[str, Ended] = {}  # by container id; what has ended stays as it is
        self._last: dict[str, Sight] = {}
        self._starting: dict[str, asyncio.Lock] = {}
        self._limits: dict[str, asyncio.Task[None]] = {}
        self._reading: WeakValueDictionary[str, threading.Lock] = WeakValueDictionary()  # while a spool has it

    async def _podman(self) -> Api:
        async with self._finding:
            if self._api is None or not os.path.exists(self._api.socket):
                self._api = Api(await service.find(self._settings))
            return self._api

    # --- what there is

    async def inventory(self) -> Inventory:
        api = await self._podman()
        found = await api.call("GET", "/info")
        disk = shutil.disk_usage(found["store"]["graphRoot"]).total
        traits = {runs(STACK), platform.machine()}
        traits |= {"task:outbound"} if shutil.which("slirp4netns") else set()
        traits |= {"task:host-network"} if self._settings.host_network else set()
        trouble = await self._no_volumes(api)
        traits |= {FOLDERS} if not trouble else set()
        host = found["host"]
        facts = {
            "podman": f"{found['version']['Version']} with {host['ociRuntime']['name']}",
            "containers": "rootless" if host["security"]["rootless"] else "users mapped to ours",
        }
        facts["container_volumes"] = trouble or "folders"
        return Inventory(read_nodes(), disk, await asyncio.to_thread(devices), frozenset(traits), facts)

    async def _no_volumes(self, api: Api) -> str:
        """Why containers here can have no volumes; "" where they can."""
        trouble = await self._shelf.trouble()
        try:
            apart = not trouble and not await asyncio.to_thread(sees_ours, api.socket)
        except OSError as error:
            return f"Podman's service: {error.strerror}"
        return "Podman's service does not see what this machine mounts" if apart else trouble

    async def survey(self) -> Mapping[str, Sight]:
        api = await self._podman()
        label = {"label": [f"{body.LABEL_FACTORY}={self._settings.factory}"]}
        found = await api.call("GET", "/containers/json", {"all": True, "filters": label})
        fresh: dict[str, Sight] = {}
        for one in found or []:
            handle = one["Labels"][body.LABEL_HANDLE]
            sight = self._ended.get(one["Id"]) or await self.observe(handle)
            if not isinstance(sight, Absent):
                fresh[handle] = sight
        if fresh != self._last:
            self._last = fresh
        return self._last

    async def watch(self) -> AsyncIterator[str]:
        """Podman's own events, about containers of ours."""
        while True:
            api = await self._podman()
            label = [f"{body.LABEL_FACTORY}={self._settings.factory}"]
            wanted = {"stream": True, "filters": {"label": label, "event": ["died", "start", "remove"]}}
            rest = b""
            async with api.stream("GET", "/events", wanted) as chunks:
                async for chunk in chunks:
                    *lines, rest = (rest + chunk).split(b"\n")
                    for line in lines:
                        with suppress(ValueError, KeyError):
                            yield str(json.loads(line)["Actor"]["Attributes"][body.LABEL_HANDLE])
            await asyncio.sleep(1)

    async def observe(self, handle: str) -> Sight:
        try:
            found = await self._inspect(await self._podman(), handle)
        except HostUnreachable as error:
            return Unreachable(error.public)
        return self._sight(handle, found) if found is not None else Absent()

    async def _inspect(self, api: Api, handle: str) -> dict[str, object] | None:
        try:
            found: dict[str, object] = await api.look(f"/containers/{self._name(handle)}/json")
        except Missing:
            return None
        return found

    def _sight(self, handle: str, found: dict[str, object]) -> Sight:
        id = str(found["Id"])
        if id in self._ended:
            return self._ended[id]
        note = self._note(handle)
        sight = sights.sight(found, stopped=note.stopped, memory=False)
        if isinstance(sight, Ended):
            if sight.how is End.EXITED and sight.code == 137 and note.memory and _killed_for_memory(id):
                sight = replace(sight, how=End.MEMORY)
            sight = replace(sight, message=_told(sight, note))
            self._ended[id] = sight
        elif isinstance(sight, Running) and note.limit and handle not in self._limits:
            self._limits[handle] = asyncio.create_task(self._end_at(handle, sight.since + note.limit, note.grace))
        return sight

    def _name(self, handle: str) -> str:
        return body.container(self._settings, handle)

    # --- its life

    async def start(self, plan: TaskPlan, progress: Progress) -> None:
        async with self._starting.setdefault(plan.handle, asyncio.Lock()):
            try:
                await self._start(plan, progress)
            finally:
                self._starting.pop(plan.handle, None)

    async def _start(self, plan: TaskPlan, progress: Progress) -> None:
        api = await self._podman()
        found = await self._inspect(api, plan.handle)
        if found is not None and not isinstance(self._sight(plan.handle, found), Absent):
            return
        if found is not None:  # a start that was cut short: nothing of it ever ran
            await self.remove(plan.handle)
        secrets = list(secret_values(plan))
        self._keep(plan.handle, Note(secrets, plan.time_limit, plan.grace, plan.memory))
        try:
            image = await images.ensure(api, plan, self._settings, progress)
            root = os.geteuid() == 0
            if plan.volumes and (trouble := await self._no_volumes(api)):
                raise DriverError(f"containers here can have no volumes: {trouble}", lasting=True)
            volumes = await self._mounts.make(plan.handle, plan.volumes)
            await asyncio.to_thread(_share, plan.files)
            wish = body.build(plan, self._settings, image, volumes, root=root)
            await api.call("POST", "/containers/create", body=wish)
            for file in plan.files:
                if not body.is_bound(file):
                    await self._put(api, plan, file)
            if plan.card is not None:
                await self._plug(api, plan.handle, plan.card)
            await api.call("POST", f"/containers/{self._name(plan.handle)}/start", fine=(304,))
            await self._mounts.drop(plan.handle)
        except HostUnreachable:
            raise
        except DriverError as error:
            await self.remove(plan.handle)
            raise _plain(error, plan) from error

    async def _plug(self, api: Api, handle: str, card: Card) -> None:
        """Between making its namespaces and starting what it is to run, a container has its network but no process."""
        far = await self._cards.make(handle, card)
        path = f"/containers/{self._name(handle)}"
        resolver = outputs.one("etc/resolv.conf", veth.resolver(card))  # Podman writes none where it made no network
        await api.call("PUT", f"{path}/archive", {"path": "/"}, content=resolver)
        await api.call("POST", f"{path}/init", fine=(304,))
        found = await self._inspect(api, handle)
        state: dict[str, int] = found["State"] if found is not None else {}  # type: ignore[assignment]
        if not state.get("Pid"):
            raise DriverError("the container went away while it was started")
        await veth.enter(state["Pid"], far, card)

    async def _put(self, api: Api, plan: TaskPlan, file: FilePlan) -> None:
        where = file.path if file.unpack else ""
        target = where if where.startswith("/") else f"{WORK}/{where}".rstrip("/")
        if not file.unpack and file.path.startswith("/"):
            target = "/"
        content = images.content(Path(file.source)) if file.unpack else _each(outputs.single(file))
        path = f"/containers/{self._name(plan.handle)}/archive"
        await api.call("PUT", path, {"path": target, "noOverwriteDirNonDir": True}, content=content)

    async def _end_at(self, handle: str, at: float, grace: float) -> None:
        """Keep its time limit to the second, and with grace; conmon keeps it if we are away."""
        try:
            await asyncio.sleep(max(0.0, at - time.time()))
            await self._end(handle, grace, "time-limit")
        except DriverError:
            return
        finally:
            self._limits.pop(handle, None)

    async def stop(self, handle: str, *, grace: float) -> None:
        await self._end(handle, grace, "stopped")

    async def _end(self, handle: str, grace: float, why: str) -> None:
        api = await self._podman()
        found = await self._inspect(api, handle)
        if found is None or not isinstance(self._sight(handle, found), Running):
            return
        note = self._note(handle)
        if not note.stopped:
            self._keep(handle, msgspec.structs.replace(note, stopped=why))
        path = f"/containers/{self._name(handle)}"
        if grace > 0:
            with suppress(Missing):
                await api.call("POST", f"{path}/kill", {"signal": "SIGTERM"}, fine=(409,))
            if await self._ended_within(api, handle, grace):
                return
        with suppress(Missing):
            await api.call("POST", f"{path}/kill", {"signal": "SIGKILL"}, fine=(409,))
        await self._ended_within(api, handle, 30)

    async def _ended_within(self, api: Api, handle: str, limit: float) -> bool:
        deadline = time.monotonic() + limit
        while time.monotonic() < deadline:
            found = await self._inspect(api, handle)
            if found is None or isinstance(self._sight(handle, found), Ended):
                return True
            await asyncio.sleep(0.05)
        return False

    async def remove(self, handle: str) -> None:
        api = await self._podman()
        name = self._name(handle)
        limit = self._limits.pop(handle, None)
        if limit is not None:
            limit.cancel()
        found = await self._inspect(api, handle)
        if found is not None:
            self._ended.pop(str(found["Id"]), None)
            await _patiently(api, "DELETE", f"/containers/{name}", {"force": True, "v": True, "timeout": 0})
        await _patiently(api, "DELETE", f"/volumes/{name}", {"force": True})
        await self._cards.drop(handle)
        await self._mounts.drop(handle)
        await asyncio.to_thread(self._spool(handle).drop)
        self._path(handle, "note").unlink(missing_ok=True)

    async def leftovers(self) -> Sequence[str]:
        known = await self.survey()
        for handle in self._mounts.handles():
            if handle in known and handle not in self._starting:  # it began just before we were killed
                await self._mounts.drop(handle)
        noted = [path.stem for path in self._settings.folder.glob("*.note")]
        return [handle for handle in {*noted, *self._mounts.handles()} if handle not in known]

    # --- volumes

    async def ensure_volume(self, plan: VolumePlan) -> None:
        await self._shelf.ensure(plan)

    async def remove_volume(self, handle: str) -> None:
        await self._shelf.remove(handle)

    # --- what it says, leaves and uses

    async def log(self, handle: str, after: int, limit: int) -> LogPiece:
        found = await self._inspect(await self._podman(), handle)
        spool = self._spool(handle)
        if found is not None:
            state: dict[str, object] = found["State"]  # type: ignore[assignment]
            config: dict[str, dict[str, dict[str, str]]] = found["HostConfig"]  # type: ignore[assignment]
            path = config["LogConfig"].get("Path") or ""
            if path:
                await asyncio.to_thread(spool.take, str(path), state["Status"] == "exited")
        return await asyncio.to_thread(spool.piece, after, limit)

    async def outputs(self, handle: str, patterns: tuple[str, ...]) -> AsyncIterator[bytes]:
        api = await self._podman()
        path = f"/containers/{self._name(handle)}/archive"
        async with api.stream("GET", path, {"path": WORK}) as chunks:
            async for chunk in outputs.chosen(chunks, patterns):
                yield chunk

    async def usage(self, handle: str) -> Usage | None:
        api = await self._podman()
        try:
            found = await api.call("GET", "/containers/stats", {"containers": self._name(handle), "stream": False})
        except Missing:
            return None
        for one in (found or {}).get("Stats") or []:
            return Usage(one["CPUNano"] / 1e9, one["MemUsage"], one["MemUsage"], at=time.time())
        return None

    # --- ways in

    async def exec(self, handle: str, command: tuple[str, ...], *, terminal: bool) -> Terminal:
        api = await self._podman()
        wish = {"Cmd": list(command), "AttachStdin": True, "AttachStdout": True, "AttachStderr": True, "Tty": terminal}
        try:
            made = await api.call("POST", f"/containers/{self._name(handle)}/exec", body=wish)
        except Missing as error:
            raise DriverError("the task does not run") from error
        reader, writer = await api.hijack(f"/exec/{made['Id']}/start", {"Detach": False, "Tty": terminal})
        return ExecTerminal(api, made["Id"], reader, writer, framed=not terminal)

    async def dial(self, handle: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        found = await self._inspect(await self._podman(), handle)
        state: dict[str, int] = found["State"] if found is not None else {}  # type: ignore[assignment]
        if not state.get("Pid"):
            raise DriverError("the task does not run")
        try:
            taken = await asyncio.to_thread(netns.connect, state["Pid"], port, self._cards.address(handle))
        except OSError as error:
            raise DriverError(f"port {port} of the task does not answer: {error.strerror or error}") from error
        taken.setblocking(False)
        taken.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return await asyncio.open_connection(sock=taken)

    async def health(self) -> Sequence[Finding]:
        return ()  # the driver of processes looks after this machine's devices

    async def close(self) -> None:
        for task in self._limits.values():
            task.cancel()
        if self._api is not None:
            await self._api.close()

    # --- notes

    def _path(self, handle: str, kind: str) -> Path:
        return self._settings.folder / f"{handle}.{kind}"

    def _note(self, handle: str) -> Note:
        try:
            return msgspec.json.decode(self._path(handle, "note").read_bytes(), type=Note)
        except FileNotFoundError:
            return Note()

    def _keep(self, handle: str, note: Note) -> None:
        path = self._path(handle, "note")
        scratch = self._path(handle, "new-note")
        fd = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(msgspec.json.encode(note))
        os.replace(scratch, path)

    def _spool(self, handle: str) -> Spool:
        hidden = tuple(secret.encode() for secret in self._note(handle).secrets)
        lock = self._reading.setdefault(handle, threading.Lock())
        return Spool(self._path(handle, "log"), hidden, self._settings.log_limit, lock)


def _share(files: Iterable[FilePlan]) -> None:
    """Let whoever a container is read what it is to see in place. Nobody else comes to it: its folder is ours alone."""
    for file in files:
        if body.is_bound(file):
            os.chmod(file.source, 0o444)


async def _patiently(api: Api, method: str, path: str, query: Mapping[str, object]) -> None:
    """Podman's own tidying after a container's end gets in the way of its removal for a moment."""
    for attempt in range(20):
        try:
            await api.call(method, path, query, fine=(404,))
            return
        except HostUnreachable:
            raise
        except DriverError:
            if attempt == 19:
                raise
        await asyncio.sleep(0.05 * (attempt + 1))


def _told(end: Ended, note: Note) -> str:
    match end.how:
        case End.TIME_LIMIT:
            return f"ran for longer than its limit of {note.limit:g} s"
        case End.MEMORY:
            return f"used more than its {note.memory >> 20} MiB of memory"
        case _:
            return end.message


def _plain(error: DriverError, plan: TaskPlan) -> DriverError:
    """What a person can do something about, without the runtime's long words."""
    word = plan.command[0] if plan.command else "its command"
    if any(text in error.public for text in ("command that was not found", "executable file not found")):
        return DriverError(f"{word} is not in the image", lasting=True, detail=error.public)
    if "permission denied" in error.public and "exec" in error.public:
        return DriverError(f"{word} in the image cannot be run", lasting=True, detail=error.public)
    return error


def _killed_for_memory(container: str) -> bool:
    """Whether the kernel's log tells of a kill in the container's control group. conmon does not notice it everywhere
    (not with control groups of version 1 without systemd)."""
    try:
        said = subprocess.run(["dmesg"], capture_output=True, text=True, timeout=5, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return False
    return any("oom-kill:" in line and container in line for line in said.splitlines())


async def _each(chunks: Iterable[bytes]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk
