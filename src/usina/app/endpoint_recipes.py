"""From what a member asks for to a recipe: the model is resolved, a runtime and a stack are chosen, and what can never
fit is refused with its numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from usina.app import models
from usina.app.context import Context
from usina.app.tasks import check_possible
from usina.core.capacity import GIVEN, DeviceKind, Provider, runs
from usina.core.endpoint import EndpointSpec, Recipe, Variant
from usina.core.errors import Conflict, Invalid, NotFound, Refused
from usina.core.footprint import DeviceOffer
from usina.core.model import Model
from usina.core.resource import Kind, Resource
from usina.core.task import TaskStatus
from usina.core.task_decide import Task
from usina.core.tenancy import Project
from usina.ports.driver import DriverPlugin
from usina.ports.runtime import RuntimePlugin, Wish, fits

OUTSIDE = "external"


@dataclass(frozen=True, slots=True)
class Source:
    """The models that an endpoint is made of."""

    model: Model
    adapters: Mapping[str, Model]


async def source(
    context: Context, project: Project, variant: Variant, adapters: Mapping[str, Variant], runtime: str
) -> Source:
    """Raises `NotFound` and `Forbidden` naming the field."""
    plugin = context.house.runtimes.get(runtime)
    try:
        model = await models.resolve(context, project, variant.model, variant.revision or None)
    except NotFound:
        if plugin is None or not plugin.brings_model or variant.revision:
            raise
        model = Model("", variant.model, "", ())
    found = {}
    for name, one in adapters.items():
        try:
            found[name] = await models.resolve(context, project, one.model, one.revision or None)
        except NotFound:
            told = f"adapters.{name}: there is no model {one.model}{'@' if one.revision else ''}{one.revision}"
            raise NotFound(told, field=f"adapters.{name}") from None
    return Source(model, found)


def runtime_of(context: Context, wanted: str, model: Model | None) -> RuntimePlugin:
    """The runtime that is asked for, or the first that reads the model's files. Raises `Invalid`."""
    known = context.house.runtimes
    if wanted:
        if wanted not in known:
            raise Invalid(f"runtime: {wanted!r} is not one of {', '.join(sorted(known))}", field="runtime")
        if model is not None and model.files and not fits(known[wanted], model):
            formats = " or ".join(known[wanted].formats)
            raise Invalid(f"runtime: {wanted} reads {formats} files, and {model.name} has none", field="runtime")
        return known[wanted]
    for _, plugin in sorted(known.items()):
        if model is not None and plugin.formats and fits(plugin, model):
            return plugin
    what = model.name if model is not None else "this"
    reads = ", ".join(f"{name} ({' '.join(p.formats)})" for name, p in sorted(known.items()) if p.formats)
    raise Invalid(f"runtime: none reads the files of {what}; there are {reads}", field="runtime")


async def recipe_for(context: Context, project: Project, name: str, spec: EndpointSpec, made_of: Source) -> Recipe:
    """How replicas are made, on the first stack that has a host for one. Raises `Invalid`, or `Refused` with what each
    stack lacks."""
    plugin = runtime_of(context, spec.runtime, made_of.model)
    stacks = {one.stack: one for one in context.house.plugins.values() if one.tasks is not None}
    if spec.on and spec.on not in plugin.stacks:
        raise Invalid(f"on: {plugin.name} runs on {', '.join(plugin.stacks)}, not on {spec.on}", field="on")
    refusals: list[str] = []
    for stack in (spec.on,) if spec.on else plugin.stacks:
        if stack not in stacks:
            refusals.append(f"{stack}: there is no such stack here")
            continue
        try:
            return await _on(context, project, name, spec, made_of, plugin, stacks[stack])
        except (Refused, Conflict) as error:
            if isinstance(error, Conflict) and error.code == "quota-exceeded":
                raise
            refusals.append(f"{stack}: {error.message}")
    raise Refused(f"no host can hold a replica: {'; '.join(refusals)}", field="model")


async def _on(
    context: Context,
    project: Project,
    name: str,
    spec: EndpointSpec,
    made_of: Source,
    plugin: RuntimePlugin,
    driver: DriverPlugin,
) -> Recipe:
    assert plugin.recipe is not None  # who has none has no stacks
    wish = Wish(
        model=made_of.model,
        spec=spec,
        stack=driver.stack,
        name=name,
        adapters=made_of.adapters,
        settings=context.house.runtime_settings.get(plugin.name, {}),
        offers=await _offers(context, driver.stack),
        shares_network=driver.queues or driver.inside,
        gangs=driver.queues,
    )
    recipe = plugin.recipe(wish)
    homes: dict[str, str] = {}
    for model in (made_of.model, *made_of.adapters.values()):
        repository = await context.store.models.get(model.id) if model.id else None
        if repository is not None:
            homes |= {file.digest: repository.project for file in model.files}
    used = tuple(model.id for model in (made_of.model, *made_of.adapters.values()) if model.id)
    await check_possible(context, _trial(context, project, name, recipe), driver.queues, None)
    return replace(recipe, homes=homes, models=used, adapters=wish.numbered)


def _trial(context: Context, project: Project, name: str, recipe: Recipe) -> Task:
    """A replica as it would be, to ask whether there is a place for it."""
    return Resource(
        id="",
        kind=Kind.TASK,
        tenant=project.tenant,
        project=project.id,
        name=name,
        spec=recipe.task,
        status=TaskStatus(),
        created_at=context.now,
        updated_at=context.now,
    )


async def _offers(context: Context, stack: str) -> tuple[DeviceOffer, ...]:
    """Devices alike that hosts of a stack can give to tasks."""
    counted: dict[tuple[str, int, int], int] = {}
    for host, alike in await context.house.near.empty_hosts():
        if runs(stack) in host.inventory.traits:
            for (model, memory), number in _given(host).items():
                counted[model, memory, number] = counted.get((model, memory, number), 0) + alike
    return tuple(DeviceOffer(model, memory, number, hosts) for (model, memory, number), hosts in counted.items())


def _given(host: Provider) -> Counter[tuple[str, int]]:
    return Counter(
        (device.model, device.memory)
        for device in host.inventory.devices
        if device.kind is DeviceKind.GPU and GIVEN in device.traits and device.memory
    )
