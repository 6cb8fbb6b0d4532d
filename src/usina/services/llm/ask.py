"""What a request asks for: the few members of its body that the gateway must know. The rest is never decoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

import msgspec

from usina.ports.llm import Offered
from usina.services.llm import messages, responses
from usina.services.llm.refusal import Refusal, invalid
from usina.services.llm.stream import Events, Used

NOTHING = msgspec.Raw(b"")
PER_MESSAGE = 16  # tokens that a chat template may add to each message
TEMPLATE = 256  # and once: a system prompt of its own, the beginning of the answer
LONGEST_TOKEN = 64  # bytes
UNKNOWN = 1_000_000  # tokens of a context that nobody stated
_SPLICE = b'"stream_options":{"include_usage":true},'


class Verb(Enum):
    """What is asked, by path."""

    CHAT = "/chat/completions"
    COMPLETION = "/completions"
    EMBEDDINGS = "/embeddings"
    RESPONSES = "/responses"
    MESSAGES = "/messages"
    COUNT = "/messages/count_tokens"


VERBS = {verb.value: verb for verb in Verb}
_SILENT = {Verb.EMBEDDINGS, Verb.COUNT}  # make no tokens
_COUNTED_APART = {Verb.CHAT, Verb.COMPLETION}  # tell their usage in a stream only where they are asked to


class _Body(msgspec.Struct):
    model: str
    stream: bool | None = None
    stream_options: msgspec.Raw = NOTHING
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    max_output_tokens: int | None = None
    n: int | None = None
    best_of: int | None = None
    messages: msgspec.Raw = NOTHING
    prompt: msgspec.Raw = NOTHING
    input: msgspec.Raw = NOTHING
    system: msgspec.Raw = NOTHING
    instructions: msgspec.Raw = NOTHING
    tools: msgspec.Raw = NOTHING
    user: str | None = None
    prompt_cache_key: str | None = None


_DECODE = msgspec.json.Decoder(_Body).decode
_OPTIONS = msgspec.json.Decoder(dict[str, Any] | None)
_WHOLE = msgspec.json.Decoder(dict[str, msgspec.Raw])


class Turned(Protocol):
    """What was asked in another dialect than chats, and has become one: turns the answer back."""

    def events(self) -> Events:
        """For an answer that is a stream."""
        ...

    def whole(self, body: bytes, used: Used) -> bytes: ...


@dataclass(slots=True)
class Ask:
    verb: Verb
    body: bytes
    model: str
    stream: bool
    hides_usage: bool  # the usage at the end of the stream is ours to know, not the client's
    text: bytes  # what the prompt is made of, as it came
    limit: int | None  # tokens that each answer may have
    answers: int  # so many
    session: str  # what is asked in one session has a beginning in common
    turned: Turned | None = None  # where a chat is asked in its place

    @property
    def sent(self) -> Verb:
        """What the replica is asked."""
        return Verb.CHAT if self.turned is not None else self.verb

    @property
    def makes_text(self) -> bool:
        return self.verb not in _SILENT

    def as_chat(self) -> None:
        """A message becomes a chat, where the replica speaks nothing else. Raises `Refusal`."""
        if self.verb is Verb.COUNT:
            raise invalid("this model's runtime cannot count tokens", "model")
        if self.verb is Verb.MESSAGES and self.turned is None:
            self.body, self.turned = messages.as_chat(self.body)

    def check_context(self, context: int) -> None:
        """What surely does not fit is refused; what just might, the replica judges. Raises `Refusal`."""
        if context and self.limit is not None and self.limit > context:
            told = f"This model's context is {context} tokens; you asked for {self.limit} in the answer alone."
            raise invalid(told, "max_tokens", "context_length_exceeded")
        if context and len(self.text) > context * LONGEST_TOKEN:
            told = f"This model's context is {context} tokens; the prompt is far longer."
            raise invalid(told, "messages", "context_length_exceeded")

    def most(self, context: int) -> int:
        """Tokens that this cannot pass: no tokenizer makes more tokens than bytes, and no replica more than its
        context. What is not limited by the client is limited by the context only; without one, by what nobody asks
        for."""
        prompt = self.most_of_prompt(context)
        if not self.makes_text:
            return prompt
        context = context or UNKNOWN
        answer = min(context, self.limit) if self.limit is not None else context
        return min(prompt + answer * self.answers, context * self.answers)

    def most_of_prompt(self, context: int) -> int:
        added = self.text.count(b'"role"') * PER_MESSAGE + TEMPLATE
        return min(context or UNKNOWN, len(self.text) + added)


def read(verb: Verb, body: bytes) -> Ask:
    """Raises `Refusal` naming the member at fault."""
    try:
        told = _DECODE(body)
    except msgspec.ValidationError as error:
        raise _explained(error) from None
    except (msgspec.DecodeError, RecursionError):
        raise invalid("the body is not JSON") from None
    limit = _limit(told)
    answers = max(_answers(told.n, "n"), _answers(told.best_of, "best_of"))
    stream = bool(told.stream) and verb not in _SILENT
    asked = _usage_asked(told) if stream and verb in _COUNTED_APART else True
    turned = None
    if verb is Verb.RESPONSES:
        body, turned = responses.as_chat(body)
    return Ask(
        verb=verb,
        body=body if asked else _asking_usage(told, body),
        model=told.model,
        stream=stream,
        hides_usage=not asked,
        text=_text(told),
        limit=limit,
        answers=answers,
        session=told.prompt_cache_key or told.user or "",
        turned=turned,
    )


def as_known(ask: Ask, offered: Offered, adapters: Sequence[str], adapter: str) -> bytes:
    """The body as a replica that was made with `adapters` is asked for one of them, or for none (""): as it came, but
    for the name, where the replica calls its model otherwise, and for the choice of an adapter, which is not the
    client's, as its key may be for one of them only."""
    name = offered.spec.variant.model if offered.spec.runtime == "external" else offered.name
    changed: dict[str, Any] = {}
    if offered.adapters_by == "model":
        name = adapter or name
    elif adapters:  # all of them: where none is listed, llama.cpp goes on with what another's adapter remembers
        changed["lora"] = [{"id": n, "scale": float(one == adapter)} for n, one in enumerate(adapters)]
    if name != ask.model:
        changed["model"] = name
    return with_members(ask.body, changed)


def with_members(body: bytes, changed: Mapping[str, Any]) -> bytes:
    """The same body with these members instead of its own."""
    if not changed:
        return body
    members = _WHOLE.decode(body)
    members |= {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in changed.items()}
    return msgspec.json.encode(members)


def with_limit(ask: Ask, tokens: int) -> bytes:
    """The same body with a limit of tokens, which it did not have."""
    members = _WHOLE.decode(ask.body)
    members[_LIMITED_BY[ask.sent]] = msgspec.Raw(b"%d" % tokens)
    return msgspec.json.encode(members)


_LIMITED_BY = {
    Verb.CHAT: "max_tokens",
    Verb.COMPLETION: "max_tokens",
    Verb.MESSAGES: "max_tokens",
}


def _answers(value: int | None, name: str) -> int:
    if value is not None and not 1 <= value <= 128:
        raise invalid(f"{name}: must be between 1 and 128", name)
    return value or 1


def _limit(told: _Body) -> int | None:
    for name in ("max_completion_tokens", "max_tokens", "max_output_tokens"):
        value: int | None = getattr(told, name)
        if value is not None:
            if not 0 <= value <= 10_000_000:
                raise invalid(f"{name}: must be between 0 and 10000000", name)
            return value
    return None


def _text(told: _Body) -> bytes:
    """In the order in which templates put it."""
    parts = (told.system, told.instructions, told.tools, told.messages, told.prompt, told.input)
    given = [bytes(part) for part in parts if part]
    return given[0] if len(given) == 1 else b"".join(given)


def _usage_asked(told: _Body) -> bool:
    if not told.stream_options:
        return False
    try:
        options = _OPTIONS.decode(told.stream_options)
    except msgspec.DecodeError:
        raise invalid("stream_options: must be an object", "stream_options") from None
    return bool(options and options.get("include_usage"))


def _asking_usage(told: _Body, body: bytes) -> bytes:
    if not told.stream_options:  # the cheap way: put it in front of all else
        start = body.index(b"{") + 1
        return body[:start] + _SPLICE + body[start:]
    members = _WHOLE.decode(body)
    options = (_OPTIONS.decode(told.stream_options) or {}) | {"include_usage": True}
    members["stream_options"] = msgspec.Raw(msgspec.json.encode(options))
    return msgspec.json.encode(members)


def _explained(error: msgspec.ValidationError) -> Refusal:
    message, _, where = str(error).partition(" - at `$.")
    param = where.rstrip("`") or None
    if "missing required field `model`" in message:
        return invalid("model: say which model", "model")
    return invalid(f"{param}: {message}" if param else message, param)
