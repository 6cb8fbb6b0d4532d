"""Operations on model repositories: find, resolve, make, share, gate, accept, delete. For content see `model_commits`.

A name is unique in its project. Where several projects' models bear one name, the actor's own come first, then its
tenant's shared ones, then public ones, as it is with images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from usina.app.context import Context
from usina.core import git
from usina.core.catalogue import CatalogueEntry
from usina.core.errors import Conflict, Forbidden, Invalid, NotFound
from usina.core.event import Event
from usina.core.goods import Visibility
from usina.core.grant import Grant, permit_accept
from usina.core.ids import is_id
from usina.core.model import Model
from usina.core.repository import (
    MAIN,
    Acceptance,
    RefKind,
    Repository,
    Revision,
    Summary,
    check_model_name,
    is_commit,
    may_use,
    taken,
)
from usina.core.tenancy import Action, Project, Role, Scope
from usina.store import models as writers
from usina.store.work import Work

LONGEST_TERMS = 128
_GONE = "model not found"


@dataclass(frozen=True, slots=True)
class ModelOrder:
    name: str
    project: str | None = None
    visibility: Visibility = Visibility.PROJECT
    gated: bool = False
    licence: str = ""
    origin: str = ""  # what it is imported from


# --- finding


async def resolve(context: Context, project: Project, ref: str, revision: str | None = None) -> Model:
    """The model that `project` means by `ref`: an id, "namespace/name" or a bare name that is unique, optionally
    "@revision" (a branch, a tag or a commit; else `main`). Its files' bytes are at ``house.blobs.path(file.digest)``.

    Whoever is to keep using it reserves in ``use:<model id>``: it cannot be deleted meanwhile. Raises `NotFound` naming
    ``model``, and `Forbidden` with the code ``gated`` where the actor has not accepted its licence.
    """
    name, _, at = ref.partition("@")
    if at and revision is not None and at != revision:
        raise Invalid("model: it names one revision, and another is asked for", field="model")
    context.require(Action.RESOURCE_VIEW, Scope(project.tenant, project.id), "project")
    repository = await _choose(context, name, [project])
    await require_accepted(context, repository)
    return repository.model(await revision_of(context, repository, revision or at or MAIN))


async def find(context: Context, ref: str, project: str | None = None) -> Repository:
    """A model that the actor (in `project`, where it is named) may see: by id, "namespace/name" or bare name. Raises
    `NotFound`, and `Conflict` where several are meant."""
    if project is None:
        return await _choose(context, ref, await seen_from(context))
    owner = await context.project(project)
    context.require(Action.RESOURCE_VIEW, Scope(owner.tenant, owner.id), "project")
    return await _choose(context, ref, [owner])


async def seen_from(context: Context) -> list[Project] | None:
    """The projects through which the actor sees models; None for an operator, who sees all."""
    if context.actor.is_operator:
        return None
    return await context.house.near.projects(context.actor, context.visible_projects)


async def _choose(context: Context, ref: str, projects: Sequence[Project] | None) -> Repository:
    if is_id(ref, "model"):
        found = await context.store.models.get(ref)
        candidates = [found] if found is not None else []
    else:
        candidates = await context.store.models.named(ref)
    if projects is not None:
        candidates = [one for one in candidates if any(may_use(one, p.tenant, p.id) for p in projects)]
    if not candidates:
        raise NotFound(_GONE, field="model")
    ranked = sorted(candidates, key=lambda one: _distance(context, one, projects))
    if len(ranked) > 1 and _distance(context, ranked[0], projects) == _distance(context, ranked[1], projects):
        names = ", ".join(sorted({one.name for one in ranked}))
        message = f"model: {ref!r} may be several ({names}); give the id, the whole name or the project"
        raise Conflict(message, field="model", code="ambiguous")
    return ranked[0]


def _distance(context: Context, repository: Repository, projects: Sequence[Project] | None) -> int:
    """Own ones are nearest; an operator's own are those of projects and tenants in which it has a role by name."""
    roles = context.actor.roles
    if projects is not None and any(one.id == repository.project for one in projects):
        return 0
    if projects is None and (repository.project in roles or repository.tenant in roles):
        return 0
    if repository.visibility is Visibility.PUBLIC:
        return 2
    return 1 if projects is not None else 3


async def list_models(
    context: Context, *, project: str | None = None, search: str = "", author: str = "", after: str = "", limit: int
) -> list[Repository]:
    """Models that the actor may see, in order of id; with `project`, those that project owns or may use."""
    if project is None:
        projects = await seen_from(context)
    else:
        owner = await context.project(project)
        context.require(Action.RESOURCE_VIEW, Scope(owner.tenant, owner.id), "project")
        projects = [owner]
    return await context.store.models.page(projects, search=search, author=author, after=after, limit=limit)


async def catalogue(context: Context) -> list[tuple[CatalogueEntry, Repository | None]]:
    """Models that one may want, each with what the actor has of it."""
    found = []
    for entry in context.house.catalogue:
        named = await context.store.models.named(entry.hub) if entry.hub else []
        seen = await seen_from(context)
        mine = [one for one in named if seen is None or any(may_use(one, p.tenant, p.id) for p in seen)]
        mine = [one for one in mine if one.main.files]
        mine.sort(key=lambda one: _distance(context, one, seen))
        found.append((entry, mine[0] if mine else None))
    return found


async def revision_of(context: Context, repository: Repository, name: str) -> Revision:
    """The revision by commit, branch, tag, or the commit it was imported from. Raises `NotFound` with the code
    ``revision-not-found``."""
    name = name.removeprefix("refs/heads/").removeprefix("refs/tags/")
    found = await context.store.models.revision(repository.id, name) if is_commit(name) else None
    if found is None:
        refs = await context.store.models.refs(repository.id)
        commit = next((ref.commit for kind in RefKind for ref in refs if (ref.kind, ref.name) == (kind, name)), None)
        found = await context.store.models.revision(repository.id, commit) if commit else None
    if found is None:
        raise NotFound("model: it has no such revision", field="revision", code="revision-not-found")
    return found


def allow(context: Context, repository: Repository, action: Action) -> Grant:
    """The grant for `action` on a model that the actor sees. Raises `Forbidden`."""
    if context.actor.role_in(scope_of(repository)) is None:
        raise Forbidden("model: it is shared with you; only its own project may change it", field="model")
    return context.require(action, scope_of(repository), "model")


def scope_of(repository: Repository) -> Scope:
    return Scope(repository.tenant, repository.project)


# --- licences


async def require_accepted(context: Context, repository: Repository) -> None:
    """Raises `Forbidden` (code ``gated``) where the licence must be accepted first and was not."""
    if not repository.gated or _is_keeper(context, repository):
        return
    if not await context.store.models.accepted(repository.id, context.actor.member, repository.licence):
        said = f" ({repository.licence})" if repository.licence else ""
        raise Forbidden(
            f"model: accept the licence of {repository.name}{said} first: usina model accept {repository.name}",
            field="model",
            code="gated",
        )


def _is_keeper(context: Context, repository: Repository) -> bool:
    """Who may change a model needs no leave to read it."""
    role = context.actor.role_in(scope_of(repository))
    return role is not None and role >= Role.MEMBER


async def accept(context: Context, ref: str, project: str | None = None) -> Repository:
    """Accept a model's licence, for oneself; recorded with the time, and void when the licence changes."""
    repository = await find(context, ref, project)
    grant = permit_accept(context.actor, repository, await seen_from(context) or ())
    if await context.store.models.accepted(repository.id, context.actor.member, repository.licence):
        return repository
    work = context.work()
    actor = context.actor
    acceptance = Acceptance(actor.member, actor.name, repository.licence, context.now)
    writers.accept(work, repository.id, acceptance, grant)
    tell(context, work, repository, "accepted", f"licence {repository.licence or 'of its card'} taken by {actor.name}")
    await context.commit(work)
    return repository


async def acceptances(context: Context, ref: str, project: str | None = None) -> list[Acceptance]:
    """Who accepted; for those who may change the model."""
    repository = await find(context, ref, project)
    allow(context, repository, Action.RESOURCE_CHANGE)
    return await context.store.models.acceptances(repository.id)


# --- making and changing


async def create(context: Context, order: ModelOrder) -> Repository:
    """A repository with an empty first commit on `main`."""
    check_model_name(order.name)
    _check_terms(order.licence)
    owner = await context.project(order.project)
    scope = Scope(owner.tenant, owner.id)
    grant = context.require(Action.RESOURCE_CREATE, scope, "project")
    _require_visibility(context, order.visibility, scope)
    if any(one.project == owner.id for one in await context.store.models.named(order.name)):
        raise taken(order.name)
    first = _first_commit(context)
    repository = Repository(
        id=context.house.ids.new("model"),
        tenant=owner.tenant,
        project=owner.id,
        name=order.name,
        visibility=order.visibility,
        gated=order.gated,
        terms=order.licence,
        origin=order.origin,
        created_at=context.now,
        updated_at=context.now,
        main=Summary.of(first),
    )
    work = context.work()
    writers.add(work, repository, first, grant)
    tell(context, work, repository, "created", f"model {order.name} created by {context.actor.name}")
    await context.commit(work)
    return repository


def _first_commit(context: Context) -> Revision:
    at, author, title = int(context.now), context.actor.name, "initial commit"
    commit = git.commit_id(git.tree_ids(())[""], None, author, at, title)
    return Revision(commit, None, at, author, title)


async def change(
    context: Context,
    ref: str,
    *,
    visibility: Visibility | None = None,
    gated: bool | None = None,
    licence: str | None = None,
    project: str | None = None,
) -> Repository:
    """Say who may use a model and whether its licence must be accepted first."""
    repository = await find(context, ref, project)
    grant = allow(context, repository, Action.RESOURCE_CHANGE)
    if licence is not None:
        _check_terms(licence)
    scope = scope_of(repository)
    if visibility is not None and visibility is not repository.visibility:
        _require_visibility(context, visibility, scope)
        _require_visibility(context, repository.visibility, scope)
    new = replace(
        repository,
        visibility=repository.visibility if visibility is None else visibility,
        gated=repository.gated if gated is None else gated,
        terms=repository.terms if licence is None else licence,
        updated_at=context.now,
    )
    work = context.work()
    writers.change(work, new, grant)
    said = f"visible to {new.visibility.value}, {'gated' if new.gated else 'not gated'}"
    tell(context, work, new, "changed", f"made {said}, licence {new.licence or 'unknown'}, by {context.actor.name}")
    await context.commit(work)
    return new


async def delete(context: Context, ref: str, project: str | None = None) -> Repository:
    """Delete a model with all its revisions. Refused while it is in use."""
    repository = await find(context, ref, project)
    grant = allow(context, repository, Action.RESOURCE_DELETE)
    work = context.work()
    writers.drop(work, repository, grant)
    tell(context, work, repository, "deleted", f"model {repository.name} deleted by {context.actor.name}")
    await context.commit(work)
    return repository


def _require_visibility(context: Context, visibility: Visibility, scope: Scope) -> None:
    if visibility is Visibility.TENANT:
        context.require(Action.MODEL_SHARE, scope, "model")
    elif visibility is Visibility.PUBLIC:
        context.require(Action.MODEL_PUBLISH, scope, "model")


def _check_terms(licence: str) -> None:
    if len(licence) > LONGEST_TERMS or not licence.isprintable():
        raise Invalid(f"licence: at most {LONGEST_TERMS} printable characters", field="licence")


def tell(context: Context, work: Work, repository: Repository, verb: str, text: str) -> None:
    """An event about a model, in the story of its project."""
    work.emit(
        Event(
            f"model.{verb}",
            repository.id,
            context.now,
            text,
            tenant=repository.tenant,
            project=repository.project,
            actor=context.actor.member,
        )
    )
