"""The typed client against a small server of its own that misbehaves as networks do."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest

from usina.client import ApiError, CannotConnect, Client, FreshKey, Limits, ResourceFailed, WaitedTooLong
from usina.client.events import read_events
from usina.client.wire import segment
from usina.core.errors import Invalid

RESOURCE: dict[str, Any] = {
    "id": "mch-1",
    "kind": "machine",
    "tenant": "t",
    "project": "p",
    "name": "hello",
    "phase": "pending",
    "generation": 1,
    "observed": 0,
    "deleting": False,
    "host": None,
    "parent": None,
    "spec": {},
    "status": {},
    "conditions": [],
    "labels": {},
    "created_at": "2026-05-01T12:00:00.000Z",
    "updated_at": "2026-05-01T12:00:00.000Z",
}
EVENT: dict[str, Any] = {
    "seq": 1,
    "at": "2026-05-01T12:00:00.000Z",
    "kind": "machine.running",
    "subject": "mch-1",
    "related": None,
    "tenant": None,
    "project": None,
    "actor": "engine",
    "cause": "",
    "text": "is running",
    "data": {},
}

Answer = Callable[["Request"], None]


class Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    answers: list[Answer]
    seen: list[tuple[str, str, dict[str, str], bytes]]

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.seen.append((self.command, self.path, dict(self.headers), body))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        answer(self)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = handle_any

    def log_message(self, format: str, *args: Any) -> None:
        pass


def reply(body: Any, status: int = 200, kind: str = "application/json") -> Answer:
    def answer(request: Request) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        request.send_response(status)
        request.send_header("Content-Type", kind)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)

    return answer


def hang_up(request: Request) -> None:
    """Close the connection without a word, after having read the request."""
    request.close_connection = True
    request.connection.close()


class Site:
    def __init__(self) -> None:
        self.seen: list[tuple[str, str, dict[str, str], bytes]] = []
        self.answers: list[Answer] = []
        handler = type("Handler", (Request,), {"seen": self.seen, "answers": self.answers})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.handle_error = lambda *_: None  # type: ignore[method-assign,misc]
        self.client = Client(f"http://127.0.0.1:{self.server.server_port}", "usk-a-b", timeout=5)
        threading.Thread(target=lambda: self.server.serve_forever(poll_interval=0.01), daemon=True).start()

    def answer(self, *answers: Answer) -> None:
        self.answers[:] = answers


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    yield made
    made.client.close()
    made.server.shutdown()
    made.server.server_close()


class TestOrders:
    def test_a_broken_connection_repeats_an_order_with_the_same_key(self, site: Site) -> None:
        site.answer(hang_up, reply(RESOURCE, 201))
        assert site.client.machines.create("hello", "debian-12").id == "mch-1"
        first, second = (headers["Idempotency-Key"] for _, _, headers, _ in site.seen)
        assert first == second

    def test_two_orders_have_two_keys(self, site: Site) -> None:
        site.answer(reply(RESOURCE, 201))
        site.client.machines.create("hello", "debian-12")
        site.client.machines.create("hello", "debian-12")
        assert len({headers["Idempotency-Key"] for _, _, headers, _ in site.seen}) == 2

    def test_a_deed_that_may_have_been_done_is_not_repeated(self, site: Site) -> None:
        site.answer(hang_up, reply(RESOURCE, 202))
        with pytest.raises(CannotConnect):
            site.client.machines.reboot("hello")
        assert len(site.seen) == 1

    def test_the_body_and_the_match(self, site: Site) -> None:
        site.answer(reply(RESOURCE))
        site.client.machines.resize("hello", cores=4, if_match=3)
        _, path, headers, body = site.seen[0]
        assert path == "/api/v1/machines/hello"
        assert headers["If-Match"] == '"3"'
        assert headers["Authorization"] == "Bearer usk-a-b"
        assert json.loads(body) == {"cores": 4}


class TestErrors:
    def test_a_problem_keeps_all_it_says(self, site: Site) -> None:
        told = {"detail": "no host", "code": "refused", "field": "cores", "data": {"reasons": {"memory": 3}}}
        site.answer(reply(told, 409, "application/problem+json"))
        with pytest.raises(ApiError) as caught:
            site.client.machines.create("hello", "debian-12")
        error = caught.value
        assert (error.status, error.code, error.field, error.message) == (409, "refused", "cores", "no host")
        assert error.data == {"reasons": {"memory": 3}}

    def test_a_proxy_that_answers_is_understood(self, site: Site) -> None:
        site.answer(reply(b"<html>Bad gateway</html>", 502, "text/html"))
        with pytest.raises(ApiError) as caught:
            site.client.whoami()
        assert caught.value.status == 502

    def test_nobody_there(self) -> None:
        with pytest.raises(CannotConnect, match="does not answer"):
            Client("http://127.0.0.1:9", "usk-a-b", timeout=1).whoami()

    @pytest.mark.parametrize("endpoint", ["", "127.0.0.1:8470", "ftp://x", "http://"])
    def test_an_address_that_is_none(self, endpoint: str) -> None:
        with pytest.raises(Invalid, match="endpoint"):
            Client(endpoint, "usk-a-b")

    def test_a_name_cannot_leave_its_path(self) -> None:
        assert segment("a/../b?c") == "a%2F..%2Fb%3Fc"
        with pytest.raises(Invalid):
            segment("..")

    def test_a_fresh_key_hides_its_secret(self) -> None:
        assert "hunter2" not in repr(
            FreshKey("key-1", "m", "k", 1, None, None, None, None, None, None, Limits(), "hunter2", "usk-hunter2")  # type: ignore[arg-type]
        )


class TestLists:
    def test_pages_follow_the_cursor(self, site: Site) -> None:
        second = RESOURCE | {"id": "mch-2"}
        site.answer(reply({"items": [RESOURCE], "next": "mch-1"}), reply({"items": [second], "next": None}))
        assert [one.id for one in site.client.machines.list()] == ["mch-1", "mch-2"]
        assert "cursor=mch-1" in site.seen[1][1]


class TestWaiting:
    def test_until_the_wish_is_answered(self, site: Site) -> None:
        stale = RESOURCE | {"phase": "running", "generation": 2, "observed": 1}
        there = stale | {"observed": 2}
        site.answer(reply(stale), reply(there))
        ordered = msgspec.convert(RESOURCE | {"generation": 2}, _resource())
        assert site.client.wait(ordered).observed == 2

    def test_a_failure_is_raised_with_its_reason(self, site: Site) -> None:
        bad = {"kind": "Working", "ok": False, "reason": "x", "message": "the disk is full"}
        failed = RESOURCE | {"phase": "failed", "observed": 1, "conditions": [bad | {"since": EVENT["at"]}]}
        site.answer(reply(failed))
        with pytest.raises(ResourceFailed, match="the disk is full"):
            site.client.wait(msgspec.convert(RESOURCE, _resource()))

    def test_patience_ends(self, site: Site) -> None:
        site.answer(reply(RESOURCE))
        with pytest.raises(WaitedTooLong, match="still pending"):
            site.client.wait(msgspec.convert(RESOURCE, _resource()), timeout=0.2)

    def test_a_restart_of_the_site_is_waited_for(self, site: Site) -> None:
        site.answer(hang_up, hang_up, hang_up, hang_up, reply(RESOURCE | {"phase": "running", "observed": 1}))
        assert site.client.wait(msgspec.convert(RESOURCE, _resource())).phase == "running"

    def test_gone(self, site: Site) -> None:
        site.answer(reply(RESOURCE | {"phase": "deleting"}), reply({"code": "not-found"}, 404))
        site.client.wait_gone(msgspec.convert(RESOURCE, _resource()))

    def test_each_event_is_told_once(self, site: Site) -> None:
        told: list[int] = []
        settled = RESOURCE | {"phase": "running", "observed": 1}
        site.answer(
            reply(RESOURCE),
            reply({"items": [EVENT], "next": None}),
            reply(settled),
            reply({"items": [EVENT | {"seq": 2}], "next": None}),
        )
        site.client.wait(
            msgspec.convert(RESOURCE, _resource()), watch=lambda _, event: told.append(event.seq) if event else None
        )
        assert told == [1, 2]
        assert "after=1" in site.seen[3][1]


class TestEvents:
    def test_comments_and_several_lines(self) -> None:
        text = json.dumps(EVENT, indent=1).splitlines()
        lines = [": hello", "retry: 2000", "", "id: 1", "event: x", *(f"data: {line}" for line in text), "", "data: {"]
        assert [event.seq for event in read_events(lines)] == [1]

    def test_a_broken_stream_is_resumed_after_the_last_event(self, site: Site) -> None:
        def stream(seq: int) -> Answer:
            def answer(request: Request) -> None:
                request.send_response(200)
                request.send_header("Content-Type", "text/event-stream")
                request.end_headers()
                request.wfile.write(f"id: {seq}\ndata: {json.dumps(EVENT | {'seq': seq})}\n\n".encode())
                request.close_connection = True

            return answer

        site.answer(stream(7), stream(8))
        events = site.client.events(after=6)
        assert [next(events).seq, next(events).seq] == [7, 8]
        assert site.seen[0][2]["Last-Event-ID"] == "6"
        assert site.seen[1][2]["Last-Event-ID"] == "7"

    def test_a_refusal_ends_it(self, site: Site) -> None:
        site.answer(reply({"detail": "who are you", "code": "unauthenticated"}, 401))
        with pytest.raises(ApiError, match="who are you"):
            next(site.client.events())


class TestUpload:
    def test_it_goes_on_where_it_broke_off(self, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("usina.client.images.PART", 4)
        monkeypatch.setattr("usina.client.images.time.sleep", lambda _: None)
        file = tmp_path / "disk"
        file.write_bytes(b"0123456789")
        image = msgspec.convert(RESOURCE | {"id": "img-1", "kind": "image"}, _resource())
        site.answer(
            reply({"offset": 0}),
            reply({"offset": 4}),
            hang_up,  # the second part arrived, its answer did not; it is sent again …
            reply({"code": "offset", "detail": "at 8"}, 409),  # … and refused
            reply({"offset": 8}),
            reply({"offset": 10}),
            reply(RESOURCE, 202),
        )
        shown: list[int] = []
        site.client.images.send(image, file, lambda done, size: shown.append(done))
        sent = [(headers["Upload-Offset"], body) for verb, _, headers, body in site.seen if verb == "PUT"]
        assert sent == [("0", b"0123"), ("4", b"4567"), ("4", b"4567"), ("8", b"89")]
        assert shown == [0, 4, 8, 10]
        assert json.loads(site.seen[-1][3])["sha256"].startswith("84d89877")


def _resource() -> Any:
    from usina.client import Resource

    return Resource
