"""Traces, as a collector of OpenTelemetry gets them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import openai
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from usina.core.tenancy import Role
from usina.services.traces import OtlpTraces
from usina.testing.llm import Parrot, Site, parrots, running_gateway, token_of
from usina.testing.process import FactoryProcess, free_port
from usina.testing.waiting import until

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
HI = [{"role": "user", "content": "a secret of mine"}]


class Collector:
    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.service: dict[str, str] = {}
        self.raw = b""

    def take(self, data: bytes) -> None:
        self.raw += data
        for resource in ExportTraceServiceRequest.FromString(data).resource_spans:
            self.service = {one.key: one.value.string_value for one in resource.resource.attributes}
            for scope in resource.scope_spans:
                self.spans += scope.spans

    def named(self, name: str) -> list[Any]:
        return sorted((one for one in self.spans if one.name == name), key=lambda one: one.start_time_unix_nano)


@pytest.fixture
def collector() -> Iterator[tuple[str, Collector]]:
    made = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            made.take(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *words: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", made
        server.shutdown()
        thread.join()


def told(span: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in span.attributes}


@contextmanager
def traced(url: str, share: float = 1.0) -> Iterator[OtlpTraces]:
    traces = OtlpTraces(url, share, "one")
    yield traces
    traces.close()


async def test_a_request_is_a_span_and_so_is_every_replica_that_was_asked(
    collector: tuple[str, Collector], tmp_path: Path
) -> None:
    url, seen = collector
    bird, broken = Parrot(), Parrot(status=503)
    site = Site()
    site.project("lab")
    key = site.key("ann", project="prj-lab", tnt_1=Role.MEMBER)
    async with parrots(broken, bird) as ports:
        site.endpoint("chat", "prj-lab", ports[1:])
        site.endpoint("weak", "prj-lab", ports[:1], fallback=("chat",))
        with traced(url) as traces:
            async with running_gateway(tmp_path, site, traces=traces) as running:
                async with openai.AsyncOpenAI(base_url=running.url, api_key=token_of(key), max_retries=0) as client:
                    head = {"traceparent": f"00-{TRACE}-{CALLER}-01", "tracestate": "them=1"}
                    stream = await client.chat.completions.create(
                        model="weak", messages=HI, stream=True, extra_headers=head
                    )
                    assert [chunk async for chunk in stream]
                    head = {"traceparent": f"00-{TRACE}-{CALLER}-00"}  # the caller does not tell this one
                    await client.chat.completions.create(model="chat", messages=HI, extra_headers=head)
                    with pytest.raises(openai.BadRequestError):
                        await client.chat.completions.create(model="chat", messages=HI, n=0)
    [request] = seen.named("chat weak")
    assert (request.trace_id.hex(), request.parent_span_id.hex(), request.trace_state) == (TRACE, CALLER, "them=1")
    attempts = seen.named("chat lab/parrot")
    assert [one.parent_span_id for one in attempts] == [request.span_id] * 2
    assert [told(one).get("error.type") for one in attempts] == ["503", None]
    assert [bird.heads[0]["traceparent"], broken.heads[0]["traceparent"]] == [
        f"00-{TRACE}-{one.span_id.hex()}-01" for one in reversed(attempts)
    ]
    about = told(request)
    assert about["gen_ai.operation.name"] == "chat"
    assert (about["gen_ai.usage.input_tokens"], about["gen_ai.usage.output_tokens"]) == (7, 2)
    assert about["gen_ai.response.time_to_first_chunk"] > 0
    assert about["usina.endpoint"] == "ept-chat"
    assert len(seen.spans) == 3
    assert bird.heads[1]["traceparent"].endswith("-00")
    assert seen.service["service.name"] == "usina"
    assert b"secret" not in seen.raw
    assert token_of(key).encode() not in seen.raw


async def test_a_collector_that_is_not_there_harms_nobody(tmp_path: Path) -> None:
    site = Site()
    site.project("lab")
    key = site.key("ann", project="prj-lab", tnt_1=Role.MEMBER)
    async with parrots(Parrot()) as ports:
        site.endpoint("chat", "prj-lab", ports)
        with traced(f"http://127.0.0.1:{free_port()}") as traces:
            async with running_gateway(tmp_path, site, traces=traces) as running:
                async with openai.AsyncOpenAI(base_url=running.url, api_key=token_of(key), max_retries=0) as client:
                    for _ in range(3):
                        await client.chat.completions.create(model="chat", messages=HI)


def test_operations_are_spans_by_their_route(collector: tuple[str, Collector], tmp_path: Path) -> None:
    url, seen = collector
    with FactoryProcess(tmp_path / "data", local_host=False, traces=url).start() as factory:
        project = factory.call("GET", "/projects")["items"][0]["id"]
        factory.call("GET", f"/projects/{project}")
        factory.stop()
    [one] = until(lambda: seen.named("GET /api/v1/projects/{ref}"))
    assert told(one)["http.response.status_code"] == 200
    assert project.encode() not in seen.raw
    assert "healthz" not in " ".join(span.name for span in seen.spans)
