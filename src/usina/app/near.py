"""Near: what nearly every order looks up (its project, network, image, the hosts' shapes), remembered for a second.

Only a short cut for reading. Whatever rests on it is made exact by a guard in the commit: a network or image that went
meanwhile fails the reservation, a project that went fails its quota.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from dataclasses import replace
from typing import Any, TypeVar

from usina.core.capacity import Host, HostState, Provider
from usina.core.clock import Clock
from usina.core.errors import NotFound
from usina.core.goods import Image, may_use
from usina.core.ids import is_id
from usina.core.resource import AnyResource, Kind, Phase, Resource
from usina.core.tenancy import Actor, Member, Project
from usina.core.units import Instant
from usina.store.flights import Flights
from usina.store.store import Store

FRESH = 1.0
FULL = 4096

Found = TypeVar("Found")


class Near:
    def __init__(self, store: Store, clock: Clock) -> None:
        self._store, self._clock = store, clock
        self._memory: dict[tuple[Hashable, ...], tuple[Instant, Any]] = {}
        self._flights = Flights()

    def forget(self) -> None:
        """After a change by this process: read anew."""
        self._memory.clear()

    async def project(self, id: str) -> Project | None:
        return await self.remembered(("project", id), lambda: self._store.identity.project(id))

    async def member(self, id: str) -> Member | None:
        return await self.remembered(("member", id), lambda: self._store.identity.member(id))

    async def projects(self, actor: Actor, read: Callable[[], Awaitable[list[Project]]]) -> list[Project]:
        """The projects of an actor, as `read` finds them."""
        return await self.remembered(("projects", actor.member, actor.key), read)

    async def of(self, project: Project, kind: Kind, ref: str, field: str) -> AnyResource:
        """A resource of `project` by id or name. Raises `NotFound` naming `field`."""

        async def read() -> AnyResource | None:
            if is_id(ref, kind.value):
                return await self._store.resources.get(ref)
            return await self._store.resources.named(kind, project.id, ref)

        found = await self.remembered((kind.value, project.id, ref), read)
        if found is None or found.kind is not kind or found.project != project.id or found.deleting:
            self._memory.pop((kind.value, project.id, ref), None)
            raise NotFound(f"{field}: {kind.value.replace('_', ' ')} not found", field=field)
        return found

    async def image(self, project: Project, ref: str) -> Image | None:
        """An image that `project` may use, by id or name: its own first, then its tenant's, then public ones."""

        async def read() -> Image | None:
            if is_id(ref, Kind.IMAGE.value):
                candidates = [await self._store.resources.get(ref)]
            else:
                candidates = list(await self._store.resources.page(Kind.IMAGE, name=ref, limit=1000))
            mine = [one for one in candidates if one is not None and one.kind is Kind.IMAGE]
            usable = [one for one in mine if may_use(one, project.tenant, project.id)]
            usable.sort(key=lambda one: (one.deleting, one.project != project.id, one.tenant != project.tenant))
            return usable[0] if usable else None

        return await self.remembered(("image", project.id, ref), read)

    async def empty_hosts(self, only: str | None = None) -> list[tuple[Provider, int]]:
        """Hosts as if nothing were on them, or the one called `only`: what could ever fit. One of each shape, and how
        many there are of it."""

        async def read() -> list[tuple[Provider, int]]:
            shapes: dict[object, list[Host]] = {}
            for host in await self._store.hosts.all():
                if only not in (None, host.id, host.name):
                    continue
                terms = host.provider.terms
                shape = (id(host.provider.inventory), host.provider.cpu_ratio, terms.memory_ratio, terms.tenants)
                shapes.setdefault(shape, []).append(host)
            return [(_emptied(alike[0].provider), len(alike)) for alike in shapes.values()]

        return await self.remembered(("hosts", only or ""), read)

    async def remembered(self, key: tuple[Hashable, ...], read: Callable[[], Awaitable[Found]]) -> Found:
        """The answer of `read`, at most a second old."""
        known = self._memory.get(key)
        if known and 0 <= self._clock.now() - known[0] < FRESH:
            return known[1]  # type: ignore[no-any-return]
        return await self._flights.join(key, lambda: self._read(key, read))

    async def _read(self, key: tuple[Hashable, ...], read: Callable[[], Awaitable[Found]]) -> Found:
        now = self._clock.now()
        found = await read()
        if len(self._memory) > FULL:
            self._memory.clear()
        if _steady(found):
            self._memory[key] = (now, found)
        return found


def _steady(found: object) -> bool:
    """Worth remembering: there, and not on its way to being something else."""
    return bool(found) and (not isinstance(found, Resource) or found.phase is Phase.READY)


def _emptied(provider: Provider) -> Provider:
    return replace(
        provider,
        state=HostState.ENABLED,
        reachable=True,
        used_cores=0,
        used_memory=0,
        used_disk=0,
        taken_cpus=frozenset(),
        taken_devices={},
        used_hugepages={},
        bound_memory={},
        cordoned_devices=frozenset(),
        terms=replace(provider.terms, maintenance=()),
    )
