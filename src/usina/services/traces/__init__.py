"""Traces by OpenTelemetry: sent to a collector in batches, from a thread."""

from usina.services.traces.otlp import OtlpTraces

__all__ = ["OtlpTraces"]
