"""All requests together: what they share, and the standing work beside them.

Nothing on the way of a request waits: what is not in memory (a connection, a lease of a budget, a replica, a name) is
asked for, and the request goes on when it is there.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import structlog

from usina.core.endpoint import Load
from usina.core.errors import UsinaError
from usina.core.llm import Every
from usina.core.tenancy import Key
from usina.core.units import MiB
from usina.ports.driver import DriverError
from usina.ports.guard import Placed
from usina.ports.llm import Call, Dial, Directory, Ledger, Offered, Prompts, Request, Sink, Slice
from usina.ports.traces import Traces
from usina.services.llm import refusal as refusals
from usina.services.llm.ask import VERBS, Verb
from usina.services.llm.book import Book, Caller
from usina.services.llm.call import OneCall
from usina.services.llm.guarding import Guards
from usina.services.llm.journal import Journal, Sums, hand_in
from usina.services.llm.live import Live, Seat
from usina.services.llm.meters import IN_FLIGHT, WAITING, Meters
from usina.services.llm.purse import Purses
from usina.services.llm.rates import Rates
from usina.services.llm.refusal import Refusal, Unknown
from usina.services.llm.shared import SharedRates, Table

log = structlog.get_logger()

TICK = 1.0  # seconds between looks at who waits too long, and between batches for the ledger
FIRST_BYTE = 600.0  # seconds that a replica may take to begin an answer
DIAL = 10.0
LOOK = 2.0  # seconds that a look at the directory may take
IDLE = 3  # ticks after which a purse that nobody draws on is emptied, where there are other gateways
ROOM = 0.02  # seconds between looks for room at replicas that other gateways of this machine use, too
ALIVE = 5.0  # seconds after which the ledger hears of a gateway that has nothing to say


async def _nothing_new() -> None:
    """A look at a directory that is only ever given."""


class LlmGateway:
    def __init__(
        self,
        ledger: Ledger,
        dial: Dial,
        secret: Callable[[Key], str],
        folder: Path,
        *,
        guards: Mapping[str, Placed] = {},
        body_limit: int = 32 * MiB,
        prompts: Prompts | None = None,
        traces: Traces | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        alone: bool = True,
        table: Table | None = None,
        look: Callable[[], Awaitable[None]] = _nothing_new,
    ) -> None:
        """`alone`: no other gateway leases of the same budgets, so that slices can be kept. `table`:
        shared with the other gateways of this machine; what is counted there, they count together. `look` gives the
        directory anew (`refresh`), if anything in it has changed: what a request names may just have been made."""
        self.body_limit, self.clock, self.wall = body_limit, clock, wall
        self._ledger, self._dial, self._secret = ledger, dial, secret
        self._look = look
        self._placed = guards
        self.guarded = bool(guards)  # whether any endpoint may have a guard
        self._guards: dict[str, Guards | None] = {}
        self.prompts, self.traces = prompts, traces
        self.book = Book(Directory(), secret)
        self.lives: dict[str, Live] = {}
        self.journal = Journal(folder)
        self.meters = Meters()
        self.purses = Purses(self._ask_ledger)
        self._alone, self._table = alone, table
        self._looking: set[str] = set()  # endpoints whose line looks for room that another gateway has made
        self._rates: dict[str, Rates] = {}
        self._calls: dict[int, OneCall] = {}
        self._short: list[OneCall] = []  # of calls that wait for a lease
        self._number = 0
        self._prefix = secrets.token_hex(6)
        self._tasks: set[asyncio.Task[None]] = set()
        self._freed: set[str] = set()
        self._budgets: dict[str, tuple[int, Every]] = {}
        self._kick = asyncio.Event()
        self._lines: dict[tuple[str, Verb], bytes] = {}
        self._batches: dict[int, Sums] = {}  # that the ledger has not taken, by number
        self._told_at = 0.0
        self._told: dict[str, Load] = {}

    # --- from the door

    def begin(self, request: Request, sink: Sink) -> Call:
        call = OneCall(self, request, sink)
        if _asks_a_model(request) and self._let_in(call):
            return call
        self._start(self._let_in_later(call))
        return call

    def _let_in(self, call: OneCall, *, first: bool = True) -> bool:
        """False, with nothing done, where it names what is not known; unless that was looked for already."""
        try:
            call.begin()
        except Unknown as unknown:
            if first:
                return False
            call.refuse(unknown)
        if not call.over:
            self._calls[call.number] = call
        return True

    async def _let_in_later(self, call: OneCall) -> None:
        """Once everything is known that was there when the request came."""
        with suppress(Exception):  # who gives the directory says what ails it; what is known decides
            async with asyncio.timeout(LOOK):
                await self._look()
        if call.over:
            return
        if _asks_a_model(call.request):
            self._let_in(call, first=False)
        else:
            self._list(call)

    def knows(self, headers: Mapping[bytes, bytes]) -> bool:
        try:
            self._caller(headers)
        except Refusal:
            return False
        return True

    def _caller(self, headers: Mapping[bytes, bytes]) -> Caller:
        return self.book.caller(headers.get(b"authorization"), headers.get(b"x-api-key"), self.wall())

    def _list(self, call: OneCall) -> None:
        """``/models``, and everything that is not there."""
        request = call.request
        try:
            caller = self._caller(request.headers)
            if request.path.startswith("/models") and request.method in (b"GET", b"HEAD"):
                call.say(self._models(caller, request.path))
            elif request.path in VERBS or request.path.startswith("/models"):
                raise Refusal(405, f"{request.method.decode('latin-1')} is not for this path")
            else:
                raise Refusal(404, "there is no such path here", code="unknown_url")
        except Refusal as refusal:
            call.refuse(refusal)

    def _models(self, caller: Caller, path: str) -> bytes:
        listed = self.book.listed(caller)
        if path in ("/models", "/models/"):
            return msgspec.json.encode({"object": "list", "data": [_model(*one) for one in listed]})
        name = path.removeprefix("/models/")
        for known, offered in listed:
            if name == known or (name == offered.name and ":" not in known):
                return msgspec.json.encode(_model(known, offered))
        raise refusals.unknown_model(name)

    # --- for calls

    def next_number(self) -> int:
        self._number += 1
        return self._number

    def new_id(self) -> bytes:
        return f"req-{self._prefix}{self._number:08x}".encode()

    def rates_of(self, key: Key) -> Rates:
        rates = self._rates.get(key.id)
        if rates is None:
            rates = self._rates[key.id] = self._new_rates(key)
        elif rates.limits is not key.limits:
            rates.change(key.limits, self.clock())
        return rates

    def _new_rates(self, key: Key) -> Rates:
        if self._table is None:
            return Rates(key.limits, self.clock())
        return SharedRates(self._table, key.id, key.limits, self.clock())

    def over(self, call: OneCall) -> None:
        self._calls.pop(call.number, None)

    def request_line(self, offered: Offered, verb: Verb) -> bytes:
        """The first lines of a request to an endpoint's replicas, up to where requests differ."""
        line = self._lines.get((offered.id, verb))
        if line is None:
            host, base = "replica", "/v1"
            if offered.spec.url:
                host, base = _host_and_base(offered.spec.url)
            line = f"POST {base}{verb.value} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n".encode()
            if offered.secret:
                line += f"authorization: Bearer {offered.secret}\r\n".encode()
            self._lines[offered.id, verb] = line
        return line

    def dial(self, call: OneCall, seat: Seat) -> None:
        self._start(self._connect(call, seat))

    async def _connect(self, call: OneCall, seat: Seat) -> None:
        try:
            async with asyncio.timeout(DIAL):
                reader, writer = await self._dial(call.live.offered, seat.replica)
        except (OSError, DriverError, UsinaError, TimeoutError) as error:
            call.unreachable(error.public if isinstance(error, DriverError) else "it does not answer")
            return
        except Exception:
            log.exception("a replica could not be dialled", endpoint=call.live.offered.id)
            call.unreachable("it cannot be dialled")
            return
        call.connected(seat.pool.adopt(reader, writer))

    def later(self, seconds: float, what: Callable[[], None]) -> None:
        asyncio.get_running_loop().call_later(seconds, what)

    def waits(self, live: Live) -> None:
        """Somebody has joined the line: whoever scales should know at once where nobody is there to serve it."""
        if not live.in_flight:
            self._kick.set()
        self.freed(live)  # if there is room, it does not wait long
        if self._table is not None and live.offered.id not in self._looking:
            self._looking.add(live.offered.id)
            self.later(ROOM, lambda: self._look_for_room(live))

    def _look_for_room(self, live: Live) -> None:
        if live.line:
            self.freed(live)
            self.later(ROOM, lambda: self._look_for_room(live))
        else:
            self._looking.discard(live.offered.id)

    def freed(self, live: Live) -> None:
        """A replica has room for one more."""
        if not self._freed:
            asyncio.get_running_loop().call_soon(self._seat_waiting)
        self._freed.add(live.offered.id)

    def _seat_waiting(self) -> None:
        freed, self._freed = self._freed, set()
        for id in freed:
            live = self.lives.get(id)
            while live is not None and live.has_room() and (call := live.line.next()) is not None:
                call.called()

    def guards_of(self, offered: Offered) -> Guards | None:
        """Those of an endpoint, and of those that it may fall back to: no way around them leads over another."""
        if offered.id not in self._guards:
            chain = [
                offered,
                *(one.offered for name in offered.spec.fallback if (one := self.neighbour(offered, name))),
            ]
            wanted = dict.fromkeys(name for one in chain for name in one.spec.guards)
            everywhere = [one for one in self._placed.values() if one.everywhere]
            own = [self._placed[name] for name in wanted if name in self._placed and not self._placed[name].everywhere]
            missing = [name for name in wanted if name not in self._placed]
            opened = offered.spec.guards_open
            found = Guards([*everywhere, *own], missing, opened=opened) if everywhere or wanted else None
            self._guards[offered.id] = found
        return self._guards[offered.id]

    def neighbour(self, offered: Offered, name: str) -> Live | None:
        """Another endpoint of the same project, by name."""
        for live in self.lives.values():
            if live.offered.name == name and live.offered.project == offered.project:
                return live
        return None

    # --- budgets

    def await_purse(self, call: OneCall) -> None:
        self._short.append(call)

    def _ask_ledger(self, wanted: dict[str, int]) -> None:
        self._start(self._lease(wanted))

    async def _lease(self, wanted: dict[str, int], back: Sequence[Slice] = ()) -> None:
        purses = self.purses.purses
        try:
            if back:
                await self._ledger.give_back(back)
            slices = {got.scope: got for got in await self._ledger.lease(wanted)} if wanted else {}
        except Exception:
            log.exception("budgets could not be leased")
            slices = {}
        for scope in wanted:
            if scope in purses:
                purses[scope].answered(slices.get(scope), self.wall())
        waiting, self._short = self._short, []
        for call in waiting:
            if any(purse.asked for purse in call.purses):
                self._short.append(call)
            else:
                call.reserve_again()
        if not self._alone:  # two that each hold on to too little would both refuse
            await self._give_back([scope for scope in wanted if scope in purses and purses[scope].spent_out])

    async def _even_out(self) -> None:
        """Give back what nobody has reserved of purses that stand idle, and of budgets of which the ledger has nothing
        left: another gateway may need it. It is leased again when it is wanted."""
        idle, purses = self.purses.idle(IDLE), self.purses.purses
        held = [scope for scope, purse in purses.items() if purse.free > 0 and not purse.asked]
        if not held:
            return
        try:
            dry = await self._ledger.dry(held)
        except Exception:
            log.exception("the ledger could not be asked what is left")
            return
        await self._give_back({*idle, *dry})

    async def _give_back(self, scopes: Iterable[str]) -> None:
        """What nobody has reserved of their purses."""
        found = [self.purses.take_out(scope) for scope in scopes if scope in self.purses.purses]
        back = [slice for slice in found if slice is not None]
        if back:
            try:
                await self._ledger.give_back(back)
            except Exception:  # whether the ledger took them is not known, so that they are not kept either
                log.exception("slices could not be given back")

    # --- what is known

    def refresh(self, directory: Directory) -> None:
        """Go by this from now on."""
        self.book = Book(directory, self._secret)
        self._lines.clear()
        self._guards.clear()
        self.guarded = bool(self._placed) or any(one.spec.guards for one in directory.endpoints.values())
        for id in self.lives.keys() - directory.endpoints.keys():
            self._close(self.lives.pop(id))
        for id, offered in directory.endpoints.items():
            live = self.lives.get(id)
            if live is None:
                self.lives[id] = Live(offered, self.clock, self._table)
            else:
                live.update(offered)
                self.freed(live)
        for id in self._rates.keys() - directory.keys.keys():
            del self._rates[id]
        self._refill(directory)

    def _refill(self, directory: Directory) -> None:
        """Have a lease of every budget. Of one that was changed, what is not reserved goes back first."""
        budgets = {scope: (budget.tokens, budget.every) for scope, budget in directory.budgets.items()}
        changed = {scope for scope in budgets.keys() & self._budgets.keys() if budgets[scope] != self._budgets[scope]}
        self._budgets = budgets
        fresh = {purse.scope for purse in self.purses.keep(budgets)}
        back = [slice for scope in changed if (slice := self.purses.take_out(scope)) is not None]
        # Where there are others, nothing is taken before it is wanted: of a small budget the first would have it all.
        wanted = dict.fromkeys(fresh | changed, 1) if self._alone else {}
        for scope in changed:
            self.purses.purses[scope].again_at = 0.0
        for scope in wanted:
            self.purses.purses[scope].asked = 1
        if wanted or back:
            self._start(self._lease(wanted, back))

    def _close(self, live: Live) -> None:
        while (call := live.line.next()) is not None:
            call.refuse(refusals.unknown_model(live.offered.name))
        live.close()

    # --- standing work

    async def start(self) -> None:
        """Hand the ledger what an earlier life has left; then it can be asked."""
        self.journal.start(await hand_in(self.journal, self._ledger) + 1)

    async def run(self) -> None:
        """Until cancelled: end what waits too long, keep pools young, and hand over what was used."""
        while True:
            try:
                async with asyncio.timeout(TICK):
                    await self._kick.wait()
            except TimeoutError:
                self._sweep()
                if not self._alone:
                    await self._even_out()
            self._kick.clear()
            await self._report()
            if self.prompts is not None:
                await self.prompts.flush()

    async def stop(self) -> None:
        """End what is still open, hand over the rest, and give back what is leased."""
        for task in list(self._tasks):
            task.cancel()
        for call in list(self._calls.values()):
            call.left()
        await self._report(last=True)
        if self.prompts is not None:
            await self.prompts.flush()
        for placed in self._placed.values():
            try:
                await placed.guard.close()
            except Exception:
                log.exception("a guard could not be closed", guard=placed.name)
        if not self._batches:
            try:
                await self._ledger.give_back_all()
            except Exception:
                log.exception("what is leased could not be given back; the next start does")
        self.journal.close()
        for live in self.lives.values():
            live.close()

    def _sweep(self) -> None:
        now = self.clock()
        for call in list(self._calls.values()):
            patience = call.live.offered.spec.patience
            if call.seat is None and now - call.since > patience:
                call.live.line.leave(call)
                call.give_up(refusals.unavailable(f"nobody was free for {patience:g} s", 5.0))
            elif call.upstream_at and not call.first_at and now - call.upstream_at > FIRST_BYTE:
                call.give_up(refusals.timed_out(f"the replica did not begin to answer within {FIRST_BYTE:g} s"))
        for live in self.lives.values():
            IN_FLIGHT.labels(live.offered.id).set(live.in_flight)
            WAITING.labels(live.offered.id).set(len(live.line))
            for seat in live.seats.values():
                seat.pool.sweep()
            if live.line:
                self.freed(live)

    async def _report(self, *, last: bool = False) -> None:
        now = self.wall()
        loads = {id: load for id, live in self.lives.items() if (load := live.load(now)).last_at}
        nothing_new = not self.journal.sums and not self._batches and loads == self._told
        if nothing_new and not last and self.clock() - self._told_at < ALIVE:
            return
        try:
            segment, sums = self.journal.rotate()
        except OSError:
            return  # the journal says so, and it is tried again
        self._batches[segment] = sums
        try:
            await self._hand_over(loads)
        except Exception:
            log.exception("the ledger did not take a batch; it is handed in again")
            return
        self._told, self._told_at = loads, self.clock()

    async def _hand_over(self, loads: Mapping[str, Load]) -> None:
        """Each batch by its own number, in order: one whose answer was lost is known when it comes again."""
        for number, sums in list(self._batches.items()):
            await self._ledger.write(number, sums.usage(), sums.spent(), loads)
            del self._batches[number]
            self.journal.forget(number)

    def start_work(self, work: Coroutine[Any, Any, None]) -> None:
        """Have it done beside requests; it ends with the gateway."""
        self._start(work)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _asks_a_model(request: Request) -> bool:
    return request.path in VERBS and request.method == b"POST"


def _model(name: str, offered: Offered) -> dict[str, object]:
    return {"id": name, "object": "model", "created": 0, "owned_by": offered.spec.variant.model.partition("/")[0]}


def _host_and_base(url: str) -> tuple[str, str]:
    """The host of an upstream's URL, and the path before ``/chat/completions``."""
    parts = urlsplit(url)
    return parts.netloc, parts.path.rstrip("/") or "/v1"
