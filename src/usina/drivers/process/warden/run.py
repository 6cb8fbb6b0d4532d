"""One run: its folder, its process, what it says, and how it ends.

Order of what its journal gets, so that a warden killed anywhere leaves no doubt:

1. `record`   the whole order, with the user and groups it was given. Without it the folder is rubbish.
2. `process`  number and start time of the first process of its sandbox, which has not been told its command yet.
              Without it nothing of the run was ever run, and the same order may be carried out again.
3.            The sandbox is told its command, which begins. At the end it writes `status`, a file of its own: the exit
              code, or what kept the command from beginning.
4. `cause`    why we end it, before any signal: "stopped" or "time-limit".
5. `end`      the last word. A record that holds secrets is emptied of them.

With `process` and without `end`, a run is running or has ended unseen: its process says which.

What it says comes through two pipes that its first process holds open both ways, so that it is not hurt while no
warden reads them; the next one opens them anew, as descriptors 1 and 2 of that process.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Final

from . import beside, journal, kernel, network
from .groups import Group, Use
from .logs import Lines, Log, masks
from .loop import Loop, fork
from .spawn import Started

_CHUNK: Final = 64 << 10
_MOST_LEFT: Final = 64  # reads of what an ended run has left in a pipe: 4 MiB, more than any pipe holds
_AGAIN: Final = 0.01  # seconds until what was not possible yet is tried again
_TRIES: Final = 300
_TRIES_TO_GO: Final = 3_000  # 30 s and more, as what was killed may have little right to a processor to end on
_LONGEST: Final = 64 << 10  # bytes of a status
_KILLED: Final = 128 + signal.SIGKILL
_WORDS: Final = ("exit", "problem")


class Run:
    """`changed` is called when it has ended and its groups are gone. Its beginning is told by who begins it."""

    def __init__(self, loop: Loop, folder: str, record: dict[str, Any], group: Group, log_limit: int) -> None:
        self.handle: str = record["handle"]
        self.folder = folder
        self.record = record
        self.group = group
        self.log = Log(folder, log_limit)
        self.since = 0.0
        self.end: dict[str, Any] | None = None
        self.over = False  # it has ended, and its groups are gone
        self.changed: Callable[[], None] = lambda: None
        self._loop = loop
        self._cause = ""
        self._pid = 0
        self._own = -1  # pidfd of the first process inside
        self.started: Started | None = None
        self._journal = f"{folder}/journal"
        self._pipes: tuple[int, ...] = ()
        self._says: dict[int, Lines] = {}
        self._waiting: list[Callable[[], None]] = []
        self._killed = False
        self._kills = 0  # by lack of memory, as counted when it ended
        self._gate = -1  # what keeps an outbound run from beginning; open while its network is being made
        self._problem = ""  # why it could not begin
        self._over = False  # its process has ended, and its network is still being made

    # --- its beginning

    def given(self, started: Started) -> None:
        """Its sandbox, which waits."""
        self.started = started
        self._pid, self._own, self._pipes = started.pid, started.own, started.says

    def began(self) -> None:
        """Its sandbox is about to be told what to run."""
        self.since = time.time()
        found = kernel.stat_of(self._pid)
        start = found.start if found else 0
        process = {"pid": self._pid, "start": start, "boot": kernel.boot_id(), "since": self.since}
        journal.add(self._journal, "process", process)

    def adopt(self, known: Mapping[str, Any]) -> bool:
        """Take over what an earlier warden began and left in the journal. False where nothing of it ever ran."""
        if "end" in known:
            self.end, self.over = known["end"], True
            self.since = float(known["end"]["since"])
            return True
        if "process" not in known:
            return False
        process = known["process"]
        self._cause = known.get("cause", "")
        self._pid, self.since = process["pid"], process["since"]
        fd = kernel.open_process(self._pid, process["start"]) if process["boot"] == kernel.boot_id() else None
        self._own = -1 if fd is None else fd
        self._pipes = self._pipes_again()
        self.listen()
        return True

    def _pipes_again(self) -> tuple[int, ...]:
        """The pipes of a process that we hold a descriptor of, so that its number is nobody else's."""
        if self._own < 0:
            return ()
        try:
            flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
            return tuple(os.open(f"/proc/{self._pid}/fd/{number}", flags) for number in (1, 2))
        except OSError:
            return ()  # it is just ending

    def listen(self) -> None:
        """Read what it says, wait for its end, and hold it to its time."""
        secrets = masks(self.record["secrets"])
        for name, fd in zip("oe", self._pipes, strict=False):
            self._says[fd] = Lines(name, secrets)
            self._loop.watch(fd, partial(self._hear, fd))
        if self._own < 0:
            self._loop.later(0, self._ended)
            return
        self._loop.watch(self._own, self._ended)
        if self.record["time_limit"]:
            left = self.since + self.record["time_limit"] - time.time()
            self._loop.later(max(0.0, left), self._out_of_time)
        if self._cause:  # while it was being prepared, or by an earlier warden that was killed over it
            self._kill()

    def give_up(self, done: Callable[[], None]) -> None:
        """It could not be begun: nothing of it was run, nor will be. `done` when its sandbox and group are gone."""
        self.log.close()
        for fd in self._pipes:
            self._loop.forget(fd)
            os.close(fd)
        self._says = {}
        self._tell_waiting()
        if self.started is not None:
            self.started.give_up()
        self._open_gate()
        if self._own < 0:
            return self._remove_group(done)
        kernel.kill(self._own)
        self._loop.watch(self._own, lambda: self._drop_group(done))

    def _drop_group(self, done: Callable[[], None]) -> None:
        self._let_go()
        self._remove_group(done)

    def _remove_group(self, done: Callable[[], None], tries: int = _TRIES_TO_GO) -> None:
        if self.group.remove() or not tries:
            done()
        else:
            self._loop.later(_AGAIN, lambda: self._remove_group(done, tries - 1))

    def _let_go(self) -> None:
        if self._own >= 0:
            self._loop.forget(self._own)
            os.close(self._own)
            self._own = -1

    def wait_for_network(self, gate: int) -> None:
        self._gate = gate

    def network_made(self, problem: str) -> None:
        """It may begin; or be killed where it stands."""
        if problem and self.end is None and not self._cause:
            self._problem = problem
            self._give_cause("could-not-start")
            self._kill()
        else:
            self._open_gate()
        if self._over:
            self._open_gate()
            self._ended()

    def _open_gate(self) -> None:
        if self._gate >= 0:
            os.close(self._gate)
            self._gate = -1

    # --- what it says

    def _hear(self, fd: int) -> bool:
        """One read. False where there is nothing left."""
        try:
            data = os.read(fd, _CHUNK)
        except BlockingIOError:
            return False
        if data:
            self._write(self._says[fd].feed(data))
        else:
            self._loop.forget(fd)  # nobody holds it any more
        return bool(data)

    def _write(self, lines: list[bytes]) -> None:
        with suppress(OSError):  # a full disk: the run goes on, and what it says is lost
            self.log.write(lines)

    # --- its end, when we want it

    def stop(self, grace: float, cause: str, done: Callable[[], None] | None = None) -> None:
        """Ask it to end, kill it after `grace` seconds; `done` when it has ended."""
        if done and self.over:
            done()
        elif done:
            self._waiting.append(done)
        if self.end is not None:
            return
        self._give_cause(cause)
        if grace > 0:
            self.signal(signal.SIGTERM)
            self._loop.later(grace, self._kill)
        else:
            self._kill()

    def _give_cause(self, cause: str) -> None:
        if not self._cause:
            self._cause = cause
            journal.add(self._journal, "cause", cause)

    def _out_of_time(self) -> None:
        if self.end is None and not self._cause:
            self.stop(self.record["grace"], "time-limit")

    def signal(self, number: int, tries: int = _TRIES) -> None:
        """To every process in it; as soon as there is one."""
        if self.end is not None:
            return
        inside = self.inside()
        if inside is None:
            if tries:
                self._loop.later(_AGAIN, lambda: self.signal(number, tries - 1))
            return
        pid = fork(lambda: beside.signal_all(inside, number), (inside.init,))
        self._loop.when_over(pid, lambda code: self._signalled(code, number, tries))

    def _signalled(self, code: int, number: int, tries: int) -> None:
        """Its command may not have begun yet."""
        if code == beside.NOBODY and tries:
            self._loop.later(_AGAIN, lambda: self.signal(number, tries - 1))

    def _kill(self) -> None:
        """The first process of a namespace takes all others with it. Where there is none yet, `listen` comes."""
        if self.end is None and self.since and self._own >= 0:
            self._killed = True
            kernel.kill(self._own)

    def inside(self) -> beside.Inside | None:
        if self.end is not None or not self.since or self._own < 0:
            return None
        record = self.record
        return beside.Inside(
            self._own, self._pid, record["uid"], self.group, record["shown"], record["workdir"], record["filter"],
            (record.get("card") or {}).get("address", ""),
        )  # fmt: skip

    # --- its end, when it comes

    def _ended(self) -> None:
        if self._gate >= 0 and not self._problem:
            self._loop.forget(self._own)
            self._over = True
            return
        self._open_gate()
        self._end_network()
        watched = self._own >= 0
        self._let_go()
        status = self._status()
        self._drain()
        self._kills = self.group.memory_kills()
        use = self.group.whole_use()
        how, code, message = self._how(*status, watched)
        self.end = {"at": time.time(), "since": self.since, "how": how, "code": code, "message": message}
        self.end["silent"] = not self.log.end
        self.end["usage"] = None if use is None else [use.cpu, use.memory, use.peak]
        self._settle()
        self._clear()

    def _drain(self) -> None:
        for fd, lines in self._says.items():
            for _ in range(_MOST_LEFT):
                if not self._hear(fd):
                    break
            self._write(lines.finish())
            self._loop.forget(fd)
            os.close(fd)
        self._says = {}

    def _how(self, word: str, told: str, watched: bool) -> tuple[str, int | None, str]:
        """How it ended, its exit code, and a sentence about it."""
        if self._cause == "could-not-start" or (word == "problem" and not self._cause):
            return "could-not-start", None, self._problem or told
        code = int(told) if word == "exit" else None
        killed = _KILLED if code is None else code
        if self._cause == "time-limit":
            return self._cause, killed, f"ran for longer than its limit of {show_seconds(self.record['time_limit'])}"
        if self._cause:
            return self._cause, killed, ""
        if self._kills and code != 0:
            return "out-of-memory", killed, f"used more than its {show_bytes(self.record['memory'])} of memory"
        if code is not None:
            return "exited", code, ""
        if watched:
            return "exited", killed, "its sandbox was killed"
        return "node-failed", None, "it ended while nobody watched, and left no exit code"

    def _settle(self) -> None:
        """Write the last word; no secret stays."""
        journal.add(self._journal, "end", self.end)
        had_secrets = bool(self.record["secrets"])
        self.record = {**self.record, "shown": {}, "secrets": []}
        if had_secrets:
            record = {key: value for key, value in self.record.items() if key != "filter"}
            journal.replace(self._journal, {"record": record, "end": self.end})
        self.log.close()

    def _end_network(self) -> bool:
        return self.record["network"] != "outbound" or network.end(self.folder)

    def _clear(self, tries: int = _TRIES_TO_GO) -> None:
        """What joined it from outside, and the program of its network, may need a moment to go."""
        empty, alone = self.group.remove(), self._end_network()
        if not (empty and alone) and tries:
            if not empty and self.record["uid"] is not None:
                kernel.kill_all_of(self.group.processes(), self.record["uid"])
            self._loop.later(_AGAIN, lambda: self._clear(tries - 1))
            return
        self.over = True
        self.changed()
        self._tell_waiting()

    def _tell_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        for done in waiting:
            done()

    # --- how it looks

    def sight(self) -> dict[str, Any]:
        if self.end is not None:
            return {"state": "ended", **self.end}
        if self.since:
            return {"state": "running", "since": self.since}
        return {"state": "queued", "reason": "its files are being put in place"}

    def use(self) -> Use | None:
        if self.end is not None:
            return None
        return self.group.use() or self._use_by_processes()

    def _use_by_processes(self) -> Use | None:
        """Without groups: what its living processes have used, found from the first one downwards."""
        if self._own < 0:
            return None
        ticks, pages, waiting = 0, 0, [self._pid]
        while waiting:
            pid = waiting.pop()
            found = kernel.stat_of(pid)
            ticks += found.ticks if found else 0
            pages += int(_read(f"/proc/{pid}/statm").split()[1] or 0) if found and found.state != "Z" else 0
            waiting += map(int, _read(f"/proc/{pid}/task/{pid}/children").split())
        return Use(ticks / os.sysconf("SC_CLK_TCK"), pages * os.sysconf("SC_PAGESIZE"), 0)

    def problem(self) -> str:
        """What kept its sandbox from being made; "" if it did not say."""
        word, told = self._status()
        return told if word == "problem" else ""

    def _status(self) -> tuple[str, str]:
        """("exit", code) or ("problem", what kept it from beginning), as its first process has left it; ("", "") where
        it was killed before."""
        line, _, rest = _read(f"{self.folder}/status")[-_LONGEST:].strip("\n").partition("\n")
        word, _, more = line.partition(" ")
        return (word, more) if rest == "" and word in _WORDS and (word != "exit" or more.isdecimal()) else ("", "")


def _read(path: str) -> str:
    try:
        return kernel.content(path).decode("utf-8", "surrogateescape")
    except OSError:
        return ""


def show_bytes(size: int) -> str:
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= scale:
            return f"{size // scale} {unit}" if size % scale == 0 else f"{size / scale:.1f} {unit}"
    return f"{size} bytes"


def show_seconds(seconds: float) -> str:
    """The widest unit that says it exactly: ``2 h``, ``90 min``, ``1.5 s``."""
    for unit, scale in (("h", 3600), ("min", 60)):
        if seconds >= scale and seconds % scale == 0:
            return f"{seconds / scale:g} {unit}"
    return f"{seconds:g} s"
