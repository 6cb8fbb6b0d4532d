"""Guards on the way of a request: its texts are looked at before it is reserved, and those of its answer before they go
out. All of it is beside the way of requests to endpoints that have no guards.

Of a body every text is looked at, wherever it stands, but for what is structure and what is no text (`_STRUCTURE`). Of
a stream, texts are held back by `WINDOW` characters, each guard on what the one before let through; everything else of
its events goes on as it came. Invariant: nothing that was held goes out unlooked at, however the stream ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import structlog
from prometheus_client import Counter

from usina.ports.guard import WINDOW, Found, Placed, Side, changed
from usina.services.llm.refusal import Refusal, invalid
from usina.services.llm.stream import LONGEST, end_of_events, split_events, used_in

if TYPE_CHECKING:
    from usina.services.llm.call import OneCall

log = structlog.get_logger()
GUARDED = Counter("usina_gateway_guarded_total", "What guards said of requests and answers.", ("guard", "verdict"))
HELD = 16_384  # characters of a stream that are held at most, while something found in them has no end
WHOLE = 64 << 20  # bytes of an answer that is held

_STRUCTURE = frozenset(
    {
        "model", "type", "role", "id", "object", "call_id", "tool_call_id", "tool_use_id", "name", "detail",
        "media_type", "format", "finish_reason", "stop_reason", "data", "image_url", "input_audio", "file_data",
        "encrypted_content", "signature", "system_fingerprint", "logprobs", "embedding", "encoding_format",
        "tool_choice", "reasoning_effort", "service_tier", "prompt_cache_key",
    }
)  # fmt: skip
_TRACKS = ("content", "reasoning_content", "reasoning", "refusal", "text")  # texts of a choice, or of its delta
_DELTAS = {"text_delta": "text", "thinking_delta": "thinking"}
_DECODE = msgspec.json.Decoder(dict[str, Any]).decode
_encode = msgspec.json.encode
Json = dict[str, Any]
T = TypeVar("T")


class Denied(Exception):
    def __init__(self, guard: str, reason: str) -> None:
        super().__init__(guard)
        self.guard, self.reason = guard, reason

    def refusal(self, side: Side) -> Refusal:
        return Refusal(
            400, f"The guard '{self.guard}' lets this {side} not pass: {self.reason}.", code="content_filter"
        )


class Failed(Exception):
    """A guard that cannot tell, and must."""

    def __init__(self, guard: str) -> None:
        super().__init__(guard)
        self.guard = guard

    def refusal(self, side: Side) -> Refusal:
        return Refusal(
            503, f"The guard '{self.guard}' cannot be asked now.", kind="server_error", code="guard_unavailable",
            retry_after=2.0,
        )  # fmt: skip


class Gone(Failed):
    """A guard that the endpoint asks for and the site has no more."""


class Guards:
    """Those of one endpoint, in their order."""

    def __init__(self, placed: Sequence[Placed], missing: Sequence[str], *, opened: bool) -> None:
        self.placed, self.missing, self._opened = placed, missing, opened
        self.waits = any(one.guard.waits for one in placed)
        self.answers = [one for one in placed if one.guard.answers]

    async def look(
        self, one: Placed, texts: Sequence[str], side: Side, behind: int = 0, *, goes_on: bool = False
    ) -> Found:
        """What one guard says. Where the text goes on, it is not denied yet for what its end may turn out not to be.
        Raises `Denied` and `Failed`."""
        try:
            found = one.guard.look(texts, side, behind)
            if not isinstance(found, Found):
                async with asyncio.timeout(one.timeout):
                    found = await found
        except Exception as error:
            log.warning("a guard cannot tell", guard=one.name, reason=type(error).__name__)  # never its words
            opened = one.fails_open if one.everywhere else self._opened
            GUARDED.labels(one.name, "failed open" if opened else "failed").inc()
            if opened:
                return Found()
            raise Failed(one.name) from None
        unsure = goes_on and found.denied_at is not None and found.denied_at[1] == len(texts[0])
        if found.denied and not unsure:
            GUARDED.labels(one.name, "denied").inc()
            raise Denied(one.name, found.denied)
        return found

    async def request(self, body: bytes) -> bytes:
        """The body as it may be sent; written anew, so that the replica reads in it what guards have read, and nothing
        else (of a name that is there twice, say). Raises `Refusal`."""
        if self.missing and not self._opened:
            raise Gone(self.missing[0]).refusal(Side.REQUEST)
        try:
            return await self._whole(self.placed, body, Side.REQUEST)
        except (Denied, Failed) as error:
            raise error.refusal(Side.REQUEST) from None

    async def answer(self, body: bytes) -> bytes:
        """Raises `Denied` and `Failed`."""
        return await self._whole(self.answers, body, Side.ANSWER)

    async def _whole(self, placed: Sequence[Placed], body: bytes, side: Side) -> bytes:
        try:
            told = _DECODE(body)
        except (msgspec.DecodeError, RecursionError):
            raise invalid("the body is not JSON that can be looked at") from None
        if side is Side.REQUEST:
            _refuse_numbers(told)
        slots = _slots(told)
        texts = [where[key] for where, key in slots]
        touched = False
        for one in placed:
            found = await self.look(one, texts, side)
            if any(found.changes):
                texts = [changed(text, changes) for text, changes in zip(texts, found.changes, strict=True)]
                touched = True
                GUARDED.labels(one.name, "changed").inc()
            else:
                GUARDED.labels(one.name, "allowed").inc()
        if not touched and side is Side.ANSWER:
            return body
        for (where, key), text in zip(slots, texts, strict=True):
            where[key] = text
        if side is Side.ANSWER:
            _drop_logprobs(told)
        return _encode(told)


def _refuse_numbers(told: Json) -> None:
    """Texts as numbers of tokens are not read by guards, and must not be a way around them."""
    for name in ("prompt", "input"):
        given = told.get(name)
        if isinstance(given, list) and any(isinstance(one, int | list) for one in given):
            raise invalid(f"{name}: guards read text here, and not numbers of tokens", name)


def _slots(told: Any) -> list[tuple[Any, Any]]:
    """(container, key) of every text."""
    found: list[tuple[Any, Any]] = []
    open: list[Any] = [told]
    while open:
        where = open.pop()
        pairs = where.items() if isinstance(where, dict) else enumerate(where)
        for key, value in pairs:
            if key in _STRUCTURE and not (isinstance(value, dict | list) and key in ("format", "data")):
                continue
            if isinstance(value, str):
                found.append((where, key))
            elif isinstance(value, dict | list):
                open.append(value)
    return found


def _drop_logprobs(told: Json) -> None:
    """They say again what was said."""
    for choice in told.get("choices") or ():
        if isinstance(choice, dict) and choice.get("logprobs") is not None:
            choice["logprobs"] = None


def now(work: Coroutine[Any, Any, T]) -> T:
    """Of work that waits for nothing, its end."""
    try:
        work.send(None)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]
    raise AssertionError("a guard that said it would not wait has waited")


class _Stage:
    """One text of a stream before one guard. Where it would cut what the guard has found, it holds more."""

    __slots__ = ("_guards", "_held", "_least", "_one", "_sign")

    def __init__(self, guards: Guards, one: Placed) -> None:
        self._guards, self._one = guards, one
        self._held = self._sign = ""  # what is held, and the last character before it
        self._least = 2 * WINDOW if one.guard.waits else WINDOW  # characters before it is worth a look

    async def feed(self, text: str, *, last: bool = False) -> str:
        self._held += text
        if not self._held or (not last and len(self._held) <= self._least):
            return ""
        behind = len(self._sign)
        whole = self._sign + self._held
        found = await self._guards.look(self._one, [whole], Side.ANSWER, behind, goes_on=not last)
        changes = [one for one in found.changes[0] if one.end > behind] if found.changes else []
        until = len(whole) if last else len(whole) - WINDOW
        if found.denied_at is not None:
            until = max(behind, min(until, found.denied_at[0]))
        if not last:
            for one in changes:
                if one.start < until < one.end:
                    until = one.end if len(whole) > HELD else max(behind, one.start)
        ready = [one for one in changes if one.end <= until]
        if ready:
            GUARDED.labels(self._one.name, "changed").inc()
        out = changed(whole[:until], ready)[behind:]
        if until > behind:
            self._sign = whole[until - 1]
            self._held = whole[until:]
        return out


class StreamWatch:
    """The events of one answer. `feed` gives what may go out. Raises `Denied` and `Failed`."""

    def __init__(self, guards: Guards) -> None:
        self._guards = guards
        self._rest = b""
        self._tracks: dict[tuple[Any, str], list[_Stage]] = {}
        self._last: dict[tuple[Any, str], Json] = {}  # the last event of a track, by whose form the rest is told
        self.dropped = 0  # events whose text is held, and had nothing else
        self.anthropic = False

    async def feed(self, data: bytes) -> bytes:
        data = self._rest + data
        end = end_of_events(data)
        self._rest = data[end:]
        if len(self._rest) > LONGEST:
            raise Failed(self._guards.answers[0].name)
        return b"".join([await self._event(event) for event in split_events(data[:end])]) if end else b""

    async def end(self) -> bytes:
        """What is held when the stream ends without a last event."""
        rest, self._rest = self._rest, b""
        return (await self._event(rest + b"\n\n") if rest.strip() else b"") + await self._flush(None)

    async def _event(self, event: bytes) -> bytes:
        lines = event.splitlines()
        data = b"\n".join(line[5:].strip() for line in lines if line.startswith(b"data:"))
        if not data:
            return event  # a comment, or nothing
        if data == b"[DONE]":
            return await self._flush(None) + event
        try:
            told = _DECODE(data)
        except (msgspec.DecodeError, RecursionError):
            raise Failed(self._guards.answers[0].name) from None
        if isinstance(told.get("choices"), list):
            return await self._chat(told, event)
        return await self._message(told, event)

    async def _chat(self, told: Json, event: bytes) -> bytes:
        before, idle, touched = b"", bool(told["choices"]), False
        if not told["choices"] and told.get("usage"):  # the last word of answers that end without a reason
            return await self._flush(None) + event
        for choice in told["choices"]:
            index = choice.get("index", 0)
            inner = choice["delta"] if isinstance(choice.get("delta"), dict) else choice
            ends = choice.get("finish_reason") is not None or bool(inner.get("tool_calls"))
            if choice.get("logprobs") is not None:
                choice["logprobs"], touched = None, True
            for name in _TRACKS:
                text = inner.get(name)
                if not isinstance(text, str) or not text:
                    continue
                self._last[index, name] = told
                out = await self._through((index, name), text)
                touched = touched or out != text
                inner[name] = out
            others = {key for key, value in inner.items() if value and key not in (*_TRACKS, "index")}
            idle = idle and not ends and not others and not any(inner.get(name) for name in _TRACKS)
            if ends:
                before += await self._flush(index, inner)
                touched = True
        if idle and touched and not told.get("usage"):
            self.dropped += 1
            return before
        return before + (_framed(event, told) if touched else event)

    async def _message(self, told: Json, event: bytes) -> bytes:
        kind, index = told.get("type"), told.get("index", 0)
        self.anthropic = True
        if kind in ("content_block_stop", "message_stop"):
            return await self._flush(index if kind == "content_block_stop" else None) + event
        inner = told.get("delta")
        name = _DELTAS.get(inner.get("type", "")) if kind == "content_block_delta" and isinstance(inner, dict) else None
        if name is None or not inner or not isinstance(inner.get(name), str):
            return event
        text = inner[name]
        self._last[index, name] = told
        out = inner[name] = await self._through((index, name), text)
        if not out:
            self.dropped += 1
            return b""
        return event if out == text else _framed(event, told)

    async def _through(self, track: tuple[Any, str], text: str, *, last: bool = False) -> str:
        stages = self._tracks.get(track)
        if stages is None:
            stages = self._tracks[track] = [_Stage(self._guards, one) for one in self._guards.answers]
        for stage in stages:
            text = await stage.feed(text, last=last)
        return text

    async def _flush(self, index: Any, into: Json | None = None) -> bytes:
        """What is held of the texts of `index`, or of all: added to those of the event that ends them, or told in
        events of their own."""
        out = []
        for track in [one for one in self._tracks if index is None or one[0] == index]:
            rest = await self._through(track, "", last=True)
            del self._tracks[track]
            if rest and into is not None and isinstance(into.get(track[1]), str) and into[track[1]]:
                into[track[1]] += rest
            elif rest:
                out.append(_telling(self._last[track], *track, rest))
        return b"".join(out)

    def ending(self) -> bytes:
        """The last events of an answer that a guard has ended."""
        if self.anthropic:
            events: list[Json] = [
                *({"type": "content_block_stop", "index": index} for index in {track[0] for track in self._last}),
                {
                    "type": "message_delta",
                    "delta": {"stop_reason": "refusal", "stop_sequence": None},
                    "usage": {"output_tokens": self.dropped},
                },
                {"type": "message_stop"},
            ]
            return b"".join(b"event: %b\ndata: %b\n\n" % (one["type"].encode(), _encode(one)) for one in events)
        like = next(iter(self._last.values()), {"choices": [{"index": 0, "delta": {}}]})
        choices: list[Json] = [
            {"index": one.get("index", 0), "finish_reason": "content_filter"}
            | ({"delta": Json()} if "delta" in one else {"text": ""})
            for one in like["choices"]
        ]
        return b"data: %b\n\ndata: [DONE]\n\n" % _encode(like | {"choices": choices, "usage": None})


def _framed(event: bytes, told: Json) -> bytes:
    """The event with other data: its lines before ``data:`` stay."""
    head = event[: event.find(b"data:")]
    return head + b"data: " + _encode(told) + b"\n\n"


def _telling(like: Json, index: Any, name: str, text: str) -> bytes:
    """An event of the same form, with this text alone."""
    if like.get("type") == "content_block_delta":
        kind = next(kind for kind, field in _DELTAS.items() if field == name)
        told = like | {"delta": {"type": kind, name: text}}
        return b"event: content_block_delta\ndata: " + _encode(told) + b"\n\n"
    inner = {"delta": {name: text}} if any("delta" in one for one in like["choices"]) else {name: text}
    told = {key: value for key, value in like.items() if key != "usage"}
    told["choices"] = [{"index": index, **inner, "logprobs": None, "finish_reason": None}]
    return b"data: " + _encode(told) + b"\n\n"


class Watched:
    """Stands between a replica's connection and its call: what comes is looked at, and then passed on.

    Where guards wait, what comes meanwhile waits too, and the replica is read no more.
    """

    def __init__(self, call: OneCall, guards: Guards) -> None:
        self._call, self._guards = call, guards
        self._plain = False
        self._headers: list[tuple[bytes, bytes]] = []
        self._whole: list[bytes] = []
        self._size = 0
        self._stream: StreamWatch | None = None
        self._waiting: list[bytes | None] = []
        self._busy = False
        self._lost = ""

    def answered(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        kinds = [value for name, value in headers if name == b"content-type"]
        self._headers = headers
        self._plain = status != 200 or not self._call.ask.makes_text
        if not self._plain and kinds and kinds[0].startswith(b"text/event-stream"):
            self._stream = StreamWatch(self._guards)
        if self._plain or self._stream is not None:
            self._call.answered(status, headers)

    def got(self, data: bytes) -> None:
        if self._plain:
            self._call.got(data)
            return
        self._size += len(data)
        if self._stream is None:
            if self._size > WHOLE:
                raise ValueError("too long to be looked at")
            self._whole.append(data)
        else:
            self._take(data)

    def finished(self, data: bytes) -> None:
        if self._plain:
            self._call.finished(data)
            return
        if data:
            self.got(data)
        self._call.connection = None  # it is somebody else's now
        self._take(None)

    def lost(self, reason: str) -> None:
        if self._busy:
            self._lost = reason
        else:
            self._call.lost(reason)

    def _take(self, data: bytes | None) -> None:
        self._waiting.append(data)
        if self._busy:
            if self._call.connection is not None:
                self._call.connection.pause()
            return
        self._busy = True
        if self._guards.waits:
            self._call.gateway.start_work(self._work())
        else:
            now(self._work())

    async def _work(self) -> None:
        call = self._call
        try:
            while self._waiting and not call.over:
                data = self._waiting.pop(0)
                await (self._answer() if self._stream is None else self._pass_on(self._stream, data))
                if not self._waiting and call.connection is not None:
                    call.connection.resume()
        finally:
            self._busy = False
        if self._lost and not call.over:
            call.lost(self._lost)

    async def _pass_on(self, stream: StreamWatch, data: bytes | None) -> None:
        call = self._call
        try:
            out = await (stream.feed(data) if data is not None else stream.end())
        except (Denied, Failed) as error:
            if call.over:
                return
            self._waiting.clear()
            if isinstance(error, Denied):
                call.got(stream.ending())
            call.cut()
            return
        if call.over:
            return
        if call.events is not None:
            call.events.count += stream.dropped
            stream.dropped = 0
        if out:
            call.got(out)
        if data is None:
            call.finished(b"")

    async def _answer(self) -> None:
        call, raw = self._call, b"".join(self._whole)
        try:
            body = await self._guards.answer(raw)
        except (Denied, Failed) as error:
            refusal = error.refusal(Side.ANSWER)
        except Refusal:  # it is not JSON
            refusal = Failed(self._guards.answers[0].name).refusal(Side.ANSWER)
        else:
            if not call.over:
                told = [(name, value) for name, value in self._headers if name != b"content-length"]
                call.answered(200, [*told, (b"content-length", b"%d" % len(body))])
                call.finished(body)
            return
        call.refuse(refusal, call.counted(used_in(raw)))
