"""Stories and events: read back, or followed as they happen (server-sent events, resumed after every break)."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

import httpx2
import msgspec

from usina.client.errors import read_problem
from usina.client.models import Event
from usina.client.wire import Query, Wire, segment

SILENCE = 45.0  # seconds without a byte after which a stream is taken for dead; the site speaks every 15
PAGE = 1000


class _Page(msgspec.Struct):
    items: list[Event]
    next: str | None = None


class Events:
    def __init__(self, wire: Wire, project: str | None) -> None:
        self._wire, self._project = wire, project

    def story(self, ref: str, *, after: int = 0, project: str | None = None) -> Iterator[Event]:
        """Everything that happened to one object so far, also after its end."""
        return self._read(f"/stories/{segment(ref)}", {"project": project or self._project}, after)

    def past(
        self, *, after: int = 0, project: str | None = None, subject: str | None = None, kind: str | None = None
    ) -> Iterator[Event]:
        """Events so far, in order."""
        return self._read("/events", {"project": project, "subject": subject, "kind": kind}, after)

    def _read(self, path: str, query: Query, after: int) -> Iterator[Event]:
        while True:
            found = self._wire.one(_Page, "GET", path, query={**query, "after": after, "limit": PAGE})
            yield from found.items
            if found.next is None:
                return
            after = int(found.next)

    def follow(
        self,
        *,
        after: int | None = None,
        project: str | None = None,
        subject: str | None = None,
        kind: str | None = None,
        patience: float = 60.0,
    ) -> Iterator[Event]:
        """Events as they happen, from now on or past `after`, without end and without gaps.

        A broken stream is resumed by Last-Event-ID; `CannotConnect` is raised when the site stays away longer
        than `patience` seconds, `ApiError` when the key or the role is gone.
        """
        query = {"project": project, "subject": subject, "kind": kind, "after": after}
        last = after
        heard = time.monotonic()
        pause = 0.2
        while True:
            try:
                for event in self._stream(query, last):
                    last, pause = event.seq, 0.2
                    yield event
                    heard = time.monotonic()
                failure: Exception = EOFError("the stream ended")
            except httpx2.TransportError as error:
                failure = error
                if time.monotonic() - heard > patience:
                    raise self._wire.unanswered(failure) from failure
            time.sleep(pause)
            pause = min(pause * 2, 5.0)

    def _stream(self, query: Query, last: int | None) -> Iterator[Event]:
        params = {name: value for name, value in query.items() if value is not None}
        headers = {"Accept": "text/event-stream"}
        if last is not None:
            headers["Last-Event-ID"] = str(last)
        timeout = httpx2.Timeout(SILENCE, connect=5.0)
        with self._wire.http.stream("GET", "/events/stream", params=params, headers=headers, timeout=timeout) as answer:
            if not answer.is_success:
                raise read_problem(answer.status_code, answer.read())
            yield from read_events(answer.iter_lines())


def read_events(lines: Iterable[str]) -> Iterator[Event]:
    """The ``data`` of a stream of server-sent events (WHATWG HTML, section 9.2)."""
    data: list[str] = []
    for line in lines:
        name, _, value = line.partition(":")
        if name == "data":
            data.append(value.removeprefix(" "))
        elif not line and data:
            yield msgspec.json.decode("\n".join(data), type=Event)
            data.clear()
