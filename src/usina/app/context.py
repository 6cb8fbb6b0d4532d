"""Context: who asks, and with what the house answers. Every operation takes one first."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from usina.app.addresses import Addresses
from usina.app.doors import Doors
from usina.app.near import Near
from usina.core.catalogue import CatalogueEntry
from usina.core.clock import Clock
from usina.core.errors import Conflict, NotFound, QuotaExceeded, Unauthenticated, UsinaError
from usina.core.event import Event
from usina.core.grant import Grant, Lease, permit
from usina.core.ids import Ids, is_id
from usina.core.quota import excess, total
from usina.core.resource import AnyResource, Kind
from usina.core.tenancy import Action, Actor, Amounts, Project, Scope
from usina.core.units import Instant
from usina.placement import Policies
from usina.ports.blobs import Blobs
from usina.ports.driver import DriverPlugin
from usina.ports.fleet import Hosts
from usina.ports.guard import Placed
from usina.ports.library import Library
from usina.ports.llm import Gateway, Prompts
from usina.ports.models import ModelReader, Upstream, Xorbs
from usina.ports.runtime import RuntimePlugin
from usina.ports.vault import Vault
from usina.store.flights import Flights
from usina.store.leases import Leased
from usina.store.store import Store
from usina.store.work import Work


class Engine(Protocol):
    """What is told of orders."""

    def lease(self, id: str) -> Lease | None:
        """A lease to be written with an order, which can then be begun without another commit; None where the order
        shall wait its turn."""
        ...

    def hint(self, leased: Sequence[Leased] = ()) -> None:
        """Something was ordered; and what was ordered with a lease."""
        ...


class Reach(Protocol):
    """Where the site may go, on behalf of others."""

    async def check(self, url: str) -> None:
        """Raises `Invalid` (field "url") for what may not be reached: addresses within, unless they are allowed."""
        ...


@dataclass(frozen=True)
class House:
    """What operations are given to work with; made once, by the server."""

    store: Store
    clock: Clock
    ids: Ids
    engine: Engine
    library: Library
    hosts: Hosts
    plugins: Mapping[str, DriverPlugin]
    addresses: Addresses
    near: Near
    doors: Doors
    recipes: Mapping[str, str]  # image recipe -> the user to log in as
    upload_limit: int  # bytes of an image
    policies: Policies  # of placement
    blobs: Blobs
    vault: Vault
    gateway: Gateway
    runtimes: Mapping[str, RuntimePlugin]
    guards: Mapping[str, Placed]  # as the operator has set them up
    runtime_settings: Mapping[str, Mapping[str, str]]  # the operator's, by runtime
    reach: Reach
    models: ModelReader
    xorbs: Xorbs
    prompts: Prompts
    upstream: Upstream | None  # hub to import models from
    fetch_on_demand: bool  # from there, when somebody asks at the hub's door
    catalogue: Sequence[CatalogueEntry]
    flights: Flights = field(default_factory=Flights)  # of long work that is asked for again while it goes on


@dataclass(frozen=True, slots=True)
class Context:
    """One request: the house, the actor, and an idempotency key if the client sent one."""

    house: House
    actor: Actor
    request_key: str | None = None

    @property
    def store(self) -> Store:
        return self.house.store

    @property
    def now(self) -> Instant:
        return self.house.clock.now()

    def require(self, action: Action, scope: Scope, what: str = "object") -> Grant:
        """The grant, or `NotFound`/`Forbidden`."""
        return permit(self.actor, action, scope, what)

    async def still_allowed(self) -> None:
        """Raises `Unauthenticated` when the key of a long stream was revoked, or its member's roles changed."""
        if not await self.house.doors.holds(self.actor):
            raise Unauthenticated("the key does not hold any more")

    def work(self) -> Work:
        return self.store.work()

    async def project(self, ref: str | None) -> Project:
        """The project an order is for: by id, by name among those the actor has, or the key's own when None."""
        if ref is None:
            ref = self.actor.only_project
        if ref is None:
            return await self._only_project()
        if not is_id(ref, "project"):
            return await self._named_project(ref)
        project = await self.house.near.project(ref)
        if project is None:
            raise NotFound("project not found", field="project")
        return project

    async def _only_project(self) -> Project:
        mine = await self.house.near.projects(self.actor, self.visible_projects)
        if len(mine) == 1:
            return mine[0]
        raise NotFound("say which project: you are in several" if mine else "project not found", field="project")

    async def _named_project(self, name: str) -> Project:
        mine = [p for p in await self.house.near.projects(self.actor, self.visible_projects) if p.name == name]
        if not mine:  # past what is remembered, or past the first page of an operator's thousands
            mine = await self.visible_projects(name)
        if not mine:
            raise NotFound("project not found", field="project")
        if len(mine) > 1:
            raise Conflict(f"several projects are called {name}; give the id", field="project", code="ambiguous")
        return mine[0]

    async def visible_projects(self, name: str | None = None, after: str = "", limit: int = 1000) -> list[Project]:
        """Projects in which the actor has any role."""
        identity = self.store.identity
        if self.actor.only_project is not None:
            found = await identity.project(self.actor.only_project)
            good = found and (name is None or found.name == name) and found.id > after
            return [found] if found and good else []
        if self.actor.is_operator:
            return await identity.projects(name=name, after=after, limit=limit)
        tenants = [s for s in self.actor.roles if is_id(s, "tenant")]
        ids = [s for s in self.actor.roles if is_id(s, "project")]
        return await identity.projects(tenants=tenants, ids=ids, name=name, after=after, limit=limit)

    async def find(self, kind: Kind, ref: str, action: Action, project: str | None = None) -> tuple[AnyResource, Grant]:
        """A resource by id, or by name within a project, and the grant for `action` on it."""
        what = kind.value.replace("_", " ")
        if is_id(ref, kind.value):
            found = await self.store.resources.get(ref)
        else:
            owner = await self.project(project)
            self.require(Action.RESOURCE_VIEW, Scope(owner.tenant, owner.id), what)
            found = await self.store.resources.named(kind, owner.id, ref)
        if found is None or found.kind is not kind:
            raise NotFound(f"{what} not found")
        return found, self.require(action, Scope(found.tenant, found.project), what)

    # --- orders

    async def repeated(self, request: Any) -> list[AnyResource] | None:
        """What an earlier order with this idempotency key made. Raises `Conflict` if it asked for something else,
        `NotFound` if it is gone."""
        if self.request_key is None:
            return None
        earlier = await self.store.resources.request(self.actor.member, self.request_key)
        if earlier is None:
            return None
        digest, made = earlier
        if digest != _digest(request):
            message = "this Idempotency-Key was used for another request"
            raise Conflict(message, field="Idempotency-Key", code="reused-key")
        ids = made.split(",")
        found = await self.store.resources.get_many(ids)
        if len(found) < len(ids):
            raise NotFound("what this Idempotency-Key ordered was deleted since", field="Idempotency-Key")
        return [found[id] for id in ids]

    def remember(self, work: Work, made: Sequence[AnyResource], request: Any, grant: Grant) -> None:
        """Tie the idempotency key, if there is one, to what the order makes."""
        if self.request_key is not None:
            ids = ",".join(resource.id for resource in made)
            work.remember(self.actor.member, self.request_key, _digest(request), ids, self.now, grant)

    def order(self, work: Work, resource: AnyResource, grant: Grant) -> None:
        """Write an order: the resource, its name, its first event. What it counts is charged apart."""
        work.name(resource, grant)
        work.order(resource, grant, due=self.now, lease=self.house.engine.lease(resource.id))
        self.tell(work, resource, "ordered", f"ordered by {self.actor.name}")

    def tell(
        self, work: Work, resource: AnyResource, verb: str, text: str, data: Mapping[str, Any] | None = None
    ) -> None:
        """An event about a resource, caused by the actor."""
        work.emit(
            Event(
                f"{resource.kind.value}.{verb}",
                resource.id,
                self.now,
                text,
                related=resource.provider,
                tenant=resource.tenant,
                project=resource.project,
                actor=self.actor.member,
                cause=f"generation {resource.generation}",
                data=data or {},
            )
        )

    async def commit(self, work: Work, wanted: Amounts | None = None) -> None:
        """Commit and wake the engine. A quota that does not hold is explained with its numbers."""
        try:
            await work.commit()
        except QuotaExceeded as error:
            raise await self._explained(error, wanted or Amounts()) from None
        self.house.engine.hint(work.leased)

    def charge(self, work: Work, made: Sequence[AnyResource], grant: Grant) -> Amounts:
        """Count what is ordered, all of one project, against its quota and its tenant's."""
        amounts = total(made)
        for scope in (made[0].tenant, made[0].project):
            work.charge(scope, amounts, grant)
        return amounts

    async def commit_order(self, work: Work, resource: AnyResource, request: Any, grant: Grant) -> AnyResource:
        """Commit an order. Where a parallel request with the same idempotency key was first, its resource is the
        answer."""
        self.remember(work, [resource], request, grant)
        amounts = self.charge(work, [resource], grant)
        try:
            await self.commit(work, amounts)
        except Conflict:
            earlier = await self.repeated(request)
            if earlier is None:
                raise
            return earlier[0]
        return resource

    async def _explained(self, error: QuotaExceeded, wanted: Amounts) -> UsinaError:
        scope = str(error.data.get("scope"))
        quota = await self.store.identity.quota(scope)
        if quota is None:
            return NotFound("project not found", field="project")
        over = excess(quota, wanted)
        whose = "tenant" if is_id(scope, "tenant") else "project"
        if not over:
            return QuotaExceeded(f"the {whose}'s quota does not allow it", data={"scope": scope})
        parts = ", ".join(
            f"{measure}: {more} more than {limit - used} left of {limit}" for measure, more, used, limit in over
        )
        data = {"scope": scope, "measures": [measure for measure, *_ in over]}
        return QuotaExceeded(f"passes the {whose}'s quota: {parts}", field=_FIELD.get(over[0][0]), data=data)


_FIELD = {"cores": "cores", "memory": "memory", "disk": "disk", "gpus": "devices"}


def _digest(request: Any) -> str:
    return hashlib.sha256(msgspec.json.encode(request, order="deterministic")).hexdigest()
