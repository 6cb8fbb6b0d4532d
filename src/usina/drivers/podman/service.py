"""The Podman service that we speak with: the one that is there, or one that we start and that ends when it is idle."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import stat
import subprocess
import tempfile
import time
from pathlib import Path

import httpx2

from usina.drivers.podman.settings import Settings
from usina.ports.driver import HostUnreachable

IDLE = 600  # seconds after which a service that we started ends itself
PATIENCE = 20.0


def usual_socket() -> str:
    """Where a distribution's service listens."""
    if os.geteuid() == 0:
        return "/run/podman/podman.sock"
    return f"{os.environ.get('XDG_RUNTIME_DIR', f'/run/user/{os.geteuid()}')}/podman/podman.sock"


async def find(settings: Settings) -> str:
    """The path of a socket that answers. Raises `HostUnreachable`."""
    if settings.socket:
        if await _answers(settings.socket):
            return settings.socket
        raise HostUnreachable(f"Podman does not answer on {settings.socket}")
    ours = str(_place(settings) / "podman.sock")
    for socket in ((usual_socket(),) if not settings.runtime else ()) + (ours,):
        if await _answers(socket):
            return socket
    await _start(settings, ours)
    return ours


def _place(settings: Settings) -> Path:
    """A folder of ours with a short name, for the path of a socket has 107 bytes at most. Raises `HostUnreachable`
    where somebody else has it."""
    short = hashlib.sha256(os.fsencode(settings.folder.absolute())).hexdigest()[:12]
    base = "/run" if os.geteuid() == 0 else os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
    place = Path(base) / f"usina-podman-{short}"
    place.mkdir(mode=0o700, exist_ok=True)
    found = place.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise HostUnreachable(f"{place} is not a folder of ours alone")
    return place


async def _answers(socket: str) -> bool:
    if not os.path.exists(socket):
        return False
    try:
        async with httpx2.AsyncClient(transport=httpx2.AsyncHTTPTransport(uds=socket), timeout=5) as http:
            return (await http.get("http://podman/_ping")).status_code == 200
    except (httpx2.TransportError, OSError):
        return False


async def _start(settings: Settings, socket: str) -> None:
    if shutil.which("podman") is None:
        raise HostUnreachable("Podman is not installed")
    settings.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    process = _launch(settings, socket)
    deadline = time.monotonic() + PATIENCE
    while not await _answers(socket):
        if process.poll() is not None or time.monotonic() > deadline:
            said = (settings.folder / "service.log").read_text(errors="replace").strip().splitlines()
            raise HostUnreachable("Podman's service does not start", detail="\n".join(said[-5:]))
        await asyncio.sleep(0.05)


def _launch(settings: Settings, socket: str) -> subprocess.Popen[bytes]:
    with (settings.folder / "service.log").open("ab") as log:
        process = subprocess.Popen(
            [*command(settings.runtime), "system", "service", "--time", str(IDLE), f"unix://{socket}"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # it outlives us, as what it looks after does
            cwd=settings.folder,  # conmon leaves a file there when a container ran out of memory
        )
    (settings.folder / "service.pid").write_text(f"{process.pid} {Path(socket).parent}\n")
    return process


def command(runtime: str) -> list[str]:
    """Podman with what this machine needs to be told: without systemd it cannot ask that for control groups."""
    words = ["podman"]
    if runtime:
        words += ["--runtime", runtime]
    if not os.path.isdir("/run/systemd/system"):
        words += ["--cgroup-manager", "cgroupfs", "--events-backend", "file"]
        if not runtime and _is_hybrid() and shutil.which("runc"):
            words += ["--runtime", "runc"]  # crun refuses control groups of both kinds at once
    return words


def _is_hybrid() -> bool:
    return os.path.isdir("/sys/fs/cgroup/unified")
