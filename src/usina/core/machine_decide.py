"""What a machine needs next. Pure: a wish, a sight and the time in; a decision out.

The rule that keeps operators sane: a wish is fulfilled once. What changes outside afterwards (a guest that dies, a
domain removed by hand) is told, not fought, unless the member asked for `restart`. A new wish acts again.
"""

from __future__ import annotations

from collections.abc import Iterator

from usina.core.capacity import MACHINES, Affinity, Claim, Needs
from usina.core.ids import is_id
from usina.core.lifecycle import (
    Answer,
    AttachInterface,
    AttachVolume,
    Decision,
    Define,
    DetachInterface,
    DetachVolume,
    DropSnapshot,
    Forget,
    Place,
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
from usina.core.machine import (
    Absent,
    Firmware,
    MachineSpec,
    MachineStatus,
    Power,
    Present,
    Restart,
    Seen,
    Unreachable,
    group_of,
)
from usina.core.resource import Phase, Resource
from usina.core.units import Instant

Machine = Resource[MachineSpec, MachineStatus]

LOOK_AGAIN = 5.0  # seconds between looks at a host that does not answer

_SETTLED = {Phase.RUNNING, Phase.STOPPED, Phase.SUSPENDED, Phase.UNREACHABLE, Phase.FAILED}
_SHOWN = {Power.ON: Phase.RUNNING, Power.OFF: Phase.STOPPED, Power.SUSPENDED: Phase.SUSPENDED}
_WELL = (Answer("Reachable", True, "answers"), Answer("Present", True, "found"))


def needs_of(machine: Machine) -> Needs:
    """The capacity a machine asks for, as placement understands it."""
    spec: MachineSpec = machine.spec
    traits = {MACHINES}
    if spec.firmware is Firmware.UEFI:
        traits.add("uefi")
    if spec.queues > 1:
        traits.add("multiqueue")
    return Needs(
        cores=spec.cores,
        memory=spec.memory,
        disk=spec.disk,
        pinned=spec.pinned or spec.whole_cores,
        numa_nodes=spec.numa_nodes,
        hugepage=spec.hugepage,
        devices=spec.devices,
        traits=frozenset(traits),
        host=spec.host,
        numa=spec.numa,
        whole_cores=spec.whole_cores,
        affinities=tuple(_affinities(machine)),
        groups=frozenset([group_of(machine.project, spec.group)]) if spec.group else frozenset(),
        tenant=machine.tenant,
        priority=spec.priority,
        preemptible=spec.preemptible,
    )


def _affinities(machine: Machine) -> Iterator[Affinity]:
    spec: MachineSpec = machine.spec
    for others, apart in ((spec.near, False), (spec.apart, True)):
        for other in others:
            yield Affinity(other if is_id(other, "machine") else group_of(machine.project, other), apart)
    if spec.spread_over:
        yield Affinity(group_of(machine.project, spec.group), apart=True, level=spec.spread_over)


def fits(claim: Claim, needs: Needs) -> bool:
    """Whether the claim held is the one that `needs` asks for (size only; the rest cannot change)."""
    if (claim.memory, claim.disk) != (needs.memory, needs.disk):
        return False
    # Whole physical cores may be a hardware thread more than the guest has; such machines cannot change their cores.
    return claim.cores == needs.cores or (needs.whole_cores and claim.cores > needs.cores)


def decide(machine: Machine, claim: Claim | None, seen: Seen, now: Instant) -> Decision:
    """The next steps of `machine`, which holds `claim` and looks like `seen`."""
    if claim is None:
        return Decision(
            Phase.DELETING if machine.deleting else Phase.PENDING,
            steps=(Forget(),) if machine.deleting else (Place(needs_of(machine)),),
        )
    match seen:
        case Unreachable(reason):
            answer = Answer("Reachable", False, "host-unreachable", reason)
            return Decision(Phase.UNREACHABLE, due=now + LOOK_AGAIN, answers=(answer,))
        case Absent() | Present() if machine.deleting:
            return Decision(Phase.DELETING, steps=(Remove(), Forget()))
        case Absent():
            return _absent(machine)
        case Present():
            return _present(machine, claim, seen)


def _fulfilled(machine: Machine) -> bool:
    return machine.observed == machine.generation and machine.phase in _SETTLED


def _absent(machine: Machine) -> Decision:
    if _fulfilled(machine) and machine.spec.restart is not Restart.ALWAYS:
        answer = Answer("Present", False, "removed-outside", "the guest is gone from its host; start makes it anew")
        return Decision(Phase.FAILED, settled=True, answers=(_WELL[0], answer))
    power_on = () if machine.spec.power is Power.OFF else (Start(),)
    return Decision(Phase.BUILDING, steps=(Define(), *power_on))


def _present(machine: Machine, claim: Claim, seen: Present) -> Decision:
    if seen.dark and machine.spec.power is not Power.OFF:
        return Decision(Phase.STARTING, steps=(Start(),))
    if _fulfilled(machine):
        return _watched(machine, seen)
    needs = needs_of(machine)
    if not fits(claim, needs):
        return Decision(machine.phase, steps=(Place(needs),))
    steps = _changes(machine.spec, seen) or _power(machine.spec, seen)
    if steps:
        return Decision(_moving(steps, machine.phase), steps=steps)
    return Decision(_SHOWN[seen.power], settled=True, answers=(*_WELL, Answer("Healthy", True, "as-wished")))


def _watched(machine: Machine, seen: Present) -> Decision:
    """A fulfilled wish: tell what is seen; act only where `restart` asks for it."""
    wanted_on = machine.spec.power is Power.ON
    fell = wanted_on and seen.power is Power.OFF
    restart = machine.spec.restart
    if fell and (restart is Restart.ALWAYS or (restart is Restart.ON_FAILURE and seen.crashed)):
        return Decision(Phase.STARTING, steps=(Start(),))
    if fell:
        answer = (
            Answer("Healthy", False, "guest-died", "the guest died; start it again when you like")
            if seen.crashed
            else Answer("Healthy", True, "powered-off-inside", "the guest switched itself off")
        )
        return Decision(Phase.FAILED if seen.crashed else Phase.STOPPED, settled=True, answers=(*_WELL, answer))
    answer = Answer(
        "Healthy",
        True,
        "as-wished" if _SHOWN[machine.spec.power] is _SHOWN[seen.power] else "changed-outside",
    )
    return Decision(_SHOWN[seen.power], settled=True, answers=(*_WELL, answer))


def _changes(spec: MachineSpec, seen: Present) -> tuple[Step, ...]:
    """The first group of differences other than power; one group at a time, each look decides anew."""
    if spec.rebuilds > seen.marks.get("rebuilds", 0):
        return (Rebuild(spec.rebuilds),)
    if (spec.cores, spec.memory) != (seen.cores, seen.memory):
        return (Stop(),) if seen.power is not Power.OFF else (Define(),)
    if spec.restore and spec.restore.token > seen.marks.get("restore", 0):
        return (Restore(spec.restore.snapshot, spec.restore.token),)
    wanted_macs = {i.mac for i in spec.interfaces}
    differences: tuple[Step, ...] = (
        *(DetachVolume(v) for v in sorted(seen.volumes - set(spec.volumes))),
        *(AttachVolume(v) for v in spec.volumes if v not in seen.volumes),
        *(DetachInterface(m) for m in sorted(seen.macs - wanted_macs)),
        *(AttachInterface(i.mac) for i in spec.interfaces if i.mac not in seen.macs),
        *(Snapshot(n) for n in spec.snapshots if n not in seen.snapshots),
        *(DropSnapshot(n) for n in sorted(seen.snapshots - set(spec.snapshots))),
    )
    return differences


def _power(spec: MachineSpec, seen: Present) -> tuple[Step, ...]:
    match spec.power, seen.power:
        case Power.ON | Power.SUSPENDED, Power.OFF:
            return (Start(),)
        case Power.ON, Power.SUSPENDED:
            return (Resume(),)
        case Power.ON, Power.ON if spec.reboots > seen.marks.get("reboots", 0):
            return (Reboot(spec.reboots),)
        case Power.SUSPENDED, Power.ON:
            return (Suspend(),)
        case Power.OFF, Power.ON | Power.SUSPENDED:
            return (Stop(),)
        case _:
            return ()


def _moving(steps: tuple[Step, ...], phase: Phase) -> Phase:
    """The phase to show while `steps` are under way."""
    match steps[0]:
        case Start() | Resume() | Reboot():
            return Phase.STARTING
        case Stop() | Suspend():
            return Phase.STOPPING
        case Define() | Rebuild() | Restore():
            return Phase.BUILDING
        case _:
            return phase
