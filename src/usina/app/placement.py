"""Asking placement: why a machine is where it is, or nowhere; and the hosts as placement sees them."""

from __future__ import annotations

from dataclasses import replace

from usina.app import hosts, resources
from usina.app.context import Context
from usina.core.capacity import Claim
from usina.core.machine_decide import needs_of
from usina.core.resource import Kind
from usina.placement import Chooser, Fleet
from usina.placement.explain import Explanation, explain
from usina.placement.preempt import Preemption, preempt
from usina.placement.simulate import hosts_text

__all__ = ["Explanation", "Preemption", "explain_machine", "snapshot"]


async def explain_machine(
    context: Context, ref: str, project: str | None = None
) -> tuple[Explanation, Preemption | None]:
    """What placement says of a machine now, as if it held nothing; and whose place its priority could take.

    Names of hosts, and who could be preempted, are for operators; others get counts, scores and sentences.
    """
    machine = await resources.get(context, Kind.MACHINE, ref, project)
    fleet = Fleet(host.provider for host in await context.store.hosts.all())
    holdings = await context.store.hosts.holdings()
    fleet.know_only(holdings)
    own = next((one for one in holdings if one.resource == machine.id), None)
    if own is not None:
        fleet.release(own.resource)
    needs = needs_of(machine).at(context.now)
    policies = context.house.policies
    chooser = Chooser(fleet, policies.default, by_group=policies.by_group)
    found = explain(chooser, needs)
    taking = None if isinstance(found.answer, Claim) else preempt(chooser, needs)
    preemption = taking if isinstance(taking, Preemption) else None
    if context.actor.is_operator:
        return found, preemption
    return replace(found, best=tuple(replace(score, host="", name="") for score in found.best), nearest_host=""), None


async def snapshot(context: Context) -> str:
    """Hosts with what is held on them, as `usina placement simulate --hosts` reads them. The operator's."""
    return hosts_text(host.provider for host in await hosts.list_hosts(context))
