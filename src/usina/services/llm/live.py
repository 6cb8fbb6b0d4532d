"""An endpoint at work: its replicas as seats, who waits for one, and what is measured of it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from usina.core.endpoint import Load, Replica, ReplicaState
from usina.ports.llm import Offered
from usina.services.llm.ask import Verb
from usina.services.llm.line import Line
from usina.services.llm.route import Memory, choose
from usina.services.llm.shared import SharedCount, Table
from usina.services.llm.upstream import Pool

if TYPE_CHECKING:
    from usina.services.llm.call import OneCall

FAILURES = 3  # in a row, after which a replica gets nothing for a while
EJECTED = 1.0  # seconds, doubled with each time more
EJECTED_MOST = 30.0
GUESS = 0.3  # tokens in a byte of prompt, until something was counted
SMOOTH = 0.1
WINDOW = 10.0  # seconds over which tokens are averaged


class Seat:
    """A replica, and how it does."""

    __slots__ = (
        "ejected_until",
        "ejections",
        "failures",
        "id",
        "in_flight",
        "owed",
        "pool",
        "replica",
        "shared",
        "unread",
    )

    def __init__(self, replica: Replica, pool: Pool, shared: SharedCount | None = None) -> None:
        self.id, self.replica, self.pool = replica.id, replica, pool
        self.shared = shared  # where other gateways of this machine send requests, too
        self.in_flight = 0
        self.owed = 0  # blocks of prompts that it has yet to read, as far as is known
        self.unread = 0  # of them, those of the request that it was last chosen for
        self.failures = 0
        self.ejections = 0
        self.ejected_until = 0.0

    def take(self) -> None:
        self.in_flight += 1
        if self.shared is not None:
            self.shared.tell(self.in_flight)

    def leave(self) -> None:
        self.in_flight -= 1
        if self.shared is not None:
            self.shared.tell(self.in_flight)

    def has_room(self, slots: int) -> bool:
        return self.in_flight < slots and (self.shared is None or self.in_flight + self.shared.others() < slots)

    def went_well(self) -> None:
        self.failures = self.ejections = 0

    def went_wrong(self, now: float) -> None:
        self.failures += 1
        if self.failures >= FAILURES:
            self.ejected_until = now + min(EJECTED_MOST, EJECTED * 2**self.ejections)
            self.ejections += 1
            self.failures = FAILURES - 1  # one more is enough, when it is tried again


class Live:
    def __init__(self, offered: Offered, clock: Callable[[], float], table: Table | None = None) -> None:
        self.offered, self._table = offered, table
        self._clock = clock
        self.seats: dict[str, Seat] = {}
        self.line: Line[OneCall] = Line()
        self.memory = Memory()
        self.per_byte = GUESS
        self.in_flight = 0
        self.last_at = 0.0  # wall clock
        self._tokens: dict[int, int] = {}  # second -> tokens given out in it
        self.update(offered)

    def update(self, offered: Offered) -> None:
        """The endpoint as it is now: new replicas get a seat, those that are gone lose theirs; what they have begun,
        they end."""
        moved = offered.spec.url != self.offered.spec.url
        self.offered = offered
        wanted = {replica.id: replica for replica in offered.replicas if replica.state is not ReplicaState.STARTING}
        for id, seat in list(self.seats.items()):
            replica = wanted.get(id)
            if replica is None or moved or _elsewhere(replica, seat.replica):
                seat.pool.close()
                del self.seats[id]
            else:
                seat.replica = replica
        for id, replica in wanted.items():
            if id not in self.seats:
                shared = SharedCount(self._table, id, self._clock) if self._table is not None else None
                self.seats[id] = Seat(replica, Pool(self._clock), shared)

    def close(self) -> None:
        """It is gone: what is under way is cut, and finds no other replica."""
        for seat in self.seats.values():
            seat.pool.abort()
        self.seats.clear()

    def speaks(self, verb: Verb) -> bool:
        """Whether replicas understand what is asked so; else a chat is made of it. Messages choose no adapter."""
        choosing = verb is Verb.MESSAGES and self.offered.adapters_by == "lora"
        return self.offered.messages and not (choosing and self._has_adapters())

    def _has_adapters(self) -> bool:
        """Now, or as soon as there are replicas again."""
        return bool(self.offered.spec.adapters) or any(seat.replica.adapters for seat in self.seats.values())

    # --- choosing

    def seat(self, chain: Sequence[int], tried: Sequence[str], adapter: str = "") -> Seat | None:
        """A replica that can take one request more now; None where all are at work. With the adapter, if one has it:
        they are not alike while they change."""
        open = self._open(tried)
        if not open:
            return None
        if adapter:
            open = [seat for seat in open if adapter in seat.replica.adapters] or open
        choice = choose(self._of_variant(open) or open, chain, self.memory)
        found = self.seats[choice.replica]
        found.unread = choice.unread
        self.memory.note(chain, found.id)
        return found

    def has_room(self) -> bool:
        return bool(self._open(()))

    def _open(self, tried: Sequence[str]) -> list[Seat]:
        now, slots = self._clock(), self.offered.spec.slots
        return [
            seat
            for seat in self.seats.values()
            if seat.replica.state is ReplicaState.READY
            and seat.ejected_until <= now
            and seat.id not in tried
            and seat.has_room(slots)
        ]

    def _of_variant(self, able: list[Seat]) -> list[Seat]:
        """While a canary is on trial, the replicas that this request's lot falls on."""
        canary = self.offered.spec.canary
        if canary is None:
            return able
        on_trial = random.random() < canary.weight  # noqa: S311 - a lot, not a secret
        return [seat for seat in able if (seat.replica.variant == canary.variant) is on_trial]

    # --- measuring

    def count(self, tokens: int, at: float) -> None:
        """Tokens given out, `at` by the wall clock."""
        second = int(self._clock())
        self.last_at = at
        self._tokens[second] = self._tokens.get(second, 0) + tokens

    def learn(self, bytes_: int, tokens: int) -> None:
        """So many bytes of prompt were so many tokens."""
        if bytes_ >= 64:
            self.per_byte += SMOOTH * (tokens / bytes_ - self.per_byte)

    def load(self, at: float) -> Load:
        now = self._clock()
        self._tokens = {second: tokens for second, tokens in self._tokens.items() if now - second < WINDOW}
        oldest = self.line.oldest()
        return Load(
            in_flight=self.in_flight,
            waiting=len(self.line),
            oldest=0.0 if oldest is None else round(now - oldest, 3),
            tokens=round(sum(self._tokens.values()) / WINDOW, 2),
            last_at=at if self.in_flight or self.line else self.last_at,
            by_replica={seat.id: seat.in_flight for seat in self.seats.values() if seat.in_flight},
        )


def _elsewhere(a: Replica, b: Replica) -> bool:
    return (a.provider, a.stack, a.handle, a.port) != (b.provider, b.stack, b.handle, b.port)
