"""Claims: requests that arrive together are placed together, on one snapshot, and recorded by compare-and-set.

A provider's generation guards the claim. If any provider changed since the snapshot (another control plane, an
operator, a release), nothing of the batch is written; the snapshot is read anew and the batch placed again.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from usina.core.capacity import Claim, Needs, Provider
from usina.core.clock import Clock
from usina.core.errors import Stale, Unavailable, UsinaError
from usina.core.event import Event
from usina.core.grant import Lease
from usina.core.resource import AnyResource, Phase, with_condition
from usina.placement import Refusal, Shortlist, place_within
from usina.store.store import Store
from usina.store.work import Work

BATCH = 256
TRIES = 50
FRESH = 2.0  # seconds after which a snapshot is read anew, so that new hosts are found

Placed = tuple["AnyResource", Claim]


@dataclass(frozen=True, slots=True)
class _Request:
    resource: AnyResource
    needs: Needs
    held: Claim | None
    presences: tuple[str, ...]
    lease: Lease
    done: asyncio.Future[Placed | Refusal]


@dataclass(slots=True)
class _Batch:
    """What one try would write."""

    work: Work
    providers: dict[str, Provider]
    added: dict[str, Claim] = field(default_factory=dict)
    answers: list[tuple[_Request, Placed | Refusal]] = field(default_factory=list)
    shortlists: dict[Needs, Shortlist] = field(default_factory=dict)


class Placer:
    """One per control plane; `run` it, then `claim`."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store, self._clock = store, clock
        self._queue: asyncio.Queue[_Request] = asyncio.Queue()
        self._snapshot: dict[str, Provider] | None = None
        self._read_at = 0.0

    async def claim(
        self, resource: AnyResource, needs: Needs, held: Claim | None, presences: Sequence[str], lease: Lease
    ) -> Placed | Refusal:
        """Capacity for `resource`, recorded together with its phase; or why there is none.

        With `held`, the claim is changed in place, on the same provider. `presences` are networks and images that
        will be made there too.
        """
        done: asyncio.Future[Placed | Refusal] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait(_Request(resource, needs, held, tuple(presences), lease, done))
        return await done

    async def run(self) -> None:
        while True:
            batch = [await self._queue.get()]
            while len(batch) < BATCH and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            try:
                await self._place(batch)
            except Exception as error:
                for request in batch:
                    if not request.done.done():
                        request.done.set_exception(error)

    async def _place(self, requests: list[_Request]) -> None:
        for _ in range(TRIES):
            remembered = self._snapshot is not None
            batch = await self._try(requests)
            if remembered and any(isinstance(answer, Refusal) for _, answer in batch.answers):
                self._snapshot = None  # never refuse on what may have changed since
                continue
            try:
                await batch.work.commit()
            except Stale:
                self._snapshot = None
                continue
            except UsinaError as error:
                self._snapshot = None
                await self._apart(requests, error)
                return
            self._snapshot = batch.providers
            for request, answer in batch.answers:
                if not request.done.done():
                    request.done.set_result(answer)
            return
        raise Unavailable("placement was outrun by other control planes; it will be tried again")

    async def _apart(self, requests: list[_Request], error: UsinaError) -> None:
        """One request of the batch cannot be recorded (its lease is lost): let each stand alone."""
        if len(requests) == 1:
            if not requests[0].done.done():
                requests[0].done.set_exception(error)
            return
        for request in requests:
            await self._place([request])

    async def _try(self, requests: list[_Request]) -> _Batch:
        if self._snapshot is None or self._clock.now() - self._read_at > FRESH:
            self._read_at = self._clock.now()
            self._snapshot = {host.id: host.provider for host in await self._store.hosts.all()}
        batch = _Batch(self._store.work(), dict(self._snapshot))
        for request in requests:
            self._place_one(batch, request)
        for provider, sizes in batch.added.items():
            batch.work.take(provider, self._snapshot[provider].generation, sizes)
            batch.providers[provider] = replace(
                batch.providers[provider], generation=self._snapshot[provider].generation + 1
            )
        return batch

    def _place_one(self, batch: _Batch, request: _Request) -> None:
        now = self._clock.now()
        found = self._choose(batch, request)
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
        name = batch.providers[found.provider].name
        self._account(batch, request, found)
        batch.work.observe(resource, request.lease, due=now, keep=True)
        batch.work.emit(
            Event(
                f"{resource.kind.value}.placed",
                resource.id,
                now,
                f"placed on {name}",
                related=found.provider,
                tenant=resource.tenant,
                project=resource.project,
                actor="engine",
                cause=f"generation {resource.generation}",
                data=_particulars(found),
            )
        )
        batch.answers.append((request, (resource, found)))

    @staticmethod
    def _choose(batch: _Batch, request: _Request) -> Claim | Refusal:
        if request.held is None:
            if request.needs not in batch.shortlists:
                batch.shortlists[request.needs] = Shortlist(batch.providers, request.needs)
            return batch.shortlists[request.needs].choose(batch.providers)
        home = batch.providers.get(request.held.provider)
        if home is None:
            return Refusal({"do not exist any more": 1})
        found = place_within(_without(home, request.held), replace(request.needs, host=home.id))
        return found if isinstance(found, Claim) else Refusal({found: 1})

    @staticmethod
    def _account(batch: _Batch, request: _Request, claim: Claim) -> None:
        """Write the claim, and let the rest of the batch see it."""
        provider = batch.providers[claim.provider]
        sizes = batch.added.get(claim.provider, Claim(claim.provider))
        if request.held is not None:
            batch.work.drop_claim(request.resource.id, claim.provider, request.lease)
            provider = _without(provider, request.held)
            sizes = _sum(sizes, request.held, -1)
        batch.work.claim(claim, request.resource.id, request.lease)
        for presence in request.presences:
            batch.work.note_presence(claim.provider, presence, request.lease)
        batch.providers[claim.provider] = _with(provider, claim)
        batch.added[claim.provider] = _sum(sizes, claim, 1)


def _ordinary(claim: Claim) -> int:
    return 0 if claim.hugepage else claim.memory


def _sum(total: Claim, claim: Claim, sign: int) -> Claim:
    return Claim(
        total.provider,
        cores=total.cores + sign * claim.cores,
        memory=total.memory + sign * _ordinary(claim),
        disk=total.disk + sign * claim.disk,
    )


def _with(provider: Provider, claim: Claim) -> Provider:
    changed = replace(
        provider,
        used_cores=provider.used_cores + claim.cores,
        used_memory=provider.used_memory + _ordinary(claim),
        used_disk=provider.used_disk + claim.disk,
    )
    return _particular(changed, claim, 1) if claim.cpus or claim.nodes or claim.devices else changed


def _without(provider: Provider, claim: Claim) -> Provider:
    changed = replace(
        provider,
        used_cores=provider.used_cores - claim.cores,
        used_memory=provider.used_memory - _ordinary(claim),
        used_disk=provider.used_disk - claim.disk,
    )
    return _particular(changed, claim, -1) if claim.cpus or claim.nodes or claim.devices else changed


def _particular(provider: Provider, claim: Claim, sign: int) -> Provider:
    """`provider` with the named CPUs, devices and node memory of `claim` taken (1) or given back (-1)."""
    pages, bound = dict(provider.used_hugepages), dict(provider.bound_memory)
    for node in claim.nodes:
        share = claim.memory // len(claim.nodes) * sign
        if claim.hugepage:
            pages[node, claim.hugepage] = pages.get((node, claim.hugepage), 0) + share // claim.hugepage
        else:
            bound[node] = bound.get(node, 0) + share
    cpus, devices = frozenset(claim.cpus), Counter(provider.taken_devices)
    for device in claim.devices:
        devices[device] += sign
    return replace(
        provider,
        taken_cpus=provider.taken_cpus | cpus if sign > 0 else provider.taken_cpus - cpus,
        taken_devices=+devices,
        used_hugepages=pages,
        bound_memory=bound,
    )


def _particulars(claim: Claim) -> dict[str, object]:
    """What the story tells of a claim: only what was asked for in particular."""
    told = {"cpus": claim.cpus, "nodes": claim.nodes, "devices": claim.devices, "hugepage": claim.hugepage}
    return {name: value for name, value in told.items() if value}
