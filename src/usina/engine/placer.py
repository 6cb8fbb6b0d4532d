"""Claims: requests that arrive together are placed together, on one snapshot, and recorded by compare-and-set.

The snapshot is a `Fleet` that the placer keeps, so that a burst of orders costs each host a look only when it changed.
A provider's generation guards the claim. If any provider changed since the snapshot (another control plane, an
operator), nothing of the batch is written; what changed is read anew and the batch placed again. What was only released
since is found with the next reading, and always before anything is refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from usina.core.capacity import Claim, Gang, Holding, Needs
from usina.core.clock import Clock
from usina.core.errors import Stale, Unavailable, UsinaError
from usina.core.event import Event
from usina.core.grant import Lease
from usina.core.quota import amounts_placed
from usina.core.resource import AnyResource, Phase, with_condition
from usina.core.tenancy import Amounts
from usina.core.units import Instant
from usina.placement import Chooser, Fleet, History, Policies, Refusal, held_without, place_within
from usina.placement.explain import told
from usina.placement.gang import place_gang
from usina.placement.shape import form_of
from usina.store.store import Store
from usina.store.work import Work

BATCH = 256
TRIES = 50
FRESH = 2.0  # seconds after which a snapshot is read anew, so that new hosts are found

Placed = tuple["AnyResource", Claim]


_NOTHING = Amounts()


@dataclass(frozen=True, slots=True)
class _Request:
    resource: AnyResource
    needs: Needs
    held: Claim | None
    presences: tuple[str, ...]
    lease: Lease
    done: asyncio.Future[Placed | Refusal]
    amounts: Amounts = _NOTHING  # of quotas, from the placing to the end
    gang: tuple[AnyResource, ...] = ()  # all of these, each with `needs`, or none
    arrange: str = "pack"  # as `Gang` knows it


@dataclass(slots=True)
class _Batch:
    """What one try would write."""

    work: Work
    minds_neighbours: bool = False
    added: dict[str, Claim] = field(default_factory=dict)
    answers: list[tuple[_Request, Placed | Refusal]] = field(default_factory=list)

    @property
    def refuses(self) -> bool:
        return any(isinstance(answer, Refusal) for _, answer in self.answers)

    def put_off(self) -> list[_Request]:
        """What is refused, which is not answered yet."""
        refused = [request for request, answer in self.answers if isinstance(answer, Refusal)]
        self.answers = [pair for pair in self.answers if not isinstance(pair[1], Refusal)]
        return refused


class Placer:
    """One per control plane; `run` it, then `claim`."""

    def __init__(self, store: Store, clock: Clock, policies: Policies | None = None) -> None:
        self._store, self._clock = store, clock
        policies = policies or Policies()
        self._queue: asyncio.Queue[_Request] = asyncio.Queue()
        self._fleet = Fleet()
        self._chooser = Chooser(self._fleet, policies.default, by_group=policies.by_group)
        self._history = History()
        self._generation: dict[str, int] = {}  # provider -> the generation the fleet shows
        self._releases: dict[str, int] = {}  # provider -> those that the fleet has seen
        self._spoiled: set[str] = set()  # providers on which the fleet shows what was never written
        self._read_at: float | None = None

    async def claim(
        self, resource: AnyResource, needs: Needs, held: Claim | None, presences: Sequence[str], lease: Lease
    ) -> Placed | Refusal:
        """Capacity for `resource`, recorded together with its phase; or why there is none.

        With `held`, the claim is changed in place, on the same provider. `presences` are networks and images that
        will be made there too.
        """
        done: asyncio.Future[Placed | Refusal] = asyncio.get_running_loop().create_future()
        amounts = amounts_placed(resource.spec)
        self._queue.put_nowait(_Request(resource, needs, held, tuple(presences), lease, done, amounts))
        return await done

    async def claim_together(
        self, whole: AnyResource, parts: Sequence[AnyResource], gang: Gang, presences: Sequence[str], lease: Lease
    ) -> Refusal | None:
        """Capacity for every one of `parts`, recorded in one commit under the lease of their whole; or why there is
        not enough, and then none has any."""
        done: asyncio.Future[Placed | Refusal] = asyncio.get_running_loop().create_future()
        amounts = amounts_placed(whole.spec)
        request = _Request(whole, gang.needs, None, tuple(presences), lease, done, amounts, tuple(parts), gang.arrange)
        self._queue.put_nowait(request)
        answer = await done
        return answer if isinstance(answer, Refusal) else None

    async def run(self) -> None:
        while True:
            batch = [await self._queue.get()]
            while len(batch) < BATCH and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            try:
                await self._place(batch)
                await self._learn(batch)
            except Exception as error:
                for request in batch:
                    if not request.done.done():
                        request.done.set_exception(error)

    async def _learn(self, requests: list[_Request]) -> None:
        """Expect in future what is asked for now."""
        for request in requests:
            if not request.resource.attempts:  # one that waits and asks again is not more demand
                self._history.observe(request.needs)
        mix = self._history.mix()
        if mix is not None:
            await asyncio.to_thread(lambda: mix.gaps)  # a linear programme, which must not hold up the loop
            self._chooser.expect(mix)

    async def _place(self, requests: list[_Request]) -> None:
        for _ in range(TRIES):
            remembered = await self._read()
            batch = _Batch(self._store.work())
            written, trouble = False, None
            again: list[_Request] = []
            try:
                await self._try(batch, requests)
                if remembered and batch.refuses:
                    again = batch.put_off()  # never refuse on what may have changed since
                await batch.work.commit()
                written = True
            except Stale:
                continue
            except UsinaError as error:
                trouble = error
            finally:
                if not written:
                    self._forget(batch)
            if trouble is not None:
                await self._apart(requests, trouble)
                return
            for provider in batch.added:
                self._generation[provider] += 1
            answers = batch.answers
            if batch.refuses:  # worked out beside the loop
                answers = await asyncio.to_thread(lambda: list(self._told(batch.answers)))  # noqa: B023
            for request, answer in answers:
                if not request.done.done():
                    request.done.set_result(answer)
            if not again:
                return
            requests, self._read_at = again, None
        raise Unavailable("placement was outrun by other control planes; it will be tried again")

    async def _read(self) -> bool:
        """Bring the fleet up to date, unless it is fresh; True where it was only remembered."""
        now = self._clock.now()
        if self._read_at is not None and now - self._read_at <= FRESH:
            return True
        hosts = await self._store.hosts.all()
        for host in hosts:
            provider = host.provider
            known = self._generation.get(provider.id), self._releases.get(provider.id)
            if (provider.generation, provider.releases) != known or provider.id in self._spoiled:
                self._fleet.put(provider)
                self._generation[provider.id] = provider.generation
                self._releases[provider.id] = provider.releases
        for gone in self._generation.keys() - {host.id for host in hosts}:
            self._fleet.drop(gone)
            del self._generation[gone], self._releases[gone]
        self._spoiled.clear()
        self._read_at = now
        return False

    def _forget(self, batch: _Batch) -> None:
        """The batch was not written: what it took is not taken."""
        self._spoiled.update(batch.added)
        self._read_at = None

    async def _apart(self, requests: list[_Request], error: UsinaError) -> None:
        """One request of the batch cannot be recorded (its lease is lost): let each stand alone."""
        if len(requests) == 1:
            if not requests[0].done.done():
                requests[0].done.set_exception(error)
            return
        for request in requests:
            await self._place([request])

    async def _try(self, batch: _Batch, requests: list[_Request]) -> None:
        batch.minds_neighbours = any(request.needs.affinities for request in requests)
        # Who holds what is only known while somebody asks: kept for ever, it would grow with every machine.
        self._fleet.know_only(await self._store.hosts.holdings() if batch.minds_neighbours else ())
        for request in requests:
            if request.gang:
                self._place_gang(batch, request)
            else:
                self._place_one(batch, request)
        for provider, sizes in batch.added.items():
            batch.work.take(provider, self._generation[provider], sizes)

    def _place_one(self, batch: _Batch, request: _Request) -> None:
        now = self._clock.now()
        found = self._choose(request)
        if isinstance(found, Refusal):
            batch.answers.append((request, found))
            return
        resource = replace(
            request.resource,
            provider=found.provider,
            phase=Phase.BUILDING,
            updated_at=now,
            conditions=with_condition(request.resource.conditions, "Placed", True, "placed", "", now),
        )
        name = self._fleet.name(self._fleet.rows[found.provider])
        self._account(batch, request, found)
        batch.work.observe(resource, request.lease, keep=True)
        self._charge(batch, request)
        batch.work.emit(_placed_event(resource, found, name, now))
        batch.answers.append((request, (resource, found)))

    def _place_gang(self, batch: _Batch, request: _Request) -> None:
        """Place all parts; the chooser's fleet has their claims already when they are found."""
        found = place_gang(self._chooser, Gang(self._timed(request.needs), len(request.gang), arrange=request.arrange))
        if isinstance(found, Refusal):
            batch.answers.append((request, found))
            return
        now = self._clock.now()
        for part, claim in zip(request.gang, found, strict=True):
            batch.added[claim.provider] = _sum(batch.added.get(claim.provider, Claim(claim.provider)), claim, 1)
            batch.work.claim(claim, part.id, request.lease)
            for presence in request.presences:
                batch.work.note_presence(claim.provider, presence, request.lease)
            batch.work.place_part(replace(part, provider=claim.provider), request.lease, now)
            name = self._fleet.name(self._fleet.rows[claim.provider])
            batch.work.emit(_placed_event(part, claim, name, now))
        self._charge(batch, request)
        batch.answers.append((request, (request.resource, found[0])))

    def _charge(self, batch: _Batch, request: _Request) -> None:
        for scope in (request.resource.tenant, request.resource.project):
            batch.work.charge(scope, request.amounts, request.lease)

    def _told(self, answers: list[tuple[_Request, Placed | Refusal]]) -> Iterator[tuple[_Request, Placed | Refusal]]:
        """Answers with refusals told in full: the nearest miss and what would fit, found once for requests alike."""
        known: dict[tuple[Needs, str], Refusal] = {}
        for request, answer in answers:
            if isinstance(answer, Refusal) and request.held is None:
                key = form_of(request.needs), request.needs.tenant
                if key not in known:
                    known[key] = told(self._chooser, self._timed(request.needs), answer)
                answer = replace(known[key], reasons=answer.reasons)
            yield request, answer

    def _timed(self, needs: Needs) -> Needs:
        return needs.at(self._clock.now()) if self._chooser.minds_time else needs

    def _choose(self, request: _Request) -> Claim | Refusal:
        if request.held is None:
            return self._chooser.choose(self._timed(request.needs))
        row = self._fleet.rows.get(request.held.provider)
        if row is None:
            return Refusal({"do not exist any more": 1})
        home = held_without(self._fleet.provider(row), request.held)
        found = place_within(home, replace(request.needs, host=home.id))
        return found if isinstance(found, Claim) else Refusal({found: 1})

    def _account(self, batch: _Batch, request: _Request, claim: Claim) -> None:
        """Write the claim, and let the rest of the batch see it."""
        sizes = batch.added.get(claim.provider, Claim(claim.provider))
        if request.held is not None:
            batch.work.drop_claim(request.resource.id, claim.provider, request.lease)
            sizes = batch.added[claim.provider] = _sum(sizes, request.held, -1)
            self._fleet.give_back(request.held)
        batch.work.claim(claim, request.resource.id, request.lease)
        for presence in request.presences:
            batch.work.note_presence(claim.provider, presence, request.lease)
        batch.added[claim.provider] = _sum(sizes, claim, 1)
        self._fleet.take(claim)
        if batch.minds_neighbours:
            self._fleet.know(Holding(request.resource.id, claim, request.needs.tenant, request.needs.groups))


def _placed_event(resource: AnyResource, claim: Claim, host: str, at: Instant) -> Event:
    return Event(
        f"{resource.kind.value}.placed",
        resource.id,
        at,
        f"placed on {host}",
        related=claim.provider,
        tenant=resource.tenant,
        project=resource.project,
        actor="engine",
        cause=f"generation {resource.generation}",
        data=_particulars(claim),
    )


def _ordinary(claim: Claim) -> int:
    return 0 if claim.hugepage else claim.memory


def _sum(total: Claim, claim: Claim, sign: int) -> Claim:
    return Claim(
        total.provider,
        cores=total.cores + sign * claim.cores,
        memory=total.memory + sign * _ordinary(claim),
        disk=total.disk + sign * claim.disk,
    )


def _particulars(claim: Claim) -> dict[str, object]:
    """What the story tells of a claim: only what was asked for in particular."""
    told = {"cpus": claim.cpus, "nodes": claim.nodes, "devices": claim.devices, "hugepage": claim.hugepage}
    return {name: value for name, value in told.items() if value}
