"""Finds what its recognisers know, and denies the text or puts ``[name]`` in its place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import re2

from usina.core.errors import Invalid
from usina.guards.patterns.recognisers import BUILT_IN, Recogniser
from usina.ports.guard import ALLOWED, WINDOW, Change, Found, Outside, Side

MOST = 10_000  # words; expressions: a hundredth of that
MEMORY = 8 << 20  # bytes that one expression may take


class Patterns:
    waits = False

    def __init__(self, redact: Sequence[Recogniser], deny: Sequence[Recogniser], answers: bool) -> None:
        self._redact, self._deny, self.answers = redact, deny, answers

    def look(self, texts: Sequence[str], side: Side, behind: int = 0) -> Found:
        for recogniser in self._deny:
            found = next((span for text in texts for span in spans(recogniser, text, behind)), None)
            if found is not None:
                return Found(f"it has what is known as {recogniser.name}", found)
        changes = tuple([self._changes(text, behind) for text in texts])
        return Found(changes=changes) if any(changes) else ALLOWED

    async def close(self) -> None:
        pass

    def _changes(self, text: str, behind: int) -> tuple[Change, ...]:
        found = sorted((start, -end, one.name) for one in self._redact for start, end in spans(one, text, behind))
        changes: list[Change] = []
        for start, end, name in found:
            if changes and start < changes[-1].end:  # what overlaps goes as one, by the name of the first
                last = changes.pop()
                changes.append(Change(last.start, max(last.end, -end), last.text))
            else:
                changes.append(Change(start, -end, f"[{name}]"))
        return tuple(changes)


def spans(recogniser: Recogniser, text: str, behind: int = 0) -> Iterator[tuple[int, int]]:
    """(start, end) of what it knows, from left to right."""
    at = behind
    while (match := recogniser.expression.search(text, at)) is not None:
        start, end = match.span()
        size = recogniser.measure(text[start:end])
        if size:
            yield start, start + size
        at = start + (size or 1)


def make(given: Mapping[str, Any], outside: Outside) -> Patterns:
    """Raises `Invalid` naming the setting."""
    own = dict(BUILT_IN)
    words = _list(given, "words", MOST)
    if words:
        known = "|".join(re2.escape(word) for word in sorted(words, key=len, reverse=True))
        own["words"] = Recogniser("words", _compiled(rf"(?i)\b(?:{known})\b", "words"))
    expressions = _list(given, "expressions", MOST // 100)
    if expressions:
        for one in expressions:
            if _compiled(one, "expressions").search("") is not None:
                raise Invalid(f"expressions: {one!r} finds nothing at all, in everything", field="expressions")
        own["expressions"] = Recogniser(
            "expressions", _compiled("|".join(f"(?:{e})" for e in expressions), "expressions")
        )
    chosen = {way: _chosen(given, way, own) for way in ("redact", "deny")}
    if not chosen["redact"] and not chosen["deny"]:
        raise Invalid("redact: say what to redact or deny, of " + ", ".join(own), field="redact")
    answers = given.get("answers", True)
    if not isinstance(answers, bool):
        raise Invalid("answers: must be true or false", field="answers")
    return Patterns(chosen["redact"], chosen["deny"], answers)


def _chosen(given: Mapping[str, Any], way: str, known: Mapping[str, Recogniser]) -> list[Recogniser]:
    names = _list(given, way, len(known))
    for name in names:
        if name not in known:
            raise Invalid(f"{way}: {name!r} is not one of {', '.join(known)}", field=way)
    return [known[name] for name in names]


def _list(given: Mapping[str, Any], name: str, most: int) -> list[str]:
    found = given.get(name, [])
    if not isinstance(found, list) or not all(isinstance(one, str) and 0 < len(one) < WINDOW for one in found):
        raise Invalid(f"{name}: must be a list of texts of 1 to {WINDOW - 1} characters", field=name)
    if len(found) > most:
        raise Invalid(f"{name}: at most {most}", field=name)
    return found


def _compiled(expression: str, field: str) -> Any:
    options = re2.Options()
    options.max_mem, options.log_errors = MEMORY, False
    try:
        return re2.compile(expression, options)
    except re2.error as error:
        raise Invalid(f"{field}: not an expression of RE2: {error}", field=field) from None
