"""The volumes of a task: whether it may begin, and where it must."""

from __future__ import annotations

from usina.core.goods import Volume
from usina.core.resource import Phase
from usina.core.task_decide import Gate, Task
from usina.store.store import Store


async def gate_of_volumes(store: Store, task: Task) -> Gate:
    """The host that its volumes lie on; or that it waits for one, or that it can never have them together."""
    found = await store.resources.get_many({mount.volume for mount in task.spec.volumes})
    hosts = set()
    for mount in task.spec.volumes:
        volume: Volume | None = found.get(mount.volume)
        if volume is None or volume.deleting:
            return Gate(hopeless=f"its volume at {mount.path} is gone")
        if volume.phase is Phase.FAILED:
            return Gate(hopeless=f"volume {volume.name} could not be made")
        if volume.provider is None or volume.phase is not Phase.READY or volume.observed != volume.generation:
            return Gate(waits_for=f"waits for volume {volume.name}, which is {volume.phase.value}", unheard=True)
        hosts.add(volume.provider)
    if len(hosts) > 1:
        return Gate(hopeless="its volumes lie on different hosts")
    home = hosts.pop()
    if task.spec.host is not None:
        host = await store.hosts.get(home)
        if host is not None and task.spec.host not in (host.id, host.name):
            return Gate(hopeless=f"its volumes lie on host {host.name}, and it was ordered for another")
    return Gate(host=home)
