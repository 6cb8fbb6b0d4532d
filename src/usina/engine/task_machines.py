"""The machine that a task runs in: whether it may begin there, and what its driver must know of it."""

from __future__ import annotations

from usina.core.machine_decide import Machine
from usina.core.resource import Phase
from usina.core.task import Inside
from usina.core.task_decide import Gate, Task
from usina.ports.driver import DriverError
from usina.store.store import Store

_GONE = "its machine is gone"


async def gate_of_machine(store: Store, task: Task) -> Gate:
    """Where it must be placed; or that it waits for its machine, or that there will never be one."""
    machine: Machine | None = await store.resources.get(task.spec.machine)
    if machine is None or machine.deleting:
        return Gate(hopeless=_GONE)
    if machine.phase is not Phase.RUNNING or machine.provider is None:
        return Gate(waits_for=f"waits for machine {machine.name}, which is {machine.phase.value}", unheard=True)
    return Gate(host=machine.provider)


async def inside_of(store: Store, task: Task) -> Inside | None:
    """Raises a lasting `DriverError` where nothing can ever be run in its machine."""
    if not task.spec.machine:
        return None
    machine: Machine | None = await store.resources.get(task.spec.machine)
    if machine is None or machine.deleting:
        raise DriverError(_GONE, lasting=True)
    if not machine.spec.interfaces:
        raise DriverError("its machine has no network card, so it cannot be reached", lasting=True)
    image = await store.resources.get(machine.spec.image)
    user = image.spec.user if image is not None else "debian"
    return Inside(machine.id, machine.spec.interfaces[0].address, user, machine.status.marks.get("rebuilds", 0))
