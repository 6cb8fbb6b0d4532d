"""The decision table of machines: every phase against every sight, and the properties that must hold for all."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usina.core.capacity import Claim
from usina.core.lifecycle import Decision, Define, Forget, Place, Reboot, Remove, Resume, Start, Stop, Suspend
from usina.core.machine import (
    Absent,
    MachineSpec,
    MachineStatus,
    Power,
    Present,
    Restart,
    RestoreWish,
    Seen,
    Unreachable,
)
from usina.core.machine_decide import Machine, decide
from usina.core.resource import Kind, Phase, Resource

CLAIM = Claim("hst-1", cores=2, memory=1024, disk=4096)
SPEC = MachineSpec(image="img-1", cores=2, memory=1024, disk=4096)


def machine(
    phase: Phase = Phase.BUILDING, observed: int = 0, spec: MachineSpec = SPEC, deleting: bool = False
) -> Machine:
    return Resource(
        "mch-1", Kind.MACHINE, "tnt-1", "prj-1", "m", spec, MachineStatus(), 0.0, 0.0,
        phase=phase, observed=observed, deleting=deleting,
    )  # fmt: skip


def present(power: Power = Power.ON, crashed: bool = False) -> Present:
    return Present(power, 2, 1024, crashed=crashed)


def words(decision: Decision) -> list[type]:
    return [type(step) for step in decision.steps]


@pytest.mark.parametrize(
    ("wanted", "seen", "steps"),
    [
        (Power.ON, Absent(), [Define, Start]),
        (Power.OFF, Absent(), [Define]),
        (Power.ON, present(Power.OFF), [Start]),
        (Power.ON, present(Power.ON), []),
        (Power.ON, present(Power.SUSPENDED), [Resume]),
        (Power.OFF, present(Power.ON), [Stop]),
        (Power.OFF, present(Power.OFF), []),
        (Power.OFF, present(Power.SUSPENDED), [Stop]),
        (Power.SUSPENDED, present(Power.ON), [Suspend]),
        (Power.SUSPENDED, present(Power.OFF), [Start]),
        (Power.SUSPENDED, present(Power.SUSPENDED), []),
    ],
)
def test_a_new_wish_is_fulfilled(wanted: Power, seen: Seen, steps: list[type]) -> None:
    decision = decide(machine(spec=replace(SPEC, power=wanted)), CLAIM, seen, 10.0)
    assert words(decision) == steps
    assert decision.settled == (not steps)


def test_without_a_claim_it_is_placed_first_and_looks_at_no_host() -> None:
    assert words(decide(machine(Phase.PENDING), None, Absent(), 1.0)) == [Place]


@pytest.mark.parametrize("seen", [Absent(), present(Power.ON), present(Power.OFF)])
def test_deleting_removes_then_forgets(seen: Seen) -> None:
    assert words(decide(machine(deleting=True), CLAIM, seen, 1.0)) == [Remove, Forget]
    assert words(decide(machine(deleting=True), None, seen, 1.0)) == [Forget]


def test_a_host_that_does_not_answer_is_told_and_looked_at_again() -> None:
    decision = decide(machine(Phase.RUNNING, observed=1), CLAIM, Unreachable("no route"), 100.0)
    assert decision.phase is Phase.UNREACHABLE
    assert decision.steps == ()
    assert decision.due is not None and decision.due > 100.0
    assert decision.answers[0].message == "no route"


def test_a_guest_that_died_is_told_not_fought() -> None:
    decision = decide(machine(Phase.RUNNING, observed=1), CLAIM, present(Power.OFF, crashed=True), 1.0)
    assert (decision.phase, decision.steps) == (Phase.FAILED, ())
    decision = decide(machine(Phase.RUNNING, observed=1), CLAIM, present(Power.OFF), 1.0)
    assert (decision.phase, decision.steps) == (Phase.STOPPED, ())
    decision = decide(machine(Phase.RUNNING, observed=1), CLAIM, Absent(), 1.0)
    assert (decision.phase, decision.steps) == (Phase.FAILED, ())


@pytest.mark.parametrize(
    ("restart", "crashed", "acts"),
    [
        (Restart.NEVER, True, False),
        (Restart.ON_FAILURE, True, True),
        (Restart.ON_FAILURE, False, False),
        (Restart.ALWAYS, True, True),
        (Restart.ALWAYS, False, True),
    ],
)
def test_restart_as_the_member_asked(restart: Restart, crashed: bool, acts: bool) -> None:
    spec = replace(SPEC, restart=restart)
    decision = decide(machine(Phase.RUNNING, observed=1, spec=spec), CLAIM, present(Power.OFF, crashed), 1.0)
    assert words(decision) == ([Start] if acts else [])


@pytest.mark.parametrize("observed", [0, 1])
@pytest.mark.parametrize("restart", list(Restart))
@pytest.mark.parametrize(("wanted", "steps"), [(Power.ON, [Start]), (Power.SUSPENDED, [Start]), (Power.OFF, [Stop])])
def test_a_start_that_was_broken_off_is_finished_or_ended(
    wanted: Power, steps: list[type], restart: Restart, observed: int
) -> None:
    """Also where the wish had been fulfilled before: then it was `restart` that started it."""
    spec = replace(SPEC, power=wanted, restart=restart)
    if wanted is Power.OFF:
        observed = 0  # a guest that is not wanted on is started by nobody of ours
    thing = machine(Phase.RUNNING, observed=observed, spec=spec)
    assert words(decide(thing, CLAIM, replace(present(), dark=True), 0.0)) == steps


def test_a_changed_size_stops_changes_the_claim_and_starts() -> None:
    bigger = machine(Phase.RUNNING, observed=0, spec=replace(SPEC, cores=4))
    assert words(decide(bigger, CLAIM, present(), 1.0)) == [Place]
    grown = replace(CLAIM, cores=4)
    assert words(decide(bigger, grown, present(), 1.0)) == [Stop]
    assert words(decide(bigger, grown, present(Power.OFF), 1.0)) == [Define]
    assert words(decide(bigger, grown, replace(present(Power.OFF), cores=4), 1.0)) == [Start]
    assert words(decide(bigger, grown, replace(present(), cores=4), 1.0)) == []


def test_a_deed_is_done_once_per_token() -> None:
    wished = machine(spec=replace(SPEC, reboots=2))
    assert words(decide(wished, CLAIM, replace(present(), marks={"reboots": 1}), 1.0)) == [Reboot]
    assert words(decide(wished, CLAIM, replace(present(), marks={"reboots": 2}), 1.0)) == []


SIGHTS = st.one_of(
    st.just(Absent()),
    st.builds(Unreachable, st.text(max_size=5)),
    st.builds(
        Present,
        st.sampled_from(Power),
        st.integers(1, 4),
        st.sampled_from([1024, 2048]),
        volumes=st.frozensets(st.sampled_from(["v1", "v2"])),
        snapshots=st.frozensets(st.sampled_from(["s1", "s2"])),
        marks=st.dictionaries(st.sampled_from(["reboots", "rebuilds", "restore"]), st.integers(0, 3)),
        crashed=st.booleans(),
    ),
)
MACHINES = st.builds(
    machine,
    st.sampled_from(Phase),
    st.integers(0, 1),
    st.builds(
        MachineSpec,
        image=st.just("img-1"),
        cores=st.integers(1, 4),
        memory=st.sampled_from([1024, 2048]),
        disk=st.just(4096),
        power=st.sampled_from(Power),
        volumes=st.sampled_from([(), ("v1",), ("v1", "v2")]),
        snapshots=st.sampled_from([(), ("s1",)]),
        restart=st.sampled_from(Restart),
        reboots=st.integers(0, 3),
        rebuilds=st.integers(0, 3),
        restore=st.one_of(st.none(), st.builds(RestoreWish, st.just("s1"), st.integers(1, 3))),
    ),
    st.booleans(),
)


@given(MACHINES, st.one_of(st.none(), st.just(CLAIM)), SIGHTS)
def test_every_pair_has_an_answer(thing: Machine, claim: Claim | None, seen: Seen) -> None:
    decision = decide(thing, claim, seen, 100.0)
    assert decision.steps or decision.settled or decision.due is not None
    assert not (decision.steps and decision.settled)
    if thing.deleting and not isinstance(seen, Unreachable):
        assert words(decision)[-1] is Forget
    if claim is None:
        assert {*words(decision)} <= {Place, Forget}


@given(MACHINES)
def test_following_the_decisions_settles(thing: Machine) -> None:
    """A perfect driver, driven by nothing but decisions, comes to rest with the wish fulfilled."""
    thing = replace(thing, deleting=False, observed=0, phase=Phase.BUILDING)
    claim: Claim | None = None
    seen: Seen = Absent()
    for _ in itertools.repeat(None, 40):
        decision = decide(thing, claim, seen, 1.0)
        if not decision.steps:
            break
        for step in decision.steps:
            claim, seen = perfect(thing.spec, step, claim, seen)
    assert decision.settled
    assert isinstance(seen, Present)
    assert seen.power is thing.spec.power
    assert (seen.cores, seen.memory) == (thing.spec.cores, thing.spec.memory)
    assert seen.volumes == set(thing.spec.volumes)
    assert seen.snapshots == set(thing.spec.snapshots)


def perfect(spec: MachineSpec, step: object, claim: Claim | None, seen: Seen) -> tuple[Claim | None, Seen]:
    """A host on which everything works."""
    from usina.core import lifecycle as do

    match step, seen:
        case do.Place(needs), _:
            return Claim("hst-1", needs.cores, needs.memory, needs.disk), seen
        case do.Define(), Absent():
            return claim, Present(Power.OFF, spec.cores, spec.memory, volumes=frozenset(spec.volumes))
        case do.Define(), Present(power=Power.OFF):
            return claim, replace(seen, cores=spec.cores, memory=spec.memory)
        case ((do.Start() | do.Resume()), Present()):
            return claim, replace(seen, power=Power.ON)
        case do.Stop(), Present():
            return claim, replace(seen, power=Power.OFF)
        case do.Suspend(), Present(power=Power.ON):
            return claim, replace(seen, power=Power.SUSPENDED)
        case do.Reboot(token), Present():
            return claim, replace(seen, marks={**seen.marks, "reboots": token})
        case do.Rebuild(token), Present():
            marks = {**seen.marks, "rebuilds": token}
            return claim, replace(seen, power=Power.OFF, snapshots=frozenset(), marks=marks)
        case do.Restore(_, token), Present():
            return claim, replace(seen, marks={**seen.marks, "restore": token})
        case do.Snapshot(name), Present():
            return claim, replace(seen, snapshots=seen.snapshots | {name})
        case do.DropSnapshot(name), Present():
            return claim, replace(seen, snapshots=seen.snapshots - {name})
        case do.AttachVolume(volume), Present():
            return claim, replace(seen, volumes=seen.volumes | {volume})
        case do.DetachVolume(volume), Present():
            return claim, replace(seen, volumes=seen.volumes - {volume})
    raise AssertionError(f"{step} makes no sense on {seen}")
