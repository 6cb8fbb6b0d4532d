"""A factory of one's own: `usina up` as a child process on a free port."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from usina.client import CannotConnect, Client
from usina.core.errors import Unavailable

START, STOP = 60.0, 30.0  # seconds


class OwnFactory:
    def __init__(self, folder: Path) -> None:
        self.data_dir = folder / "site"
        self.port = _free_port()
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self._log = folder / "factory.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        return self._process.pid if self._process else 0

    def start(self) -> Client:
        """Start it and wait for its door to open; a client for its operator. Raises `Unavailable`."""
        words = ["up", "--data-dir", str(self.data_dir), "--port", str(self.port), "--no-local-host"]
        with self._log.open("ab") as log:
            # Apart from our terminal's signals: Ctrl-C must leave it alive until all is cleaned up.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "usina.cli", *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + START
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise Unavailable(f"the factory ended at its start: {self.last_words()}", code="no-start")
            site = self._open()
            if site is not None:
                return site
            time.sleep(0.1)
        raise Unavailable(f"the factory did not open its door within {START:.0f} s", code="no-start")

    def _open(self) -> Client | None:
        try:
            admin = json.loads((self.data_dir / "admin.json").read_text())
            with socket.create_connection(("127.0.0.1", self.port), timeout=1):
                pass
            site = Client(self.endpoint, admin["token"], timeout=120)
            site.whoami()
        except (OSError, ValueError, CannotConnect):
            return None
        return site

    def stop(self) -> None:
        """Ask it to end, and wait. Raises `Unavailable` when it did not end well."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(STOP)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise Unavailable(f"the factory did not stop within {STOP:.0f} s and was killed") from None
        if code != 0:
            raise Unavailable(f"the factory ended with {code}: {self.last_words()}")

    def last_words(self) -> str:
        try:
            return "\n".join(self._log.read_text(errors="replace").splitlines()[-15:])
        except OSError:
            return ""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
