"""Purses: what this gateway may give out of budgets. A request reserves the most it can use in the purse of its key, of
its project and of its tenant, or in none of them; when it is over, what it did not use is free again.

Invariant: ``0 <= reserved`` and, as long as reservations are true upper bounds, ``reserved <= held``: what is held was
leased from the ledger, which gives out no more than the budget; so no budget is overspent, by whichever gateways.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from usina.ports.llm import Slice, Spend

PAUSE = 1.0  # seconds before the ledger is asked again where it had nothing left
SMALL = 4096  # tokens; less free than this, or than a quarter of the last slice, and more is asked for


@dataclass(slots=True)
class Purse:
    """Of one budget. `held`: what was leased and is not spent; `reserved`: the part of it that requests may yet use."""

    scope: str
    began_at: float = 0.0
    ends_at: float = 0.0  # of the period; a purse of a period that is over is empty
    held: int = 0
    reserved: int = 0
    low: int = SMALL  # free tokens below which it asks for more
    spent_out: bool = False  # the ledger had less than was wanted
    again_at: float = 0.0  # until then it is not asked again
    asked: int = 0  # the ledger is being asked for at least so many
    seen: int = 0  # what was held when it was last looked at
    still: int = 0  # looks since anything was reserved or spent

    @property
    def free(self) -> int:
        return self.held - self.reserved

    def answered(self, got: Slice | None, now: float) -> None:
        """The ledger has answered: with a slice, or with nothing where it knows no such budget, or is not there."""
        self.spent_out = got is None or got.tokens < self.asked
        self.again_at = now + PAUSE if self.spent_out else 0.0
        self.asked = 0
        if got is not None:
            self._fill(got)

    def _fill(self, got: Slice) -> None:
        """Put a slice in. One of a new period empties the purse first: what was reserved is still settled, with the
        old one."""
        if got.began_at != self.began_at:
            self.began_at, self.held, self.reserved = got.began_at, 0, 0
        self.ends_at = got.ends_at
        self.held += got.tokens
        self.low = max(SMALL, self.held // 4)


@dataclass(frozen=True, slots=True)
class Hold:
    """A reservation: the purses it is in, each with the period it belongs to."""

    purses: tuple[tuple[Purse, float], ...]
    tokens: int

    def settle(self, used: int) -> list[Spend]:
        """Free the reservation and spend what was used."""
        for purse, began_at in self.purses:
            if purse.began_at == began_at:
                purse.reserved -= self.tokens
                purse.held -= used
        return [Spend(purse.scope, began_at, used) for purse, began_at in self.purses] if used else []


NO_HOLD = Hold((), 0)


class Purses:
    """All purses of this gateway. `ask` is called with what must be leased, at most once at a time for each scope."""

    def __init__(self, ask: Callable[[dict[str, int]], None]) -> None:
        self._ask = ask
        self.purses: dict[str, Purse] = {}

    def keep(self, scopes: Iterable[str]) -> list[Purse]:
        """Have purses for exactly these scopes; the ones that are new. What was taken away is still settled."""
        wanted = set(scopes)
        for scope in self.purses.keys() - wanted:
            del self.purses[scope]
        fresh = [Purse(scope) for scope in wanted if scope not in self.purses]
        self.purses |= {purse.scope: purse for purse in fresh}
        return fresh

    def of(self, scopes: Sequence[str]) -> list[Purse]:
        """The purses that a request of these scopes must pay from."""
        return [purse for scope in scopes if (purse := self.purses.get(scope)) is not None]

    def take_out(self, scope: str) -> Slice | None:
        """What nobody has reserved, to be given back; None where there is none."""
        purse = self.purses[scope]
        if purse.free <= 0:
            return None
        slice = Slice(scope, purse.began_at, purse.ends_at, purse.free)
        purse.held -= purse.free
        return slice

    def idle(self, looks: int) -> list[str]:
        """One look at all of them; the scopes of those that have something free and stood still for so many."""
        found = []
        for purse in self.purses.values():
            if purse.reserved or purse.asked or purse.held != purse.seen:
                purse.seen, purse.still = purse.held, 0
            else:
                purse.still += 1
                if purse.free > 0 and purse.still >= looks:
                    found.append(purse.scope)
        return found

    def reserve(self, purses: Sequence[Purse], tokens: int, now: float) -> Hold | None:
        """`tokens` in all of them, or None and in none: then what is missing is asked for."""
        short = [purse for purse in purses if purse.free < tokens or purse.ends_at <= now]
        if short:
            self._want(short, tokens, now)
            return None
        for purse in purses:
            purse.reserved += tokens
        lowered = [purse for purse in purses if purse.free < purse.low and not purse.spent_out]
        if lowered:
            self._want(lowered, 0, now)
        return Hold(tuple([(purse, purse.began_at) for purse in purses]), tokens)

    def _want(self, purses: Sequence[Purse], tokens: int, now: float) -> None:
        asking = {}
        for purse in purses:
            missing = tokens - (purse.free if purse.ends_at > now else 0)
            if not purse.asked and now >= purse.again_at:
                purse.asked = asking[purse.scope] = max(1, missing)
        if asking:
            self._ask(asking)
