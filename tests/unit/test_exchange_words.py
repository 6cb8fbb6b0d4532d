"""A line for people out of what went over the wire."""

from __future__ import annotations

import json

import pytest

from usina.cli.exchange_words import answered, asked


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [{"role": "system", "content": "x"}, {"role": "user", "content": "Hello"}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url"}, {"type": "text", "text": "Hello"}]}]},
        {"input": "Hello"},
        {"input": ["x", "Hello"]},
        {"prompt": "Hello"},
    ],
)
def test_what_was_asked_last(body: dict[str, object]) -> None:
    assert asked(json.dumps(body)) == "Hello"


@pytest.mark.parametrize(
    "body",
    [
        json.dumps({"choices": [{"message": {"content": "Hi there"}}]}),
        json.dumps({"choices": [{"text": "Hi there"}]}),
        json.dumps({"content": [{"type": "text", "text": "Hi there"}]}),
        json.dumps({"output": [{"content": [{"type": "output_text", "text": "Hi there"}]}]}),
        'data: {"choices":[{"delta":{"content":"Hi "}}]}\n\ndata: {"choices":[{"delta":{"content":"there"}}]}\n\n'
        'data: {"choices":[],"usage":{}}\n\ndata: [DONE]\n\n',
        'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"text":"Hi there"}}\n\n',
        'event: x\ndata: {"type":"response.output_text.delta","delta":"Hi there"}\n\n',
    ],
)
def test_what_was_answered(body: str) -> None:
    assert answered(body) == "Hi there"


@pytest.mark.parametrize(
    "body", ["", "cut {", "(vectors)", "[1]", '{"choices":[1]}', '{"choices":[{"message":{"content":null}}]}']
)
def test_what_cannot_be_read_is_shown_as_it_is(body: str) -> None:
    assert asked(body) == body
    assert answered(body) == body
