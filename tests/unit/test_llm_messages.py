"""Anthropic's messages made of chats, checked against the types of Anthropic's own SDK."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from anthropic.types import Message as TheirMessage
from anthropic.types import RawMessageStreamEvent
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from usina.services.llm.ask import VERBS, read
from usina.services.llm.messages import Message, MessageEvents, as_chat
from usina.services.llm.refusal import Refusal
from usina.services.llm.stream import Used

EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)


def chat_of(**more: object) -> dict[str, Any]:
    order = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]} | more
    return json.loads(as_chat(json.dumps(order).encode())[0])


def chunk(finish: str | None = None, **delta: object) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


def told(out: bytes) -> list[dict[str, Any]]:
    found = []
    for event in out.decode().split("\n\n")[:-1]:
        name, data = event.split("\n")
        body = json.loads(data.removeprefix("data: "))
        assert name == f"event: {body['type']}"
        EVENT.validate_python(body)
        found.append(body)
    return found


def test_a_conversation_with_tools_becomes_a_chat() -> None:
    chat = chat_of(
        system=[{"type": "text", "text": "Be short."}, {"type": "text", "text": "Be kind."}],
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "Weather?"}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "x"},
                    {"type": "text", "text": "Let me see."},
                    {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Lisbon"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "sunny"}]},
                    {"type": "text", "text": "And now?"},
                ],
            },
        ],
        tools=[{"name": "weather", "description": "tells it", "input_schema": {"type": "object"}}],
        tool_choice={"type": "tool", "name": "weather", "disable_parallel_tool_use": True},
        stop_sequences=["END"],
        output_config={"effort": "max", "format": {"type": "json_schema", "schema": {"type": "object"}}},
        stream=True,
    )
    assert chat["messages"] == [
        {"role": "system", "content": "Be short.\nBe kind."},
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": "Let me see.",
            "tool_calls": [
                {"id": "t1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Lisbon"}'}}
            ],
        },
        {"role": "tool", "tool_call_id": "t1", "content": "sunny"},
        {"role": "user", "content": "And now?"},
    ]
    function = {"name": "weather", "parameters": {"type": "object"}, "description": "tells it"}
    assert chat["tools"] == [{"type": "function", "function": function}]
    assert chat["tool_choice"] == {"type": "function", "function": {"name": "weather"}}
    assert chat["parallel_tool_calls"] is False
    assert chat["stop"] == ["END"]
    assert chat["reasoning_effort"] == "high"
    assert chat["response_format"]["json_schema"]["schema"] == {"type": "object"}
    assert chat["stream_options"] == {"include_usage": True}
    assert chat["max_tokens"] == 9


def test_images_come_along() -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
    linked = {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}}
    parts = chat_of(messages=[{"role": "user", "content": [image, linked]}])["messages"][0]["content"]
    assert [part["image_url"]["url"] for part in parts] == ["data:image/png;base64,AAAA", "https://example.org/a.png"]


@pytest.mark.parametrize(
    ("order", "param"),
    [
        ({"messages": "hi"}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": [{"type": "odd"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages[0].content[0].source"),
        ({"messages": [{"role": "assistant", "content": [{"type": "odd"}]}]}, "messages[0].content[0].type"),
        ({"system": 5}, "system"),
        ({"tools": [{"type": "web_search_20250305", "name": "w"}]}, "tools[0].type"),
        ({"tools": [5]}, "tools[0]"),
        ({"tool_choice": {"type": "odd"}}, "tool_choice.type"),
        ({"output_config": {"format": {"type": "odd"}}}, "output_config.format.type"),
    ],
)
def test_what_cannot_be_made_a_chat_is_named(order: dict[str, object], param: str) -> None:
    with pytest.raises(Refusal) as refused:
        chat_of(**order)
    assert refused.value.param == param


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=3), st.lists, max_leaves=6))
def test_nonsense_is_refused_and_breaks_nothing(nonsense: object) -> None:
    for name in ("messages", "system", "tools", "tool_choice", "output_config"):
        try:
            chat_of(**{name: nonsense})
        except Refusal as refusal:
            assert refusal.status == 400
            assert (refusal.param or "").startswith(name)


def test_what_is_nested_without_end_is_refused() -> None:
    body = b'{"model":"m","messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    for path in ("/messages", "/responses", "/chat/completions"):
        with pytest.raises(Refusal):
            read(VERBS[path], body).as_chat()


def test_a_whole_answer_becomes_a_message() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Lisbon"}'}}
    answer = {"role": "assistant", "content": "Let me see.", "tool_calls": [call]}
    body = json.dumps({"choices": [{"message": answer, "finish_reason": "tool_calls"}]}).encode()
    message = TheirMessage.model_validate_json(Message("m").whole(body, Used(10, 4, 3)))
    assert [block.type for block in message.content] == ["text", "tool_use"]
    assert message.content[1].input == {"city": "Lisbon"}
    assert message.stop_reason == "tool_use"
    assert (message.usage.input_tokens, message.usage.cache_read_input_tokens, message.usage.output_tokens) == (6, 4, 3)


@pytest.mark.parametrize(
    ("choice", "ended"),
    [
        ({"finish_reason": "stop"}, ("end_turn", None)),
        ({"finish_reason": "stop", "stop_reason": "END"}, ("stop_sequence", "END")),
        ({"finish_reason": "stop", "stop_reason": 7}, ("end_turn", None)),
        ({"finish_reason": "length"}, ("max_tokens", None)),
        ({"finish_reason": "content_filter"}, ("refusal", None)),
    ],
)
def test_why_it_ended_is_told(choice: dict[str, object], ended: tuple[str, str | None]) -> None:
    body = json.dumps({"choices": [choice | {"message": {"content": "x"}}]}).encode()
    message = json.loads(Message("m").whole(body, Used()))
    assert (message["stop_reason"], message["stop_sequence"]) == ended


STREAM = (
    chunk(role="assistant", content="")
    + chunk(content="Let me")
    + chunk(content=" see.")
    + chunk(tool_calls=[{"index": 0, "id": "c1", "function": {"name": "weather", "arguments": ""}}])
    + chunk(tool_calls=[{"index": 0, "function": {"arguments": '{"city":'}}])
    + chunk(tool_calls=[{"index": 0, "function": {"arguments": '"Lisbon"}'}}])
    + chunk(tool_calls=[{"index": 1, "id": "c2", "function": {"name": "time", "arguments": "{}"}}])
    + chunk("tool_calls")
    + b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":9}}\n\ndata: [DONE]\n\n'
)


@given(st.sets(st.integers(1, len(STREAM) - 1), max_size=12))
def test_a_stream_becomes_events_wherever_it_is_cut(cuts: set[int]) -> None:
    events = MessageEvents(Message("m"))
    places = [0, *sorted(cuts), len(STREAM)]
    out = b"".join([events.feed(STREAM[a:b]) for a, b in pairwise(places)])
    seen = told(out)
    assert [event["type"].removeprefix("content_block_") for event in seen] == [
        "message_start", "start", "delta", "delta", "stop", "start", "delta", "delta", "stop", "start", "delta", "stop",
        "message_delta", "message_stop",
    ]  # fmt: skip
    assert [event["index"] for event in seen if "index" in event] == [0] * 4 + [1] * 4 + [2] * 3
    assert seen[5]["content_block"] == {"type": "tool_use", "id": "c1", "name": "weather", "input": {}}
    assert seen[-2]["delta"]["stop_reason"] == "tool_use"
    assert (seen[-2]["usage"]["input_tokens"], seen[-2]["usage"]["output_tokens"]) == (5, 9)
    assert events.ended
