"""What crash tests on the pretended stack share: asking a process that may die over it, and what the stack noted."""

from __future__ import annotations

from collections import Counter
from typing import Any

import httpx2
import msgspec

from usina.core.task import task_of
from usina.testing.process import FactoryProcess, Refused

Json = dict[str, Any]


def attempt(factory: FactoryProcess, method: str, path: str, body: Json | None = None) -> None:
    """Ask, whatever becomes of the answer: the process may die before it gives one."""
    try:
        factory.call(method, path, body, key="once" if method == "POST" else "")
    except httpx2.TransportError:
        return
    except Refused as refused:
        assert refused.status in (404, 409), refused


def lines(factory: FactoryProcess) -> list[Json]:
    [journal] = factory.data_dir.glob("hosts/*/fake/runs.jsonl")
    return [msgspec.json.decode(line) for line in journal.read_bytes().splitlines()]


def starts(factory: FactoryProcess) -> Counter[str]:
    """How often each task was begun on the stack."""
    return Counter(task_of(line["handle"]) for line in lines(factory) if not line.get("gone"))


def left(factory: FactoryProcess) -> set[str]:
    standing: set[str] = set()
    for line in lines(factory):
        (standing.discard if line.get("gone") else standing.add)(line["handle"])
    return standing
