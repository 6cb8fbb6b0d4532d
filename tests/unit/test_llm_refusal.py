"""Errors of replicas, in the words of who asked."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usina.services.llm.refusal import told_by_replica

OPENAI = b'{"error": {"message": "no", "type": "x", "code": "y"}}'
ANTHROPIC = b'{"type": "error", "error": {"type": "x", "message": "no"}}'

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(["error", "message", "detail"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["error", "message", "detail", "type", "x"]), inner, max_size=4)
    ),
    max_leaves=8,
)


@pytest.mark.parametrize(("body", "anthropic"), [(OPENAI, False), (ANTHROPIC, True), (ANTHROPIC, False)])
def test_what_has_the_form_stays_as_it_is(body: bytes, anthropic: bool) -> None:
    assert told_by_replica(400, body, "/messages", anthropic=anthropic) is body


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (400, OPENAI, "no"),
        (400, b'{"error": "no"}', "no"),
        (422, b'{"detail": "no"}', "no"),
        (422, b'{"detail": [{"loc": ["body"]}]}', "the replica answered 422"),
        (404, b'{"detail": "Not Found"}', "what serves this model has no /embeddings"),
        (502, b"<html>", "the replica answered 502"),
        (500, b"", "the replica answered 500"),
        (500, b"[" * 100_000, "the replica answered 500"),
        (500, b"\xff", "the replica answered 500"),
    ],
)
def test_what_has_not_is_told_in_it(status: int, body: bytes, message: str) -> None:
    error = json.loads(told_by_replica(status, body, "/embeddings", anthropic=True))
    kind = {404: "not_found_error"}.get(status, "api_error" if status >= 500 else "invalid_request_error")
    assert error == {"type": "error", "error": {"type": kind, "message": message}}


@given(
    st.binary(max_size=50) | JSON.map(lambda value: json.dumps(value).encode()), st.integers(400, 599), st.booleans()
)
def test_clients_can_always_read_it(body: bytes, status: int, anthropic: bool) -> None:
    said = json.loads(told_by_replica(status, body, "/chat/completions", anthropic=anthropic))
    assert isinstance(said["error"]["message"], str)
    assert not anthropic or said["type"] == "error"
