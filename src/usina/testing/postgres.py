"""A PostgreSQL of one's own for a test run, from the system's packages, on a Unix socket and a free port."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import create_engine, text

from usina.store.database import driver_url


def binaries() -> Path:
    """The folder of ``initdb``, newest version first. Raises `FileNotFoundError` with the command that mends it."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: -int(p.parts[-3]))
    if found:
        return found[0].parent
    here = shutil.which("initdb")
    if here is None:
        raise FileNotFoundError("PostgreSQL is not installed: apt-get install postgresql")
    return Path(here).parent


@contextmanager
def server() -> Iterator[str]:
    """A running server; yields the URL of its ``postgres`` database. Everything of it is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="usina-pg-"))
    root = os.geteuid() == 0
    user = "postgres" if root else pwd.getpwuid(os.geteuid()).pw_name
    if root:
        shutil.chown(folder, user)
    bin_dir, port = binaries(), free_port()

    def run(*command: str) -> None:
        identity = {"user": user} if root else {}
        done = subprocess.run(command, capture_output=True, cwd="/", text=True, **identity)  # type: ignore[call-overload]
        if done.returncode:
            raise RuntimeError(f"{command[0]} failed: {done.stderr}")

    data = folder / "data"
    try:
        run(f"{bin_dir}/initdb", "-D", str(data), "-U", "usina", "-A", "trust", "--no-sync")
        options = f"-c listen_addresses=127.0.0.1 -p {port} -k {folder} -c max_connections=200 -c fsync=off"
        run(f"{bin_dir}/pg_ctl", "-D", str(data), "-w", "-l", str(folder / "log"), "-o", options, "start")
        try:
            yield f"postgresql://usina@127.0.0.1:{port}/postgres"
        finally:
            run(f"{bin_dir}/pg_ctl", "-D", str(data), "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def database(server_url: str) -> Iterator[str]:
    """A fresh, empty database on a running server; dropped afterwards."""
    name = f"t{secrets.token_hex(6)}"
    admin = create_engine(driver_url(server_url), isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    try:
        yield server_url.rsplit("/", 1)[0] + f"/{name}"
    finally:
        with admin.connect() as connection:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
        admin.dispose()


def free_port() -> int:
    """A TCP port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
