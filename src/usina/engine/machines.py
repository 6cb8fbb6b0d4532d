"""The hand for machines: steps of a decision become driver calls."""

from __future__ import annotations

from dataclasses import replace

from usina.core import machine_decide
from usina.core.grant import Lease
from usina.core.lifecycle import (
    AttachInterface,
    AttachVolume,
    Decision,
    Define,
    DetachInterface,
    DetachVolume,
    DropSnapshot,
    Reboot,
    Rebuild,
    Remove,
    Restore,
    Resume,
    Snapshot,
    Start,
    Step,
    Stop,
    Suspend,
)
from usina.core.machine import MachinePlan, MachineStatus, Present, Seen
from usina.core.machine_decide import Machine
from usina.core.units import Instant
from usina.engine.faults import fault
from usina.engine.fleet import Fleet
from usina.engine.hand import Held, Report
from usina.engine.plans import Plans
from usina.ports.driver import Driver
from usina.store.work import Work


class MachineHand:
    gives_up = True

    def __init__(self, fleet: Fleet, plans: Plans) -> None:
        self._fleet, self._plans = fleet, plans

    async def look(self, machine: Machine, held: Held) -> Seen | None:
        if held.claim is None:
            return None
        driver = await self._fleet.driver(held.claim.provider)
        seen = await driver.observe(machine.id)
        self._fleet.saw(held.claim.provider, machine.id, seen)
        return seen

    def decide(self, machine: Machine, held: Held, seen: Seen, now: Instant) -> Decision:
        return machine_decide.decide(machine, held.claim, seen, now)

    def presences(self, machine: Machine) -> tuple[str, ...]:
        return (machine.spec.image, *dict.fromkeys(card.network for card in machine.spec.interfaces))

    def placing(self, machine: Machine) -> MachineStatus:
        status: MachineStatus = machine.status
        return status

    def settled(self, machine: Machine, work: Work, lease: Lease) -> None:
        """What it gave up is free by its generation; nothing else is."""

    def changed(self, before: Machine, machine: Machine, work: Work, lease: Lease) -> bool:
        return False  # nobody waits for it

    def leave(self, machine: Machine, work: Work, lease: Lease) -> None:
        """A machine keeps nothing besides its row."""

    def status(self, machine: Machine, seen: Seen | None) -> MachineStatus:
        if isinstance(seen, Present):
            return replace(machine.status, power=seen.power, accelerator=seen.accelerator, marks=seen.marks)
        return replace(machine.status, power=None)

    async def do(self, step: Step, machine: Machine, held: Held, report: Report) -> None:
        assert held.claim is not None  # decide asks for nothing but Place and Forget without one
        driver = await self._fleet.driver(held.claim.provider)
        match step:
            case Define():
                await self._define(driver, await self._plans.of(machine, held.claim))
            case Rebuild(token):
                plan = await self._plans.of(machine, held.claim)
                await driver.ensure_image(plan.image)
                await driver.rebuild(plan, token)
            case AttachInterface(mac):
                plan = await self._plans.of(machine, held.claim)
                for network in plan.networks:
                    await driver.ensure_network(network)
                await driver.attach_interface(plan, mac)
            case Remove():
                await driver.remove(machine.id)
            case _:
                await _on_guest(driver, step, machine.id)

    async def _define(self, driver: Driver, plan: MachinePlan) -> None:
        await driver.ensure_image(plan.image)
        fault("after:ensure_image")
        for network in plan.networks:
            await driver.ensure_network(network)
        fault("after:ensure_network")
        await driver.define(plan)


async def _on_guest(driver: Driver, step: Step, handle: str) -> None:
    """The steps that need nothing but the guest's handle."""
    match step:
        case Start():
            await driver.start(handle)
        case Stop(grace):
            await driver.stop(handle, grace=grace)
        case Suspend():
            await driver.suspend(handle)
        case Resume():
            await driver.resume(handle)
        case Reboot(token):
            await driver.reboot(handle, token)
        case Snapshot(name):
            await driver.snapshot(handle, name)
        case Restore(name, token):
            await driver.restore(handle, name, token)
        case DropSnapshot(name):
            await driver.drop_snapshot(handle, name)
        case AttachVolume(volume):
            await driver.attach_volume(handle, volume)
        case DetachVolume(volume):
            await driver.detach_volume(handle, volume)
        case DetachInterface(mac):
            await driver.detach_interface(handle, mac)
        case _:
            raise AssertionError(f"no hand for {step}")
