"""OpenAI's responses, spoken by replicas that know chat completions only: the request turned into a chat, and the
answer turned back, whole or event by event (https://platform.openai.com/docs/api-reference/responses).

Every runtime knows chats, and few the whole of this; so it is done here for all of them alike. It decodes each chunk,
which nothing else at the gateway does. Nothing is stored: what refers to an earlier response is refused.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from typing import Any

import msgspec

from usina.services.llm.refusal import invalid
from usina.services.llm.stream import Events, Used

Json = dict[str, Any]
_STATEFUL = ("previous_response_id", "conversation", "background", "prompt")
_SAME = ("model", "temperature", "top_p", "stream", "parallel_tool_calls", "user", "seed")
_ECHOED = ("instructions", "max_output_tokens", "metadata", "temperature", "top_p", "user", "text", "reasoning")
_encode = msgspec.json.encode
_DECODE = msgspec.json.Decoder(dict[str, Any]).decode


# --- the request


def as_chat(body: bytes) -> tuple[bytes, Answer]:
    """The chat that a request for a response is, and what turns its answer back. Raises `Refusal` naming the member."""
    asked = _DECODE(body)
    for name in _STATEFUL:
        if asked.get(name):
            raise invalid(f"{name}: responses are not stored here; send the whole conversation as input", name)
    chat = {name: asked[name] for name in _SAME if asked.get(name) is not None}
    chat["messages"] = _messages(asked)
    if asked.get("max_output_tokens") is not None:
        chat["max_tokens"] = asked["max_output_tokens"]
    if asked.get("tools"):
        chat["tools"] = [_tool(tool, n) for n, tool in enumerate(_list(asked["tools"], "tools"))]
        chat |= {"tool_choice": _choice(asked["tool_choice"])} if asked.get("tool_choice") is not None else {}
    wanted = (asked.get("text") or {}).get("format") if isinstance(asked.get("text"), dict) else None
    if isinstance(wanted, dict) and wanted.get("type") not in (None, "text"):
        chat["response_format"] = _format(wanted)
    effort = asked["reasoning"].get("effort") if isinstance(asked.get("reasoning"), dict) else None
    if effort:
        chat["reasoning_effort"] = effort
    if chat.get("stream"):
        chat["stream_options"] = {"include_usage": True}
    return _encode(chat), Answer(asked)


def _list(value: Any, param: str) -> list[Any]:
    if not isinstance(value, list):
        raise invalid(f"{param}: must be a list", param)
    return value


def _messages(asked: Mapping[str, Any]) -> list[Json]:
    found: list[Json] = []
    if asked.get("instructions"):
        found.append({"role": "system", "content": asked["instructions"]})
    given = asked.get("input")
    if isinstance(given, str):
        return [*found, {"role": "user", "content": given}]
    for number, item in enumerate(_list(given, "input")):
        message = _message(item, f"input[{number}]")
        if message.get("tool_calls") and found and found[-1].get("tool_calls"):
            found[-1]["tool_calls"] += message["tool_calls"]  # calls made at once are one message
        elif message:
            found.append(message)
    return found


def _message(item: Any, param: str) -> Json:
    if not isinstance(item, dict):
        raise invalid(f"{param}: must be an object", param)
    match item.get("type", "message"):
        case "message":
            return {"role": item.get("role", "user"), "content": _content(item.get("content", ""), param)}
        case "function_call":
            function = {"name": item.get("name"), "arguments": item.get("arguments", "")}
            call = {"id": item.get("call_id"), "type": "function", "function": function}
            return {"role": "assistant", "content": None, "tool_calls": [call]}
        case "function_call_output":
            output = item.get("output", "")
            told = output if isinstance(output, str) else _encode(output).decode()
            return {"role": "tool", "tool_call_id": item.get("call_id"), "content": told}
        case "reasoning":
            return {}
        case other:
            raise invalid(f"{param}.type: {str(other)[:40]!r} is not known here", f"{param}.type")


def _content(content: Any, param: str) -> Any:
    if isinstance(content, str):
        return content
    parts: list[Json] = []
    for number, part in enumerate(_list(content, f"{param}.content")):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("input_text", "output_text", "text"):
            text = part.get("text", "")
            if not isinstance(text, str):
                raise invalid(f"{param}.content[{number}].text: must be text", f"{param}.content[{number}].text")
            parts.append({"type": "text", "text": text})
        elif kind == "input_image" and part.get("image_url"):
            image: Json = {"url": part["image_url"]} | ({"detail": part["detail"]} if part.get("detail") else {})
            parts.append({"type": "image_url", "image_url": image})
        else:
            where = f"{param}.content[{number}]"
            raise invalid(f"{where}.type: {str(kind)[:40]!r} is not known here", f"{where}.type")
    if all(part["type"] == "text" for part in parts):
        return "".join(part["text"] for part in parts)
    return parts


def _tool(tool: Any, number: int) -> Json:
    if not isinstance(tool, dict) or tool.get("type") != "function":
        raise invalid(f"tools[{number}].type: only functions are known here", f"tools[{number}].type")
    return {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}


def _choice(choice: Any) -> Any:
    if isinstance(choice, dict) and choice.get("type") == "function":
        return {"type": "function", "function": {"name": choice.get("name")}}
    return choice


def _format(wanted: Mapping[str, Any]) -> Json:
    if wanted["type"] == "json_schema":
        schema = {name: value for name, value in wanted.items() if name != "type"}
        return {"type": "json_schema", "json_schema": schema}
    return {"type": wanted["type"]}


# --- the answer


def _text_item(id: str, text: str, status: str = "completed") -> Json:
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    content = [part] if status == "completed" else []
    return {"type": "message", "id": id, "role": "assistant", "status": status, "content": content}


def _call_item(id: str, call: Mapping[str, Any], status: str = "completed") -> Json:
    return {
        "type": "function_call",
        "id": id,
        "call_id": call["id"],
        "name": call["name"],
        "arguments": call["arguments"],
        "status": status,
    }


class Answer:
    """The response to one request, as it grows."""

    def __init__(self, asked: Mapping[str, Any]) -> None:
        self._asked = asked
        self._id = _new("resp")
        self._at = time.time()
        self.output: list[Json] = []
        self.cut_short = False  # by the limit of tokens

    def events(self) -> Events:
        return ResponseEvents(self)

    def said(self, status: str, usage: Used | None = None) -> Json:
        """The response object."""
        told: Json = dict.fromkeys(_ECHOED) | {name: self._asked[name] for name in _ECHOED if name in self._asked}
        if status == "completed" and self.cut_short:
            status = "incomplete"
        return told | {
            "id": self._id,
            "object": "response",
            "created_at": self._at,
            "status": status,
            "model": self._asked["model"],
            "output": self.output,
            "parallel_tool_calls": self._asked.get("parallel_tool_calls", True),
            "tool_choice": self._asked.get("tool_choice", "auto"),
            "tools": self._asked.get("tools") or [],
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if self.cut_short else None,
            "previous_response_id": None,
            "store": False,
            "usage": _usage(usage) if usage is not None else None,
        }

    def whole(self, body: bytes, used: Used) -> bytes:
        """From a chat completion that is not a stream; what is no such thing stays as it is."""
        try:
            choice = _DECODE(body)["choices"][0]
            message = choice["message"]
            output = [_text_item(_new("msg"), message["content"])] if message.get("content") else []
            for call in message.get("tool_calls") or ():
                output.append(_call_item(_new("fc"), {"id": call["id"], **call["function"]}))
        except (msgspec.DecodeError, KeyError, IndexError, TypeError, AttributeError):
            return body
        self.output = output
        self.cut_short = choice.get("finish_reason") == "length"
        return _encode(self.said("completed", used))


def _usage(used: Used) -> Json:
    prompt, made = used.prompt or 0, used.completion or 0
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": used.cached},
        "output_tokens": made,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": prompt + made,
    }


class ResponseEvents(Events):
    """A stream of chat chunks on its way through, coming out as events of a response."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(hides_usage=True)
        self._answer = answer
        self._number = 0
        self._text = ""
        self._calls: dict[int, Json] = {}
        self._open: Json | None = None  # the item that is being made
        self._begun = False

    def feed(self, data: bytes) -> bytes:
        out: list[bytes] = []
        if not self._begun:
            self._begun = True
            for kind in ("response.created", "response.in_progress"):
                self._tell(out, kind, response=self._answer.said("in_progress"))
        for line in super().feed(data).splitlines():
            if line.startswith(b"data:"):
                self._chunk(out, line[5:].strip())
        return b"".join(out)

    def rest(self) -> bytes:
        return b""

    def _chunk(self, out: list[bytes], data: bytes) -> None:
        if data == b"[DONE]":
            self._close(out)
            kind = "response.incomplete" if self._answer.cut_short else "response.completed"
            self._tell(out, kind, response=self._answer.said("completed", self.used))
            return
        try:
            choice = _DECODE(data)["choices"][0]
            delta = choice.get("delta") or {}
        except (msgspec.DecodeError, KeyError, IndexError, TypeError, AttributeError):
            return
        if delta.get("content"):
            self._add_text(out, delta["content"])
        for call in delta.get("tool_calls") or ():
            self._add_call(out, call)
        self._answer.cut_short = self._answer.cut_short or choice.get("finish_reason") == "length"

    def _add_text(self, out: list[bytes], text: str) -> None:
        if self._open is None or self._open["type"] != "message":
            self._close(out)
            self._text = ""
            self._begin(out, _text_item(_new("msg"), "", "in_progress"))
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            self._of_item(out, "response.content_part.added", content_index=0, part=part)
        self._text += text
        self._of_item(out, "response.output_text.delta", content_index=0, delta=text, logprobs=[])

    def _add_call(self, out: list[bytes], delta: Mapping[str, Any]) -> None:
        index, function = delta.get("index", 0), delta.get("function") or {}
        call = self._calls.get(index)
        if call is None:
            self._close(out)
            name = function.get("name", "")
            call = self._calls[index] = {"id": delta.get("id") or _new("call"), "name": name, "arguments": ""}
            self._begin(out, _call_item(_new("fc"), call, "in_progress"))
        more = function.get("arguments") or ""
        if more and self._open is not None:
            call["arguments"] += more
            self._open["arguments"] = call["arguments"]
            self._of_item(out, "response.function_call_arguments.delta", delta=more)

    def _begin(self, out: list[bytes], item: Json) -> None:
        self._open = item
        self._tell(out, "response.output_item.added", output_index=len(self._answer.output), item=item)

    def _close(self, out: list[bytes]) -> None:
        """The item that is being made is whole."""
        item, index = self._open, len(self._answer.output)
        if item is None:
            return
        if item["type"] == "message":
            self._of_item(out, "response.output_text.done", content_index=0, text=self._text, logprobs=[])
            item = _text_item(item["id"], self._text)
            self._of_item(out, "response.content_part.done", content_index=0, part=item["content"][0])
        else:
            item = item | {"status": "completed"}
            arguments = item["arguments"]
            self._of_item(out, "response.function_call_arguments.done", name=item["name"], arguments=arguments)
        self._tell(out, "response.output_item.done", output_index=index, item=item)
        self._answer.output.append(item)
        self._open = None

    def _of_item(self, out: list[bytes], kind: str, **more: Any) -> None:
        assert self._open is not None
        self._tell(out, kind, item_id=self._open["id"], output_index=len(self._answer.output), **more)

    def _tell(self, out: list[bytes], kind: str, **more: Any) -> None:
        event = {"type": kind, "sequence_number": self._number, **more}
        self._number += 1
        out.append(b"event: %b\ndata: %b\n\n" % (kind.encode(), _encode(event)))


def _new(prefix: str) -> str:
    return f"{prefix}_{secrets.token_hex(16)}"
