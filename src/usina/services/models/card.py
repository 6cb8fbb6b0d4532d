"""Model cards: the YAML at the top of a README.md, between two lines of ``---``.

The text comes from tenants: aliases are refused (they can make a few lines stand for gigabytes), and so is what is
long or deep. What is not of the expected type is left out rather than believed.
"""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Hashable
from typing import Any

import yaml

from usina.core.errors import Invalid
from usina.core.repository import Card
from usina.core.units import KiB

LONGEST = 128 * KiB
DEEPEST = 12
_FRONT = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)(?:\r?\n)?^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Without aliases, and not too deep."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.YAMLError("aliases are not allowed")
        self.depth += 1
        if self.depth > DEEPEST:
            raise yaml.YAMLError("too deep")
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


def read(text: str) -> Card:
    """The card that `text` begins with; an empty one where there is none. Raises `Invalid` (field "README.md")."""
    found = _FRONT.match(text)
    if found is None:
        return Card()
    if len(found[1]) > LONGEST:
        raise _bad("its metadata is too long")
    try:
        data = yaml.load(found[1], Loader=_Loader)  # noqa: S506 - a safe loader made safer
    except (yaml.YAMLError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise _bad(f"its metadata is not YAML: {_first_line(error)}") from None
    if data is None:
        return Card()
    if not isinstance(data, dict):
        raise _bad("its metadata must be names with values")
    return Card(
        licence=_licence(data),
        tags=_words(data.get("tags")),
        languages=_words(data.get("language")),
        library=_word(data.get("library_name")),
        task=_word(data.get("pipeline_tag")),
        base_models=_words(data.get("base_model")),
        data=_plain(data),
    )


def _licence(data: dict[Any, Any]) -> str:
    """``license: other`` names itself in ``license_name``."""
    said = data.get("license")
    named = _word(said[0] if isinstance(said, list) and said else said)
    return _word(data.get("license_name")) or named if named == "other" else named


def _word(value: Any) -> str:
    return value[:128] if isinstance(value, str) and value.isprintable() else ""


def _words(value: Any) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    return tuple(dict.fromkeys(word for one in values[:200] if (word := _word(one))))


def _plain(value: Any) -> Any:
    """As JSON can say it."""
    match value:
        case dict():
            return {str(_key(key)): _plain(one) for key, one in value.items()}
        case list() | tuple() | set():
            return [_plain(one) for one in value]
        case float() if not math.isfinite(value):
            return str(value)
        case int() if not -(1 << 63) <= value < 1 << 63:
            return str(value)[:40]
        case str() | bool() | int() | float() | None:
            return value
        case datetime.date():
            return value.isoformat()
    return str(value)


def _key(key: Hashable) -> Hashable:
    return key.isoformat() if isinstance(key, datetime.date) else key


def _first_line(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"{error.problem} (line {error.problem_mark.line + 2})"
    return str(error).split("\n", 1)[0][:200]


def _bad(reason: str) -> Invalid:
    return Invalid(f"README.md: {reason}", field="README.md")
