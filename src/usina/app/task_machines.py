"""The machine that a task is ordered into: whether it may be, and whether it can."""

from __future__ import annotations

from usina.app.context import Context
from usina.app.task_orders import TaskOrder
from usina.core.errors import Conflict
from usina.core.machine_decide import Machine
from usina.core.resource import Kind
from usina.core.tenancy import Action, Project, Scope


async def machine_for(context: Context, project: Project, order: TaskOrder) -> str:
    """Its id. Whoever runs a task in a machine is inside it, so they must be allowed to be."""
    machine: Machine = await context.house.near.of(project, Kind.MACHINE, order.machine, "machine")
    context.require(Action.MACHINE_ACCESS, Scope(project.tenant, project.id), "machine")
    if not machine.spec.tasks:
        raise Conflict(f"machine: {machine.name} was made to run no tasks", field="machine", code="no-tasks")
    if not machine.spec.interfaces:
        raise Conflict(f"machine: {machine.name} has no network", field="machine", code="no-network")
    host = await context.store.hosts.get(machine.provider) if machine.provider else None
    plugins = context.house.plugins
    if host is not None and order.on not in {plugins[name].stack for name in host.drivers if name in plugins}:
        raise Conflict(
            f"machine: tasks cannot be run in the machines of host {host.name}; its operator can add the driver for it",
            field="machine",
            code="no-such-stack",
        )
    return machine.id
