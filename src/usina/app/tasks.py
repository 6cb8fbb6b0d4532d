"""Operations on tasks: order, stop, run again, delete. What they say and leave is in `task_access`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import PurePosixPath

from usina.app.context import Context
from usina.app.machine_changes import expect
from usina.app.machine_parts import AddressTaken, check_needs
from usina.app.task_machines import machine_for
from usina.app.task_networks import connected, reconnected
from usina.app.task_orders import TaskOrder, check_order, network_of
from usina.app.task_volumes import hold, hold_again, volumes_for
from usina.core.errors import Conflict, Forbidden, NotFound
from usina.core.grant import Grant
from usina.core.names import check_range
from usina.core.quota import amounts_placed, excess
from usina.core.resource import Kind, Resource
from usina.core.task import Dependency, Fulfils, Mount, Network, TaskSpec, TaskStatus
from usina.core.task_decide import OVER, Task, needs_of
from usina.core.tenancy import Action, Project, Scope
from usina.ports.driver import DriverPlugin
from usina.store import tasks as writers
from usina.store.work import Work, missing


async def create(context: Context, order: TaskOrder) -> Task:
    """Order a task. Answers at once, phase ``pending``. An array or gang comes with all its parts, or not at all."""
    plugin = check_order(order, _stacks(context))
    native = plugin.queues
    project = await context.project(order.project)
    grant = context.require(Action.RESOURCE_CREATE, Scope(project.tenant, project.id), "project")
    if order.host is not None:
        context.require(Action.MACHINE_PIN_HOST, Scope(), "host")
    if order.priority > 0 and not context.actor.is_operator:
        raise Forbidden("priority: only operators give one above 0", field="priority")
    earlier = await context.repeated(order)
    if earlier is not None:
        return earlier[0]
    mounts, home = await volumes_for(context, project, order)
    for attempt in range(8):
        work = context.work()
        task = await _ordered(context, work, project, order, plugin, mounts, grant)
        await check_possible(context, task, native, home)
        parts = [] if native else _parts(context, task)
        if network_of(order) is Network.PROJECT:
            task, parts = await connected(context, work, project, grant, order, task, parts)
        context.order(work, task, grant)
        for part in parts:
            work.name(part, grant)
            work.order(part, grant, due=None)  # its whole says when
        context.remember(work, [task], order, grant)
        amounts = context.charge(work, [task, *parts], grant)
        try:
            await context.commit(work, amounts)
            return task
        except AddressTaken as error:  # another control plane was quicker; look again
            await context.house.addresses.learn(error.network)
            if attempt == 7:
                raise
        except Conflict:
            earlier = await context.repeated(order)
            if earlier is None:
                raise
            return earlier[0]
    raise AssertionError("unreachable")


def _stacks(context: Context) -> dict[str, DriverPlugin]:
    return {plugin.stack: plugin for plugin in context.house.plugins.values() if plugin.tasks is not None}


async def check_possible(context: Context, task: Task, native: bool, home: str | None) -> None:
    """Refuse now what could never be placed: for lack of a host, or by a quota. `home`: the host of its volumes."""
    alone = task if native else replace(task, spec=replace(task.spec, replicas=1))
    needs = needs_of(alone, context.now)
    await check_needs(context, replace(needs, host=home or needs.host, begins=0.0, ends=float("inf")))
    for scope in (task.tenant, task.project):
        quota = await context.house.near.remembered(("quota", scope), partial(context.store.identity.quota, scope))
        if quota is not None:
            never = excess(replace(quota, used=type(quota.used)()), amounts_placed(alone.spec))
            if never:
                measure, more, _, limit = never[0]
                raise Conflict(
                    f"{measure}: {more:g} is more than the quota of {limit:g}", field=measure, code="quota-exceeded"
                )


# --- an order, written


async def _ordered(
    context: Context,
    work: Work,
    project: Project,
    order: TaskOrder,
    plugin: DriverPlugin,
    mounts: tuple[Mount, ...],
    grant: Grant,
) -> Task:
    """The task as ordered; everything that must be written for it goes into `work`."""
    id = context.house.ids.new(Kind.TASK.value)
    await _use_files(context, work, project, order, id, grant)
    hold(work, mounts, id, grant)
    after = await _dependencies(context, work, project, order.after, id, grant)
    spec = TaskSpec(
        on=order.on,
        command=order.command,
        image=order.image,
        archive=order.archive,
        environment=dict(order.environment),
        secrets={name: context.house.vault.seal(value, id) for name, value in order.secrets.items()},
        files=order.files,
        workdir=order.workdir,
        volumes=mounts,
        outputs=order.outputs,
        ports=order.ports,
        network=network_of(order),
        cores=order.cores,
        memory=order.memory,
        disk=order.disk,
        devices=order.devices,
        time_limit=order.time_limit,
        grace=order.grace,
        restart=order.restart,
        retries=order.retries,
        health=order.health,
        after=after,
        indices=tuple(sorted(order.indices)),
        at_once=order.at_once,
        replicas=order.replicas,
        dialect=dict(order.dialect),
        traits=frozenset(f"{word}:{order.dialect[word]}" for word in plugin.routes & order.dialect.keys()),
        member=context.actor.member,
        idle_limit=order.idle_limit,
        host=order.host,
        machine=await machine_for(context, project, order) if order.machine else "",
        priority=order.priority,
        preemptible=order.preemptible,
    )
    return Resource(
        id=id,
        kind=Kind.TASK,
        tenant=project.tenant,
        project=project.id,
        name=order.name or _name(order, id),
        spec=spec,
        status=TaskStatus(),
        created_at=context.now,
        updated_at=context.now,
        labels=order.labels,
    )


def _name(order: TaskOrder, id: str) -> str:
    """A name for one that was given none: what it runs, and the end of its id."""
    word = order.command[0] if order.command else order.image.partition(":")[0]
    stem = re.sub(r"[^a-z0-9]+", "-", PurePosixPath(word).name.lower()).strip("-")[:40] or "task"
    return f"{stem}-{id[-6:]}"


async def _use_files(context: Context, work: Work, project: Project, order: TaskOrder, id: str, grant: Grant) -> None:
    wanted = {f"files[{n}]": file.digest for n, file in enumerate(order.files)}
    if order.archive:
        wanted["archive"] = order.archive
    known = await context.store.tasks.blobs(project.id, list(set(wanted.values()))) if wanted else {}
    for where, digest in wanted.items():
        if digest not in known:
            raise NotFound(f"{where}: this content was not uploaded to the project", field=where)
        writers.use_blob(work, project.id, digest, id, where, grant)


async def _dependencies(
    context: Context, work: Work, project: Project, after: Sequence[Dependency], id: str, grant: Grant
) -> tuple[Dependency, ...]:
    check_range(len(after), 0, 64, "after")
    found = {}
    for number, one in enumerate(after):
        field = f"after[{number}]"
        other = await context.house.near.of(project, Kind.TASK, one.task, field)
        if other.id not in found:
            work.reserve(writers.waiting_for(other.id), id, id, grant, missing("task", field), alive=other.id)
        found[other.id] = Dependency(other.id, Fulfils(one.on))
    return tuple(found.values())


def _parts(context: Context, whole: Task) -> list[Task]:
    """The parts of an array or gang as resources of their own."""
    spec = whole.spec
    numbers = spec.indices or (tuple(range(spec.replicas)) if spec.replicas > 1 else ())
    more = {"USINA_SIZE": str(len(numbers))}
    return [
        replace(
            whole,
            id=context.house.ids.new(Kind.TASK.value),
            name=f"{whole.name[:55]}-{number}",
            parent=whole.id,
            spec=replace(
                spec,
                environment={**more, **spec.environment},
                indices=(),
                at_once=0,
                replicas=1,
                after=(),
                parent=whole.id,
                index=number,
            ),
        )
        for number in numbers
    ]


# --- changes


async def stop(context: Context, ref: str, project: str | None = None, if_match: int | None = None) -> Task:
    """Ask a task to end. One that has ended stays as it is."""
    task, grant = await context.find(Kind.TASK, ref, Action.RESOURCE_CHANGE, project)
    expect(task, if_match)
    _whole_only(task)
    if task.spec.stopped or (task.phase in OVER and task.observed == task.generation):
        return task
    changed: Task = task.wishing(replace(task.spec, stopped=True), context.now)
    work = context.work()
    work.wish(changed, grant)
    context.tell(work, changed, "changed", f"asked to stop, by {context.actor.name}")
    await context.commit(work)
    return changed


async def rerun(context: Context, ref: str, project: str | None = None, if_match: int | None = None) -> Task:
    """Run a task that is over once more, as it was ordered."""
    task, grant = await context.find(Kind.TASK, ref, Action.RESOURCE_CHANGE, project)
    expect(task, if_match)
    _whole_only(task)
    if task.spec.indices or task.spec.replicas > 1:
        raise Conflict("an array or gang cannot be run again; order it anew", code="not-again")
    if task.phase not in OVER or task.observed != task.generation:
        raise Conflict(f"it is {task.phase.value}; stop it first", code="not-over")
    for attempt in range(8):
        work = context.work()
        spec = replace(task.spec, stopped=False, reruns=task.spec.reruns + 1)
        await hold_again(context, work, task, grant)
        changed: Task = task.wishing(await reconnected(context, work, grant, task, spec), context.now)
        work.wish(changed, grant)
        context.tell(work, changed, "changed", f"asked to run again, by {context.actor.name}")
        try:
            await context.commit(work)
            return changed
        except AddressTaken as error:  # another control plane was quicker; look again
            await context.house.addresses.learn(error.network)
            if attempt == 7:
                raise
    raise AssertionError("unreachable")


async def delete(context: Context, ref: str, project: str | None = None, if_match: int | None = None) -> Task:
    """Ask a task to go, with its parts, its log and its outputs. One that runs is ended."""
    task, grant = await context.find(Kind.TASK, ref, Action.RESOURCE_DELETE, project)
    if task.deleting:
        return task
    expect(task, if_match)
    _whole_only(task)
    work = context.work()
    for part in await context.store.tasks.part_rows(task.id):
        if not part.deleting:
            work.leave(part, grant, context.now)
    work.leave(task, grant, context.now)
    context.tell(work, task, "deleting", f"asked to go, by {context.actor.name}")
    await context.commit(work)
    context.house.near.forget()
    leaving: Task = task.leaving(context.now)
    return leaving


def _whole_only(task: Task) -> None:
    if task.spec.parent:
        raise Conflict("it is a part of an array or gang; speak of the whole", code="part-of-another")
    if task.parent:
        endpoint = task.labels.get("endpoint", task.parent)
        raise Conflict(f"it is a replica of endpoint {endpoint}; change that", code="part-of-another")
