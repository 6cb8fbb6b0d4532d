"""What is kept of one call, where its project wants that: a sink that remembers what went through it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from usina.core.llm import Usage
from usina.ports.llm import Exchange, Sink
from usina.services.llm.ask import Verb
from usina.services.llm.prompts import LONGEST

if TYPE_CHECKING:
    from usina.services.llm.call import OneCall

_VECTORS = "(vectors)"


class Record:
    __slots__ = ("_answered", "_call", "_project", "_sink", "_size", "usage")

    def __init__(self, sink: Sink, project: str, call: OneCall) -> None:
        self._sink, self._project, self._call = sink, project, call
        self._answered: list[bytes] = []
        self._size = 0
        self.usage: Usage | None = None

    # --- a sink

    @property
    def full(self) -> bool:
        return self._sink.full

    def start(self, status: int, headers: Sequence[tuple[bytes, bytes]], length: int | None) -> None:
        self._sink.start(status, headers, length)

    def write(self, data: bytes) -> None:
        if self._size < LONGEST:
            self._answered.append(data)
        self._size += len(data)
        self._sink.write(data)

    def end(self) -> None:
        self._sink.end()

    def abort(self) -> None:
        self._sink.abort()

    # --- the end

    def over(self, status: int) -> None:
        """Keep it, if a replica has had it."""
        call = self._call
        prompts = call.gateway.prompts
        if prompts is None or not call.upstream_at:
            return
        gateway, body = call.gateway, call.ask.body
        came = gateway.wall() - (gateway.clock() - call.since)
        answered = b"".join(self._answered)[:LONGEST]
        prompts.add(
            self._project,
            Exchange(
                at=datetime.fromtimestamp(came, UTC).isoformat(timespec="milliseconds"),
                request=call.request_id.decode(),
                member=call.caller.member.id,
                key=call.caller.key.id,
                endpoint=call.live.offered.id,
                model=call.model,
                path=call.request.path,
                status=status,
                prompt=self.usage.prompt if self.usage is not None else 0,
                completion=self.usage.completion if self.usage is not None else 0,
                asked=body[:LONGEST].decode(errors="replace"),
                answered=_VECTORS if call.ask.verb is Verb.EMBEDDINGS else answered.decode(errors="replace"),
                cut=len(body) > LONGEST or self._size > LONGEST,
            ),
        )
