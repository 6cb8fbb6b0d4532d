"""The process that sandboxes are forked from: a small interpreter that has what every run sees put together already.

It is a program of its own, as the price of a fork is that of the memory to be shared. Its mount namespace holds four
things and nothing of the host besides: ``/root``, the file system that every run begins with, read-only; ``/box``, the
folders of runs; ``/dev`` and ``/proc`` of the host. A sandbox is one `clone` with all namespaces at once. As the run's
own user, mapped to 1000 and nobody else, it binds `/root` over itself, mounts what is the run's alone, makes that its
root, and waits for its command on a pipe. A pipe that ends too early, because the warden died, ends it too: then
nothing of the run was run.

The sandbox's first process stays as the first of its process namespace: it starts the command, collects what is left
of others, holds open the pipes of what is said, and writes the exit code. It is not dumpable, so that the command can
neither trace nor look into it.

Asked over a socket of packets: an object, with descriptors (what it says twice, status, the pipe). Answered with the
number of the first process, and a descriptor of it. Read the manual pages user_namespaces(7) and mount_namespaces(7)
for what is allowed where.
"""

from __future__ import annotations

import fcntl
import json
import os
import resource
import signal
import socket
import struct
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, NoReturn

from . import kernel

INNER_UID: Final = 1000
MOST: Final = 128 << 10  # bytes of a request
END: Final = b"x"  # of what is written into the pipe; without it, it does not count

_MERGED: Final = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_NODES: Final = ("null", "zero", "full", "random", "urandom", "tty")
_LINKS: Final = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "core": "/proc/kcore",
    "ptmx": "pts/ptmx",
}
_SHARED_MEMORY: Final = 1 << 30  # bytes of /dev/shm, where the run has no memory limit
_NAMESPACES: Final = kernel.NEWUSER | kernel.NEWPID | kernel.NEWNS | kernel.NEWIPC | kernel.NEWUTS
_PLAIN: Final = kernel.MS_NOSUID | kernel.MS_NODEV
_SIOCSIFFLAGS: Final = 0x8914
_IFF_UP: Final = 1


class Zygote:
    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._root = os.geteuid() == 0
        self._uid, self._gid = os.geteuid(), os.getegid()
        self._filter = bytes.fromhex(settings["filter"])
        self._files = (settings["open_files"], resource.getrlimit(resource.RLIMIT_NOFILE)[1])
        self._null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        if not self._root:
            kernel.unshare(kernel.NEWUSER | kernel.NEWNS)
            map_users("self", self._uid, self._uid, self._gid, self._gid)
        else:
            kernel.unshare(kernel.NEWNS)
        prepare(settings["view"], settings["box"], settings["read_only"])

    def serve(self, line: socket.socket) -> None:
        """Until the warden is gone. What runs, runs on."""
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel buries them: their end shows at their descriptors
        while True:
            data, fds, _, _ = socket.recv_fds(line, MOST, 4)
            if not data:
                return
            try:
                pid, own = self._make(json.loads(data), fds)
            except OSError as error:
                line.send(json.dumps({"error": error.strerror, "number": error.errno}).encode())
            else:
                socket.send_fds(line, [b'{"pid": %d}' % pid], [own])
                os.close(own)
            finally:
                for fd in fds:
                    os.close(fd)

    def _make(self, wish: Mapping[str, Any], fds: Sequence[int]) -> tuple[int, int]:
        network = 0 if wish["network"] == "host" else kernel.NEWNET
        mapped, maps = os.pipe()
        try:
            pid, own = kernel.clone(_NAMESPACES | network)
            if pid == 0:
                self._be(wish, fds, mapped)
            try:
                outer = (wish["uid"], wish["uid"]) if self._root else (self._uid, self._gid)
                map_users(str(pid), INNER_UID, outer[0], INNER_UID, outer[1])
                os.write(maps, END)
            except OSError:
                kernel.kill(own)
                os.close(own)
                raise
            return pid, own
        finally:
            os.close(mapped)
            os.close(maps)

    def _be(self, wish: Mapping[str, Any], fds: Sequence[int], mapped: int) -> NoReturn:
        """The first process of the sandbox."""
        status = fds[2]
        try:
            if os.read(mapped, 1) != END:
                os._exit(1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for target, fd in enumerate((self._null, fds[0], fds[1])):
                os.dup2(fd, target)
            pipe, status = (
                fcntl.fcntl(fds[3], fcntl.F_DUPFD_CLOEXEC, 1000),
                fcntl.fcntl(status, fcntl.F_DUPFD_CLOEXEC, 1000),
            )
            os.closerange(3, min(pipe, status))
            os.setsid()
            if self._root:
                kernel.set_undumpable()
            os.setresgid(INNER_UID, INNER_UID, INNER_UID)
            os.setresuid(INNER_UID, INNER_UID, INNER_UID)
            furnish(wish)
            socket.sethostname(wish["hostname"])
            if wish["network"] != "host":
                loopback_up()
            command, variables = wait_for_words(pipe)
            os.close(pipe)
            kernel.unshare(kernel.NEWCGROUP)  # only now: it is in its own group since
            resource.setrlimit(resource.RLIMIT_NOFILE, self._files)
            kernel.give_up_privileges(self._filter)
            begin(wish["workdir"], command, variables, status)
        except BaseException as error:
            tell(status, {"problem": str(getattr(error, "strerror", None) or error)})
        os._exit(1)


def map_users(process: str, inner_uid: int, uid: int, inner_gid: int, gid: int) -> None:
    """One user and one group, and no more groups ever."""
    for file, text in (
        ("uid_map", f"{inner_uid} {uid} 1"),
        ("setgroups", "deny"),
        ("gid_map", f"{inner_gid} {gid} 1"),
    ):
        fd = os.open(f"/proc/{process}/{file}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)


# --- what all runs see


def prepare(view: str, box: str, read_only: Iterable[str]) -> None:
    """Make the mount namespace that we are in what the module says. `view`: any folder."""
    kernel.mount("none", "/", kernel.MS_REC | kernel.MS_PRIVATE)
    kernel.mount("tmpfs", view, _PLAIN, "tmpfs", "mode=755")
    for name in ("root", "new", "box", "dev", "proc"):
        os.mkdir(f"{view}/{name}", 0o755)
    bind(box, f"{view}/box", kernel.NOSUID | kernel.NODEV)
    bind("/dev", f"{view}/dev", kernel.NOSUID)
    kernel.mount("/proc", f"{view}/proc", kernel.MS_BIND | kernel.MS_REC)
    kernel.mount("tmpfs", f"{view}/root", _PLAIN, "tmpfs", "mode=755")
    _template(f"{view}/root", f"{view}/box/etc", read_only)
    kernel.mount("none", f"{view}/root", _PLAIN | kernel.MS_REMOUNT | kernel.MS_RDONLY)
    os.chdir(view)
    pivot()


def _template(root: str, etc: str, read_only: Iterable[str]) -> None:
    still = kernel.RDONLY | kernel.NOSUID | kernel.NODEV
    for name in ("proc", "run", "tmp", "work", "var", "dev", "dev/pts", "dev/shm"):
        os.mkdir(f"{root}/{name}", 0o755)
    os.symlink("/tmp", f"{root}/var/tmp")  # noqa: S108
    for name in _MERGED:
        if os.path.islink(f"/{name}"):
            os.symlink(os.readlink(f"/{name}"), f"{root}/{name}")
        elif os.path.isdir(f"/{name}"):
            put_at(f"/{name}", root, f"/{name}", still)
    put_at("/usr", root, "/usr", still)
    put_at(etc, root, "/etc", still)
    for folder in read_only:
        if os.path.isdir(folder):
            put_at(folder, root, folder, still)
    for name in _NODES:
        put_at(f"/dev/{name}", root, f"/dev/{name}", kernel.NOSUID)
    for name, target in _LINKS.items():
        os.symlink(target, f"{root}/dev/{name}")


def put_at(source: str, root: str, path: str, flags: int) -> None:
    """Bind a file or folder to its place in a tree, which is made."""
    target = root + path
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    elif not os.path.exists(target):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))
    bind(source, target, flags)


def bind(source: str, target: str, flags: int) -> None:
    """With all that is mounted below it, and `flags` on all of it."""
    kernel.mount(source, target, kernel.MS_BIND | kernel.MS_REC)
    kernel.set_mount_flags(target, flags)


def pivot() -> None:
    """The working directory becomes the root, and what was the root is gone."""
    kernel.pivot_root(".", ".")
    kernel.unmount(".")
    os.chdir("/")


# --- what one run sees


def furnish(wish: Mapping[str, Any]) -> None:
    """Mounts of one run, in a mount namespace of its own; and its root becomes ours."""
    special = wish["extra"] or wish["devices"]
    root, box = ("/new" if special else "/root"), f"/box/{wish['handle']}"
    if special:
        _own_root(root, box, wish["extra"], wish["devices"])
    else:
        kernel.mount(root, root, kernel.MS_BIND | kernel.MS_REC)
    os.chdir(root)
    kernel.mount("proc", "proc", _PLAIN | kernel.MS_NOEXEC, "proc")
    kernel.mount(
        "devpts", "dev/pts", kernel.MS_NOSUID | kernel.MS_NOEXEC, "devpts", "newinstance,ptmxmode=0666,mode=620"
    )
    kernel.mount("tmpfs", "dev/shm", _PLAIN, "tmpfs", f"mode=1777,size={wish['memory'] or _SHARED_MEMORY}")
    kernel.mount(f"{box}/tmp", "tmp", kernel.MS_BIND)  # noqa: S108
    kernel.mount(f"{box}/work", "work", kernel.MS_BIND)
    for name in wish["etc"]:
        bind(f"{box}/{name}", f"etc/{name}", kernel.RDONLY)
    pivot()


def _own_root(root: str, box: str, extra: Sequence[str], devices: Sequence[str]) -> None:
    """As the common root, with more places in it: a tree of its own, of the same parts."""
    kernel.mount("tmpfs", root, _PLAIN, "tmpfs", "mode=755")
    _copy_tree("/root", root, ("dev", "var"))
    for name in ("dev", "var"):
        os.mkdir(f"{root}/{name}", 0o755)
        _copy_tree(f"/root/{name}", f"{root}/{name}", ())
    for device in devices:
        put_at(device, root, device, 0)
    for number, path in enumerate(extra):
        put_at(f"{box}/extra/{number}", root, path, 0)
    kernel.mount("none", root, _PLAIN | kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_RDONLY)


def _copy_tree(source: str, target: str, but: Iterable[str]) -> None:
    """The same names: links as links, all else bound."""
    for name in os.listdir(source):
        place = f"{source}/{name}"
        if name in but:
            continue
        if os.path.islink(place):
            os.symlink(os.readlink(place), f"{target}/{name}")
        else:
            put_at(place, target, f"/{name}", 0)


def loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
        fcntl.ioctl(line, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP))


# --- its command


def wait_for_words(pipe: int) -> tuple[list[str], dict[str, str]]:
    """The command and its environment. Ends with the pipe, where they do not come."""
    data = b""
    while piece := os.read(pipe, 1 << 20):
        data += piece
    return read_words(data) or os._exit(1)


def read_words(data: bytes) -> tuple[list[str], dict[str, str]] | None:
    """What `spawn.words` makes, and `END`; None where it is not whole."""
    count, size, rest = (data.split(b"\0", 2) + [b"", b""])[:3]
    if len(rest) != int(size or 0) + 1 or rest[-1:] != END:
        return None
    words = [os.fsdecode(word) for word in rest[:-1].split(b"\0")[:-1]]
    command, pairs = words[: int(count)], words[int(count) :]
    return command, dict(zip(pairs[::2], pairs[1::2], strict=True))


def begin(workdir: str, command: Sequence[str], variables: Mapping[str, str], status: int) -> NoReturn:
    """Start the command and see to all processes until it has ended; then all others end with us."""
    try:
        os.chdir(workdir)
    except OSError:
        tell(status, {"problem": f"there is no folder {workdir}"})
        os._exit(1)
    os.umask(0o022)
    os.environ["PATH"] = variables.get("PATH", "")
    defaults = [signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT]
    try:
        child = os.posix_spawnp(
            command[0], list(command), {**variables, "PWD": workdir}, setsid=True, setsigmask=[], setsigdef=defaults
        )
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        text = f"there is no command {command[0]}" if missing else f"{command[0]}: {error.strerror}"
        tell(status, {"problem": text})
        os._exit(1)
    while True:
        pid, ended = os.waitpid(-1, 0)
        if pid == child:
            code = os.waitstatus_to_exitcode(ended)
            tell(status, {"exit-code": code if code >= 0 else 128 - code})
            os._exit(0)


def tell(status: int, what: Mapping[str, Any]) -> None:
    with suppress(OSError):
        os.write(status, json.dumps(what).encode() + b"\n")


def main() -> None:
    """`argv`: the descriptor of the socket. Standard input: the settings."""
    line = socket.socket(fileno=int(sys.argv[1]))
    line.set_inheritable(False)
    zygote = Zygote(json.load(sys.stdin))
    line.send(b"{}")
    zygote.serve(line)
