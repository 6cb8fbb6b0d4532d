"""Ways into a machine: its console and its ports. Streams, so nothing is recorded but that it happened."""

from __future__ import annotations

import asyncio

from usina.app.context import Context
from usina.core.errors import Conflict, Unavailable
from usina.core.machine_decide import Machine
from usina.core.names import check_range
from usina.core.resource import Kind
from usina.core.tenancy import Action
from usina.ports.driver import Console, Driver, DriverError


async def _reach(context: Context, ref: str, project: str | None, action: Action) -> tuple[Machine, Driver]:
    machine, _ = await context.find(Kind.MACHINE, ref, action, project)
    if machine.provider is None:
        raise Conflict(f"the machine is {machine.phase.value}; it is on no host yet", code="not-placed")
    try:
        return machine, await context.house.hosts.driver(machine.provider)
    except DriverError as error:
        raise Unavailable(error.public) from error


async def console_log(context: Context, ref: str, project: str | None = None) -> bytes:
    """What the guest wrote to its serial console, the newest MiB at most."""
    machine, driver = await _reach(context, ref, project, Action.RESOURCE_VIEW)
    try:
        return await driver.console_log(machine.id)
    except DriverError as error:
        raise Unavailable(error.public, detail=error.detail) from error


async def console(context: Context, ref: str, project: str | None = None) -> Console:
    """The guest's serial line, both ways."""
    machine, driver = await _reach(context, ref, project, Action.MACHINE_ACCESS)
    try:
        line = await driver.console(machine.id)
    except DriverError as error:
        raise Unavailable(error.public, detail=error.detail) from error
    work = context.work()
    context.tell(work, machine, "accessed", f"console opened by {context.actor.name}")
    await work.commit()
    return line


async def tunnel(
    context: Context, ref: str, port: int, project: str | None = None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A TCP stream to a port of the guest's first interface."""
    check_range(port, 1, 65535, "port")
    machine, driver = await _reach(context, ref, project, Action.MACHINE_ACCESS)
    if not machine.spec.interfaces:
        raise Conflict("the machine has no network", code="no-network")
    try:
        return await driver.dial(machine.id, machine.spec.interfaces[0].address, port)
    except DriverError as error:
        raise Unavailable(error.public, detail=error.detail) from error
