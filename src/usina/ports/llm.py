"""The gateway of models and what it stands between: clients at the `/v1` door, replicas, and the house's books.

Nothing here waits for a database before the first byte: what the gateway knows is a `Directory`, given to it anew
whenever something in it has changed. What is not in there is looked for before it is refused. What was used is written
into a journal of the gateway's own, and from there into the `Ledger`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from usina.core.endpoint import EndpointSpec, Load, Replica
from usina.core.llm import Budget, Usage
from usina.core.tenancy import Key, Member, Project
from usina.core.units import Instant

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True, slots=True)
class Offered:
    """An endpoint as the gateway sees it."""

    id: str
    tenant: str
    project: str
    name: str
    spec: EndpointSpec
    replicas: tuple[Replica, ...] = ()
    secret: str = ""  # opened; of an external upstream
    messages: bool = True  # its replicas speak Anthropic's messages
    adapters_by: str = "model"  # as in `ports.runtime`


@dataclass(frozen=True, slots=True)
class Directory:
    """Everything that decides about a request, as it was at one moment."""

    keys: Mapping[str, Key] = field(default_factory=dict)
    members: Mapping[str, Member] = field(default_factory=dict)
    projects: Mapping[str, Project] = field(default_factory=dict)
    endpoints: Mapping[str, Offered] = field(default_factory=dict)
    budgets: Mapping[str, Budget] = field(default_factory=dict)  # by scope


@dataclass(frozen=True, slots=True)
class Spend:
    """Tokens of one budget's period that were used up."""

    scope: str
    began_at: Instant
    tokens: int


@dataclass(frozen=True, slots=True)
class Slice:
    """Tokens of one budget's period that a gateway may give out. `tokens` 0: there is nothing left."""

    scope: str
    began_at: Instant
    ends_at: Instant  # inf where the budget has no periods
    tokens: int


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request that a replica has had, and its answer, as they are kept. Texts are as they went to and from the
    client's side of the gateway; `cut`: one of them was longer."""

    at: str  # RFC 3339, when it came
    request: str  # id
    member: str
    key: str
    endpoint: str
    model: str
    path: str
    status: int
    prompt: int  # tokens
    completion: int
    asked: str
    answered: str
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Kept:
    """A page of exchanges, and where the next one begins; None: there is none."""

    items: Sequence[Exchange]
    next: str | None


class Prompts(Protocol):
    """Prompts and answers of projects that want them kept."""

    def add(self, project: str, exchange: Exchange) -> None:
        """Keep it, soon."""
        ...

    async def flush(self) -> None:
        """Keep what was added, now."""
        ...

    async def page(self, project: str, since: Instant, cursor: str, limit: int) -> Kept:
        """From then on, the oldest first. Raises `Invalid` (field "cursor")."""
        ...

    async def sweep(self, days: Mapping[str, int], now: Instant) -> None:
        """Forget what is older than its project wants; of other projects, everything."""
        ...


class Ledger(Protocol):
    """The books that all gateways of a site share. Every call is one commit; a batch is written once, however often it
    is handed in."""

    async def begin(self) -> int:
        """The number of the last batch of this gateway that is written; it is made known where it is new."""
        ...

    async def write(
        self, batch: int, usage: Sequence[Usage], spent: Sequence[Spend], loads: Mapping[str, Load]
    ) -> None:
        """Write `batch`, unless it is written already."""
        ...

    async def lease(self, wanted: Mapping[str, int]) -> Sequence[Slice]:
        """For each scope at least so many tokens, if they are there, and some more to go on with."""
        ...

    async def dry(self, scopes: Sequence[str]) -> Sequence[str]:
        """Those of `scopes` of whose budget there is hardly anything left to lease."""
        ...

    async def give_back(self, slices: Sequence[Slice]) -> None:
        """Tokens that were leased and are not needed."""
        ...

    async def give_back_all(self) -> None:
        """Whatever this gateway still holds by the books; only when nothing of it can be spent any more."""
        ...


class Dial(Protocol):
    async def __call__(self, endpoint: Offered, replica: Replica) -> Streams:
        """A stream to a replica. Raises `OSError` or `DriverError`."""
        ...


class Outside(Protocol):
    async def __call__(self, url: str) -> Streams:
        """A stream to an external upstream. Raises `OSError`, or `Invalid` for one that may not be reached."""
        ...


class Sink(Protocol):
    """Where an answer goes. Calls come in order: `start`, any number of `write`, `end`; or `abort`."""

    @property
    def full(self) -> bool:
        """The client reads more slowly than is written."""
        ...

    def start(self, status: int, headers: Sequence[tuple[bytes, bytes]], length: int | None) -> None:
        """`length` None: not known, as of a stream."""
        ...

    def write(self, data: bytes) -> None: ...

    def end(self) -> None: ...

    def abort(self) -> None:
        """The answer cannot be finished; the client must notice."""
        ...


@dataclass(slots=True)
class Request:
    """One request of a client, complete."""

    method: bytes
    path: str  # below the mount: "/chat/completions"
    headers: Mapping[bytes, bytes]  # names in lower case
    body: bytes


class Call(Protocol):
    """A request under way."""

    def left(self) -> None:
        """The client has gone."""
        ...

    def drained(self) -> None:
        """The sink is not full any more."""
        ...


class Gateway(Protocol):
    body_limit: int  # bytes

    def knows(self, headers: Mapping[bytes, bytes]) -> bool:
        """Whether a request with these headers comes from somebody who may ask at all."""
        ...

    def begin(self, request: Request, sink: Sink) -> Call: ...
