"""Reading resources, their stories and events, as far as the actor may see."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from usina.app.context import Context
from usina.core.errors import NotFound
from usina.core.event import Event
from usina.core.goods import may_use
from usina.core.ids import is_id
from usina.core.resource import AnyResource, Kind, Phase
from usina.core.tenancy import Action, Role, Scope


@dataclass(frozen=True, slots=True)
class Filter:
    project: str | None = None
    phase: Phase | None = None
    name: str | None = None
    host: str | None = None
    after: str = ""
    limit: int = 100
    whole: bool = False  # leave parts of others out


async def get(context: Context, kind: Kind, ref: str, project: str | None = None) -> AnyResource:
    """One resource the actor may see. Images of others that are shared with one of the actor's projects count."""
    if kind is Kind.IMAGE and is_id(ref, Kind.IMAGE.value):
        image = await context.store.resources.get(ref)
        if image is not None and await _usable(context, image):
            return image
    found, _ = await context.find(kind, ref, Action.RESOURCE_VIEW, project)
    return found


async def list_page(context: Context, kind: Kind, wanted: Filter) -> list[AnyResource]:
    """A page in order of id: of one project, or of all the actor's."""
    projects = await _projects(context, wanted.project)
    resources = context.store.resources
    if wanted.host is not None and not context.actor.is_operator:
        raise NotFound("host not found", field="host")
    return await resources.page(
        kind,
        projects=projects,
        after=wanted.after,
        limit=wanted.limit,
        phase=wanted.phase,
        name=wanted.name,
        provider=wanted.host,
        whole=wanted.whole,
    )


async def list_images(context: Context, wanted: Filter) -> list[AnyResource]:
    """As `list_page`, with images that others share."""
    everything = await context.store.resources.page(
        Kind.IMAGE, after=wanted.after, limit=10_000, phase=wanted.phase, name=wanted.name
    )
    chosen = await _projects(context, wanted.project)
    only = chosen[0] if wanted.project is not None and chosen else None
    seen = [one for one in everything if await _usable(context, one, only)]
    return seen[: wanted.limit]


async def _usable(context: Context, image: AnyResource, only: str | None = None) -> bool:
    if image.kind is not Kind.IMAGE:
        return False
    projects = await context.visible_projects()
    mine = [p for p in projects if only is None or p.id == only]
    return any(may_use(image, p.tenant, p.id) for p in mine) or (only is None and context.actor.is_operator)


async def _projects(context: Context, ref: str | None) -> list[str] | None:
    if ref is not None:
        project = await context.project(ref)
        context.require(Action.RESOURCE_VIEW, Scope(project.tenant, project.id), "project")
        return [project.id]
    if context.actor.is_operator:
        return None
    return [project.id for project in await context.visible_projects()]


# --- stories and events


async def story(context: Context, ref: str, after: int = 0, limit: int = 1000) -> list[Event]:
    """Everything that ever happened to one object, also after its end."""
    events = await context.store.events.story(ref, after, limit)
    first = next(iter(events), None)
    if first is None and after:
        first = next(iter(await context.store.events.story(ref, 0, 1)), None)
    if first is None:
        raise NotFound("no story by that id")
    own = next((e for e in events if e.subject == ref), first)
    if own.project is not None:
        context.require(Action.RESOURCE_VIEW, Scope(own.tenant, own.project), "story")
    else:
        _require_site_or_tenant(context, own)
    return [event for event in events if _may_see(context, event)]


async def find_story(context: Context, ref: str, project: str | None = None) -> str:
    """An id, or the name of a resource in a project → the id whose story is meant."""
    if is_id(ref):
        return ref
    owner = await context.project(project)
    context.require(Action.RESOURCE_VIEW, Scope(owner.tenant, owner.id), "story")
    for kind in Kind:
        found = await context.store.resources.named(kind, owner.id, ref)
        if found is not None:
            return found.id
    raise NotFound("no story by that name")


async def events(
    context: Context,
    after: int,
    *,
    project: str | None = None,
    subject: str | None = None,
    kind: str | None = None,
    limit: int = 500,
) -> list[Event]:
    """Events past `after` that the actor may see, in order."""
    projects, tenants = await scope_of_events(context, project)
    return await context.store.events.since(
        after, projects=projects, tenants=tenants, subject=subject, kind=kind, limit=limit
    )


async def newest(context: Context) -> int:
    """The sequence number of the newest event of the site; where a stream begins that asks for no earlier one."""
    return await context.store.events.last()


async def next_commit(context: Context, limit: float) -> None:
    """Wait until this process commits something, or `limit` seconds have passed (others may have)."""
    pulse = context.store.database.pulse
    try:
        async with asyncio.timeout(limit):
            await pulse.wait()
    except TimeoutError:
        return


async def scope_of_events(context: Context, project: str | None) -> tuple[list[str] | None, list[str] | None]:
    """(projects, tenants) whose events the actor may see; None, None for the whole site."""
    if project is not None:
        owner = await context.project(project)
        context.require(Action.RESOURCE_VIEW, Scope(owner.tenant, owner.id), "project")
        return [owner.id], []
    if context.actor.is_operator:
        return None, None
    projects = [p.id for p in await context.visible_projects()]
    tenants = [s for s in context.actor.roles if is_id(s, "tenant") and _is_admin(context, s)]
    return projects, tenants


def _is_admin(context: Context, tenant: str) -> bool:
    return (context.actor.role_in(Scope(tenant)) or Role.VIEWER) >= Role.ADMIN


def _require_site_or_tenant(context: Context, event: Event) -> None:
    if event.tenant is not None:
        context.require(Action.MEMBER_VIEW, Scope(event.tenant), "story")
    else:
        context.require(Action.HOST_VIEW, Scope(), "story")


def _may_see(context: Context, event: Event) -> bool:
    if event.project is not None:
        return context.actor.role_in(Scope(event.tenant, event.project)) is not None
    if event.tenant is not None:
        return _is_admin(context, event.tenant)
    return context.actor.is_operator
