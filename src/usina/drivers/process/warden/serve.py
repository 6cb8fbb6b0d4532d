"""The warden's door: a Unix socket for its own user and root, one JSON object a line each way.

A request is ``{"id": 1, "verb": "stop", …}``, its answer ``{"id": 1, "ok": …}`` or ``{"id": 1, "error": "…", "lasting":
false}``. After ``watch``, ``{"run": "<handle>", "sight": {…} | null}`` comes on the same connection whenever a run
looks different; answers and sights are in order, so that what an answer means has been seen before it. ``log`` answers
with a ``size`` and that many bytes follow the line. ``exec`` and ``outputs`` take the connection over; ``dial`` answers
with a connection to the run's port, as a descriptor beside the line (SCM_RIGHTS). See `beside`.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import struct
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from . import beside, files, kernel
from .groups import remove_parents
from .house import House, unreach
from .loop import READ, WRITE, Loop, fork

VERSION: Final = 1
_LONGEST: Final = 64 << 20  # bytes of a request
_CHUNK: Final = 256 << 10
_TURN: Final = 16  # requests
_LOOK: Final = 5.0  # seconds between looks whether anybody needs us


class Door:
    """Listens, and knows every client."""

    def __init__(self, loop: Loop, house: House, state: str, idle: float) -> None:
        self.loop = loop
        self.house = house
        self.clients: set[Client] = set()
        self._state = state
        self._idle = idle
        self._needed = time.monotonic()
        self.listener = _listen(f"{state}/socket")
        loop.watch(self.listener.fileno(), self._accept)
        loop.later(_LOOK, self._look)
        house.changed = self._tell

    def _accept(self) -> None:
        line, _ = self.listener.accept()
        _, uid, _ = struct.unpack("3i", line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid not in (0, os.geteuid()):
            line.close()
            return
        line.setblocking(False)
        self.clients.add(Client(self, line))

    def _tell(self, handle: str) -> None:
        run = self.house.runs.get(handle)
        line = _line({"run": handle, "sight": run.sight() if run else None})
        for client in [client for client in self.clients if client.watching]:
            client.send(line)

    def _look(self) -> None:
        """End when nobody has needed us for a while: no client, and no run that is not over."""
        if self.clients or any(run.end is None for run in self.house.runs.values()):
            self._needed = time.monotonic()
        if time.monotonic() - self._needed >= self._idle:
            self.loop.stopped = True
        self.loop.later(_LOOK, self._look)


def _listen(path: str) -> socket.socket:
    """Only who holds the lock comes here, so a socket that is there is nobody's."""
    if os.path.lexists(path):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        folder = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY)
        listener.bind(f"/proc/self/fd/{folder}/{os.path.basename(path)}")  # paths of sockets must be short
        os.close(folder)
    finally:
        os.umask(before)
    listener.listen(128)
    listener.setblocking(False)
    return listener


class Client:
    """One connection."""

    def __init__(self, door: Door, line: socket.socket) -> None:
        self.watching = False
        self._door = door
        self._line = line
        self._heard = bytearray()
        self._asked: deque[bytearray] = deque()  # requests that were not served yet
        self._unsent = bytearray()
        door.loop.watch(line.fileno(), self._hear)

    def _hear(self) -> None:
        if self._unsent:
            self._push()
        try:
            data = self._line.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._heard += data
        if not data or len(self._heard) > _LONGEST:
            return self.close()
        *lines, rest = self._heard.split(b"\n")
        self._heard = rest
        if lines and not self._asked:
            self._door.loop.later(0, self._serve_some)
        self._asked += lines

    def _serve_some(self) -> None:
        """A few a turn: a burst of starts must not keep ends from being seen, nor answers from being sent."""
        now = [self._asked.popleft() for _ in range(min(_TURN, len(self._asked)))]
        if self._asked:
            self._door.loop.later(0, self._serve_some)
        for request in now:
            if self._line.fileno() >= 0:
                self._serve_one(request)

    def _serve_one(self, request: bytearray) -> None:
        """One that cannot be read keeps none of the others from being served."""
        try:
            self._serve(json.loads(request))
        except Exception:
            traceback.print_exc()

    def send(self, data: bytes) -> None:
        """Soon, with what else comes meanwhile."""
        if not self._unsent:
            self._door.loop.later(0, self._push)
        self._unsent += data

    def _push(self) -> None:
        if self._line.fileno() < 0:
            return
        try:
            sent = self._line.send(self._unsent)
        except BlockingIOError:
            sent = 0
        except OSError:
            return self.close()
        del self._unsent[:sent]
        self._door.loop.watch(self._line.fileno(), self._hear, READ | WRITE if self._unsent else READ)

    def close(self) -> None:
        self._asked.clear()  # whoever asked is gone, and asks again
        if self._line.fileno() >= 0:
            self._door.loop.forget(self._line.fileno())
            self._line.close()
        self._door.clients.discard(self)

    # --- verbs

    def _serve(self, request: Mapping[str, Any]) -> None:
        verb = getattr(self, f"_do_{request['verb'].replace('-', '_')}", None)
        try:
            if verb is None:
                raise files.Refused(f"no such verb: {request['verb']}")
            verb(request)
        except (OSError, files.Refused) as error:
            self._answer(request, error)

    def _answer(self, request: Mapping[str, Any], error: Exception | None = None, ok: object = True) -> None:
        self.send(_answer(request["id"], error, ok))

    def _do_hello(self, request: Mapping[str, Any]) -> None:
        house = self._door.house
        facts = {
            "volumes": True,
            "tools": house.settings.get("tools", []),
            "groups": house.layout.mode,
            "why": house.layout.why,
            "controllers": sorted(house.layout.folders),
        }
        self._answer(request, ok={"version": VERSION, "pid": os.getpid(), **facts})

    def _do_watch(self, request: Mapping[str, Any]) -> None:
        self.watching = True
        self._answer(request, ok={handle: run.sight() for handle, run in self._door.house.runs.items()})

    def _do_start(self, request: Mapping[str, Any]) -> None:
        self._door.house.start(request["plan"], lambda error: self._answer(request, error))

    def _do_stop(self, request: Mapping[str, Any]) -> None:
        run = self._door.house.runs.get(request["handle"])
        if run is None or run.end is not None:
            return self._answer(request)
        run.stop(request["grace"], "stopped", lambda: self._answer(request))

    def _do_remove(self, request: Mapping[str, Any]) -> None:
        self._door.house.remove(request["handle"], lambda error: self._answer(request, error))

    def _do_log(self, request: Mapping[str, Any]) -> None:
        run = self._door.house.runs.get(request["handle"])
        start, data = run.log.read(request["after"], request["limit"]) if run else (request["after"], b"")
        self.send(_line({"id": request["id"], "ok": {"start": start, "size": len(data)}}) + data)

    def _do_usage(self, request: Mapping[str, Any]) -> None:
        run = self._door.house.runs.get(request["handle"])
        use = run.use() if run else None
        self._answer(request, ok=None if use is None else [use.cpu, use.memory, use.peak, time.time()])

    def _do_exec(self, request: Mapping[str, Any]) -> None:
        inside = self._inside(request["handle"])
        words, terminal = tuple(request["command"]), bool(request["terminal"])
        self._hand_over(request, lambda line, say: beside.command(line, inside, words, terminal, say), inside)

    def _do_dial(self, request: Mapping[str, Any]) -> None:
        inside = self._inside(request["handle"])
        self._hand_over(request, lambda line, say: beside.connect(line, inside, request["port"], say), inside)

    def _inside(self, handle: str) -> beside.Inside:
        run = self._door.house.runs.get(handle)
        inside = run.inside() if run else None
        if inside is None:
            raise files.Refused("it does not run", lasting=False)
        return inside

    def _do_outputs(self, request: Mapping[str, Any]) -> None:
        run = self._door.house.runs.get(request["handle"])
        if run is None:
            raise files.Refused("there is no such run")
        uid, patterns = run.record["uid"], tuple(request["patterns"])
        work = os.open(f"{self._door.house.state}/box/{run.handle}/work", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._hand_over(request, lambda line, say: _outputs(line, work, uid, patterns, say), keep=(work,))
        finally:
            os.close(work)

    def _do_shutdown(self, request: Mapping[str, Any]) -> None:
        """End the warden, and nothing else: runs go on."""
        self._answer(request)
        self._door.loop.stopped = True

    def _hand_over(
        self,
        request: Mapping[str, Any],
        work: Callable[[socket.socket, Callable[[str | None], bytes]], int],
        inside: beside.Inside | None = None,
        keep: Iterable[int] = (),
    ) -> None:
        """The connection, from here on, is that of a process of its own."""

        def reply(problem: str | None) -> bytes:
            return _answer(request["id"], files.Refused(problem, lasting=False) if problem else None, True)

        def go() -> int:
            self._line.setblocking(True)
            return work(self._line, reply)

        kept = (*keep, self._line.fileno(), *((inside.init,) if inside else ()))
        pid = fork(go, kept)
        self._door.loop.when_over(pid, lambda code: None)
        self.close()


def _outputs(
    line: socket.socket, work: int, uid: int | None, patterns: tuple[str, ...], reply: Callable[[str | None], bytes]
) -> int:
    """Pieces with their lengths; an empty one says that it was all."""
    files.become(uid)
    line.sendall(reply(None))
    for piece in files.outputs(work, patterns):
        if piece:
            line.sendall(struct.pack(">I", len(piece)) + piece)
    line.sendall(struct.pack(">I", 0))
    return 0


def _line(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode() + b"\n"


def _answer(id: int, error: Exception | None, ok: object) -> bytes:
    if error is None:
        return _line({"id": id, "ok": ok})
    text = str(error) if isinstance(error, files.Refused) else f"{error}"
    return _line({"id": id, "error": text, "lasting": bool(getattr(error, "lasting", False))})


def main() -> None:
    """`argv`: the state folder. Standard input: the settings. An inherited descriptor holds the lock: one warden."""
    state, settings = sys.argv[1], json.load(sys.stdin)
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, 0)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and os.path.exists(f"/proc/self/fd/{name}"):
            os.set_inheritable(int(name), False)  # the lock, most of all: what we start must not hold it
    os.chdir("/")
    os.umask(0o022)
    if os.geteuid() == 0:
        os.setgroups([])
    settings["open_files"] = kernel.set_own_limits()
    kernel.set_name("usina-warden")
    loop = Loop()
    house = House(loop, state, settings)
    door = Door(loop, house, state, settings["idle"])
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)  # what runs leave behind mostly goes by itself
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # tidy, and leave the runs to the next warden
    try:
        loop.run()
    finally:
        for client in list(door.clients):
            client.close()
        os.unlink(f"{state}/socket")
        house.close()
        if house.root:
            unreach(house.place)
        if not house.runs:
            remove_parents(house.layout)
