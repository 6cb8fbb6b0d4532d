"""What was asked and answered, out of bodies as they went over the wire: a line for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec


def asked(body: str) -> str:
    """The last thing that was said to the model."""
    told = _json(body)
    for name in ("messages", "input", "prompt"):
        if told.get(name):
            return _last(told[name])
    return body


def answered(body: str) -> str:
    """What it said, whole or as a stream."""
    lines = [line[5:].strip() for line in body.splitlines() if line.startswith("data:")]
    try:
        return "".join(text for line in lines or [body] for text in _said(_json(line))) or body
    except (AttributeError, TypeError):  # of another shape than any that is known
        return body


def _json(text: str) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(text)
    except msgspec.MsgspecError:
        return {}
    return found if isinstance(found, dict) else {}


def _last(given: Any) -> str:
    if isinstance(given, list) and given:
        given = given[-1]
    if isinstance(given, dict):
        given = given.get("content") or given.get("text") or given.get("output") or ""
        return _last(given) if isinstance(given, list) else str(given)
    return str(given)


def _said(told: dict[str, Any]) -> Iterator[str]:
    """Of a whole answer or of one event, in any dialect."""
    for choice in told.get("choices") or ():
        of = choice.get("delta") or choice.get("message") or choice
        yield of.get("content") or of.get("text") or ""
    if isinstance(told.get("delta"), dict):
        yield told["delta"].get("text") or ""
    elif told.get("type") == "response.output_text.delta":
        yield told.get("delta") or ""
    if "choices" not in told:
        for block in told.get("content") or ():
            yield block.get("text") or ""
        for item in told.get("output") or ():
            yield from (part.get("text") or "" for part in item.get("content") or ())
