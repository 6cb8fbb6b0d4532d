"""A factory as a process of its own, which tests may kill, start again and ask over HTTP like anybody.

``python -m usina.testing.process FOLDER PORT`` is that process; `FactoryProcess` looks after it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx2

from usina.server.run import run
from usina.server.settings import Settings, factory_id
from usina.testing.nursery import Forked, Nursery
from usina.testing.postgres import free_port
from usina.testing.waiting import until

Json = dict[str, Any]

START_LIMIT = 60.0  # seconds; founding probes the accelerator, on a busy machine
STOP_LIMIT = 30.0
_WIPE_ORDER = ("forwards", "machines", "volumes", "networks", "security-groups")
_OF_THE_PROJECT = {"networks", "security-groups"}  # its own `default` goes with it


class Refused(AssertionError):
    """An answer of 400 or more that a test did not expect; `status` and `problem` tell it apart."""

    def __init__(self, status: int, problem: Json) -> None:
        super().__init__(f"{status} {problem.get('detail', problem)}")
        self.status, self.problem = status, problem


class FactoryProcess:
    """One data folder, and the process that runs on it at the moment."""

    def __init__(
        self,
        data_dir: Path,
        *,
        port: int | None = None,
        local_host: bool = True,
        database: str = "",
        nursery: Nursery | None = None,
        hub: str = "",
        hub_token_file: Path | None = None,
        hub_on_demand: bool = False,
        private_urls: bool = False,
        traces: str = "",
        workers: int = 1,
        vllm: Path | None = None,
    ) -> None:
        """`vllm`: a virtual environment with it."""
        self.data_dir = data_dir
        self.port = port or free_port()
        self._local_host, self._database, self._nursery = local_host, database, nursery
        self._more = ["--hub", hub] if hub else []
        self._more += ["--hub-on-demand"] if hub_on_demand else []
        self._more += ["--hub-token-file", str(hub_token_file)] if hub_token_file else []
        self._more += ["--allow-private-urls"] if hub or private_urls else []
        self._more += ["--traces", traces, "--traces-share", "1"] if traces else []
        self._more += ["--vllm", str(vllm)] if vllm else []
        self.workers = workers
        self._process: subprocess.Popen[bytes] | Forked | None = None
        self._http = httpx2.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60, trust_env=False)
        self.made: list[str] = []  # ids of everything ordered through `call`

    # --- the process

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        return self.data_dir.with_name(self.data_dir.name + ".log")

    @property
    def pid(self) -> int:
        assert self._process is not None, "it has not been started"
        return self._process.pid

    @property
    def token(self) -> str:
        """The first operator's."""
        return str(json.loads((self.data_dir / "admin.json").read_text())["token"])

    @property
    def id(self) -> str:
        """What marks the things of this factory on a host."""
        return factory_id(bytes.fromhex((self.data_dir / "master.key").read_text().strip()))

    def start(self, fault: str = "") -> Self:
        """Start, and wait until the doors are open. ``fault`` names a point at which it dies, as in `engine.faults`."""
        assert not self.alive, "it runs already"
        arguments = [str(self.data_dir), str(self.port)]
        arguments += ["--database", self._database] if self._database else []
        arguments += [] if self._local_host else ["--no-local-host"]
        arguments += ["--gateway-workers", str(self.workers)] if self.workers > 1 else []
        arguments += self._more
        self.data_dir.parent.mkdir(parents=True, exist_ok=True)
        if self._nursery is not None:
            self._process = self._nursery.start(arguments, fault, self.log)
        else:
            self._process = _launch(arguments, fault, self.log)
        until(self._answers, limit=START_LIMIT)
        return self

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """As a power cut: SIGKILL, at once."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(STOP_LIMIT)

    def stop(self) -> None:
        """SIGTERM, and a clean exit."""
        assert self._process is not None
        self._process.terminate()
        code = self._process.wait(STOP_LIMIT)
        assert code == 0, f"it ended with {code}\n{self.tail()}"

    def died(self, limit: float = 30.0) -> None:
        """Wait until it has killed itself at its fault point."""
        assert self._process is not None
        try:
            code = self._process.wait(limit)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it did not reach its fault point in {limit:g} s\n{self.tail()}") from None
        assert code == -signal.SIGKILL, f"it ended with {code}\n{self.tail()}"

    def tail(self, lines: int = 40) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def _answers(self) -> bool:
        assert self.alive, f"it ended while it was starting\n{self.tail()}"
        try:
            return self._http.get("/healthz").status_code == 200
        except httpx2.TransportError:
            return False

    # --- its door

    def call(
        self, method: str, path: str, body: Json | None = None, *, token: str = "", key: str = "", **query: Any
    ) -> Json:
        """One request at the native door. Raises `Refused`, and `httpx2.TransportError` if it dies meanwhile."""
        headers = {"Authorization": f"Bearer {token or self.token}"} | ({"Idempotency-Key": key} if key else {})
        answer = self._http.request(method, f"/api/v1{path}", json=body, headers=headers, params=query)
        found = answer.json() if answer.content and "json" in answer.headers.get("content-type", "") else {}
        if answer.status_code >= 400:
            raise Refused(answer.status_code, found)
        if method == "POST" and answer.status_code == 201 and found.get("id", "") not in ("", *self.made):
            self.made.append(found["id"])
        return dict(found)

    def text(self, path: str, token: str = "") -> str:
        """What is at `path`, as text."""
        answer = self._http.get(f"/api/v1{path}", headers={"Authorization": f"Bearer {token or self.token}"})
        return answer.raise_for_status().text

    def phase(self, path: str, *phases: str, limit: float = 30.0, token: str = "") -> Json:
        """Wait until what is at `path` has settled its newest wish in one of `phases`."""

        def good(found: Json) -> bool:
            return found["phase"] in phases and found["observed"] == found["generation"]

        return until(lambda: self.call("GET", path, token=token), good, limit)

    def gone(self, path: str, limit: float = 30.0, token: str = "") -> None:
        def missing() -> bool:
            try:
                self.call("GET", path, token=token)
            except Refused as refused:
                return refused.status == 404
            return False

        until(missing, limit=limit)

    def story(self, id: str) -> list[str]:
        """What happened to one object: ``kind: text``, in order."""
        return [
            f"{event['kind']}: {event['text']}" for event in self.call("GET", f"/stories/{id}", limit=1000)["items"]
        ]

    # --- the end

    def wipe(self, limit: float = 120.0) -> None:
        """Delete everything through the door: resources, projects, hosts. Nothing of it is on any host afterwards."""
        self.empty((*_WIPE_ORDER, "images"), limit)
        for project in self.call("GET", "/projects", limit=1000)["items"]:
            until(partial(self.delete, f"/projects/{project['id']}"), limit=limit)
        for host in self.call("GET", "/hosts")["items"]:
            until(partial(self.delete, f"/hosts/{host['id']}"), limit=limit)

    def empty(self, paths: Sequence[str] = _WIPE_ORDER, limit: float = 120.0) -> None:
        """Delete every resource of these kinds, but for the projects' own."""
        for path in paths:
            self._wipe_all(path, limit)

    def _wipe_all(self, path: str, limit: float) -> None:
        def left() -> list[Json]:
            found = self.call("GET", f"/{path}", limit=1000)["items"]
            return [one for one in found if path not in _OF_THE_PROJECT or one["name"] != "default"]

        def ask() -> bool:
            for one in left():
                if not one["deleting"]:
                    self.delete(f"/{path}/{one['id']}")
            return not left()

        until(ask, limit=limit)

    def delete(self, path: str) -> bool:
        """Whether it is on its way out, or gone; False while something still uses it."""
        try:
            self.call("DELETE", path)
        except Refused as refused:
            if refused.status == 409:  # still in use: what uses it is on its way out
                return False
            return refused.status == 404
        return True

    def __enter__(self) -> Self:
        return self if self.alive else self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.alive:
            self.kill() if kind is not None else self.stop()
        self._http.close()


@contextmanager
def factory_process(
    data_dir: Path, *, port: int | None = None, fault: str = "", local_host: bool = True, database: str = ""
) -> Iterator[FactoryProcess]:
    """A factory that answers; stopped cleanly at the end."""
    with FactoryProcess(data_dir, port=port, local_host=local_host, database=database).start(fault) as process:
        yield process


def end_helpers(folder: Path) -> None:
    """End what outlives a factory in `folder` by design, and ends itself later: a warden, a service of Podman."""
    ours = [found for found in Path("/proc").glob("[0-9]*/cmdline") if _names(found, folder)]
    for found in ours:
        with suppress(ProcessLookupError):
            os.kill(int(found.parent.name), signal.SIGTERM)
    until(lambda: any(_names(found, folder) for found in ours), lambda some: not some, limit=10)
    for note in folder.rglob("service.pid"):
        pid, place = note.read_text().split()
        with suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGTERM)
        shutil.rmtree(place, ignore_errors=True)


def _names(cmdline: Path, folder: Path) -> bool:
    """Whether the command line of another process has a folder in it."""
    try:
        return str(folder).encode() in cmdline.read_bytes() and int(cmdline.parent.name) != os.getpid()
    except OSError:
        return False


def resident(pid: int) -> int:
    """Bytes of memory that a process holds now."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used, its threads included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def idle_share(pid: int, seconds: float) -> float:
    """The share of one core that a process uses over the next `seconds`."""
    before, begun = cpu_seconds(pid), time.monotonic()
    time.sleep(seconds)
    return (cpu_seconds(pid) - before) / (time.monotonic() - begun)


def _launch(arguments: Sequence[str], fault: str, log: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "USINA_FAULT": fault}
    command = [sys.executable, "-m", "usina.testing.process", *arguments]
    with log.open("ab") as file:
        return subprocess.Popen(command, env=environment, stdout=file, stderr=file, stdin=subprocess.DEVNULL)


def serve(arguments: Sequence[str] | None = None) -> None:
    """The program itself: what `usina up` does, without a word."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("port", type=int)
    parser.add_argument("--database", default="")
    parser.add_argument("--no-local-host", dest="local_host", action="store_false")
    parser.add_argument("--hub", dest="hub_upstream", default="", help="of models")
    parser.add_argument("--allow-private-urls", action="store_true", help="of hubs, and of external endpoints")
    parser.add_argument("--hub-token-file", type=Path)
    parser.add_argument("--hub-on-demand", action="store_true")
    parser.add_argument("--traces", default="")
    parser.add_argument("--traces-share", type=float, default=0.0)
    parser.add_argument("--gateway-workers", type=int, default=1)
    parser.add_argument("--vllm", default="")
    given = vars(parser.parse_args(arguments))
    runtimes = {"vllm": {"environment": vllm}} if (vllm := given.pop("vllm")) else {}
    run(Settings(**given, runtimes=runtimes), lambda settings, admin: None)


if __name__ == "__main__":
    serve()
