"""Tasks of a project: order, follow, get into, fetch what they leave; and the content that they are given."""

from __future__ import annotations

import builtins
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

import httpx2
import msgspec

from usina.client.errors import read_problem
from usina.client.models import Blob, Resource, Usage, given
from usina.client.resources import Collection
from usina.client.streams import Command, Stream, open_stream
from usina.client.wire import segment

CHUNK = 1 << 20


class LogLine(msgspec.Struct, frozen=True):
    """A line of a log. `stream` is ``o`` (output), ``e`` (errors) or ``s`` (a word of the stack)."""

    at: datetime
    stream: str
    text: str


class Tasks(Collection):
    path = "/tasks"

    def create(self, command: Sequence[str] = (), *, project: str | None = None, **wishes: Any) -> Resource:
        """Order a task. `wishes` are the fields of the API's ``TaskIn``; what is None is left out."""
        return self._create(given(command=list(command), **wishes), project)

    def stop(self, ref: str, project: str | None = None) -> Resource:
        return self._one("POST", ref, project, "/stop")

    def rerun(self, ref: str, project: str | None = None) -> Resource:
        return self._one("POST", ref, project, "/rerun")

    def parts(self, ref: str, project: str | None = None) -> builtins.list[Resource]:
        """The parts of an array or gang, in order; none where its stack runs it as a whole."""
        query = {"project": project or self._project}
        return list(self._wire.pages(Resource, f"{self.path}/{segment(ref)}/parts", query))

    def logs(
        self,
        ref: str,
        *,
        index: int | None = None,
        run: int | None = None,
        since: float | None = None,
        until: float | None = None,
        follow: bool = False,
        project: str | None = None,
    ) -> Iterator[LogLine]:
        """What it said; with `follow`, as it says it, until it is over. Times in seconds since the epoch."""
        query = {
            "project": project or self._project,
            "index": index,
            "run": run,
            "since": None if since is None else int(since * 1000),
            "until": None if until is None else int(until * 1000),
            "follow": "true" if follow else None,
        }
        with self._streamed(f"{self.path}/{segment(ref)}/logs", query) as answer:
            for line in _lines(answer.iter_bytes()):
                at, stream, text = (line.split(" ", 2) + ["", ""])[:3]
                yield LogLine(datetime.fromtimestamp(int(at) / 1000).astimezone(), stream, text)

    def usage(self, ref: str, project: str | None = None) -> builtins.list[Usage]:
        """What its newest run has used, sampled over time."""
        query = {"project": project or self._project}
        return list(self._wire.pages(Usage, f"{self.path}/{segment(ref)}/usage", query))

    def download(self, ref: str, name: str, into: BinaryIO, project: str | None = None) -> int:
        """Fetch something that it left; the number of bytes."""
        size = 0
        path = f"{self.path}/{segment(ref)}/artifacts/{segment(name)}"
        with self._streamed(path, {"project": project or self._project}) as answer:
            for chunk in answer.iter_bytes():
                size += into.write(chunk)
        return size

    def tunnel(self, ref: str, port: int, index: int | None = None, project: str | None = None) -> Stream:
        """A TCP stream to a port that it listens on."""
        query = given(port=port, index=index)
        return open_stream(self._wire, f"/tasks/{segment(ref)}/tunnel", project or self._project, query)

    def exec(
        self,
        ref: str,
        command: Sequence[str],
        *,
        terminal: bool = False,
        index: int | None = None,
        project: str | None = None,
    ) -> Command:
        """A command beside it while it runs."""
        query = given(command=list(command), terminal=1 if terminal else None, index=index)
        return Command(open_stream(self._wire, f"/tasks/{segment(ref)}/exec", project or self._project, query))

    # --- content

    def give(self, path: Path, project: str | None = None, told: Callable[[int], None] = lambda sent: None) -> str:
        """Give the project the content of a file, unless it has it; its digest. `told` hears of bytes as they go."""
        digest = _digest(path)
        query: Mapping[str, str | None] = {"project": project or self._project}
        found = self._wire.one(_Known, "POST", "/blobs/known", query=query, body={"digests": [digest]})
        if not found.items:
            self._wire.send_file("PUT", f"/blobs/{digest}", path, query=query, told=told)
        return digest

    @contextmanager
    def _streamed(self, path: str, query: Mapping[str, Any]) -> Iterator[httpx2.Response]:
        with self._wire.stream("GET", path, query=query) as answer:
            if not answer.is_success:
                raise read_problem(answer.status_code, answer.read())
            yield answer


class _Known(msgspec.Struct):
    items: list[Blob]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _lines(chunks: Iterator[bytes]) -> Iterator[str]:
    """Whole lines; the rest of a broken one is left."""
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield line.decode(errors="replace")
