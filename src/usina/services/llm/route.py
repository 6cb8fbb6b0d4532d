"""To whom a request goes: pure, over what the gateway counts of each replica.

A replica that has seen the beginning of a prompt answers sooner, as it keeps what it computed for it; one that has
prompts yet to read, or many answers to write, answers later. All of it is weighed in one unit, blocks of a prompt: see
`choose`. Where hardly anything was seen, or only what many prompts share, such as a system prompt, rendezvous hashing
of the first block that nobody has seen decides among the replicas about as good as the best. So gateways send prompts
that go on alike to one replica without talking to each other (Thaler and Ravishankar, 1998), bounded by load in the
spirit of "consistent hashing with bounded loads" (Mirrokni et al., 2018). `./dev bench llm_routing` measures it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol
from zlib import crc32

BLOCK = 1024  # bytes of a prompt
LENGTHS = (*range(1, 8), *range(8, 16, 2), *range(16, 32, 4), *range(32, 65, 8))  # of beginnings, in blocks
DEEPEST = LENGTHS[-1]  # blocks that are looked at; what is behind them follows from them
REMEMBERED = 65_536  # beginnings of an endpoint
OWNERS = 4  # replicas that are remembered for a beginning
BUSY = 1.0  # blocks that one request more at work on a replica outweighs
OWED = 1 / 8  # blocks that one block more, which a replica has yet to read, outweighs
NEAR = 4.0  # blocks that make no difference while no more was seen

_READ = (0, *LENGTHS)  # blocks in so many beginnings


class Seat(Protocol):
    """A replica as routing sees it."""

    id: str
    in_flight: int
    owed: int  # blocks of prompts that it has not seen before, and whose answers have not begun


class Memory:
    """Which replicas have lately seen which beginnings, the last one first.

    Beginnings are kept in two halves: those seen again move to the young one; when it is full, it becomes the old one,
    and what was still in that is forgotten. So a beginning is never forgotten before what goes on from it.
    """

    def __init__(self, size: int = REMEMBERED) -> None:
        self._young: dict[int, tuple[str, ...]] = {}
        self._old: dict[int, tuple[str, ...]] = {}
        self._half = size // 2

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def match(self, chain: Sequence[int]) -> dict[str, int]:
        """Replica → how many beginnings it has seen, for those that have seen any."""
        young, old = self._young.get, self._old.get
        found: dict[str, int] = {}
        last: tuple[str, ...] = ()
        depth = 0
        for block in chain:
            owners = young(block) or old(block)
            if owners is None:
                break
            if owners is not last:  # most follow one with the very same owners
                found.update(dict.fromkeys(last, depth))
                last = owners
            depth += 1
        found.update(dict.fromkeys(last, depth))
        return found

    def note(self, chain: Sequence[int], replica: str) -> None:
        young, get, old = self._young, self._young.get, self._old.get
        last: tuple[str, ...] | None = None
        alone: tuple[str, ...] = (replica,)
        noted = alone
        for block in chain:
            owners = get(block) or old(block)
            if owners is not last:
                last = owners
                noted = alone if owners is None else _with(owners, replica)
            young[block] = noted
        if len(young) >= self._half:
            self._young, self._old = {}, young


def _with(owners: tuple[str, ...], replica: str) -> tuple[str, ...]:
    if owners[0] == replica:
        return owners
    return (replica, *[owner for owner in owners if owner != replica][: OWNERS - 1])


def chain_of(text: bytes, session: str = "") -> tuple[int, ...]:
    """One number for each beginning of a prompt that is as long as one of `LENGTHS`; the deeper, the coarser. A prompt
    shorter than all of them is its own beginning."""
    chain = []
    last = crc32(session.encode()) if session else 0
    start = 0
    for length in LENGTHS:
        end = length * BLOCK
        if end > len(text):
            break
        last = crc32(text[start:end], last)
        chain.append(last)
        start = end
    if not chain and text:
        chain.append(crc32(text, last))
    return tuple(chain)


class Choice(NamedTuple):
    replica: str
    matched: int  # blocks that it has seen
    unread: int  # blocks that it has not


def choose(seats: Sequence[Seat], chain: Sequence[int], memory: Memory) -> Choice:
    """The best of `seats`, which must not be empty, each of which could take the request."""
    matched = memory.match(chain)
    depth = matched.get
    values = [_READ[depth(seat.id, 0)] - BUSY * seat.in_flight - OWED * seat.owed for seat in seats]
    best = max(values)
    found = seats[values.index(best)]
    seen = _READ[depth(found.id, 0)]
    if seen <= NEAR and chain and len(seats) > 1:
        near = [seat for seat, value in zip(seats, values, strict=True) if value >= best - NEAR]
        if len(near) > 1:
            unseen = chain[min(max(matched.values(), default=0), len(chain) - 1)]
            found = max(near, key=lambda seat: _weight(seat.id, unseen))
            seen = _READ[depth(found.id, 0)]
    return Choice(found.id, seen, _READ[len(chain)] - seen)


def _weight(replica: str, block: int) -> int:
    """A CRC alone would not do: those of two replicas differ by the same bits whatever the block is."""
    return (crc32(replica.encode()) ^ block) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
