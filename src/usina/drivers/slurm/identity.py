"""Who a task is on the cluster, and how to do things as them. May know this machine's users.

A name from outside becomes an argument, a token's subject and a part of a path, so it must look like a Unix name, be no
number, not be root, and, where this machine knows it, have a uid that the operator allows.

Work on a member's files is always done *as the member*, by small shell commands, never by root in a folder that the
member controls, where a link could lead anywhere. Root becomes the member with ``setpriv`` (no PAM session, no new
privileges); any other user by ``sudo -n -u NAME``, which the operator allows; a member who is this very user needs
nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO

from usina.drivers.slurm.settings import USER, Settings
from usina.ports.driver import DriverError

PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"


@dataclass(frozen=True, slots=True)
class Person:
    """A Unix user of the cluster; `home` is "" and `uid` -1 where this machine does not know them."""

    name: str
    uid: int = -1
    gid: int = -1
    home: str = ""

    @property
    def environment(self) -> dict[str, str]:
        """The clean one that their commands and jobs begin with."""
        home = {"HOME": self.home} if self.home else {}
        return {"PATH": PATH, "USER": self.name, "LOGNAME": self.name, "SHELL": "/bin/bash", "LANG": "C.UTF-8", **home}


def person_for(settings: Settings, identity: str) -> Person:
    """The user that a task of `identity` runs as. Raises a lasting `DriverError` that names the problem."""
    name = identity or settings.service_account
    if not name:
        raise DriverError(
            "on Slurm a task runs as a Unix user, and this member has none; ask the operator for one", lasting=True
        )
    if not USER.match(name) or name == "root":
        raise DriverError(f"{name[:40]!r} cannot be the Unix name of a member", lasting=True)
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return _far(settings, name)
    if entry.pw_uid == 0 or (entry.pw_uid < settings.min_uid and name != settings.service_account):
        raise DriverError(f"{name} is a user of the system, and no task may be it (uid {entry.pw_uid})", lasting=True)
    return Person(name, entry.pw_uid, entry.pw_gid, entry.pw_dir)


def _far(settings: Settings, name: str) -> Person:
    """A user that only the cluster knows: enough where nothing is done as them here."""
    if settings.shared or not settings.url:
        raise DriverError(f"there is no Unix user {name} on this machine", lasting=True)
    return Person(name)


def becoming(person: Person, environment: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """The words before a command that make it run as `person`. They can be seen by all: no secret may be in them."""
    here = os.geteuid()
    if here == person.uid:
        return ()
    if here == 0:
        return (
            "setpriv", f"--reuid={person.uid}", f"--regid={person.gid}", "--init-groups", "--no-new-privs",
            "--inh-caps=-all", "--",
        )  # fmt: skip
    kept = {**person.environment, **(environment or {})}
    return ("sudo", "-n", "-u", person.name, "--", "env", "-i", *(f"{name}={value}" for name, value in kept.items()))


async def put_away(process: asyncio.subprocess.Process) -> None:
    """End a process that is still there. One that sudo runs is not ours to kill; it ends when its pipes do."""
    if process.returncode is None:
        with contextlib.suppress(OSError):
            process.kill()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5):
                await process.wait()


@dataclass(frozen=True, slots=True)
class Done:
    code: int
    out: bytes
    err: str


async def run(
    words: Sequence[str],
    *,
    person: Person | None = None,
    stdin: bytes | IO[bytes] | None = None,
    environment: Mapping[str, str] | None = None,
    limit: float = 60.0,
) -> Done:
    """Run a command to its end, as `person` or as ourselves. Raises `DriverError` where it cannot begin or hangs."""
    env = {**(person.environment if person else {"PATH": PATH, "LANG": "C.UTF-8"}), **(environment or {})}
    command = [*becoming(person, environment), *words] if person else [*words]
    source = asyncio.subprocess.PIPE if isinstance(stdin, bytes) else stdin or asyncio.subprocess.DEVNULL
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=source, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=env, cwd="/",
            start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        raise DriverError(f"{command[0]} cannot be run here: {error.strerror}", detail=repr(error)) from error
    try:
        async with asyncio.timeout(limit):
            out, err = await process.communicate(stdin if isinstance(stdin, bytes) else None)
    except TimeoutError:
        raise DriverError(f"{words[0]} did not answer within {limit:g} s") from None
    finally:
        await put_away(process)
    return Done(process.returncode or 0, out, err.decode(errors="replace").strip())
