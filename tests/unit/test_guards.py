"""Guards, the pure parts: recognisers, streams cut anywhere, bodies that are looked at."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from usina.core.errors import Invalid
from usina.guards.http import _between
from usina.guards.patterns import PLUGIN
from usina.guards.patterns.guard import Patterns
from usina.ports.guard import WINDOW, Placed, Side, changed
from usina.server.guards import placed
from usina.server.settings import Settings
from usina.services.llm.guarding import Denied, Guards, StreamWatch, now
from usina.services.llm.refusal import Refusal
from usina.services.reach import Reach

ALL = ["email", "iban", "card", "phone", "ip", "secret"]
KNOWN = {
    "email": "ann.lee+x@mail.example.org",
    "iban": "DE89 3704 0044 0532 0130 00",
    "card": "4111 1111 1111 1111",
    "phone": "+34 912 345 678",
    "ip": "192.168.10.1",
    "secret": "AKIAIOSFODNN7EXAMPLE",
}


def patterns(**given: object) -> Patterns:
    return PLUGIN.make(given or {"redact": ALL}, Reach())  # type: ignore[return-value]


GUARD = patterns()


def redacted(text: str, guard: Patterns = GUARD) -> str:
    found = guard.look([text], Side.ANSWER)
    return changed(text, found.changes[0]) if found.changes else text


def guards(*guard: Patterns) -> Guards:
    return Guards([Placed(f"g{n}", one) for n, one in enumerate(guard)], [], opened=False)


@pytest.mark.parametrize("name", KNOWN)
def test_what_is_known_is_redacted_and_what_only_looks_like_it_is_not(name: str) -> None:
    assert redacted(f"It is {KNOWN[name]}, or so.") == f"It is [{name}], or so."
    for near in ("4111 1111 1111 1112", "DE88 3704 0044 0532 0130 00", "999.1.1.1", "ann at mail", "1 + 2 = 3"):
        assert redacted(near) == near


def test_a_private_key_goes_whole() -> None:
    key = "-----BEGIN RSA PRIVATE KEY-----\n" + "MIIEow/+ab\n" * 60 + "-----END RSA PRIVATE KEY-----"
    assert redacted(f"a {key}.") == "a [secret]."
    assert streamed([f"a {key}."[n : n + 7] for n in range(0, 900, 7)]) == "a [secret]."


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({}, "redact"),
        ({"redact": ["emial"]}, "redact"),
        ({"deny": ["words"]}, "deny"),
        ({"deny": ["expressions"], "expressions": ["("]}, "expressions"),
        ({"deny": ["expressions"], "expressions": ["a*"]}, "expressions"),
        ({"redact": ["email"], "answers": 1}, "answers"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, object], field: str) -> None:
    with pytest.raises(Invalid) as caught:
        PLUGIN.make(settings, Reach())
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("[guards.x]\nplugin = 'none'", "guards.x.plugin"),
        ("[guards.x]\nplugin = 'patterns'\nredact = ['emial']", "guards.x.redact"),
        ("[guards.x]\nplugin = 'patterns'\neverywhere = 'yes'", "guards.x.everywhere"),
        ("[guards.x]\nplugin = 'http'\nurl = 'ftp://x'", "guards.x.url"),
        ("[guard.x]\n", "guards"),
        ("no", "guards"),
    ],
)
def test_a_wrong_file_is_refused_with_the_field(tmp_path: Path, text: str, field: str) -> None:
    (tmp_path / "g.toml").write_text(text)
    with pytest.raises(Invalid) as caught:
        placed(Settings(tmp_path, guards=tmp_path / "g.toml"))
    assert caught.value.field == field


PIECES = st.one_of(st.sampled_from(list(KNOWN.values())), st.text("ab1 .@+-4:\n", max_size=60), st.just("x " * 150))
TEXTS = st.lists(PIECES, max_size=8).map(" ".join)


def chunk(text: str) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, "delta": {"content": text}}]}).encode() + b"\n\n"


def streamed(parts: list[str], *guard: Patterns, end: bytes = b"data: [DONE]\n\n") -> str:
    """What a client reads."""
    watch = StreamWatch(guards(*(guard or (GUARD,))))
    out = b"".join(now(watch.feed(chunk(part))) for part in parts) + now(watch.feed(end)) + now(watch.end())
    assert out.endswith(end)
    events = [json.loads(line[6:]) for line in out.splitlines() if line.startswith(b"data: {")]
    return "".join(one["choices"][0]["delta"].get("content") or "" for one in events)


@settings(max_examples=150, deadline=None)
@given(TEXTS, st.lists(st.integers(1, 40), min_size=1, max_size=60))
def test_a_stream_cut_anywhere_reads_as_the_whole_text(text: str, sizes: list[int]) -> None:
    parts, at = [], 0
    while at < len(text):
        size = sizes[len(parts) % len(sizes)]
        parts.append(text[at : at + size])
        at += size
    told = streamed(parts)
    assert told == redacted(text)
    assert not any(known in told for known in KNOWN.values())


@pytest.mark.parametrize("name", KNOWN)
def test_what_is_cut_where_the_window_lets_go_is_still_found(name: str) -> None:
    for before in range(WINDOW - 32, WINDOW + 4, 3):
        text = "." * before + f" {KNOWN[name]} " + "." * 300
        assert streamed([text[n : n + 5] for n in range(0, len(text), 5)]) == redacted(text)
        assert KNOWN[name] not in redacted(text)


@given(st.binary(max_size=200), st.integers(1, 30))
def test_events_that_are_cut_in_bytes_read_the_same(noise: bytes, size: int) -> None:
    data = b": " + noise.hex().encode() + b"\n\n" + chunk("hi a@b.org x") + b"data: [DONE]\n\n"
    watch = StreamWatch(guards(GUARD))
    out = b"".join(now(watch.feed(data[n : n + size])) for n in range(0, len(data), size)) + now(watch.end())
    assert b"[email]" in out and b"a@b.org" not in out and out.endswith(b"data: [DONE]\n\n")


def test_other_parts_of_a_stream_keep_their_form() -> None:
    call = {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]}}]}
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":1}}\n\n'
    tool = b"data: " + json.dumps(call).encode() + b"\n\n"
    watch = StreamWatch(guards(GUARD))
    out = now(watch.feed(chunk("see 192.168.10.1") + tool + usage + b"data: [DONE]\n\n"))
    events = out.split(b"\n\n")
    assert json.loads(events[0][6:])["choices"][0]["delta"]["content"] == "see [ip]"
    assert json.loads(events[1][6:]) == call
    assert events[2] + b"\n\n" == usage


def test_streams_of_messages_read_the_same() -> None:
    """As runtimes send them that speak Anthropic's messages themselves."""

    def event(kind: str, **more: object) -> bytes:
        return f"event: {kind}\ndata: {json.dumps({'type': kind, **more})}\n\n".encode()

    def delta(text: str) -> bytes:
        return event("content_block_delta", index=0, delta={"type": "text_delta", "text": text})

    begin = event("message_start", message={"usage": {"input_tokens": 1}})
    begin += event("content_block_start", index=0, content_block={"type": "text", "text": ""})
    end = event("content_block_stop", index=0) + event("message_delta", delta={"stop_reason": "end_turn"})
    end += event("message_stop")
    watch = StreamWatch(guards(GUARD))
    stream = begin + delta("pay 4111 1111") + delta(" 1111 1111 n") + delta("ow") + end
    out = b"".join(now(watch.feed(stream[n : n + 7])) for n in range(0, len(stream), 7)) + now(watch.end())
    assert out.startswith(begin) and out.endswith(end)
    told = [json.loads(line[6:]) for line in out.splitlines() if line.startswith(b"data: ")]
    assert "".join(one["delta"].get("text", "") for one in told if "delta" in one) == "pay [card] now"


def test_a_denied_word_within_the_window_never_goes_out() -> None:
    guard = patterns(deny=["words"], words=["Falcon"])
    watch = StreamWatch(guards(guard))
    told = b"".join(now(watch.feed(chunk(part))) for part in ["x " * 300, "it is fal", "con"])
    with pytest.raises(Denied):
        now(watch.feed(chunk(" y" * WINDOW)))
    assert b"fal" not in told and told
    assert "falconry" in streamed(["x " * 300, "it is fal", "con", "ry", " y" * WINDOW], guard)


@given(
    st.recursive(
        st.none() | st.integers(-9, 9) | st.text("xyz "), lambda x: st.lists(x) | st.dictionaries(st.text("ab"), x)
    )
)
def test_what_is_allowed_says_what_it_said(value: object) -> None:
    body = {"model": "m", "messages": value, "n": 1.50}
    assert json.loads(now(guards(GUARD).request(json.dumps(body).encode()))) == body


def test_of_a_name_that_is_there_twice_replicas_get_what_guards_have_seen() -> None:
    told = now(guards(GUARD).request(b'{"model":"m","prompt":"a@b.org","prompt":"hello"}'))
    assert b"a@b.org" not in told


def test_texts_are_found_wherever_they_stand() -> None:
    mail = "a@b.org"
    body = {
        "model": mail,
        "system": [{"type": "text", "text": mail}],
        "messages": [
            {"role": "user", "content": mail},
            {
                "role": "user",
                "content": [{"type": "text", "text": mail}, {"type": "image_url", "image_url": {"url": mail}}],
            },
            {"role": "tool", "tool_call_id": mail, "content": mail},
            {"role": "user", "content": [{"type": "tool_result", "content": [{"type": "text", "text": mail}]}]},
            {
                "role": "assistant",
                "tool_calls": [{"id": mail, "function": {"name": "f", "arguments": '{"a": "a@b.org"}'}}],
            },
        ],
        "instructions": mail,
        "prompt": [mail, mail],
    }
    told = now(guards(GUARD).request(json.dumps(body).encode()))
    assert told.count(b"[email]") == 9
    assert told.count(b"a@b.org") == 4  # what is structure: the model, an image, and two ids


@pytest.mark.parametrize("body", [{"prompt": [1, 2]}, {"input": [[1], [2]]}])
def test_numbers_of_tokens_are_no_way_around(body: dict[str, object]) -> None:
    with pytest.raises(Refusal):
        now(guards(GUARD).request(json.dumps({"model": "m"} | body).encode()))


def test_a_denial_does_not_repeat_the_text() -> None:
    with pytest.raises(Refusal) as caught:
        now(guards(patterns(deny=["email"])).request(b'{"messages":[{"content":"a@b.org"}]}'))
    assert (caught.value.status, caught.value.code) == (400, "content_filter")
    assert "g0" in caught.value.message and "email" in caught.value.message and "a@b" not in caught.value.message


@given(st.text("abc", max_size=12), st.text("abc", max_size=12), st.integers(0, 3))
def test_a_changed_text_is_one_change(old: str, new: str, behind: int) -> None:
    behind = min(behind, len(old))
    assert changed(old, _between(old[behind:], new, behind)) == old[:behind] + new


class _Slow:
    waits = answers = True

    async def look(self, texts: list[str], side: Side, behind: int = 0) -> object:
        await asyncio.Event().wait()

    async def close(self) -> None:
        pass


@pytest.mark.parametrize("opened", [True, False])
async def test_who_does_not_answer_in_time_is_passed_over_only_if_told_so(opened: bool) -> None:
    slow = Guards([Placed("slow", _Slow(), timeout=0.01)], [], opened=opened)  # type: ignore[arg-type]
    body = b'{"messages":"hi"}'
    if opened:
        assert await slow.request(body) == body
    else:
        with pytest.raises(Refusal) as caught:
            await slow.request(body)
        assert caught.value.status == 503
