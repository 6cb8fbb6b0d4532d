"""The sandbox of a run, and its start.

A sandbox is asked for from a process that is there for that (`sandbox.c`). Its first process does nothing before it is
told its command, so all that must be true of it first (groups, limits, the record of its number, its network) is done
between the two.

The command and the environment, with its secrets, show nowhere but in the pipe that they are told by.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

WORK: Final = "/work"
HOSTNAME: Final = "task"  # of every run without a card, so that one /etc/hosts serves them all
CARD_FILES: Final = ("resolv.conf", "hosts")  # of those that have one
NETWORKS: Final = {"host": 0, "none": 2}  # 2: one that may have been another's
_OWN: Final = 1
GATED: Final = ("outbound", "project")  # networks that are made before the command begins
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PROGRAM: Final = os.path.join(os.path.dirname(os.path.abspath(__file__)), "sandbox")
NO_PROGRAM: Final = "its program for sandboxes is missing: install a C compiler, then Usina again"
INNER_UID: Final = 1000  # who every run is, inside
END: Final = b"x"  # of what a sandbox is told; without it, it does not count
_SHARED_MEMORY: Final = 1 << 30  # bytes of /dev/shm, where the run has no memory limit
_MOST: Final = 128 << 10  # bytes of a request
_LINE: Final = 3  # where the program has its socket
_PIPE: Final = 1 << 16
MOST_BYTES: Final = 900_000  # of an environment: a pipe holds a mebibyte at most


def environment(record: Mapping[str, Any]) -> dict[str, str]:
    """What the run gets; what devices need is not for it to choose."""
    own = {"HOME": WORK, "PATH": _PATH, "USER": "task", "LOGNAME": "task", "LANG": "C.UTF-8", "SHELL": "/bin/sh"}
    return {**own, "USINA_RUN": record["handle"], **record["environment"], **record["forced"]}


def words(record: Mapping[str, Any]) -> bytes:
    """What a sandbox is told: how many words the command has, the size of what follows, where it begins, the name of
    its host, the size of /dev/shm, these words, and the environment."""
    card, command = record.get("card"), record["command"]
    variables = (f"{name}={value}" for name, value in record["shown"].items())
    hostname, memory = card["hostname"] if card else HOSTNAME, record["memory"] or _SHARED_MEMORY
    told = [record["workdir"], hostname, str(memory), *command, *variables]
    data = b"".join(word.encode("utf-8", "surrogateescape") + b"\0" for word in told)
    return b"%d\0%d\0" % (len(command), len(data)) + data


class Started:
    """A sandbox that waits for its command."""

    def __init__(self, pid: int, own: int, says: tuple[int, int], pipe: int) -> None:
        self.pid = pid
        self.own = own  # a descriptor of its first process
        self.says = says  # our ends of its output and its errors
        self._pipe = pipe

    def pin(self, cpus: Sequence[int]) -> None:
        if cpus:
            os.sched_setaffinity(self.pid, cpus)

    def tell(self, data: bytes) -> int:
        """All at once, into a pipe that has room for it. Returns the pipe, which is the caller's from here on: what was
        told counts when `END` is added, and begins when it is closed."""
        pipe, self._pipe = self._pipe, -1
        try:
            if len(data) >= _PIPE:
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, len(data) + 1)
            os.write(pipe, data)
        except BaseException:
            os.close(pipe)
            raise
        return pipe

    def give_up(self) -> None:
        """It ends without having run anything."""
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1


def release(pipe: int) -> None:
    """Let a sandbox begin what it was told."""
    try:
        os.write(pipe, END)
    finally:
        os.close(pipe)


class Sandboxes:
    """Asks the program, which runs from the first sandbox on, and is begun anew if it has gone.

    `common`: what is the same for all of them: "open_files", "filter" (hex), "view" (an empty folder), "box" (where the
    folders of runs are), "read_only" (pairs: a folder of the host, and where every run sees it).
    """

    def __init__(self, common: Mapping[str, Any]) -> None:
        self._common = common
        self._line: socket.socket | None = None
        self._pid = 0

    def make(
        self, record: Mapping[str, Any], folder: str, groups: Sequence[int] = (), mounts: Sequence[int] = ()
    ) -> Started:
        """Make one. `groups`: lists of processes, which it adds itself to; `mounts`: of its volumes. Raises `OSError`;
        then nothing was started."""
        opened: list[int] = []
        try:
            return self._make(record, folder, opened, (*groups, *mounts))
        finally:
            for fd in opened:
                os.close(fd)

    def _make(self, record: Mapping[str, Any], folder: str, opened: list[int], more: Sequence[int]) -> Started:
        def use(fd: int) -> int:
            opened.append(fd)
            return fd

        pipe, tells = os.pipe()
        use(pipe)
        ours: list[int] = []
        try:
            for _ in range(2):
                near, far = _pipe(record["uid"])
                ours.append(near)
                use(far)
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
            use(os.open(f"{folder}/status", flags, 0o600))
            pid, own = self._ask(_wish(record), [*opened[1:], pipe, *more])
        except BaseException:
            for fd in (tells, *ours):
                os.close(fd)
            raise
        return Started(pid, own, (ours[0], ours[1]), tells)

    def _ask(self, wish: bytes, fds: Sequence[int]) -> tuple[int, int]:
        if len(wish) > _MOST:
            raise OSError(errno.E2BIG, "too many files outside the working directory")
        try:
            return self._asked(wish, fds)
        except (BrokenPipeError, ConnectionResetError, EOFError):
            self.close()
            return self._asked(wish, fds)

    def _asked(self, wish: bytes, fds: Sequence[int]) -> tuple[int, int]:
        line = self._line or self._begin()
        socket.send_fds(line, [wish], fds)
        data, found, _, _ = socket.recv_fds(line, _MOST, 1)
        if not data:
            raise EOFError
        pid = int(data)
        if pid < 0:
            raise OSError(-pid, f"its sandbox could not be made: {os.strerror(-pid)}")
        os.set_inheritable(found[0], False)
        return pid, found[0]

    def _begin(self) -> socket.socket:
        if not os.path.exists(PROGRAM):
            raise OSError(errno.ENOENT, NO_PROGRAM)
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._line = ours
        reads, writes = os.pipe()
        with its:
            actions = [(os.POSIX_SPAWN_DUP2, reads, 0), (os.POSIX_SPAWN_DUP2, its.fileno(), _LINE)]
            self._pid = os.posix_spawn(PROGRAM, ["usina-sandbox"], {}, file_actions=actions, setsigmask=[])
        os.close(reads)
        with suppress(BrokenPipeError), open(writes, "wb") as pipe:
            common = self._common
            pipe.write(_fields(common["open_files"], common["filter"], common["view"], common["box"]))
            pipe.write(_listed([path for pair in common["read_only"] for path in pair]))
        if not ours.recv(_MOST):
            self.close()
            raise OSError(errno.EOPNOTSUPP, "no sandbox can be made on this host; see what the warden said")
        return ours

    def close(self) -> None:
        """End the program, and no run."""
        if self._line is not None:
            self._line.close()
            self._line = None
        if self._pid:
            os.waitpid(self._pid, 0)
            self._pid = 0


def _wish(record: Mapping[str, Any]) -> bytes:
    uid = -1 if record["uid"] is None else record["uid"]
    network = NETWORKS.get(record["network"], _OWN)
    if record["volumes"] and network == NETWORKS["none"]:
        network = _OWN  # on a volume it may give a socket away, which must not outlive it in another's network
    return b"".join(
        (
            _fields(record["handle"], uid, network),
            _listed(CARD_FILES if record.get("card") else ()),
            _listed(record["devices"]),
            _listed(record["extra"]),
            _listed([one["path"] for one in record["volumes"]]),
        )
    )


def _listed(values: Sequence[object]) -> bytes:
    return _fields(len(values), *values)


def _fields(*values: object) -> bytes:
    return b"".join(os.fsencode(str(value)) + b"\0" for value in values)


def _pipe(uid: int | None) -> tuple[int, int]:
    """Our end of a pipe, and the run's, which is open both ways: it never lacks a reader. It is its user's, who may
    open it anew (/dev/stderr)."""
    reads, writes = os.pipe()
    try:
        if uid is not None:
            os.fchown(writes, uid, uid)
        os.set_blocking(reads, False)
        return reads, os.open(f"/proc/self/fd/{writes}", os.O_RDWR | os.O_CLOEXEC)
    finally:
        os.close(writes)
