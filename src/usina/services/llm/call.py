"""One request from its first look to its last byte: let in, seated, sent, passed on, settled.

It is a machine of callbacks and not a coroutine: where a replica is free and a connection is kept, a request costs two
wake-ups and no task. Invariants: what `_enter` takes (rate, reservation, seat) is given back exactly once, by `_settle`
and `_stand_up`; nothing is tried again once the client has got a byte.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import structlog

from usina.core.llm import Usage
from usina.ports.llm import Request, Sink
from usina.services.llm import refusal as refusals
from usina.services.llm.ask import VERBS, Verb, as_known, read, with_limit
from usina.services.llm.book import Meant
from usina.services.llm.guarding import Guards, Watched, now
from usina.services.llm.live import Live, Seat
from usina.services.llm.purse import NO_HOLD, Hold, Purse
from usina.services.llm.record import Record
from usina.services.llm.refusal import Refusal, Unknown
from usina.services.llm.route import chain_of
from usina.services.llm.stream import Events, Used, used_in
from usina.services.llm.trail import Trail, operation
from usina.services.llm.upstream import Connection

if TYPE_CHECKING:
    from usina.services.llm.gateway import LlmGateway
    from usina.services.llm.rates import Rates

log = structlog.get_logger()

TRIES = 3  # replicas
LEFT = 499  # the status of a request whose client left before there was an answer, as nginx has it
NOTHING_USED = Used(0, 0, 0)
GRACE = 5.0  # seconds between the last event of a stream and the end of the answer
_AGAIN = {502, 503, 504}
_ELSEWHERE = {429, *_AGAIN}  # where there is another endpoint to go to
_PASSED_ON = (b"content-type", b"cache-control", b"retry-after")
_CARRIED = (b"traceparent", b"tracestate")
_TOLD = (b"accept", b"anthropic-version", b"anthropic-beta", b"openai-beta")


class OneCall:
    __slots__ = (
        "_chain", "_fresh", "_guards", "_hold", "_kept", "_over", "_parts", "_rates", "_record", "_started", "_status",
        "_told", "ask", "caller", "connection", "estimate", "events", "first_at", "gateway", "live", "meant", "model",
        "number", "priority", "purses", "request", "request_id", "seat", "since", "sink", "tenant", "trail",
        "tried", "unread", "upstream_at",
    )  # fmt: skip

    def __init__(self, gateway: LlmGateway, request: Request, sink: Sink) -> None:
        self.gateway, self.request, self.sink = gateway, request, sink
        self.since = gateway.clock()
        self.number = gateway.next_number()
        self.request_id = _request_id(request, gateway)
        self.tenant, self.priority = "", 0
        self.first_at = self.upstream_at = 0.0
        self.tried: list[str] = []
        self.seat: Seat | None = None
        self.connection: Connection | None = None
        self.events: Events | None = None
        self.trail: Trail | None = None  # where it is traced
        self._record: Record | None = None  # where it is kept
        self._rates: Rates | None = None
        self._guards: Guards | None = None
        self._hold: Hold = NO_HOLD
        self.purses: list[Purse] = []
        self._parts: list[bytes] = []
        self._kept: list[tuple[bytes, bytes]] = []
        self._chain: Sequence[int] = ()
        self._fresh = self._started = self._told = self._over = False
        self._status = self.unread = 0

    # --- in

    def begin(self) -> None:
        """Raises `Unknown`, and has done nothing then: it may begin again."""
        try:
            self._enter()
        except Unknown:
            raise
        except Refusal as refusal:
            self.refuse(refusal)
        except Exception:  # a fault of ours must not be left half done, and is nobody else's
            log.exception("a request could not be let in", request=self.request_id.decode())
            self.refuse(refusals.fault())

    def _enter(self) -> None:
        """Everything that can refuse it, before anything is taken."""
        gateway, request = self.gateway, self.request
        wall = gateway.wall()
        caller = self.caller = gateway.book.caller(
            request.headers.get(b"authorization"), request.headers.get(b"x-api-key"), wall
        )
        verb = VERBS[request.path]
        ask = self.ask = read(verb, request.body)
        self.meant = gateway.book.meant(caller, ask.model)
        self.live = gateway.lives[self.meant.endpoint]
        self.model = self.live.offered.spec.variant.model
        if gateway.traces is not None:
            span = gateway.traces.begin(f"{operation(verb)} {ask.model}", request.headers)
            self.trail = Trail(span, self) if span is not None else None
        self._understand()
        ask.check_context(self.live.offered.spec.context)
        project, self.tenant = gateway.book.payer(caller, self.live.offered)
        if gateway.prompts is not None and gateway.book.keeps(project):
            self.sink = self._record = Record(self.sink, project, self)
        self.priority = caller.key.limits.priority
        self.estimate = int(len(ask.text) * self.live.per_byte) + (ask.limit or 0) * ask.answers
        if gateway.journal.broken:
            raise refusals.unavailable("the gateway cannot keep account of what is used", 5.0)
        rates = gateway.rates_of(caller.key)
        self.purses = gateway.purses.of((caller.key.id, project, self.tenant)) if verb is not Verb.COUNT else []
        rates.enter(self.estimate, self.since)
        self._rates = rates
        if gateway.guarded and (guards := gateway.guards_of(self.live.offered)) is not None:
            self._guards = guards
            if guards.waits:
                gateway.start_work(self._guard(guards))
            else:
                now(self._guard(guards))
            return
        self._reserve(wall)

    async def _guard(self, guards: Guards) -> None:
        """Go on with what guards make of the request."""
        try:
            body = await guards.request(self.request.body)
            if self._over:
                return
            self.ask = read(self.ask.verb, body)
            self._understand()
            self._reserve(self.gateway.wall())
        except Refusal as refusal:
            self.refuse(refusal)
        except Exception:
            log.exception("a request could not be guarded", request=self.request_id.decode())
            self.refuse(refusals.fault())

    def _understand(self) -> None:
        """Make of the request what replicas understand. Raises `Refusal`."""
        if self.ask.verb is Verb.COUNT:
            self.meant = Meant(self.meant.endpoint)  # an adapter counts as its model does
        if not self.live.speaks(self.ask.verb):
            self.ask.as_chat()

    def _reserve(self, wall: float) -> None:
        if not self.purses:
            self._seat()
            return
        most = self.ask.most(self.live.offered.spec.context)
        hold = self.gateway.purses.reserve(self.purses, most, wall)
        if hold is None and any(purse.asked for purse in self.purses):
            self.gateway.await_purse(self)  # `reserve_again` is called when the ledger has answered
            return
        hold = hold or self._reserve_less(wall)
        if hold is None:
            purse = min(self.purses, key=lambda one: one.free)
            self.refuse(refusals.over_budget(purse.scope, purse.free, most, purse.ends_at - wall))
            return
        self._hold = hold
        self.gateway.journal.hold(self, hold)
        self._seat()

    def reserve_again(self) -> None:
        """The ledger has answered."""
        if not self._over:
            self._reserve(self.gateway.wall())

    def _reserve_less(self, wall: float) -> Hold | None:
        """Where the client set no limit, the rest of the budget is the limit."""
        ask = self.ask
        if ask.limit is not None or not ask.makes_text or ask.answers > 1:
            return None
        prompt = ask.most_of_prompt(self.live.offered.spec.context)
        left = min(purse.free for purse in self.purses)
        if left <= prompt:
            return None
        hold = self.gateway.purses.reserve(self.purses, left, wall)
        if hold is not None:
            ask.body = with_limit(ask, left - prompt)
        return hold

    # --- a seat

    def _seat(self) -> None:
        """A replica that is free, or a place in the line."""
        live = self.live
        self._chain = self._beginnings()
        # Who comes while others wait does not go before them.
        free = not live.line or self.tried
        seat = live.seat(self._chain, self.tried, self.meant.adapter) if free else None
        if seat is None:
            if self.tried or not self._may_wait():
                if self._fall_back():
                    return
                if not self._may_wait():
                    self.refuse(self._nobody())
                    return
            self.tried.clear()
            live.line.join(self)
            self.gateway.waits(live)
            return
        self.sit(seat)

    def called(self) -> None:
        """Its turn in the line has come, and there is room."""
        self._chain = self._beginnings()
        seat = self.live.seat(self._chain, (), self.meant.adapter)
        assert seat is not None
        self.sit(seat)

    def _beginnings(self) -> Sequence[int]:
        if len(self.live.seats) < 2:
            return ()
        adapter = self.meant.adapter  # what a replica remembers of a prompt is of its model or of one adapter
        return chain_of(self.ask.text, f"{adapter}:{self._session()}" if adapter else self._session())

    def _may_wait(self) -> bool:
        return len(self.live.line) < self.live.offered.spec.waiting

    def _nobody(self) -> Refusal:
        live = self.live
        return refusals.unavailable(f"{len(live.line)} requests wait for {live.offered.name} already", 2.0)

    def _session(self) -> str:
        told = self.request.headers.get(b"x-session-id")
        return told.decode("latin-1") if told else self.ask.session

    def sit(self, seat: Seat) -> None:
        """This replica it is: take a place, and a connection."""
        adapter = self.meant.adapter
        if adapter and adapter not in seat.replica.adapters:
            if not self._fall_back():
                self.refuse(refusals.unavailable(f"no replica with the adapter {adapter} is free", 2.0))
            return
        self.seat = seat
        self.model = seat.replica.variant.model
        seat.take()
        self.live.in_flight += 1
        self.unread = seat.unread
        seat.owed += self.unread
        connection = seat.pool.idle()
        if connection is not None:
            self._fresh = False
            self._send(connection)
        else:
            self._fresh = True
            self.gateway.dial(self, seat)

    def connected(self, connection: Connection) -> None:
        if self._over:
            connection.pool.take_back(connection)
            return
        self._send(connection)

    def unreachable(self, reason: str) -> None:
        if not self._over:
            self._failed(reason, blame=True)

    def _send(self, connection: Connection) -> None:
        assert self.seat is not None
        self.connection = connection
        self.upstream_at = self.gateway.clock()
        body = as_known(self.ask, self.live.offered, self.seat.replica.adapters, self.meant.adapter)
        watched = self._guards is not None and self._guards.answers
        connection.send(self._head(len(body)) + body, Watched(self, self._guards) if watched else self)  # type: ignore[arg-type]

    def _head(self, length: int) -> bytes:
        asked = self.request.headers
        told = b"".join([b"%b: %b\r\n" % (name, asked[name]) for name in _TOLD if name in asked])
        carried = self.trail.sent() if self.trail is not None else _carried(asked)
        told += b"".join([b"%b: %b\r\n" % header for header in carried])
        line = self.gateway.request_line(self.live.offered, self.ask.sent)
        return b"%bcontent-length: %d\r\nx-request-id: %b\r\n%b\r\n" % (line, length, self.request_id, told)

    # --- the answer

    def answered(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self._status = status
        if status in _ELSEWHERE and self._retry(status):
            return
        assert self.seat is not None
        self.seat.went_well()
        given = dict(headers)
        length = given.get(b"content-length")
        streams = given.get(b"content-type", b"").startswith(b"text/event-stream")
        self.events = self._events() if streams else None
        self._kept = [(name, given[name]) for name in _PASSED_ON if name in given]
        if self._is_turned():  # how long it will be is known then
            self._kept = [(b"content-type", b"application/json"), *(h for h in self._kept if h[0] != b"content-type")]
            return
        self._start(status, self._kept, int(length) if length is not None and not streams else None)

    def _events(self) -> Events:
        if self.ask.turned is not None:
            return self.ask.turned.events()
        return Events(hides_usage=self.ask.hides_usage)

    def _is_turned(self) -> bool:
        """Whether the answer is a whole one that another is made of: a chat in place of what was asked, or an error."""
        return self.events is None and (self.ask.turned is not None or self._status >= 400)

    def _retry(self, status: int) -> bool:
        """Ask somebody else, if there is somebody: then this answer is not waited for."""
        again = status in _AGAIN and len(self.tried) + 1 < min(TRIES, len(self.live.seats))
        if not again and not self.live.offered.spec.fallback:
            return False
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.drop()
        if self.trail is not None:
            self.trail.missed(str(status))
        if self.seat is not None and status in _AGAIN:
            self.seat.went_wrong(self.gateway.clock())
        self._move_on(f"the replica answered {status}")
        return True

    def _start(self, status: int, headers: Sequence[tuple[bytes, bytes]], length: int | None) -> None:
        self._started = True
        self.sink.start(status, [*headers, *self._own_headers()], length)

    def _own_headers(self) -> list[tuple[bytes, bytes]]:
        rates = self._rates.headers(self.gateway.clock()) if self._rates is not None else []
        return [(b"x-request-id", self.request_id), *rates]

    def got(self, data: bytes) -> None:
        data = self._passed_on(data)
        if self._told:
            return
        if self.events is not None and self.events.ended:  # clients leave here, and not at the end of the answer
            self._say_last(data)
            self.gateway.later(GRACE, self._let_go)
        elif data:
            self.sink.write(data)
            if self.sink.full and self.connection is not None:
                self.connection.pause()

    def _passed_on(self, data: bytes) -> bytes:
        """What of it the client gets as it is; a whole answer is kept, too, for what it tells of its usage."""
        if not self.first_at:
            self.first_at = self.gateway.clock()
            self._was_read()
        if self.events is not None:
            return self.events.feed(data)
        self._parts.append(data)
        return b"" if self._is_turned() else data

    def _was_read(self) -> None:
        """The replica owes no more of this prompt."""
        if self.seat is not None:
            self.seat.owed -= self.unread
        self.unread = 0

    def _let_go(self) -> None:
        """The replica has said the last word, and does not end."""
        if not self._over:
            connection, self.connection = self.connection, None
            if connection is not None:
                connection.drop()
            self._end()

    def cut(self) -> None:
        """A guard has ended the answer; what it told of that goes out, and the rest is not waited for."""
        if self._over:
            return
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.drop()
        if self._told:
            self._end()
        else:
            self._break_off()

    @property
    def over(self) -> bool:
        return self._over

    def drained(self) -> None:
        if self.connection is not None and not self._over:
            self.connection.resume()

    def finished(self, data: bytes) -> None:
        self.connection = None
        data = self._passed_on(data) if data else b""
        if not self._told:
            if self._is_turned():
                data = self._turned()
                self._start(self._status, self._kept, len(data))
            elif self.events is not None:
                data += self.events.rest()
            self._say_last(data)
        self._end()

    def _turned(self) -> bytes:
        body = b"".join(self._parts)
        if self.ask.turned is None or self._status != 200:
            return refusals.told_by_replica(self._status, body, self.ask.verb.value, anthropic=self._is_anthropic())
        return self.ask.turned.whole(body, self._guessed(used_in(body)))

    def _is_anthropic(self) -> bool:
        return self.request.path.startswith("/messages")

    def _say_last(self, data: bytes) -> None:
        """The last of the answer. What was used is on record before: nobody has an answer that a kill made free."""
        self._told = True
        self._settle(self._counted(), failed=self._status >= 400)
        if data:
            self.sink.write(data)
        self.sink.end()

    def _counted(self) -> Used:
        if self._status >= 400:
            return Used(0, 0, 0)
        told = self.events.used if self.events is not None else used_in(b"".join(self._parts))
        return self._guessed(told)

    def counted(self, told: Used) -> Used:
        """What is charged where no answer goes out."""
        return self._guessed(told)

    def _guessed(self, told: Used) -> Used:
        """What the replica did not tell, worked out: a prompt by its length, an answer by its events."""
        prompt = int(len(self.ask.text) * self.live.per_byte) if told.prompt is None else told.prompt
        made = self.events.count if self.events is not None else 0
        return Used(prompt, told.cached, made if told.completion is None else told.completion)

    # --- when it does not go well

    def lost(self, reason: str) -> None:
        self.connection = None
        if self._started:
            self._break_off()
            return
        # A connection that was kept may have been closed just when it was used again; that is nobody's fault.
        self._failed(reason, blame=self._fresh)

    def _failed(self, reason: str, *, blame: bool) -> None:
        assert self.seat is not None
        if not blame:
            self._fresh = True
            self.gateway.dial(self, self.seat)
            return
        self.seat.went_wrong(self.gateway.clock())
        if self.trail is not None:
            self.trail.missed("unreachable")
        self._move_on(reason)

    def _move_on(self, reason: str) -> None:
        """To another replica, else to another endpoint, else say so."""
        seat = self._stand_up()
        if seat is not None:
            self.tried.append(seat.id)
        if len(self.tried) < TRIES:
            other = self.live.seat(self._chain, self.tried, self.meant.adapter)
            if other is not None:
                self.sit(other)
                return
        if not self._fall_back():
            self.refuse(refusals.broken(f"{self.live.offered.name} could not be reached: {reason}"))

    def _fall_back(self) -> bool:
        """Go on with the next endpoint of the chain that could take it."""
        offered = self.live.offered
        for name in offered.spec.fallback:
            other = self.gateway.neighbour(offered, name)
            if other is None or other is self.live or other.offered.id in self.tried:
                continue
            self.tried.append(other.offered.id)
            seat = other.seat((), self.tried) if self._is_understood(other) and self._is_covered(other) else None
            if seat is not None:
                self.live = other
                self.meant = Meant(other.offered.id)
                self.sit(seat)
                return True
        return False

    def _is_understood(self, other: Live) -> bool:
        """Whether it can be asked there what was asked here."""
        if not other.speaks(self.ask.verb):
            try:
                self.ask.as_chat()
            except Refusal:
                return False
        return True

    def _is_covered(self, other: Live) -> bool:
        """Whether what is reserved covers what this may use there, where the context may be larger; a client that set
        no limit gets one."""
        context = other.offered.spec.context
        if not self._hold.purses or self.ask.most(context) <= self._hold.tokens:
            return True
        left = self._hold.tokens - self.ask.most_of_prompt(context)
        if self.ask.limit is not None or not self.ask.makes_text or self.ask.answers > 1 or left <= 0:
            return False
        self.ask.body = with_limit(self.ask, left)
        return True

    def say(self, body: bytes) -> None:
        """Answer of the gateway's own."""
        self._status = 200
        self.sink.start(200, [(b"content-type", b"application/json"), *self._own_headers()], len(body))
        self.sink.write(body)
        self.sink.end()
        self._over = True

    def refuse(self, refusal: Refusal, used: Used = NOTHING_USED) -> None:
        """Answer with an error, once."""
        if self._over:
            return
        body = refusal.body(anthropic=self._is_anthropic())
        headers = [(b"content-type", b"application/json"), *refusal.headers(), *self._own_headers()]
        self._status = refusal.status
        self._settle(used, failed=True)
        self.sink.start(refusal.status, headers, len(body))
        self.sink.write(body)
        self.sink.end()
        self._end()

    def left(self) -> None:
        """The client has gone: the replica need not go on, and what it made is charged."""
        if self._over or self._told:
            return
        connection, self.connection = self.connection, None
        self._status = self._status or LEFT
        if connection is not None:
            connection.drop()
        elif self.seat is None and self._rates is not None:
            self.live.line.leave(self)
        self._settle(self._guessed(self.events.used) if self.events is not None else self._sent(), failed=True)
        self._end()

    def _sent(self) -> Used:
        """A prompt that a replica had may have been worked on; of an answer that is not streamed nothing is known but
        the time it took, so that only the prompt counts."""
        return self._guessed(Used(None, 0, 0)) if self.upstream_at else Used(0, 0, 0)

    def give_up(self, refusal: Refusal) -> None:
        """It has waited too long, in the line or for the replica."""
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.drop()
        if self._started:
            self._break_off()
        else:
            self.refuse(refusal)

    def _break_off(self) -> None:
        """An answer that has begun cannot be made good."""
        if not self._told:
            self._settle(self._guessed(self.events.used if self.events else Used()), failed=True)
            self.sink.abort()
        self._end()

    # --- the end

    def _stand_up(self) -> Seat | None:
        """Leave the replica to who waits."""
        self._was_read()
        seat, self.seat = self.seat, None
        if seat is not None:
            seat.leave()
            self.live.in_flight -= 1
            if self.live.line:
                self.gateway.freed(self.live)
        return seat

    def _end(self) -> None:
        """Nothing comes any more, neither from the replica nor from the client."""
        self._over = True
        self.gateway.over(self)
        if self.trail is not None:
            self.trail.over(self._status)
        if self._record is not None:
            self._record.over(self._status)
        self._stand_up()

    def _settle(self, used: Used, *, failed: bool) -> None:
        """Give back what was reserved, and note what was used; once, and before the client has the last of it."""
        rates, self._rates = self._rates, None
        if rates is None:
            return
        prompt, completion = used.prompt or 0, used.completion or 0
        rates.leave(self.estimate, prompt + completion)
        if self.ask.verb is Verb.COUNT:
            prompt = 0
        self._note(prompt, min(used.cached, prompt), completion, failed)

    def _note(self, prompt: int, cached: int, completion: int, failed: bool) -> None:
        gateway, live, caller = self.gateway, self.live, self.caller
        offered = live.offered
        wall = gateway.wall()
        project, tenant = gateway.book.payer(caller, offered)
        spent = self._hold.settle(prompt + completion) if self._hold.purses else []
        live.count(completion, wall)
        if not failed and prompt:
            live.learn(len(self.ask.text), prompt)
        usage = Usage(
            int(wall // 60), tenant, project, caller.member.id, caller.key.id, offered.id, self.model,
            1, int(failed), prompt, cached, completion, gateway.clock() - self.since,
        )  # fmt: skip
        gateway.journal.settle(self, usage, spent)
        gateway.meters.note(self, usage, self._status)
        for watcher in (self.trail, self._record):
            if watcher is not None:
                watcher.usage = usage


def _carried(asked: Mapping[bytes, bytes]) -> Sequence[tuple[bytes, bytes]]:
    """The client's trace, where it is not gone on with here."""
    return [(name, asked[name]) for name in _CARRIED if name in asked]


def _request_id(request: Request, gateway: LlmGateway) -> bytes:
    """The client's own, where it gave one that can be passed on."""
    told = request.headers.get(b"x-request-id")
    if told is not None and 0 < len(told) <= 128 and told.isascii() and told.decode().isprintable():
        return told
    return gateway.new_id()
