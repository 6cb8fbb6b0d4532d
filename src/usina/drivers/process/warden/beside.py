"""What goes on beside a run: commands inside it, connections to its ports, signals to all of it.

Each is a process of its own that joins the run's namespaces. A command gets there what the run has: the same user, no
capabilities, no new privileges, the system call filter, and the run's groups.

Frames of a command, both ways: a letter, four bytes of length (big endian), the data. From the client: ``i`` input,
``e`` end of input, ``r`` rows and columns (two bytes each). To the client: ``o`` output, ``x`` exit code.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import socket
import struct
import termios
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from . import kernel
from .files import become
from .groups import Group
from .loop import close_all_but
from .spawn import INNER_UID

_CHUNK: Final = 64 << 10
_MOST_INPUT: Final = 1 << 20  # bytes held for a command that does not read
_TIOCSPTLCK: Final = 0x40045431  # locks and unlocks a terminal; termios has it from Python 3.13
_TIOCGPTPEER: Final = 0x5441  # opens its other end
NOBODY: Final = 3  # exit code of `signal_all`, where there is nobody to be signalled
_PATIENCE: Final = 5.0  # seconds for a connection inside a host
_KINDS: Final = {
    "mnt": kernel.NEWNS,
    "pid": kernel.NEWPID,
    "net": kernel.NEWNET,
    "ipc": kernel.NEWIPC,
    "uts": kernel.NEWUTS,
    "cgroup": kernel.NEWCGROUP,
}


@dataclass(frozen=True, slots=True)
class Inside:
    """A run, as what joins it must know it."""

    init: int  # pidfd of the first process of its process namespace
    pid: int  # of the same
    uid: int | None
    group: Group
    environment: Mapping[str, str]
    workdir: str
    filter: bytes
    address: str = ""  # of its network card


def join(inside: Inside, kinds: Sequence[str]) -> int:
    """Join those of the run's namespaces that are not ours already, but for its user namespace. Who is not root must
    first be in the user namespace that owns them. Returns the inode of the user namespace that we are in then."""
    kinds = [k for k in kinds if _inode("self", k) != _inode(str(inside.pid), k)]
    user = _inode("self", "user")
    if os.geteuid() != 0 and kinds:
        namespace = os.open(f"/proc/{inside.pid}/ns/{kinds[0]}", os.O_RDONLY | os.O_CLOEXEC)
        owner = kernel.owner_of(namespace)
        user = os.fstat(owner).st_ino
        kernel.setns(owner, kernel.NEWUSER)
    flags = sum(_KINDS[kind] for kind in kinds)
    if flags:
        kernel.setns(inside.init, flags)
    return user


def _inode(process: str, kind: str) -> int:
    return os.stat(f"/proc/{process}/ns/{kind}").st_ino


# --- signals


def signal_all(inside: Inside, number: int) -> int:
    """Signal every process of the run but its first, from within its process namespace. Runs in its own process.

    As the run's user, so that even a mistake here could reach nothing else."""
    if _inode("self", "pid") == _inode(str(inside.pid), "pid"):
        return 1
    join(inside, ("pid",))
    child = os.fork()
    if child == 0:
        become(inside.uid)
        try:
            os.kill(-1, number)
        except OSError:
            os._exit(NOBODY)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# --- ports


def connect(client: socket.socket, inside: Inside, port: int, reply: Callable[[str | None], bytes]) -> int:
    """Connect inside the run, and hand the connection over with the answer: what goes over it is nobody's in between.
    `reply` makes the line to the client, of an error or of none. Runs in its own process."""
    try:
        join(inside, ("net",))
        far = _connected(port, inside.address)
        if kernel.has_ended(inside.init):  # its network may be another's by now
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
    except OSError as error:
        client.sendall(reply(f"nothing answers on its port {port}: {os.strerror(error.errno or errno.ETIMEDOUT)}"))
        return 1
    socket.send_fds(client, [reply(None)], [far.fileno()])
    return 0


def _connected(port: int, address: str) -> socket.socket:
    """Wherever it listens: most do on all addresses, others on loopback or on their own one only."""
    for host in filter(None, (address, "127.0.0.1")):
        with suppress(ConnectionRefusedError):
            return socket.create_connection((host, port), _PATIENCE)
    return socket.create_connection(("::1", port), _PATIENCE)


def _ready(reading: Iterable[int], writing: Iterable[int] = ()) -> tuple[set[int], set[int]]:
    """As `select.select`, which cannot do with the high numbers that a busy warden's descriptors have."""
    poll = select.poll()
    for fd in reading:
        poll.register(fd, select.POLLIN)
    for fd in writing:
        poll.register(fd, select.POLLOUT)
    found = {fd for fd, _ in poll.poll()}
    return found.intersection(reading), found.intersection(writing)


# --- commands


def command(
    client: socket.socket, inside: Inside, words: Sequence[str], terminal: bool, reply: Callable[[str | None], bytes]
) -> int:
    """Run a command in the run and carry its input and output. Runs in its own process."""
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    try:
        near, far = _terminal(inside) if terminal else _pipes()
    except OSError as error:
        client.sendall(reply(f"no terminal could be made: {error.strerror}"))
        return 1
    told, tells = os.pipe()
    pid = os.fork()
    if pid == 0:
        _become_command(inside, words, far, terminal, tells)
    for fd in {*far, tells}:
        os.close(fd)
    problem = os.read(told, 1000).decode("utf-8", "replace")
    client.sendall(reply(problem or None))
    if not problem:
        _Pump(client, pid, near, terminal).run()
    return 0


def _pipes() -> tuple[tuple[int, int], tuple[int, int]]:
    """(we write, we read), (it reads, it writes)."""
    its_input, our_output = os.pipe()
    our_input, its_output = os.pipe()
    return (our_output, our_input), (its_input, its_output)


def _terminal(inside: Inside) -> tuple[tuple[int, int], tuple[int, int]]:
    """A terminal of the run's own /dev/pts, where the task cannot put anything."""
    flags = os.O_RDWR | os.O_NOCTTY | os.O_NOFOLLOW | os.O_CLOEXEC
    master = os.open(f"/proc/{inside.pid}/root/dev/pts/ptmx", flags)
    if os.major(os.fstat(master).st_rdev) != 5:
        raise OSError(errno.ENOTTY, "not a terminal")
    fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("i", 0))
    slave = fcntl.ioctl(master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY)
    if inside.uid is not None:
        os.fchown(slave, inside.uid, inside.uid)
    return (master, master), (slave, slave)


def _become_command(inside: Inside, words: Sequence[str], far: tuple[int, int], terminal: bool, tells: int) -> None:
    """In the child: go inside, start the command as its own child (only that one is in the process namespace), and be
    its exit code. What fails is told through `tells`, which closes when the command has begun."""
    try:
        for target, fd in enumerate((far[0], far[1], far[1])):
            os.dup2(fd, target)
        close_all_but((tells, inside.init))
        os.set_inheritable(tells, False)
        inside.group.join(os.getpid())
        user = os.open(f"/proc/{inside.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        if join(inside, tuple(_KINDS)) != os.fstat(user).st_ino:
            kernel.setns(user, kernel.NEWUSER)
        os.setresgid(INNER_UID, INNER_UID, INNER_UID)
        os.setresuid(INNER_UID, INNER_UID, INNER_UID)
        child = os.fork()
        if child == 0:
            _execute(inside, words, terminal)
    except BaseException as error:
        os.write(tells, _words_for(error, words).encode())
        os._exit(1)
    os.close(tells)
    for fd in (0, 1, 2):
        os.close(fd)
    _, status = os.waitpid(child, 0)
    os._exit(_code(status))


def _words_for(error: BaseException, words: Sequence[str]) -> str:
    if isinstance(error, FileNotFoundError) and os.fsdecode(error.filename or "").endswith(words[0]):
        return f"there is no command {words[0]}"
    return f"{words[0]}: {error.strerror if isinstance(error, OSError) else error}"


def _execute(inside: Inside, words: Sequence[str], terminal: bool) -> None:
    kernel.die_with_parent()
    os.setsid()
    if terminal:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    try:
        os.chdir(inside.workdir)
    except OSError:
        os.chdir("/")
    os.umask(0o022)
    for number in (signal.SIGPIPE, signal.SIGINT, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    variables = {**inside.environment, "TERM": "xterm-256color"} if terminal else dict(inside.environment)
    kernel.give_up_privileges(inside.filter)
    os.environ["PATH"] = variables.get("PATH", "")
    os.execvpe(words[0], list(words), variables)  # noqa: S606


def _code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


class _Pump:
    """Carries a command's input and output in frames until it has ended or the client is gone."""

    def __init__(self, client: socket.socket, pid: int, near: tuple[int, int], terminal: bool) -> None:
        self._client = client
        self._pid = pid
        self._over = os.pidfd_open(pid)
        self._into, self._out = near
        self._terminal = terminal
        self._input = b""
        self._frames = b""
        self._ending = False  # no more input comes
        os.set_blocking(self._into, False)

    def run(self) -> None:
        reading = {self._client.fileno(), self._out, self._over}
        while self._over in reading:
            if len(self._input) > _MOST_INPUT:
                reading.discard(self._client.fileno())
            else:
                reading.add(self._client.fileno())
            writing = [self._into] if self._input and self._into >= 0 else []
            ready, writable = _ready(reading, writing)
            if writable:
                self._feed()
            if self._out in ready and not self._say():
                reading.discard(self._out)
            if self._client.fileno() in ready and not self._hear():
                return self._kill()
            if self._over in ready:
                reading.discard(self._over)
        self._finish()

    def _finish(self) -> None:
        os.set_blocking(self._out, False)
        while self._say():
            pass
        _, status = os.waitpid(self._pid, 0)
        self._send(b"x", struct.pack(">i", _code(status)))

    def _kill(self) -> None:
        kernel.kill(self._over)
        os.waitpid(self._pid, 0)

    def _send(self, kind: bytes, data: bytes) -> None:
        try:
            self._client.sendall(kind + struct.pack(">I", len(data)) + data)
        except OSError:
            self._kill()
            os._exit(0)

    def _say(self) -> bool:
        try:
            data = os.read(self._out, _CHUNK)
        except OSError:  # EIO: the last one has left the terminal
            return False
        if data:
            self._send(b"o", data)
        return bool(data)

    def _hear(self) -> bool:
        try:
            data = self._client.recv(_CHUNK)
        except OSError:
            return False
        self._frames += data
        while len(self._frames) >= 5:
            size = struct.unpack(">I", self._frames[1:5])[0]
            if len(self._frames) < 5 + size:
                break
            self._act(self._frames[:1], self._frames[5 : 5 + size])
            self._frames = self._frames[5 + size :]
        return bool(data)

    def _act(self, kind: bytes, data: bytes) -> None:
        if kind == b"i":
            self._input += data
        elif kind == b"e":
            self._ending = True
            self._input += b"\x04" if self._terminal else b""
        elif kind == b"r" and self._terminal and len(data) == 4:
            fcntl.ioctl(self._out, termios.TIOCSWINSZ, struct.pack("HHHH", *struct.unpack(">HH", data), 0, 0))
        self._feed()

    def _feed(self) -> None:
        if self._into < 0:
            self._input = b""
            return
        try:
            while self._input:
                self._input = self._input[os.write(self._into, self._input[:_CHUNK]) :]
        except BlockingIOError:
            return
        except OSError:
            self._input, self._ending = b"", True  # it reads no more
        if self._ending and not self._terminal:
            os.close(self._into)
            self._into = -1
