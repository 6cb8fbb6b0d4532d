"""Asking placement: why a machine is where it is, or nowhere; and the hosts as placement sees them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from usina.app import hosts, resources
from usina.app.context import Context
from usina.core.capacity import Claim, Holding, Needs, Provider
from usina.core.machine_decide import needs_of
from usina.core.resource import Kind
from usina.placement import Chooser, Fleet, Policies
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

    async def ask() -> tuple[Explanation, Preemption | None]:
        providers = [host.provider for host in await context.store.hosts.all()]
        holdings = await context.store.hosts.holdings()
        needs = needs_of(machine).at(context.now)
        return await asyncio.to_thread(_asked, providers, holdings, machine.id, needs, context.house.policies)

    found, preemption = await context.house.near.remembered(("explained", machine.id, machine.generation), ask)
    if context.actor.is_operator:
        return found, preemption
    return replace(found, best=tuple(replace(score, host="", name="") for score in found.best), nearest_host=""), None


def _asked(
    providers: Sequence[Provider], holdings: Sequence[Holding], machine: str, needs: Needs, policies: Policies
) -> tuple[Explanation, Preemption | None]:
    fleet = Fleet(providers)
    fleet.know_only(holdings)
    if machine in fleet.holdings:
        fleet.release(machine)
    chooser = Chooser(fleet, policies.default, by_group=policies.by_group)
    found = explain(chooser, needs)
    taking = None if isinstance(found.answer, Claim) else preempt(chooser, needs)
    return found, taking if isinstance(taking, Preemption) else None


async def snapshot(context: Context) -> str:
    """Hosts with what is held on them, as `usina placement simulate --hosts` reads them. The operator's."""
    return hosts_text(host.provider for host in await hosts.list_hosts(context))
