"""Volumes of tasks: found for an order, and held from then on until the task is over, so that none is deleted under it.
The whole of an array or gang holds them for its parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from usina.app.context import Context
from usina.app.task_orders import TaskOrder
from usina.core.errors import Conflict, Invalid, UsinaError
from usina.core.goods import Form, Volume
from usina.core.grant import Grant
from usina.core.mounts import check_mounts
from usina.core.resource import Kind
from usina.core.task import Mount
from usina.core.task_decide import Task
from usina.core.tenancy import Project
from usina.store.work import Work, missing


async def volumes_for(context: Context, project: Project, order: TaskOrder) -> tuple[tuple[Mount, ...], str | None]:
    """The volumes by id, of the order's own project, and the host that they lie on; None while that is not known."""
    mounts = check_mounts(order.volumes, order.workdir, order.files)
    found: list[Mount] = []
    home: str | None = None
    for number, mount in enumerate(mounts):
        where = f"volumes[{number}].volume"
        volume: Volume = await context.house.near.of(project, Kind.VOLUME, mount.volume, where)
        if volume.spec.form is not Form.FOLDER:
            raise Invalid(f"{where}: volume {volume.name} is a disk for a machine; tasks use folders", field=where)
        if volume.provider is not None and home not in (None, volume.provider):
            raise Conflict(f"{where}: the volumes lie on different hosts", field=where, code="apart")
        home = volume.provider or home
        found.append(replace(mount, volume=volume.id))
    if home is not None:
        await _check_home(context, order, home)
    return tuple(found), home


async def _check_home(context: Context, order: TaskOrder, home: str) -> None:
    host = await context.store.hosts.get(home)
    if host is None:
        return
    if order.host not in (None, host.id, host.name):
        raise Conflict("host: the volumes lie on another host", field="host", code="apart")
    plugins = context.house.plugins
    if order.on not in {plugins[name].stack for name in host.drivers if name in plugins}:
        raise Conflict(f"on: tasks cannot be run on {order.on} where the volumes lie", field="on", code="no-such-stack")


def hold(work: Work, mounts: Sequence[Mount], task: str, grant: Grant) -> None:
    """Keep the volumes of an order from being deleted. Raises `NotFound` where one goes already."""
    held: set[str] = set()
    for number, mount in enumerate(mounts):
        if mount.volume not in held:
            _hold(work, mount.volume, task, grant, missing("volume", f"volumes[{number}].volume"))
        held.add(mount.volume)


async def hold_again(context: Context, work: Work, task: Task, grant: Grant) -> None:
    """The same for one that is run again. Raises `Conflict` where a volume is gone since."""
    for mount in {mount.volume: mount for mount in reversed(task.spec.volumes)}.values():
        if task.id not in await context.store.resources.users_of(mount.volume):
            gone = Conflict(f"its volume at {mount.path} ({mount.volume}) was deleted", code="volume-gone")
            _hold(work, mount.volume, task.id, grant, lambda gone=gone: gone)  # type: ignore[misc]


def _hold(work: Work, volume: str, task: str, grant: Grant, failure: Callable[[], UsinaError]) -> None:
    work.reserve(f"use:{volume}", task, task, grant, failure, alive=volume)


async def refuse_used(context: Context, volume: Volume, what: str) -> None:
    """Raises `Conflict` naming one who uses it. What the store checks besides is exact, this is told to people."""
    users = await context.store.resources.users_of(volume.id)
    if not users:
        return
    found = await context.store.resources.get_many(sorted(set(users.values()))[:1])
    user = next(iter(found.values()), None)
    who = f"{user.kind.value} {user.name}" if user is not None else "another"
    more = f" and {len(users) - 1} more" if len(users) > 1 else ""
    raise Conflict(f"volume {volume.name} cannot {what} while {who}{more} uses it", code="in-use")
