"""Anthropic's messages, spoken by replicas that know chat completions only: the request turned into a chat, and the
answer turned back, whole or event by event (https://docs.anthropic.com/en/api/messages).

Only for runtimes that do not speak it themselves. What the model thought, where a replica tells it, is left out: blocks
of thinking carry a signature that only their maker can give.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

import msgspec

from usina.services.llm.refusal import Refusal, invalid
from usina.services.llm.stream import Events, Used

Json = dict[str, Any]
_SAME = ("model", "max_tokens", "temperature", "top_p", "top_k", "stream")
_STOPPED = {"length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
_EFFORTS = {"low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high"}
_UNSEEN = ("thinking", "redacted_thinking")
_encode = msgspec.json.encode
_DECODE = msgspec.json.Decoder(dict[str, Any]).decode


# --- the request


def as_chat(body: bytes) -> tuple[bytes, Message]:
    """The chat that a message is, and what turns its answer back. Raises `Refusal` naming the member."""
    asked = _DECODE(body)
    chat = {name: asked[name] for name in _SAME if asked.get(name) is not None}
    chat["messages"] = _system(asked.get("system"))
    for number, message in enumerate(_list(asked.get("messages"), "messages")):
        chat["messages"] += _messages(_object(message, f"messages[{number}]"), f"messages[{number}]")
    if asked.get("stop_sequences"):
        chat["stop"] = asked["stop_sequences"]
    if asked.get("tools"):
        chat["tools"] = [_tool(_object(one, f"tools[{n}]"), n) for n, one in enumerate(_list(asked["tools"], "tools"))]
    if asked.get("tool_choice") is not None:
        chat |= _choice(_object(asked["tool_choice"], "tool_choice"))
    if asked.get("output_config") is not None:
        chat |= _output(_object(asked["output_config"], "output_config"))
    if chat.get("stream"):
        chat["stream_options"] = {"include_usage": True}
    return _encode(chat), Message(str(asked.get("model")))


def _list(value: Any, param: str) -> list[Any]:
    if not isinstance(value, list):
        raise invalid(f"{param}: must be a list", param)
    return value


def _object(value: Any, param: str) -> Json:
    if not isinstance(value, dict):
        raise invalid(f"{param}: must be an object", param)
    return value


def _unknown(kind: object, param: str) -> Refusal:
    return invalid(f"{param}: {str(kind)[:40]!r} is not known here", param)


def _system(given: Any) -> list[Json]:
    text = _texts(given, "system") if given else ""
    return [{"role": "system", "content": text}] if text else []


def _texts(given: Any, param: str) -> str:
    """Text, or blocks of text."""
    if isinstance(given, str):
        return given
    found = []
    for number, block in enumerate(_list(given, param)):
        kind = _object(block, f"{param}[{number}]").get("type")
        if kind != "text":
            raise _unknown(kind, f"{param}[{number}].type")
        found.append(_text(block, f"{param}[{number}]"))
    return "\n".join(found)


def _text(block: Json, param: str) -> str:
    text = block.get("text")
    if not isinstance(text, str):
        raise invalid(f"{param}.text: must be text", f"{param}.text")
    return text


def _messages(message: Json, param: str) -> list[Json]:
    """One message is several of a chat, where it brings what tools have answered."""
    role, content = message.get("role"), message.get("content")
    if role not in ("user", "assistant", "system"):
        raise _unknown(role, f"{param}.role")
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    blocks = [
        (_object(block, f"{param}.content[{n}]"), f"{param}.content[{n}]")
        for n, block in enumerate(_list(content, f"{param}.content"))
    ]
    return [_said(blocks)] if role == "assistant" else _told(role, blocks)


def _said(blocks: list[tuple[Json, str]]) -> Json:
    """What the model has said before."""
    texts, calls = [], []
    for block, param in blocks:
        match block.get("type"):
            case "text":
                texts.append(_text(block, param))
            case "tool_use":
                function = {"name": block.get("name"), "arguments": _encode(block.get("input") or {}).decode()}
                calls.append({"id": block.get("id"), "type": "function", "function": function})
            case kind if kind not in _UNSEEN:
                raise _unknown(kind, f"{param}.type")
    said: Json = {"role": "assistant", "content": "".join(texts) or None}
    return said | {"tool_calls": calls} if calls else said


def _told(role: str, blocks: list[tuple[Json, str]]) -> list[Json]:
    """What the model is told: answers of tools first, as a chat wants them next to the calls."""
    answers: list[Json] = []
    parts: list[Json] = []
    for block, param in blocks:
        if block.get("type") == "tool_result":
            content = _texts(block.get("content") or "", f"{param}.content")
            answers.append({"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": content})
        else:
            parts.append(_part(block, param))
    if not parts:
        return answers
    if all(part["type"] == "text" for part in parts):
        return [*answers, {"role": role, "content": "\n".join(part["text"] for part in parts)}]
    return [*answers, {"role": role, "content": parts}]


def _part(block: Json, param: str) -> Json:
    kind = block.get("type")
    if kind == "text":
        return {"type": "text", "text": _text(block, param)}
    source = _object(block.get("source"), f"{param}.source") if kind in ("image", "document") else {}
    match kind, source.get("type"):
        case "image", "url":
            return {"type": "image_url", "image_url": {"url": source.get("url")}}
        case "image", "base64":
            url = f"data:{source.get('media_type')};base64,{source.get('data')}"
            return {"type": "image_url", "image_url": {"url": url}}
        case "document", "text":
            return {"type": "text", "text": str(source.get("data", ""))}
        case "image" | "document", other:
            raise _unknown(other, f"{param}.source.type")
    raise _unknown(kind, f"{param}.type")


def _tool(tool: Json, number: int) -> Json:
    if tool.get("type", "custom") != "custom":
        raise invalid(f"tools[{number}].type: only tools of the client are known here", f"tools[{number}].type")
    function = {"name": tool.get("name"), "parameters": tool.get("input_schema") or {"type": "object"}}
    if tool.get("description"):
        function["description"] = tool["description"]
    return {"type": "function", "function": function}


def _choice(choice: Json) -> Json:
    kind = choice.get("type")
    chat: Json = {"parallel_tool_calls": False} if choice.get("disable_parallel_tool_use") else {}
    if kind == "tool":
        return chat | {"tool_choice": {"type": "function", "function": {"name": choice.get("name")}}}
    if kind not in _CHOICES:
        raise _unknown(kind, "tool_choice.type")
    return chat | {"tool_choice": _CHOICES[kind]}


def _output(config: Json) -> Json:
    chat: Json = {}
    if config.get("effort") is not None:
        if config["effort"] not in _EFFORTS:
            raise _unknown(config["effort"], "output_config.effort")
        chat["reasoning_effort"] = _EFFORTS[config["effort"]]
    if config.get("format") is not None:
        wanted = _object(config["format"], "output_config.format")
        if wanted.get("type") != "json_schema":
            raise _unknown(wanted.get("type"), "output_config.format.type")
        schema = {"name": "answer", "strict": True, "schema": wanted.get("schema")}
        chat["response_format"] = {"type": "json_schema", "json_schema": schema}
    return chat


# --- the answer


class Message:
    """The answer to one request. `model`: the name that was asked for."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._id = f"msg_{secrets.token_hex(12)}"

    def events(self) -> Events:
        return MessageEvents(self)

    def whole(self, body: bytes, used: Used) -> bytes:
        """From a chat completion that is not a stream; what is no such thing stays as it is."""
        try:
            choice = _DECODE(body)["choices"][0]
            message = choice["message"]
            content: list[Json] = [{"type": "text", "text": message["content"]}] if message.get("content") else []
            for call in message.get("tool_calls") or ():
                function = call["function"]
                content.append(_use(call.get("id"), function["name"], _arguments(function.get("arguments"))))
        except (msgspec.DecodeError, KeyError, IndexError, TypeError, AttributeError):
            return body
        return _encode(self.said(content, _ended(choice), used))

    def said(self, content: list[Json], ended: Json, used: Used) -> Json:
        base = {"id": self._id, "type": "message", "role": "assistant", "model": self._model, "content": content}
        return base | ended | {"usage": _usage(used)}


_OPEN: Json = {"stop_reason": None, "stop_sequence": None}


def _ended(choice: Mapping[str, Any]) -> Json:
    """Why it ended. vLLM and llama.cpp name the sequence that stopped it."""
    sequence = choice.get("stop_reason") or choice.get("stopping_word")
    if choice.get("finish_reason") == "stop" and isinstance(sequence, str) and sequence:
        return {"stop_reason": "stop_sequence", "stop_sequence": sequence}
    return {"stop_reason": _STOPPED.get(choice.get("finish_reason") or "", "end_turn"), "stop_sequence": None}


def _usage(used: Used) -> Json:
    return {
        "input_tokens": max(0, (used.prompt or 0) - used.cached),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": used.cached,
        "output_tokens": used.completion or 0,
    }


def _use(id: str | None, name: str, given: Json) -> Json:
    return {"type": "tool_use", "id": id or f"toolu_{secrets.token_hex(12)}", "name": name, "input": given}


def _arguments(text: str | None) -> Json:
    """What a model gives a tool; a model may fail to write JSON."""
    try:
        return _DECODE(text or "{}")
    except msgspec.DecodeError:
        return {"": text}


class MessageEvents(Events):
    """A stream of chat chunks on its way through, coming out as the events of a message."""

    def __init__(self, message: Message) -> None:
        super().__init__(hides_usage=True)
        self._message = message
        self._begun = False
        self._blocks = 0
        self._open: object = None  # "text", the index of a call, or None
        self._ended: Json = _OPEN

    def feed(self, data: bytes) -> bytes:
        out: list[bytes] = []
        if not self._begun:
            self._begun = True
            _tell(out, "message_start", message=self._message.said([], _OPEN, Used()))
        for line in super().feed(data).splitlines():
            if line.startswith(b"data:"):
                self._chunk(out, line[5:].strip())
        return b"".join(out)

    def rest(self) -> bytes:
        return b""

    def _chunk(self, out: list[bytes], data: bytes) -> None:
        if data == b"[DONE]":
            self._close(out)
            used = Used(self.used.prompt, self.used.cached, self.used.completion or self.count)
            ended = self._ended if self._ended["stop_reason"] else _ended({})
            _tell(out, "message_delta", delta=ended, usage=_usage(used))
            _tell(out, "message_stop")
            return
        try:
            choice = _DECODE(data)["choices"][0]
            delta = choice.get("delta") or {}
        except (msgspec.DecodeError, KeyError, IndexError, TypeError, AttributeError):
            return
        if delta.get("content"):
            self._begin(out, "text", {"type": "text", "text": ""})
            self._delta(out, type="text_delta", text=delta["content"])
        for call in delta.get("tool_calls") or ():
            self._add_call(out, call)
        if choice.get("finish_reason"):
            self._ended = _ended(choice)

    def _add_call(self, out: list[bytes], call: Mapping[str, Any]) -> None:
        function = call.get("function") or {}
        self._begin(out, call.get("index", 0), _use(call.get("id"), function.get("name") or "", {}))
        if function.get("arguments"):
            self._delta(out, type="input_json_delta", partial_json=function["arguments"])

    def _begin(self, out: list[bytes], what: object, block: Json) -> None:
        """Go on with this block, or begin it."""
        if self._open != what:
            self._close(out)
            self._open = what
            _tell(out, "content_block_start", index=self._blocks, content_block=block)

    def _delta(self, out: list[bytes], **delta: str) -> None:
        _tell(out, "content_block_delta", index=self._blocks, delta=delta)

    def _close(self, out: list[bytes]) -> None:
        if self._open is not None:
            _tell(out, "content_block_stop", index=self._blocks)
            self._blocks += 1
            self._open = None


def _tell(out: list[bytes], kind: str, **more: Any) -> None:
    out.append(b"event: %b\ndata: %b\n\n" % (kind.encode(), _encode({"type": kind, **more})))
