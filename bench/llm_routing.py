"""Routing of prompts, measured: how much of what replicas have computed each policy finds again, and how loads spread.

`./dev bench llm_routing` replays the conversations of Mooncake (kvcache-ai/Mooncake, Apache-2.0): 12,031 requests of
an hour, all with one system prompt. A replica keeps blocks of 512 tokens, of which the least recently used go first;
it computes what it does not have of its prompts one after the other, and writes its answers side by side. The same
speed is cut into 4 or 16 replicas. The text of a request is made from its blocks, 4 bytes a token, and read by the real
`chain_of`, `choose` and `Memory`. The *ideal* is one cache without an end that sees every request. Ends with status 1
when a target is missed. Microseconds mean something only on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import platform
import random
import statistics
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, groupby
from pathlib import Path
from zlib import crc32

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Column, Table

from usina.services.llm.route import Memory, chain_of, choose

TOKENS = 512  # of a block of the trace
BYTES = 4  # of a token
STAMP = 3.0  # seconds between two stamps of the trace
PER_TOKEN = 0.03  # seconds, of an answer
LOADS = (0.8, 1.2)  # tokens of prompts in a second, beside what all replicas could compute in one; kept ones lessen it
HEAVY_BLOCKS = 50_000  # the heavier load is tried with these only

out = Console(highlight=False, width=170)
err = Console(stderr=True)


@dataclass(frozen=True)
class Verdict:
    name: str
    good: bool


# --- the trace


@dataclass(frozen=True, slots=True)
class Request:
    at: float
    tokens: int
    answer: int
    blocks: tuple[int, ...]
    chain: tuple[int, ...]


def read(data: Path) -> tuple[list[Request], float]:
    """The requests, and the microseconds that `chain_of` takes for one."""
    path = data / "mooncake_conversation.jsonl"
    if not path.exists():
        sys.exit(f"{path} is not there: name the folder of the trace with --data")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    found, took = [], 0.0
    for stamp, group in groupby(rows, lambda row: row["timestamp"]):
        alike = list(group)
        for number, row in enumerate(alike):  # stamps are coarse: those of one are spread until the next
            blocks = tuple(row["hash_ids"])
            text = text_of(blocks, row["input_length"])
            begun = time.thread_time()
            chain = chain_of(text)
            took += time.thread_time() - begun
            at = stamp / 1000 + STAMP * number / len(alike)
            found.append(Request(at, row["input_length"], row["output_length"], blocks, chain))
    return found, 1e6 * took / len(found)


def text_of(blocks: Sequence[int], tokens: int) -> bytes:
    """As long as the prompt, and the same where its blocks are the same."""
    return b"".join(b"%-16d" % block * (TOKENS * BYTES // 16) for block in blocks)[: tokens * BYTES]


# --- replicas


def depth_in(kept: OrderedDict[int, None] | set[int], blocks: Sequence[int]) -> int:
    """How many from the beginning on are there."""
    return next((depth for depth, block in enumerate(blocks) if block not in kept), len(blocks))


class Replica:
    def __init__(self, size: int) -> None:
        self._size = size or sys.maxsize
        self._kept: OrderedDict[int, None] = OrderedDict()
        self.free_at = 0.0
        self.requests = self.computed = 0

    def take(self, blocks: Sequence[int]) -> int:
        """How many from the beginning on were kept; now all are. Ends of prompts go before their beginnings."""
        kept = self._kept
        hits = depth_in(kept, blocks)
        for block in reversed(blocks):
            kept[block] = None
            kept.move_to_end(block)
        while len(kept) > self._size:
            kept.popitem(last=False)
        return hits


@dataclass(slots=True)
class Seat:
    """A replica as one gateway sees it."""

    id: str
    in_flight: int = 0
    owed: int = 0


# --- policies: the number of a replica, and what of the request it has yet to read

Policy = Callable[[Request, Sequence[Seat]], tuple[int, int]]


def round_robin() -> Policy:
    turns = count()
    return lambda request, seats: (next(turns) % len(seats), 0)


def least_loaded() -> Policy:
    turns = count()

    def decide(request: Request, seats: Sequence[Seat]) -> tuple[int, int]:
        turn = next(turns)  # in turns among equals
        return min(range(len(seats)), key=lambda n: (seats[n].in_flight, (n - turn) % len(seats))), 0

    return decide


def first_block() -> Policy:
    """Consistent hashing of the first block."""
    return lambda request, seats: (
        max(range(len(seats)), key=lambda n: crc32(b"%d of %d" % (request.blocks[0], n)) * 0x9E3779B1 % 2**32),
        0,
    )


def radix() -> Policy:
    """An exact tree of each replica, without an end: the longest match, if it is long enough and loads are alike, else
    the least loaded. The rule and the numbers are those of cache-aware routing in SGLang's router, as documented."""
    threshold, absolute, relative = 0.3, 64, 1.5
    trees: list[set[int]] = []
    otherwise = least_loaded()

    def decide(request: Request, seats: Sequence[Seat]) -> tuple[int, int]:
        if not trees:
            trees.extend(set() for _ in seats)
        loads = [seat.in_flight for seat in seats]
        found, _ = otherwise(request, seats)
        if max(loads) - min(loads) <= absolute or max(loads) <= relative * min(loads):
            matched = [depth_in(tree, request.blocks) for tree in trees]
            if max(matched) > threshold * len(request.blocks):
                found = matched.index(max(matched))
        trees[found].update(request.blocks)
        return found, 0

    return decide


def usina() -> Policy:
    memory = Memory()

    def decide(request: Request, seats: Sequence[Seat]) -> tuple[int, int]:
        choice = choose(seats, request.chain, memory)
        memory.note(request.chain, choice.replica)
        return int(choice.replica), choice.unread

    return decide


OURS = "usina"
POLICIES: dict[str, tuple[Callable[[], Policy], int]] = {  # and how many gateways, none of which knows of the others
    "round robin": (round_robin, 1),
    "least loaded": (least_loaded, 1),
    "hash of first block": (first_block, 1),
    "radix trees, threshold": (radix, 1),
    OURS: (usina, 1),
    "usina, 4 gateways": (usina, 4),
    "usina, no streams": (usina, 1),
}

# --- a run


@dataclass(frozen=True)
class Outcome:
    hits: float
    requests: np.ndarray
    work: np.ndarray
    waited: float  # for others' prompts, seconds on average
    first: np.ndarray  # seconds until the first token
    busy: float
    took: float  # microseconds of a decision


def run(requests: Sequence[Request], name: str, replicas: int, blocks: int, load: float) -> Outcome:
    make, gateways = POLICIES[name]
    lasted = requests[-1].at
    speed = sum(request.tokens for request in requests) / lasted / load / replicas
    pool = [Replica(blocks // replicas) for _ in range(replicas)]
    sides = [(make(), [Seat(str(number)) for number in range(replicas)]) for _ in range(gateways)]
    source = random.Random(0)
    events: list[tuple[float, int, Seat, int, int]] = []  # when, a number, where: so many requests and blocks less
    numbers = count()
    hits, took, waited, first = 0, 0.0, 0.0, []
    for request in requests:
        while events and events[0][0] <= request.at:
            *_, seat, fewer, unread = heapq.heappop(events)
            seat.in_flight -= fewer
            seat.owed -= unread
        decide, seats = source.choice(sides)
        begun = time.thread_time()
        chosen, unread = decide(request, seats)
        took += time.thread_time() - begun
        replica, seat = pool[chosen], seats[chosen]
        kept = replica.take(request.blocks)
        tokens = max(1, request.tokens - kept * TOKENS)
        begins = max(replica.free_at, request.at)
        replica.free_at = begins + tokens / speed
        ends = replica.free_at + request.answer * PER_TOKEN
        seat.in_flight += 1
        seat.owed += unread
        heard = ends if name == "usina, no streams" else replica.free_at
        heapq.heappush(events, (heard, next(numbers), seat, 0, unread))
        heapq.heappush(events, (ends, next(numbers), seat, 1, 0))
        hits += kept
        waited += begins - request.at
        first.append(replica.free_at - request.at)
        replica.requests += 1
        replica.computed += tokens
    work = np.array([replica.computed for replica in pool])
    return Outcome(
        hits / sum(len(request.blocks) for request in requests),
        np.array([replica.requests for replica in pool]),
        work,
        waited / len(requests),
        np.array(first),
        float(work.sum()) / speed / lasted / replicas,
        1e6 * took / len(requests),
    )


def one_cache(requests: Sequence[Request], blocks: int) -> float:
    """What one cache of this size would hit, were all requests to go to it."""
    cache = Replica(blocks)
    return sum(cache.take(request.blocks) for request in requests) / sum(len(request.blocks) for request in requests)


def _spread(amounts: np.ndarray) -> tuple[float, str]:
    """Most beside mean; with the coefficient of variation, as told."""
    most = float(amounts.max() / amounts.mean())
    return most, f"{most:.2f} / {amounts.std() / amounts.mean():.2f}"


def compare(options: argparse.Namespace) -> Iterator[Verdict]:
    requests, reading = read(options.data)
    ideal = one_cache(requests, 0)
    out.print(
        f"{len(requests):,} requests; the ideal hits {100 * ideal:.2f} % of all blocks; `chain_of`: {reading:.1f} µs"
    )
    table = Table(
        "replicas", "load", "blocks", Column("policy", no_wrap=True), "hits %", "of ideal %", "of one cache %",
        "requests", "work", "busy %", "waits s", "first s", "p99 s", "µs",
        caption="requests, work: most / mean, coefficient of variation; one cache: as large as all together; "
        "first: until the first token",
    )  # fmt: skip
    cases = [(n, LOADS[0], blocks) for n in options.replicas for blocks in options.blocks]
    cases += [(n, LOADS[1], HEAVY_BLOCKS) for n in options.replicas]
    least, most, slow, took = 1.0, 0.0, 0.0, []
    for replicas, load, blocks in track(cases, transient=True, console=err):
        one = one_cache(requests, blocks)
        firsts = {}
        for name in POLICIES:
            found = run(requests, name, replicas, blocks, load)
            (of_requests, told), (of_work, told_work) = _spread(found.requests), _spread(found.work)
            firsts[name] = float(found.first.mean())
            p99 = float(np.percentile(found.first, 99))
            table.add_row(
                str(replicas), f"{load}", f"{blocks:,}" if blocks else "no end", name, f"{100 * found.hits:.1f}",
                f"{100 * found.hits / ideal:.1f}", f"{100 * found.hits / one:.1f}", told, told_work,
                f"{100 * found.busy:.0f}", f"{found.waited:.2f}", f"{firsts[name]:.2f}",
                f"{p99:.1f}", f"{found.took:.1f}",
                style="bold" if name == OURS else "",
            )  # fmt: skip
            if name == OURS:
                least = min(least, found.hits / one)
                most = max(most, of_requests, of_work)
                took.append(found.took)
        slow = max(slow, firsts[OURS] / min(first for name, first in firsts.items() if not name.startswith(OURS)))
        table.add_section()
    out.print(table)
    yield Verdict(f"at least 90 % of the hits of one cache as large as all: {100 * least:.1f}", least >= 0.9)
    yield Verdict(f"most beside mean, of requests and of work, below 1.3: {most:.2f}", most < 1.3)
    yield Verdict(f"the first token no later than with any other policy: at most {slow:.2f} times", slow <= 1)
    yield Verdict(
        f"a decision in less than 30 µs: median of runs {statistics.median(took):.1f}", statistics.median(took) < 30
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./dev bench llm_routing", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared/data/llm-traffic")
    parser.add_argument("--replicas", nargs="+", type=int, default=[4, 16])
    parser.add_argument("--blocks", nargs="+", type=int, default=[0, 100_000, 50_000, 20_000], help="of all replicas")
    return parser.parse_args()


def main() -> None:
    options = _options()
    out.print(f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, Python {platform.python_version()}")
    verdicts = list(compare(options))
    for verdict in verdicts:
        out.print(("[green]met[/]    " if verdict.good else "[red]missed[/] ") + verdict.name)
    sys.exit(0 if all(verdict.good for verdict in verdicts) else 1)


if __name__ == "__main__":
    main()
