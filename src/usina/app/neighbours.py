"""Whom a machine is to be near to, or apart from, looked up for an order; and the groups that machines are in.

A group is a label within a project and has no row of its own: it is there while a machine is in it, which its
reservation says.
"""

from __future__ import annotations

from dataclasses import dataclass

from usina.app.context import Context
from usina.core.capacity import LEVELS
from usina.core.errors import Invalid, NotFound, Stale
from usina.core.grant import Grant
from usina.core.ids import is_id
from usina.core.machine import group_of
from usina.core.names import check_name
from usina.core.resource import Kind
from usina.core.tenancy import Project
from usina.store.work import Work

MOST = 16  # others that an order may name


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Machines by id, groups by name."""

    near: tuple[str, ...] = ()
    apart: tuple[str, ...] = ()


def check_neighbours(near: tuple[str, ...], apart: tuple[str, ...], group: str, spread_over: str) -> None:
    """What needs no look at the house. Raises `Invalid` naming the field."""
    for field, others in (("near", near), ("apart", apart)):
        if len(others) > MOST:
            raise Invalid(f"{field}: at most {MOST}", field=field)
    if group:
        check_name(group, "group")
        if is_id(group):
            raise Invalid("group: an id is not a name for a group", field="group")
    if spread_over and spread_over not in LEVELS:
        raise Invalid(f"spread_over: must be one of {', '.join(LEVELS)}", field="spread_over")
    if spread_over and not group:
        raise Invalid("spread_over: name the group whose members are spread", field="spread_over")


async def find_neighbours(
    context: Context, project: Project, near: tuple[str, ...], apart: tuple[str, ...], group: str
) -> Neighbours:
    """Those that an order names. Raises `NotFound` naming the first that is neither a machine nor a group."""
    wanted = [await _find(context, project, ref, group, f"near[{n}]") for n, ref in enumerate(near)]
    unwanted = [await _find(context, project, ref, group, f"apart[{n}]") for n, ref in enumerate(apart)]
    for number, other in enumerate(unwanted):
        if other in wanted:
            raise Invalid(f"apart[{number}]: near and apart name the same", field=f"apart[{number}]")
    return Neighbours(tuple(dict.fromkeys(wanted)), tuple(dict.fromkeys(unwanted)))


async def _find(context: Context, project: Project, ref: str, own: str, field: str) -> str:
    """The id of a machine, else the name of a group that has members, or that is the order's `own`."""
    try:
        return (await context.house.near.of(project, Kind.MACHINE, ref, field)).id
    except NotFound:
        if is_id(ref) or (ref != own and not await context.store.resources.reserved(_members(project.id, ref))):
            raise NotFound(f"{field}: neither a machine nor a group of this project", field=field) from None
        return ref


def join(work: Work, project: Project, group: str, machine: str, grant: Grant) -> None:
    """Count a machine that is ordered among the members of its group; it is one until nothing is left of it."""
    work.reserve(_members(project.id, group), machine, machine, grant, Stale.meanwhile)


def _members(project: str, group: str) -> str:
    return f"group:{group_of(project, group)}"
