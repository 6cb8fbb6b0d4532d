"""The first start of a site: an operator, a tenant with a project, a first key, and this machine as its first host."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import structlog

from usina.app import hosts, tenants
from usina.app.context import Context, House
from usina.core.errors import UsinaError
from usina.core.grant import found
from usina.core.tenancy import SITE, Actor, Key, Member, Role
from usina.ports.driver import DriverError
from usina.server.settings import Settings
from usina.store import identity as writers

log = structlog.get_logger()

OPERATOR = "admin"
FIRST = "main"


async def found_site(house: House, settings: Settings) -> dict[str, str] | None:
    """Found the site if its database is empty. Returns the first key (what ``admin.json`` holds), else None."""
    if await house.store.identity.members(None, everywhere=True, limit=1):
        return None
    now = house.clock.now()
    grant = found(OPERATOR)
    member = Member(house.ids.new("member"), None, OPERATOR, now, roles={SITE: Role.OPERATOR})
    key = Key(house.ids.new("key"), member.id, "first", now)
    admin = {
        "endpoint": settings.endpoint,
        "key_id": key.id,
        "secret": house.doors.secret(key),
        "token": house.doors.token(key),
    }
    # The file first: a key that was written but not recorded opens nothing; one recorded but not written is lost.
    _write_private(settings, admin)
    work = house.store.work()
    writers.add_member(work, member, grant)
    writers.add_key(work, key, grant)
    await work.commit()
    context = Context(house, Actor(member.id, OPERATOR, member.roles, key=key.id))
    tenant = await tenants.create_tenant(context, FIRST)
    await tenants.create_project(replace(context), tenant.id, FIRST)
    if settings.local_host:
        await _add_this_machine(context)
    return admin


def _write_private(settings: Settings, admin: dict[str, str]) -> None:
    path = settings.data_dir / "admin.json"
    scratch = path.with_suffix(".new")
    fd = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "w") as file:
        json.dump(admin, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(scratch, path)


async def _add_this_machine(context: Context) -> None:
    """This machine as host ``local``, with every driver that can be used here, one that makes machines first: it knows
    most of the machine. A site without hosts is a site all the same."""
    plugins = sorted(context.house.plugins.values(), key=lambda plugin: (plugin.open is None, plugin.name))
    tried = {plugin.name: plugin.here() for plugin in plugins if plugin.here is not None}
    usable = {name: options for name, options in tried.items() if await _usable(context, name, options)}
    if all(context.house.plugins[name].open is None for name in usable):  # what runs in machines needs some
        usable = {name: options for name, options in usable.items() if not context.house.plugins[name].inside}
    if not usable:
        log.warning("nothing can run on this machine; see `usina doctor`")
        return
    first, *others = usable
    try:
        also = {name: usable[name] for name in others}
        host = await hosts.add(context, "local", first, usable[first], also=also)
    except UsinaError as error:
        log.warning("this machine was not added as a host; see `usina doctor`", reason=error.message)
        return
    facts = host.provider.inventory.facts
    log.info("this machine is host local", drivers=" ".join(host.drivers), accelerator=facts.get("accelerator"))


async def _usable(context: Context, name: str, options: Mapping[str, Any]) -> bool:
    """Whether a driver answers here. One that does not is told, and left out."""
    try:
        await context.house.hosts.probe("hst-probe", "local", {name: options})
    except DriverError as error:
        log.warning("not used on this machine; see `usina doctor`", driver=name, reason=error.public)
        return False
    return True
