"""Tasks on networks of their project: every task, or every part of an array or gang, is given an interface at order,
and keeps it until it is over."""

from __future__ import annotations

from dataclasses import replace

from usina.app.context import Context
from usina.app.machine_parts import DEFAULT, CardOrder, card_for
from usina.app.task_orders import TaskOrder
from usina.core.grant import Grant
from usina.core.machine import Interface
from usina.core.task import TaskSpec, gang_environment
from usina.core.task_decide import Task
from usina.core.tenancy import Project
from usina.store.work import Work


async def connected(
    context: Context, work: Work, project: Project, grant: Grant, order: TaskOrder, task: Task, parts: list[Task]
) -> tuple[Task, list[Task]]:
    """The task and its parts with interfaces, which are reserved in `work`. Ranks of a gang know their peers."""
    groups = (DEFAULT,) if order.security_groups is None else order.security_groups
    card = CardOrder(order.network, groups)

    async def plugged(one: Task) -> Task:
        interface = await card_for(context, work, project, grant, one.id, one.name, card)
        return replace(one, spec=replace(one.spec, interface=interface))

    if not parts:
        return await plugged(task), []
    parts = [await plugged(part) for part in parts]
    first = _interface(parts[0])
    whole = replace(task, spec=replace(task.spec, interface=replace(first, mac="", address="")))
    if whole.spec.replicas > 1:
        addresses = [_interface(part).address for part in parts]
        parts = [_among(part, addresses) for part in parts]
    return whole, parts


async def reconnected(context: Context, work: Work, grant: Grant, task: Task, spec: TaskSpec) -> TaskSpec:
    """What is wished of a task that runs again: on a network, with another address, as its own was freed."""
    card = spec.interface
    if card is None or (await context.store.resources.users_of(card.network)).get(card.address) == task.id:
        return spec
    project = await context.project(task.project)
    anew = CardOrder(card.network, card.security_groups)
    return replace(spec, interface=await card_for(context, work, project, grant, task.id, task.name, anew))


def _among(part: Task, addresses: list[str]) -> Task:
    """What its member set goes before what launchers expect."""
    known = gang_environment(addresses, part.spec.index)
    mine = {name: value for name, value in known.items() if name not in part.spec.secrets}
    return replace(part, spec=replace(part.spec, environment={**mine, **part.spec.environment}))


def _interface(task: Task) -> Interface:
    assert task.spec.interface is not None
    return task.spec.interface
