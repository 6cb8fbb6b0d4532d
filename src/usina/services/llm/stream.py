"""Server-sent events on their way through: passed on as they came, but for the one that the client did not ask for.

Events end at an empty line. They are counted, and the last one that tells usage is kept, by looking for a few bytes;
JSON is decoded once, at the end.
"""

from __future__ import annotations

import re

import msgspec

_USAGE = re.compile(rb'"usage"\s*:\s*\{')
_NO_CHOICES = re.compile(rb'"choices"\s*:\s*\[\s*\]')
_LAST = re.compile(rb"data: ?\[DONE\]|^event: ?(?:message_stop|response\.(?:completed|incomplete|failed))\b", re.M)
_DONE = (b"[DONE]\n\n", b"[DONE]\r\n\r\n")
LONGEST = 1 << 20  # bytes of one event; a longer one is passed on in pieces


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    """All dialects at once: chat and completions, responses, messages."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    prompt_tokens_details: _Details | None = None
    input_tokens_details: _Details | None = None


class _Inner(msgspec.Struct):
    usage: _Usage | None = None


class Used(msgspec.Struct):
    """Tokens as the replica counted them. None: not told."""

    prompt: int | None = None
    cached: int = 0
    completion: int | None = None


class _Plain(msgspec.Struct):
    usage: _Usage | None = None
    input_tokens: int | None = None


class _Event(msgspec.Struct):
    usage: _Usage | None = None
    message: _Inner | None = None
    response: _Inner | None = None


_PLAIN = msgspec.json.Decoder(_Plain).decode
_EVENT = msgspec.json.Decoder(_Event).decode


def used_in(body: bytes) -> Used:
    """What a whole answer tells; nothing where it tells nothing that can be read."""
    try:
        told = _PLAIN(body)
    except msgspec.DecodeError:
        return Used()
    if told.usage is None:
        return Used(prompt=told.input_tokens)
    return _counted(told.usage)


def _counted(usage: _Usage) -> Used:
    if usage.prompt_tokens is not None or usage.completion_tokens is not None:
        details = usage.prompt_tokens_details
        cached = details.cached_tokens if details and details.cached_tokens else 0
        return Used(usage.prompt_tokens, cached, usage.completion_tokens)
    details = usage.input_tokens_details
    if details is not None:  # responses: the cached ones are among the input
        return Used(usage.input_tokens, details.cached_tokens or 0, usage.output_tokens)
    cached = usage.cache_read_input_tokens or 0
    prompt = usage.input_tokens
    if prompt is not None:  # messages: the cached ones are beside it
        prompt += cached + (usage.cache_creation_input_tokens or 0)
    return Used(prompt, cached, usage.output_tokens)


class Events:
    """One stream of events. `feed` gives what may go on to the client."""

    __slots__ = ("_held", "_hides", "count", "ended", "used")

    def __init__(self, *, hides_usage: bool) -> None:
        self._hides = hides_usage
        self._held = b""
        self.count = 0  # events with data
        self.ended = False  # the last event has come
        self.used = Used()

    def feed(self, data: bytes) -> bytes:
        if self._held:
            data = self._held + data
            self._held = b""
        end = end_of_events(data)
        if end < len(data) and len(data) - end < LONGEST:
            self._held = data[end:]
            data = data[:end]
        self.count += data.count(b"data:")
        if _LAST.search(data):
            self.ended = True
            self.count -= data.endswith(_DONE)
        if _USAGE.search(data):
            data = self._look(data)
        return data

    def rest(self) -> bytes:
        """What came after the last event that ended."""
        held, self._held = self._held, b""
        return held

    def _look(self, data: bytes) -> bytes:
        kept = []
        for event in split_events(data):
            found = _USAGE.search(event) and self._told(event)
            if not (found and self._hides and _NO_CHOICES.search(event)):
                kept.append(event)
            else:
                self.count -= 1
        return b"".join(kept)

    def _told(self, event: bytes) -> bool:
        start = event.find(b"data:")
        try:
            told = _EVENT(event[start + 5 :])
        except msgspec.DecodeError:
            return False
        usage = told.usage or (told.message and told.message.usage) or (told.response and told.response.usage)
        if not usage:
            return False
        counted, before = _counted(usage), self.used
        self.used = Used(
            before.prompt if counted.prompt is None else counted.prompt,
            max(before.cached, counted.cached),
            before.completion if counted.completion is None else counted.completion,
        )
        return True


def end_of_events(data: bytes) -> int:
    """Where the last event ends that is whole."""
    plain = data.rfind(b"\n\n")
    crlf = data.rfind(b"\r\n\r\n")
    return max(plain + 2 if plain >= 0 else 0, crlf + 4 if crlf >= 0 else 0)


def split_events(data: bytes) -> list[bytes]:
    mark = b"\r\n\r\n" if b"\r\n\r\n" in data else b"\n\n"
    parts = data.split(mark)
    return [part + mark for part in parts[:-1]] + ([parts[-1]] if parts[-1] else [])
