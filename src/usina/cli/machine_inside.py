"""Ways into a machine: SSH, its console, and a tunnel that SSH and others run through."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from usina.cli import config, door, progress, screen, terminal
from usina.cli.options import Machine, Project
from usina.client import ApiError, CannotConnect, Client, Resource, Stream, WaitedTooLong
from usina.core.errors import Conflict, Unavailable

SSH = 22
LINGER = 5.0  # seconds a tunnel stays when its input has ended and nothing more comes
CHUNK = 64 * 1024
_DOWN = frozenset({"stopped", "suspended", "failed", "stopping", "deleting"})


def add_to(app: typer.Typer) -> None:
    """Add these commands to the noun."""
    app.command()(ssh)
    app.command()(console)
    app.command()(logs)
    app.command(hidden=True)(tunnel)


def ssh(
    machine: Machine,
    command: Annotated[
        list[str] | None, typer.Argument(help="Command to run there, after --.", metavar="COMMAND")
    ] = None,
    user: Annotated[str | None, typer.Option("--user", "-u", help="Login name; else what the image says.")] = None,
    local: Annotated[
        list[str] | None, typer.Option("-L", help="Forward a local port, as ssh does; repeat it.", metavar="FORWARD")
    ] = None,
    identity: Annotated[Path | None, typer.Option("-i", help="Private key file.", metavar="FILE")] = None,
    project: Project = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait until SSH answers.", min=0)] = 300.0,
) -> None:
    """Log in to a machine with the system's ssh, through the site: the machine needs no public address.

    Examples:
      usina ssh hello
      usina ssh hello -- uname -a
      usina ssh hello -L 8888:localhost:8888
      usina ssh hello --user root -i ~/.ssh/lab_ed25519
    """
    if shutil.which("ssh") is None:
        raise Unavailable("the program ssh is not installed", code="no-ssh")
    with door.client(project) as site:
        found = site.machines.get(machine)
        await_ssh(site, found, timeout)
        login = login_of(site, found)
    arguments = ssh_command(found, user or login.user, login.lasting, command or (), local or (), identity)
    sys.stderr.flush()
    os.execvp(arguments[0], arguments)  # noqa: S606 - no shell is asked for


class Login:
    """How to log in to what an image makes."""

    def __init__(self, user: str, lasting: bool) -> None:
        self.user = user
        self.lasting = lasting  # host keys stay the same from boot to boot


def login_of(site: Client, machine: Resource) -> Login:
    try:
        spec = site.images.get(machine.spec["image"]).spec
    except ApiError:
        return Login("debian", True)
    return Login(spec["user"], spec["recipe"] != "tiny")


def ssh_command(
    machine: Resource,
    user: str,
    lasting: bool,
    command: Sequence[str] = (),
    local: Sequence[str] = (),
    identity: Path | None = None,
    quiet: bool = False,
) -> list[str]:
    """The ssh command line. Nothing in it is read by a shell but the proxy command, which is quoted word by word."""
    proxy = [sys.executable, "-m", "usina.cli", "machine", "tunnel", machine.id, str(SSH)]
    known_hosts = config.folder() / "known_hosts"
    if lasting:
        known_hosts.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    settings = {
        "ProxyCommand": " ".join(shlex.quote(word).replace("%", "%%") for word in proxy),
        "HostKeyAlias": machine.id,
        "UserKnownHostsFile": f'"{known_hosts}"'.replace("%", "%%") if lasting else "/dev/null",
        "StrictHostKeyChecking": "accept-new" if lasting else "no",
    }
    if not lasting:
        settings["LogLevel"] = "ERROR"  # else it tells of a host key that is never kept
    words = ["ssh"]
    for name, value in settings.items():
        words += ["-o", f"{name}={value}"]
    if quiet:  # nobody is there to be asked
        words += ["-T", "-o", "BatchMode=yes"]
    for forward in local:
        words += ["-L", forward]
    if identity is not None:
        words += ["-i", str(identity), "-o", "IdentitiesOnly=yes"]
    words += ["-l", user, "--", machine.name]
    return [*words, *command]


def await_ssh(site: Client, machine: Resource, timeout: float) -> None:
    """Until an SSH server answers in the guest. Raises `WaitedTooLong`, and `Conflict` when the machine is off."""
    with progress.watching() as watcher:
        deadline = time.monotonic() + timeout
        while True:
            now = site.machines.get(machine.id)
            watcher(now, None)
            if now.phase in _DOWN:
                verb = "resume" if now.phase == "suspended" else "start"
                raise Conflict(f"machine {now.name} is {now.phase}; {verb} it first", code="not-running")
            if now.phase == "running":
                watcher.tell("waiting for SSH to answer")
                if answers(site, machine.id):
                    return
            if time.monotonic() > deadline:
                raise WaitedTooLong(
                    f"SSH in machine {now.name} does not answer after {timeout:.0f} s; see `usina machine logs`"
                )
            time.sleep(0.5)


def answers(site: Client, machine: str) -> bool:
    """Whether a server that greets as SSH (RFC 4253, section 4.2) is behind the machine's port 22."""
    try:
        with site.tunnel(machine, SSH) as stream:
            return stream.read(timeout=5.0).startswith(b"SSH-")
    except ApiError as error:
        if error.status in (401, 403, 404, 422):
            raise
        return False
    except (CannotConnect, TimeoutError):
        return False


def tunnel(
    machine: Machine,
    port: Annotated[int, typer.Argument(help="Port in the guest.", min=1, max=65535)],
    project: Project = None,
) -> None:
    """Connect standard input and output to a port of a machine. ssh uses it as ProxyCommand.

    Examples:
      ssh -o ProxyCommand='usina machine tunnel hello 22' debian@hello
      printf 'GET / HTTP/1.0\\r\\n\\r\\n' | usina machine tunnel hello 80
    """
    with door.client(project) as site, site.tunnel(machine, port) as stream:
        ended = threading.Event()
        _in_background(lambda: _pour_in(stream, ended))
        _pour_out(stream, ended)


def _pour_in(stream: Stream, ended: threading.Event) -> None:
    with suppress(OSError, EOFError):
        while data := os.read(0, CHUNK):
            stream.write(data)
    ended.set()


def _pour_out(stream: Stream, ended: threading.Event) -> None:
    """Until the other side closes, or our input has ended and it falls silent."""
    with suppress(BrokenPipeError):
        while True:
            try:
                data = stream.read(timeout=LINGER)
            except TimeoutError:
                if ended.is_set():
                    return
                continue
            if not data:
                return
            _write_all(data)


def _write_all(data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(1, rest) :]


def _in_background(work: Callable[[], None]) -> None:
    threading.Thread(target=work, daemon=True).start()


def console(machine: Machine, project: Project = None) -> None:
    """Open the serial console of a machine. Ctrl-] leaves it.

    Examples:
      usina machine console hello
    """
    with door.client(project) as site:
        found = site.machines.get(machine)
        with site.console(found.id) as stream:
            screen.say(f"console of {found.name}; Ctrl-] leaves it, Enter may bring a prompt")
            if not terminal.attend(stream):
                screen.say("\nthe console was closed")


def logs(
    machine: Machine,
    project: Project = None,
    lines: Annotated[int, typer.Option("--lines", "-n", help="Only the last ones; 0: all there is.", min=0)] = 0,
) -> None:
    """Show what a machine wrote to its serial console (the newest MiB).

    Examples:
      usina machine logs hello
      usina machine logs hello -n 50
    """
    with door.client(project) as site:
        text = site.machines.console_log(machine)
    if sys.stdout.isatty():
        text = screen.clean(text)
    chosen = text.splitlines(keepends=True)[-lines:]
    sys.stdout.write("".join(chosen))
