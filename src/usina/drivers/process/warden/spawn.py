"""The sandbox of a run, and its start.

A sandbox is asked for from the `zygote`, as the run's own user. Its first process does nothing before it is told its
command, so all that must be true of it first (groups, limits, the record of its number, its network) is done between
the two.

The command and the environment, with its secrets, show nowhere but in the pipe that they are told by.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from .zygote import END, MOST

WORK: Final = "/work"
HOSTNAME: Final = "task"  # of every run without a card, so that one /etc/hosts serves them all
CARD_FILES: Final = ("resolv.conf", "hosts")  # of those that have one
GATED: Final = ("outbound", "project")  # networks that are made before the command begins
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PROGRAM: Final = "import sys; sys.path.append({0!r}); from {1}.zygote import main; main()"
_PIPE: Final = 1 << 16
MOST_BYTES: Final = 900_000  # of an environment: a pipe holds a mebibyte at most


def environment(record: Mapping[str, Any]) -> dict[str, str]:
    """What the run gets; what devices need is not for it to choose."""
    own = {"HOME": WORK, "PATH": _PATH, "USER": "task", "LOGNAME": "task", "LANG": "C.UTF-8", "SHELL": "/bin/sh"}
    return {**own, "USINA_RUN": record["handle"], **record["environment"], **record["forced"]}


def words(command: Sequence[str], variables: Mapping[str, str]) -> bytes:
    """What the sandbox is told: how many words the command has, the size of what follows, these words, and names and
    values of the environment."""
    told = [*command, *(word for pair in variables.items() for word in pair)]
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
        """All at once, into a pipe that has room for it. Returns the pipe: what is told counts when `END` is added."""
        if len(data) >= _PIPE:
            fcntl.fcntl(self._pipe, fcntl.F_SETPIPE_SZ, len(data) + 1)
        os.write(self._pipe, data)
        return self._pipe

    def release(self) -> None:
        os.write(self._pipe, END)
        os.close(self._pipe)

    def give_up(self) -> None:
        with suppress(OSError):
            os.close(self._pipe)


class Sandboxes:
    """Asks the zygote, which is there from the first sandbox on, and made anew if it has gone."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = settings
        self._line: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def make(self, record: Mapping[str, Any], folder: str) -> Started:
        """Raises `OSError`; then nothing was started."""
        opened: list[int] = []
        try:
            return self._make(record, folder, opened)
        finally:
            for fd in opened:
                os.close(fd)

    def _make(self, record: Mapping[str, Any], folder: str, opened: list[int]) -> Started:
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
            pid, own = self._ask(_wish(record), [*opened[1:], pipe])
        except BaseException:
            for fd in (tells, *ours):
                os.close(fd)
            raise
        return Started(pid, own, (ours[0], ours[1]), tells)

    def _ask(self, wish: bytes, fds: Sequence[int]) -> tuple[int, int]:
        if len(wish) > MOST:
            raise OSError(7, "too many files outside the working directory")
        try:
            return self._asked(wish, fds)
        except (BrokenPipeError, ConnectionResetError, EOFError):
            self.close()
            return self._asked(wish, fds)

    def _asked(self, wish: bytes, fds: Sequence[int]) -> tuple[int, int]:
        line = self._line or self._begin()
        socket.send_fds(line, [wish], fds)
        data, found, _, _ = socket.recv_fds(line, MOST, 1)
        if not data:
            raise EOFError
        answer = json.loads(data)
        if "error" in answer:
            raise OSError(answer["number"], f"its sandbox could not be made: {answer['error']}")
        os.set_inheritable(found[0], False)
        return answer["pid"], found[0]

    def _begin(self) -> socket.socket:
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        package = os.path.dirname(os.path.abspath(__file__))
        program = _PROGRAM.format(os.path.dirname(package), os.path.basename(package))
        command = [sys.executable, "-I", "-S", "-c", program, str(its.fileno())]
        with its:
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=(its.fileno(),), cwd="/", env={})
        assert self._process.stdin is not None
        with suppress(BrokenPipeError), self._process.stdin as pipe:
            pipe.write(json.dumps(self._settings).encode())
        if not ours.recv(MOST):
            ours.close()
            self._process.wait()
            raise OSError(95, "no sandbox can be made on this host; see what the warden said")
        self._line = ours
        return ours

    def close(self) -> None:
        """End the zygote, and nothing else."""
        if self._line is not None:
            self._line.close()
            self._line = None
        if self._process is not None:
            self._process.wait()
            self._process = None


def _wish(record: Mapping[str, Any]) -> bytes:
    card = record.get("card")
    wish = {name: record[name] for name in ("handle", "uid", "network", "memory", "extra", "devices", "workdir")}
    wish |= {"hostname": card["hostname"] if card else HOSTNAME, "etc": CARD_FILES if card else ()}
    return json.dumps(wish).encode()


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
