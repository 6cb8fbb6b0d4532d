"""The sandbox of a run, and its start.

bubblewrap is the sandbox. It is started as the run's own user: the warden takes that user for the moment of the spawn
(a fork of Python to do it costs 2 ms), and no process of that user can be there yet. bubblewrap reads its mounts from a
pipe and does nothing before it has them, so all that must be true of it first (groups, limits, the record of its
number) is done between the spawn and the writing of that pipe. A pipe that ends empty, because the warden died, gives a
sandbox without a single file, in which nothing can be run.

What confines is in the command line, what it may see in the pipe: the environment, with its secrets, shows nowhere.
"""

from __future__ import annotations

import fcntl
import os
import resource
import signal
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

WORK: Final = "/work"
HOSTNAME: Final = "task"  # of every run without a card, so that one /etc/hosts serves them all
CARD_FILES: Final = ("resolv.conf", "hosts")  # of those that have one
GATED: Final = ("outbound", "project")  # networks that are made before the command begins
INNER_UID: Final = 1000
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_MERGED: Final = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_SHARED_MEMORY: Final = 1 << 30  # bytes of /dev/shm, where the run has no memory limit
_PIPE: Final = 1 << 16
MOST_BYTES: Final = 900_000  # of an environment: a pipe holds a mebibyte at most
MOST_VARIABLES: Final = 2500  # bubblewrap takes 9,000 arguments


@dataclass(frozen=True, slots=True)
class Sandbox:
    """What is the same for all runs of one warden."""

    bwrap: str
    place: str  # where the folder of boxes is seen by every user; see `house`
    filter: str  # file of the system call filter; "" where the architecture has none
    read_only: tuple[str, ...]  # folders of the host beside the system's own
    open_files: int


def mounts(sandbox: Sandbox, record: Mapping[str, Any]) -> list[str]:
    """Arguments for what the run sees. /usr comes last: a list that was cut short has no programs."""
    box = f"{sandbox.place}/{record['handle']}"
    memory = record["memory"] or _SHARED_MEMORY
    return [
        *("--dir", "/usr", *_system_links()),
        *("--ro-bind", f"{sandbox.place}/etc", "/etc"),
        *(word for name in CARD_FILES if record.get("card") for word in ("--ro-bind", f"{box}/{name}", f"/etc/{name}")),
        *("--proc", "/proc", "--dev", "/dev", "--size", str(memory), "--tmpfs", "/dev/shm"),  # noqa: S108
        *("--dir", "/run", "--dir", "/var", "--symlink", "/tmp", "/var/tmp", "--bind", f"{box}/tmp", "/tmp"),  # noqa: S108
        *("--bind", f"{box}/work", WORK),
        *_all("--ro-bind-try", sandbox.read_only),
        *_all("--dev-bind", record["devices"]),
        *(word for n, path in enumerate(record["extra"]) for word in ("--bind", f"{box}/extra/{n}", path)),
        *("--remount-ro", "/dev", "--remount-ro", "/", "--chdir", record["workdir"]),
        *("--ro-bind", "/usr", "/usr"),
    ]


def _all(option: str, paths: Iterable[str]) -> Iterable[str]:
    for path in paths:
        yield from (option, path, path)


def _system_links() -> Iterable[str]:
    """/bin and its like: links into /usr, or folders on hosts where they are not merged."""
    for name in _MERGED:
        if os.path.islink(f"/{name}"):
            yield from ("--symlink", os.readlink(f"/{name}"), f"/{name}")
        elif os.path.isdir(f"/{name}"):
            yield from ("--ro-bind", f"/{name}", f"/{name}")


def environment(record: Mapping[str, Any]) -> dict[str, str]:
    """What the run gets; what devices need is not for it to choose."""
    own = {"HOME": WORK, "PATH": _PATH, "USER": "task", "LOGNAME": "task", "LANG": "C.UTF-8", "SHELL": "/bin/sh"}
    return {**own, "USINA_RUN": record["handle"], **record["environment"], **record["forced"]}


def command_line(sandbox: Sandbox, record: Mapping[str, Any]) -> list[str]:
    """What confines the run, and its command."""
    network = [] if record["network"] == "host" else ["--unshare-net"]
    hostname = record["card"]["hostname"] if record.get("card") else HOSTNAME
    return [
        *(sandbox.bwrap, "--args", "3", "--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts"),
        *("--unshare-cgroup-try", *network, "--uid", str(INNER_UID), "--gid", str(INNER_UID)),
        *("--hostname", hostname, "--new-session", "--json-status-fd", "4"),
        *(("--seccomp", "5") if sandbox.filter else ()),
        *(("--block-fd", "6") if record["network"] in GATED else ()),
        *("--", *record["command"]),
    ]


def words(arguments: Sequence[str], variables: Mapping[str, str]) -> bytes:
    """Arguments for the pipe, the environment first."""
    settings = [word for name, value in variables.items() for word in ("--setenv", name, value)]
    return b"".join(word.encode("utf-8", "surrogateescape") + b"\0" for word in [*settings, *arguments])


class Started:
    """A spawned sandbox that waits for its mounts."""

    def __init__(self, pid: int, says: tuple[int, int], pipe: int, gate: int) -> None:
        self.pid = pid
        self.says = says  # our ends of its output and its errors
        self.gate = gate  # held by a run until its network is there; -1: none
        self._pipe = pipe

    def pin(self, cpus: Sequence[int]) -> None:
        if cpus:
            os.sched_setaffinity(self.pid, cpus)

    def release(self, data: bytes) -> None:
        """All at once, into a pipe that has room for it: it is written whole or not at all."""
        try:
            if len(data) > _PIPE:
                fcntl.fcntl(self._pipe, fcntl.F_SETPIPE_SZ, len(data))
            os.write(self._pipe, data)
        finally:
            os.close(self._pipe)

    def give_up(self) -> None:
        os.close(self._pipe)
        if self.gate >= 0:
            os.close(self.gate)


def spawn(sandbox: Sandbox, record: Mapping[str, Any], folder: str) -> Started:
    """Start the sandbox. Raises `OSError`; then nothing was started."""
    opened: list[int] = []
    try:
        return _spawn(sandbox, record, folder, opened)
    finally:
        for fd in opened:
            os.close(fd)


def _spawn(sandbox: Sandbox, record: Mapping[str, Any], folder: str, opened: list[int]) -> Started:
    def use(fd: int) -> int:
        opened.append(fd)
        return fd

    pipe, held = os.pipe()
    use(pipe)
    gate, gate_held = os.pipe() if record["network"] in GATED else (-1, -1)
    null = use(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))
    ours, its = zip(*(_pipe(record["uid"]) for _ in range(2)), strict=True)
    opened.extend(its)
    status = use(os.open(f"{folder}/status", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600))
    given = {0: null, 1: its[0], 2: its[1], 3: pipe, 4: status}
    if sandbox.filter:
        given[5] = use(os.open(sandbox.filter, os.O_RDONLY | os.O_CLOEXEC))
    if gate >= 0:
        given[6] = use(gate)
    try:
        pid = _spawn_as(record["uid"], command_line(sandbox, record), given, sandbox.open_files)
    except BaseException:
        for fd in (held, gate_held, *ours):
            if fd >= 0:
                os.close(fd)
        raise
    return Started(pid, (ours[0], ours[1]), held, gate_held)


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


def _spawn_as(uid: int | None, command: list[str], given: Mapping[int, int], open_files: int) -> int:
    """The saved user stays root, which brings us back; `exec` takes it from the child. Limits are lent the same way."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)
    aside = {target: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 16) for target, fd in given.items()}
    actions = [(os.POSIX_SPAWN_DUP2, fd, target) for target, fd in aside.items()]
    defaults = [signal.SIGPIPE, signal.SIGXFSZ]
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (open_files, files[1]))
        if uid is not None:
            os.setresgid(uid, uid, 0)
            os.setresuid(uid, uid, 0)
        return os.posix_spawn(
            command[0], command, {}, file_actions=actions, setsid=True, setsigmask=[], setsigdef=defaults
        )
    finally:
        if uid is not None:
            os.setresuid(0, 0, 0)
            os.setresgid(0, 0, 0)
        resource.setrlimit(resource.RLIMIT_NOFILE, files)
        for fd in aside.values():
            os.close(fd)
