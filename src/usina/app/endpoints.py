"""Operations on endpoints: order, change, try a variant, promote it, roll back, delete. Reading is in `resources`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

from usina.app.context import Context
from usina.app.endpoint_recipes import OUTSIDE, Source, recipe_for, runtime_of, source
from usina.app.machine_changes import expect
from usina.app.machines import check_device
from usina.core.capacity import DeviceRequest
from usina.core.endpoint import Canary, EndpointSpec, EndpointStatus, Recipe, Shared, Variant
from usina.core.endpoint_decide import Endpoint
from usina.core.errors import Conflict, Invalid
from usina.core.grant import Grant
from usina.core.names import check_labels, check_name, check_range, check_ref
from usina.core.resource import AnyResource, Kind, Resource
from usina.core.task import TaskSpec
from usina.core.tenancy import Action, Project, Scope
from usina.core.units import TiB
from usina.ports.runtime import RuntimePlugin
from usina.store import tasks as writers
from usina.store.work import Work

MOST_REPLICAS = 256
MOST_ADAPTERS = 32
LONGEST = 86_400.0 * 30
_REMADE = frozenset({"options", "context", "slots", "cores", "memory", "devices", "adapters"})
"""What replicas are made anew for, besides another model."""


@dataclass(frozen=True, slots=True)
class EndpointOrder:
    """What a member asks for; sizes in bytes, times in seconds, as in `EndpointSpec`."""

    name: str
    model: str
    revision: str = ""  # branch, tag or commit; "": main
    project: str | None = None
    runtime: str = ""  # "": the first that reads the model's files
    minimum: int = 1
    maximum: int = 1
    on: str = ""
    context: int = 0
    slots: int = 4
    cores: float = 0.0
    memory: int = 0
    devices: tuple[DeviceRequest, ...] = ()
    adapters: Mapping[str, str] = field(default_factory=dict)  # name -> model[@revision]
    options: Mapping[str, str] = field(default_factory=dict)
    url: str = ""
    secret: str = ""
    target: float = 0.0
    target_tokens: float = 0.0
    idle_limit: float = 600.0
    patience: float = 300.0
    waiting: int = 256
    drain: float = 120.0
    shared: Shared = Shared.PROJECT
    fallback: tuple[str, ...] = ()
    guards: tuple[str, ...] = ()
    guards_open: bool = False
    labels: dict[str, str] = field(default_factory=dict)


async def create(context: Context, order: EndpointOrder) -> Endpoint:
    """Order an endpoint. Answers at once, phase ``pending``; what can never be is refused with its numbers."""
    project = await context.project(order.project)
    grant = context.require(Action.RESOURCE_CREATE, Scope(project.tenant, project.id), "project")
    check_name(order.name)
    check_labels(order.labels)
    earlier = await context.repeated(order)
    if earlier is not None:
        return earlier[0]
    id = context.house.ids.new(Kind.ENDPOINT.value)
    spec = await _spec_of(context, project, order, id)
    endpoint: Endpoint = Resource(
        id=id,
        kind=Kind.ENDPOINT,
        tenant=project.tenant,
        project=project.id,
        name=order.name,
        spec=spec,
        status=EndpointStatus(formula=spec.recipe.formula if spec.recipe is not None else ""),
        created_at=context.now,
        updated_at=context.now,
        labels=order.labels,
    )
    work = context.work()
    _hold(work, endpoint, spec, grant)
    context.order(work, endpoint, grant)
    return await context.commit_order(work, endpoint, order, grant)


async def _spec_of(context: Context, project: Project, order: EndpointOrder, id: str) -> EndpointSpec:
    adapters = {name: _variant(ref) for name, ref in order.adapters.items()}
    spec = EndpointSpec(
        variant=Variant(order.model, order.revision),
        runtime=order.runtime,
        minimum=order.minimum,
        maximum=order.maximum,
        on=order.on,
        context=order.context,
        slots=order.slots,
        cores=order.cores,
        memory=order.memory,
        devices=order.devices,
        adapters=adapters,
        options=dict(order.options),
        url=order.url,
        secret=context.house.vault.seal(order.secret, id) if order.secret else "",
        target=order.target,
        target_tokens=order.target_tokens,
        idle_limit=order.idle_limit,
        patience=order.patience,
        waiting=order.waiting,
        drain=order.drain,
        shared=order.shared,
        fallback=order.fallback,
        guards=order.guards,
        guards_open=order.guards_open,
        member=context.actor.member,
    )
    _check(spec, order.name)
    _check_guards(context, spec)
    return await _with_recipe(context, project, order.name, spec)


async def _with_recipe(context: Context, project: Project, name: str, spec: EndpointSpec) -> EndpointSpec:
    """The spec with its names resolved, and how its replicas are made."""
    if spec.runtime == OUTSIDE:
        _check_runtime(runtime_of(context, OUTSIDE, None), spec)
        await context.house.reach.check(spec.url)
        return replace(spec, recipe=None)
    if spec.url:
        raise Invalid("url: only for the runtime external", field="url")
    made_of = await source(context, project, spec.variant, spec.adapters, spec.runtime)
    plugin = runtime_of(context, spec.runtime, made_of.model)
    _check_runtime(plugin, spec)
    spec = replace(spec, runtime=plugin.name, variant=_resolved(made_of), adapters=_resolved_adapters(made_of))
    recipe = await recipe_for(context, project, name, spec, made_of)
    return replace(spec, recipe=recipe)


def _resolved(made_of: Source) -> Variant:
    return Variant(made_of.model.name, made_of.model.revision)


def _resolved_adapters(made_of: Source) -> dict[str, Variant]:
    return {name: Variant(model.name, model.revision) for name, model in made_of.adapters.items()}


def _variant(ref: str) -> Variant:
    """``namespace/name[@revision]``."""
    name, _, revision = ref.partition("@")
    return Variant(name, revision)


# --- checks


def _check(spec: EndpointSpec, name: str) -> None:
    """Everything about a wish that needs no look at the house. Raises `Invalid` naming the field."""
    if not spec.variant.model or len(spec.variant.model) > 200 or not spec.variant.model.isprintable():
        raise Invalid("model: name a model, as namespace/name", field="model")
    check_range(spec.maximum, 1, MOST_REPLICAS, "maximum")
    check_range(spec.minimum, 0, spec.maximum, "minimum")
    check_range(spec.context, 0, 10_000_000, "context")
    check_range(spec.slots, 1, 1024, "slots")
    check_range(spec.memory, 0, 64 * TiB, "memory")
    check_range(spec.waiting, 0, 100_000, "waiting")
    check_range(len(spec.adapters), 0, MOST_ADAPTERS, "adapters")
    check_range(len(spec.fallback), 0, 8, "fallback")
    check_range(len(spec.guards), 0, 8, "guards")
    check_range(len(spec.devices), 0, 16, "devices")
    for adapter in spec.adapters:
        check_ref(adapter, f"adapters.{adapter}"[:64])
    for number, other in enumerate(spec.fallback):
        check_name(other, f"fallback[{number}]")
        if other == name:
            raise Invalid(f"fallback[{number}]: it cannot be its own", field=f"fallback[{number}]")
    for number, device in enumerate(spec.devices):
        check_device(device, f"devices[{number}]")
    for which in ("target", "target_tokens", "cores"):
        if not 0 <= getattr(spec, which) <= 1_000_000:
            raise Invalid(f"{which}: must be between 0 and 1000000", field=which)
    for which in ("idle_limit", "patience", "drain"):
        if not 0 <= getattr(spec, which) <= LONGEST:
            raise Invalid(f"{which}: must be between 0 and {LONGEST:g} seconds", field=which)


def _check_guards(context: Context, spec: EndpointSpec) -> None:
    known = context.house.guards
    for number, name in enumerate(spec.guards):
        if name not in known:
            have = ", ".join(sorted(known)) or "none"
            raise Invalid(
                f"guards[{number}]: {name[:40]!r} is no guard here; there are {have}", field=f"guards[{number}]"
            )


def _check_runtime(plugin: RuntimePlugin, spec: EndpointSpec) -> None:
    for name, value in spec.options.items():
        if name not in plugin.options:
            known = ", ".join(plugin.options) or "none"
            raise Invalid(f"options.{name[:40]}: {plugin.name} has no such option; it has {known}", field="options")
        if len(value) > 1000 or not value.isprintable():
            raise Invalid(f"options.{name}: at most 1000 printable characters", field=f"options.{name}")
    plugin.check(spec)


# --- what it holds


def _holds(spec: EndpointSpec) -> list[tuple[str, Recipe]]:
    found = [("main", spec.recipe), ("canary", spec.canary.recipe if spec.canary is not None else None)]
    return [(slot, recipe) for slot, recipe in found if recipe is not None]


def _hold(work: Work, endpoint: AnyResource, spec: EndpointSpec, grant: Grant) -> None:
    """Its models stay, and the content of their files, as long as it serves them."""
    gone = Conflict("model: it was deleted meanwhile", field="model", code="stale")
    for slot, recipe in _holds(spec):
        for number, model in enumerate(recipe.models):
            key = f"{endpoint.id}/{slot}.{number}"
            work.reserve(f"use:{model}", key, endpoint.id, grant, lambda: gone)
        for number, file in enumerate(recipe.task.files):
            home = recipe.homes.get(file.digest, endpoint.project)
            writers.use_blob(work, home, file.digest, endpoint.id, f"{slot}.files[{number}]", grant)


def _let_go(work: Work, endpoint: AnyResource, grant: Grant) -> None:
    for slot, recipe in _holds(endpoint.spec):
        for number, model in enumerate(recipe.models):
            work.release(f"use:{model}", f"{endpoint.id}/{slot}.{number}", endpoint.id, grant)
        for number, file in enumerate(recipe.task.files):
            home = recipe.homes.get(file.digest, endpoint.project)
            key = f"{endpoint.id}/{slot}.files[{number}]"
            work.release(f"blob:{home}:{file.digest}", key, endpoint.id, grant)


# --- changes


async def change(
    context: Context, ref: str, wishes: Mapping[str, Any], project: str | None = None, if_match: int | None = None
) -> Endpoint:
    """A changed wish. `wishes`: fields of `EndpointOrder`, but for its name, project, runtime and stack. Where what
    replicas are made of changes, new ones are brought up first, and then take the place of the old ones."""
    endpoint, grant = await context.find(Kind.ENDPOINT, ref, Action.RESOURCE_CHANGE, project)
    expect(endpoint, if_match)
    spec: EndpointSpec = endpoint.spec
    given = dict(wishes)
    labels = given.pop("labels", None)
    model, revision = given.pop("model", None), given.pop("revision", None)
    if given.get("secret") is not None:
        secret = given["secret"]
        given["secret"] = context.house.vault.seal(secret, endpoint.id) if secret else ""
    if given.get("adapters") is not None:
        given["adapters"] = {name: _variant(text) for name, text in given["adapters"].items()}
    fresh = replace(spec, **{name: value for name, value in given.items() if value is not None})
    if model is not None or revision is not None:
        fresh = replace(fresh, variant=Variant(model or spec.variant.model, revision or ""), previous=spec.variant)
    _check(fresh, endpoint.name)
    if fresh.guards != spec.guards:
        _check_guards(context, fresh)
    anew = fresh.variant != spec.variant or any(getattr(fresh, one) != getattr(spec, one) for one in _REMADE)
    if anew or fresh.url != spec.url:
        fresh = await _with_recipe(context, await _home(context, endpoint), endpoint.name, fresh)
    if spec.secret and fresh.secret == spec.secret and _site_of(fresh.url) != _site_of(spec.url):
        raise Invalid("secret: give it anew with another url; it is not sent elsewhere", field="secret")
    if fresh.variant == spec.variant:
        fresh = replace(fresh, previous=spec.previous)
    if anew and fresh.canary is not None and model is None and revision is None:
        raise Conflict("promote or roll back the variant on trial first", code="on-trial")
    said = ", ".join(sorted(name for name, value in wishes.items() if value is not None)) or "nothing"
    return await _write(context, endpoint, grant, fresh, f"{said} changed", labels)


def _site_of(url: str) -> tuple[str, str]:
    """Whom a URL speaks to."""
    parts = urlsplit(url)
    return parts.scheme, parts.netloc


async def try_variant(
    context: Context,
    ref: str,
    model: str | None,
    revision: str | None,
    weight: float,
    project: str | None = None,
    if_match: int | None = None,
) -> Endpoint:
    """Put a variant on trial, with a share of the requests; or change the share of the one that is."""
    endpoint, grant = await context.find(Kind.ENDPOINT, ref, Action.RESOURCE_CHANGE, project)
    expect(endpoint, if_match)
    spec: EndpointSpec = endpoint.spec
    if not 0 <= weight <= 1:
        raise Invalid("weight: must be between 0 and 1", field="weight")
    if model is None and revision is None:
        if spec.canary is None:
            raise Conflict("no variant is on trial; name a model or a revision", field="model", code="no-trial")
        trial = replace(spec.canary, weight=weight)
    else:
        wanted = replace(spec, variant=Variant(model or spec.variant.model, revision or ""), canary=None)
        _check(wanted, endpoint.name)
        made = await _with_recipe(context, await _home(context, endpoint), endpoint.name, wanted)
        if made.variant == spec.variant:
            raise Conflict("this variant is what it serves already", field="model", code="same-variant")
        trial = Canary(made.variant, weight, made.recipe)
    text = f"{_told(trial.variant)} on trial, with {weight:.0%} of the requests"
    return await _write(context, endpoint, grant, replace(spec, canary=trial), text)


async def promote(context: Context, ref: str, project: str | None = None, if_match: int | None = None) -> Endpoint:
    """The variant on trial becomes the endpoint's."""
    endpoint, grant = await context.find(Kind.ENDPOINT, ref, Action.RESOURCE_CHANGE, project)
    expect(endpoint, if_match)
    spec: EndpointSpec = endpoint.spec
    if spec.canary is None:
        raise Conflict("no variant is on trial", code="no-trial")
    fresh = replace(spec, variant=spec.canary.variant, recipe=spec.canary.recipe, canary=None, previous=spec.variant)
    return await _write(context, endpoint, grant, fresh, f"{_told(fresh.variant)} promoted")


async def roll_back(context: Context, ref: str, project: str | None = None, if_match: int | None = None) -> Endpoint:
    """Away with the variant on trial; or, where there is none, back to what it served before."""
    endpoint, grant = await context.find(Kind.ENDPOINT, ref, Action.RESOURCE_CHANGE, project)
    expect(endpoint, if_match)
    spec: EndpointSpec = endpoint.spec
    if spec.canary is not None:
        text = f"the trial of {_told(spec.canary.variant)} ended"
        return await _write(context, endpoint, grant, replace(spec, canary=None), text)
    if spec.previous is None:
        raise Conflict("it has served nothing else before", code="nothing-before")
    wanted = replace(spec, variant=spec.previous, previous=spec.variant)
    fresh = await _with_recipe(context, await _home(context, endpoint), endpoint.name, wanted)
    return await _write(context, endpoint, grant, fresh, f"rolled back to {_told(fresh.variant)}")


async def _home(context: Context, endpoint: Endpoint) -> Project:
    return await context.project(endpoint.project)


async def _write(
    context: Context,
    endpoint: Endpoint,
    grant: Grant,
    spec: EndpointSpec,
    text: str,
    labels: dict[str, str] | None = None,
) -> Endpoint:
    changed: Endpoint = endpoint.wishing(spec, context.now)
    if labels is not None:
        changed = replace(changed, labels=check_labels(labels))
    work = context.work()
    if _made_of(endpoint.spec) != _made_of(spec):
        _let_go(work, endpoint, grant)
        _hold(work, endpoint, spec, grant)
    work.wish(changed, grant)
    context.tell(work, changed, "changed", f"{text}, by {context.actor.name}")
    await context.commit(work)
    return changed


def _made_of(spec: EndpointSpec) -> list[tuple[str, TaskSpec, tuple[str, ...]]]:
    return [(slot, recipe.task, recipe.models) for slot, recipe in _holds(spec)]


def _told(variant: Variant) -> str:
    return f"{variant.model}@{variant.revision[:8]}" if variant.revision else variant.model


# --- its end, and its parts


async def delete(context: Context, ref: str, project: str | None = None, if_match: int | None = None) -> Endpoint:
    """Ask an endpoint to go, with its replicas."""
    endpoint, grant = await context.find(Kind.ENDPOINT, ref, Action.RESOURCE_DELETE, project)
    if endpoint.deleting:
        return endpoint
    expect(endpoint, if_match)
    work = context.work()
    work.leave(endpoint, grant, context.now)
    context.tell(work, endpoint, "deleting", f"asked to go, by {context.actor.name}")
    await context.commit(work)
    context.house.near.forget()
    leaving: Endpoint = endpoint.leaving(context.now)
    return leaving


async def replicas(context: Context, ref: str, project: str | None = None) -> list[AnyResource]:
    """The tasks of an endpoint, the oldest first; also one that failed, which is kept for its log."""
    endpoint, _ = await context.find(Kind.ENDPOINT, ref, Action.RESOURCE_VIEW, project)
    return sorted(await context.store.tasks.part_rows(endpoint.id), key=lambda task: task.id)
