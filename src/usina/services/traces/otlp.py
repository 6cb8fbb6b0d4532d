"""Spans over OTLP/HTTP, by OpenTelemetry's own library, which gathers them and sends them from a thread.

A trace that a caller has begun is told if the caller tells it; of those that begin here, a share. Where the collector
does not answer, spans beyond `WAITING` are dropped, and nobody waits.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

import requests
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from usina import __version__
from usina.ports.traces import Span, Told

WAITING = 4096  # spans
EVERY = 2000  # milliseconds between batches
PATIENCE = 3.0  # seconds for the collector to take one
_CONTEXT = TraceContextTextMapPropagator()
_CARRIED = (b"traceparent", b"tracestate")


class OtlpTraces:
    """`url`: of the collector, ``http://host:4318``; `share` of traces that begin here, 0 to 1."""

    def __init__(self, url: str, share: float, instance: str) -> None:
        about = {"service.name": "usina", "service.version": __version__, "service.instance.id": instance}
        session = requests.Session()
        session.trust_env = False
        exporter = OTLPSpanExporter(f"{url}/v1/traces", timeout=PATIENCE, session=session)
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(share)), resource=Resource(about), shutdown_on_exit=False
        )
        self._provider.add_span_processor(
            BatchSpanProcessor(exporter, max_queue_size=WAITING, schedule_delay_millis=EVERY)
        )
        self._tracer = self._provider.get_tracer("usina", __version__)

    def begin(self, name: str, headers: Mapping[bytes, bytes]) -> Span | None:
        given = {key.decode(): headers[key].decode("latin-1") for key in _CARRIED if key in headers}
        context = _CONTEXT.extract(given) if given else None
        span = self._tracer.start_span(name, context, trace.SpanKind.SERVER)
        return OtlpSpan(self._tracer, span) if span.is_recording() else None

    def close(self) -> None:
        """Send what is left, if the collector takes it in time."""
        ending = threading.Thread(target=self._provider.shutdown, daemon=True)
        ending.start()
        ending.join(PATIENCE)


class OtlpSpan:
    def __init__(self, tracer: trace.Tracer, span: trace.Span) -> None:
        self._tracer, self._span = tracer, span

    def child(self, name: str) -> OtlpSpan:
        context = trace.set_span_in_context(self._span)
        return OtlpSpan(self._tracer, self._tracer.start_span(name, context, trace.SpanKind.CLIENT))

    def headers(self) -> Sequence[tuple[bytes, bytes]]:
        carried: dict[str, str] = {}
        _CONTEXT.inject(carried, trace.set_span_in_context(self._span))
        return [(name.encode(), value.encode()) for name, value in carried.items()]

    def end(self, told: Told, error: str = "", name: str = "") -> None:
        if name:
            self._span.update_name(name)
        self._span.set_attributes(dict(told))
        if error:
            self._span.set_attribute("error.type", error)
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()
