"""A plan → what is laid down in its machine and what its service is allowed. Pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import PurePosixPath

from usina.core.task import Inside, TaskPlan
from usina.drivers.ssh.scripts import RUNS
from usina.ports.driver import DriverError

NO_VOLUMES = "tasks in machines have no volumes"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z", re.ASCII)
_HANDLE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*\.[0-9]+\Z", re.ASCII)
_USER = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}\Z", re.ASCII)
_LEAST = 10.0  # seconds: `told` must have time as well

# Words of its own go out as what the task says. Before its output is a pipe's, there is nobody to hear them.
_RUN = """
exec </dev/null >"$folder/say/o.pipe" 2>"$folder/say/e.pipe"
cannot() {{
  echo "usina: $1" >&2; echo "usina: $1" >"$folder/own/not-started"; exit "$2"
}}
mkdir -p -- "$work" 2>/dev/null
cd -- "$work" 2>/dev/null || cannot "no such working directory: $work" 126
. "$folder/environment"
set -- {command}
found=$(command -v -- "$1") || cannot "no such command: $1" 127
case $found in
  */*) if [ -d "$found" ] || ! [ -x "$found" ]; then cannot "it cannot be executed: $1" 126; fi ;;
esac
unset folder work found
exec "$@"
"""


def folder(handle: str) -> str:
    return f"{RUNS}/{handle}"


def work(handle: str, wanted: str) -> str:
    """The working directory of a run that wants it there."""
    return wanted if wanted.startswith("/") else f"{folder(handle)}/work/{inner(wanted)}".rstrip("/")


def inner(path: str) -> str:
    parts = [part for part in PurePosixPath(path).parts if part != "."]
    if ".." in parts or "\0" in path or "\n" in path:
        raise DriverError(f"{path[:200]!r} is no path without '..'", lasting=True)
    return "/".join(parts)


def run(plan: TaskPlan) -> str:
    """The shell text that becomes the command. It has `folder` and `work` for itself, and no others."""
    head = f"folder={shlex.quote(folder(plan.handle))}\nwork={shlex.quote(work(plan.handle, plan.workdir))}\n"
    return head + _RUN.format(command=shlex.join(plan.command))


def environment(variables: Mapping[str, str]) -> str:
    """What a shell reads to have the variables, and nothing else."""
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items())


def properties(plan: TaskPlan, user: str) -> list[str]:
    """The limits of its service, in systemd's words."""
    wanted = {
        "Description": f"Usina: {plan.title}".replace("%", "%%"),
        "User": user,
        "WorkingDirectory": "/",
        "CPUQuota": f"{max(1, round(plan.cores * 100))}%",
        "OOMPolicy": "kill",
        "KillMode": "control-group",
        "TimeoutStopSec": f"{max(plan.grace, _LEAST):.3f}",
        "StandardOutput": "null",
        "StandardError": "null",
        "IgnoreSIGPIPE": "no",
        "ExecStopPost": f"+/bin/sh {folder(plan.handle)}/told {plan.handle}",
    }
    if plan.memory:
        wanted |= {"MemoryMax": str(plan.memory), "MemorySwapMax": "0"}
    if plan.time_limit:
        wanted["RuntimeMaxSec"] = f"{plan.time_limit:.3f}"
    return [word for name, value in wanted.items() for word in ("-p", f"{name}={value}")]


def checked(plan: TaskPlan) -> Inside:
    """The machine of a plan that can be carried out. Raises a lasting `DriverError` otherwise."""
    inside = plan.inside
    if inside is None:
        raise DriverError("it names no machine", lasting=True)
    if plan.volumes:
        raise DriverError(NO_VOLUMES, lasting=True)
    if not _HANDLE.match(plan.handle):
        raise DriverError("its handle is not a plain name", lasting=True)
    if not _USER.match(inside.user):
        raise DriverError(f"{inside.user[:40]!r} cannot be the name of a user", lasting=True)
    if not plan.command:
        raise DriverError("a task in a machine needs a command", lasting=True)
    if plan.image or plan.archive:
        raise DriverError("a task in a machine has no image of its own", lasting=True)
    if plan.replicas > 1 or plan.indices:
        raise DriverError("in a machine, arrays and gangs are run one by one", lasting=True)
    if any("\0" in word for word in (*plan.command, *plan.environment.values())):
        raise DriverError("its command or environment holds a zero byte", lasting=True)
    for name in plan.environment:
        if not _NAME.match(name):
            raise DriverError(f"{name[:80]!r} cannot be the name of a variable", lasting=True)
    return inside
