"""Endpoints in the words of people: ``0..4`` replicas, ``NAME=VALUE``, a model at its revision."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from usina.cli import screen
from usina.client import Resource
from usina.client.endpoints import Runtime
from usina.core.errors import Invalid

_SPAN = re.compile(r"(\d{1,3})(?:\.\.(\d{1,3}))?\Z")


def span(text: str | None) -> tuple[int | None, int | None]:
    """``3`` → (3, 3), ``0..4`` → (0, 4). Raises `Invalid`."""
    if text is None:
        return None, None
    found = _SPAN.match(text.strip())
    if not found:
        raise Invalid(f"replicas: {text!r} is not like 2 or 0..4", field="replicas")
    low, high = int(found[1]), int(found[2] or found[1])
    if high < low or not high:
        raise Invalid(f"replicas: {text!r}: at least one at most, and no fewer than at least", field="replicas")
    return low, high


def pairs(words: Sequence[str] | None, option: str) -> dict[str, str] | None:
    """``NAME=VALUE`` words; None where there are none."""
    if not words:
        return None
    found = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not name or not equals:
            raise Invalid(f"{option}: {word!r} is not like NAME=VALUE", field=option)
        found[name] = value
    return found


def from_environment(variable: str | None) -> str | None:
    """A secret is named, not typed. Raises `Invalid`."""
    if variable is None:
        return None
    if variable not in os.environ:
        raise Invalid(f"secret: there is no variable {variable} in the environment", field="secret")
    return os.environ[variable]


def replicas(endpoint: Resource) -> str:
    """``2/3 (1..4)``: ready, wanted, allowed."""
    spec, status = endpoint.spec, endpoint.status
    if spec["recipe"] is None:
        return "–"
    ready = sum(one["state"] == "ready" for one in status.get("replicas", ()))
    low, high = spec["minimum"], spec["maximum"]
    allowed = f" ({low}..{high})" if low != high else ""
    return f"{ready}/{status.get('wanted', 0)}{allowed}"


def variant(one: Mapping[str, Any]) -> str:
    return f"{one['model']}@{one['revision'][:8]}" if one.get("revision") else str(one["model"])


def sizes(recipe: Mapping[str, Any]) -> str:
    """What a replica asks for."""
    if not recipe:
        return ""
    gpus = sum(one["count"] for one in recipe["devices"])
    more = f", {gpus} GPU{'s' if gpus > 1 else ''}" if gpus else ""
    hosts = f" on each of {recipe['hosts']} hosts" if recipe["hosts"] > 1 else ""
    cores = recipe["cores"]
    return f"{cores:g} {'core' if cores == 1 else 'cores'}, {screen.size(recipe['memory'])}{more}{hosts}"


RUNTIMES: screen.Columns[Runtime] = [
    ("name", lambda one: one.name),
    ("reads", lambda one: " ".join(one.formats) or "–"),
    ("on", lambda one: ", ".join(one.stacks) or "–"),
    ("options", lambda one: ", ".join(one.options) or "–"),
    ("what it is", lambda one: one.summary),
]
