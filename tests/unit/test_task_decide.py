"""The decision table of tasks: single ones against every sight, arrays and gangs against their parts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usina.core.capacity import Claim, DeviceKind, DeviceRequest
from usina.core.lifecycle import (
    Admit,
    Again,
    Decision,
    EndParts,
    Finish,
    Forget,
    Place,
    PlaceTogether,
    Remove,
    Start,
    Stop,
)
from usina.core.machine import Absent, Restart, Unreachable
from usina.core.quota import amounts_placed
from usina.core.resource import Kind, Phase, Resource
from usina.core.task import End, Ended, Network, Queued, Running, Sight, TaskSpec, TaskStatus
from usina.core.task_decide import (
    ASKING,
    LINE,
    OVER,
    SOON,
    Gate,
    Part,
    Task,
    View,
    begun,
    decide,
    gang_of,
    needs_of,
    phase_of,
)
from usina.core.tenancy import MEASURES, Amounts

CLAIM = Claim("hst-1", cores=1, memory=1024)
SPEC = TaskSpec(on="local", command=("true",))
GOOD, BAD = Ended(5.0, End.EXITED, 0, since=1.0), Ended(5.0, End.EXITED, 3, since=1.0)
SIGHTS: list[Sight] = [Absent(), Unreachable("no"), Queued("Priority"), Running(1.0), GOOD, BAD]


def task(
    phase: Phase = Phase.BUILDING,
    observed: int = 0,
    status: TaskStatus | None = None,
    deleting: bool = False,
    **spec: Any,
) -> Task:
    return Resource(
        "tsk-1", Kind.TASK, "tnt-1", "prj-1", "t", replace(SPEC, **spec), status or TaskStatus(run=1), 0.0, 0.0,
        phase=phase, observed=observed, deleting=deleting,
    )  # fmt: skip


def steps(decision: Decision) -> list[type]:
    return [type(step) for step in decision.steps]


def test_a_network_asks_for_a_host_that_can_give_it() -> None:
    traits = {network: needs_of(task(network=network), 1.0).traits - {"task:local"} for network in Network}
    assert traits == {
        Network.NONE: set(),
        Network.OUTBOUND: {"task:outbound"},
        Network.HOST: {"task:host-network"},
        Network.PROJECT: {"task:network"},
    }
    gang = gang_of(task(network=Network.PROJECT, replicas=3), 1.0)
    assert "task:network" in gang.needs.traits and gang.arrange == "same"


# --- a single one


def test_it_is_placed_first() -> None:
    decision = decide(task(Phase.PENDING, status=TaskStatus()), None, View(), 1.0)
    assert steps(decision) == [Place]


@pytest.mark.parametrize(
    ("gate", "phase", "settled"),
    [(Gate("waits for b"), Phase.PENDING, False), (Gate(hopeless="b has failed"), Phase.FAILED, True)],
)
def test_it_waits_for_others_and_fails_with_them(gate: Gate, phase: Phase, settled: bool) -> None:
    decision = decide(task(Phase.PENDING, status=TaskStatus()), None, View(gate=gate), 1.0)
    assert (decision.phase, decision.settled, decision.steps) == (phase, settled, ())
    assert decision.due is None, "others wake it"


@pytest.mark.parametrize(
    ("sight", "phase", "taken"),
    [
        (Absent(), Phase.BUILDING, [Start]),
        (Queued("Priority"), Phase.QUEUED, []),
        (Running(1.0), Phase.RUNNING, []),
        (GOOD, Phase.BUILDING, [Finish]),
        (BAD, Phase.BUILDING, [Finish]),
        (Unreachable("no"), Phase.UNREACHABLE, []),
    ],
)
def test_a_run_is_begun_watched_and_finished(sight: Sight, phase: Phase, taken: list[type]) -> None:
    decision = decide(task(), CLAIM, View(sight), 10.0)
    assert (decision.phase, steps(decision)) == (phase, taken)


@pytest.mark.parametrize("sight", SIGHTS)
def test_a_deleted_one_goes_whatever_it_looks_like(sight: Sight) -> None:
    decision = decide(task(deleting=True), CLAIM, View(sight), 10.0)
    assert steps(decision) == ([] if isinstance(sight, Unreachable) else [Remove, Forget])
    assert decision.phase is Phase.DELETING
    assert steps(decide(task(deleting=True), None, View(sight), 10.0)) == [Forget]


@pytest.mark.parametrize(
    ("end", "phase"),
    [
        (GOOD, Phase.SUCCEEDED),
        (BAD, Phase.FAILED),
        (Ended(5.0, End.STOPPED, 143), Phase.STOPPED),
        *((Ended(5.0, how), Phase.FAILED) for how in End if how not in (End.EXITED, End.STOPPED)),
    ],
)
def test_how_it_ended_is_what_it_is(end: Ended, phase: Phase) -> None:
    assert phase_of(end) is phase


def test_what_vanishes_after_it_began_is_lost_and_not_run_again() -> None:
    known = task(status=TaskStatus(run=1, began_at=1.0), phase=Phase.RUNNING)
    [finish] = decide(known, CLAIM, View(Absent()), 10.0).steps
    assert finish == Finish(Phase.FAILED)


def test_what_could_not_be_begun_gives_its_place_back() -> None:
    known = task(status=TaskStatus(run=1, how=End.NOT_STARTED))
    assert decide(known, CLAIM, View(Absent()), 10.0).steps == (Finish(Phase.FAILED),)


@pytest.mark.parametrize("sight", [Queued(), Running(1.0)])
@pytest.mark.parametrize("wish", [{"stopped": True}, {"parent": "tsk-0"}])
def test_one_that_is_not_wanted_any_more_is_stopped(sight: Sight, wish: dict[str, Any]) -> None:
    view = View(sight, ending="parent" in wish)
    assert steps(decide(task(Phase.RUNNING, **wish), CLAIM, view, 10.0)) == [Stop]
    assert decide(task(Phase.PENDING, status=TaskStatus(), **wish), None, View(ending=view.ending), 1.0).settled


def test_a_late_stack_is_told_to_end_a_run_at_its_limit() -> None:
    limited = task(Phase.RUNNING, time_limit=60.0, grace=10.0)
    early = decide(limited, CLAIM, View(Running(100.0)), 150.0)
    assert early.steps == () and early.due == 200.0
    assert steps(decide(limited, CLAIM, View(Running(100.0)), 200.0)) == [Stop]


def test_an_idle_one_is_ended() -> None:
    lonely = task(Phase.RUNNING, idle_limit=60.0)
    assert decide(lonely, CLAIM, View(Running(0.0), idle_since=100.0), 150.0).due == 160.0
    assert steps(decide(lonely, CLAIM, View(Running(0.0), idle_since=100.0), 160.0)) == [Stop]


@pytest.mark.parametrize(
    ("restart", "end", "failures", "again"),
    [
        (Restart.NEVER, BAD, 0, False),
        (Restart.ON_FAILURE, BAD, 0, True),
        (Restart.ON_FAILURE, BAD, 3, False),
        (Restart.ON_FAILURE, GOOD, 0, False),
        (Restart.ALWAYS, GOOD, 99, True),
        (Restart.ALWAYS, Ended(5.0, End.STOPPED), 0, False),
        (Restart.ALWAYS, Ended(5.0, End.CANCELLED), 0, False),
        (Restart.ON_FAILURE, Ended(5.0, End.NODE_FAILED), 0, True),
    ],
)
def test_the_restart_policy(restart: Restart, end: Ended, failures: int, again: bool) -> None:
    known = task(status=TaskStatus(run=1 + failures, failures=failures), restart=restart)
    assert steps(decide(known, CLAIM, View(end), end.at + 100)) == [Again if again else Finish]
    if again:
        soon = decide(known, CLAIM, View(end), end.at)
        assert soon.steps == () and soon.due is not None and soon.due > end.at


def test_each_run_has_a_number_and_failures_are_counted_until_a_rerun() -> None:
    first = begun(task(status=TaskStatus()))
    assert (first.run, first.failures) == (1, 0)
    second = begun(task(status=replace(first, code=3, how=End.EXITED, began_at=1.0)))
    assert (second.run, second.failures, second.code, second.how, second.began_at) == (2, 1, None, None, None)
    third = begun(task(status=second, reruns=1))
    assert (third.run, third.failures, third.reruns) == (3, 0, 1)


@pytest.mark.parametrize("phase", sorted(OVER))
def test_one_that_is_over_stays_so_until_it_is_run_again(phase: Phase) -> None:
    over = replace(task(phase, status=TaskStatus(run=1)), generation=2)
    renamed = decide(over, None, View(), 10.0)
    assert (renamed.phase, renamed.settled, renamed.steps) == (phase, True, ())
    again = replace(over, spec=replace(over.spec, reruns=1))
    assert steps(decide(again, None, View(), 10.0)) == [Place]


@given(
    st.sampled_from(list(Phase)), st.sampled_from(SIGHTS), st.booleans(), st.booleans(), st.booleans(),
    st.sampled_from(list(Restart)), st.integers(0, 2), st.integers(0, 1),
)  # fmt: skip
def test_whatever_it_looks_like_there_is_a_decision(
    phase: Phase, sight: Sight, stopped: bool, deleting: bool, held: bool, restart: Restart, run: int, reruns: int
) -> None:
    one = task(phase, 0, TaskStatus(run=run), deleting, stopped=stopped, restart=restart, reruns=reruns)
    decision = decide(one, CLAIM if held else None, View(sight), 1e6)
    assert decision.steps or decision.settled or decision.due is not None
    if not held:
        assert not set(steps(decision)) - {Place, Forget}, "without a place nothing is done anywhere"
    if stopped or deleting:
        assert not set(steps(decision)) & {Start, Place, Again}


# --- what it asks for


def test_a_stack_with_a_queue_is_asked_for_all_of_a_gang() -> None:
    gang = task(replicas=4, cores=2.0, memory=100, devices=(DeviceRequest(DeviceKind.GPU, 2),), time_limit=60.0)
    needs = needs_of(gang, 1000.0)
    assert (needs.cores, needs.memory, needs.devices[0].count) == (8.0, 400, 8)
    assert (needs.begins, needs.ends) == (1000.0, 1060.0)
    assert "task:local" in needs.traits
    each = gang_of(gang, 1000.0)
    assert (each.size, each.needs.cores, each.needs.devices[0].count) == (4, 2.0, 2)


# --- arrays and gangs


def part(number: int, phase: Phase = Phase.PENDING, placed: bool = False, settled: bool = True) -> Part:
    return Part(f"tsk-1{number}", phase, placed, settled)


def whole(*parts: Part, status: TaskStatus | None = None, deleting: bool = False, **spec: Any) -> Decision:
    return decide(task(Phase.PENDING, 0, status or TaskStatus(), deleting, **spec), None, View(parts=parts), 1.0)


def test_an_array_lets_as_many_have_their_turn_as_may_be() -> None:
    parts = [part(n) for n in range(5)]
    indices = tuple(range(5))
    assert whole(*parts, indices=indices, at_once=2).steps == (Admit(("tsk-10", "tsk-11")),)
    parts[0] = part(0, Phase.SUCCEEDED)
    parts[1] = part(1, Phase.RUNNING)
    assert whole(*parts, indices=indices, at_once=2, status=TaskStatus(admitted=2)).steps == (Admit(("tsk-12",)),)
    busy = whole(*parts, indices=indices, at_once=2, status=TaskStatus(admitted=3))
    assert busy.steps == () and busy.phase is Phase.RUNNING
    assert whole(*parts, indices=indices).steps == (Admit(tuple(p.id for p in parts)),)


@given(st.lists(st.sampled_from([Phase.PENDING, Phase.RUNNING, *OVER]), min_size=1, max_size=30), st.integers(1, 5))
def test_never_more_at_once_than_asked_for(phases: list[Phase], at_once: int) -> None:
    admitted = next((n for n, phase in enumerate(phases) if phase is Phase.PENDING), len(phases))
    parts = [part(n, phase) for n, phase in enumerate(phases[:admitted])] + [
        part(n) for n in range(admitted, len(phases))
    ]
    at_work = sum(not p.over for p in parts[:admitted])
    decision = whole(*parts, indices=tuple(range(len(parts))), at_once=at_once, status=TaskStatus(admitted=admitted))
    more = sum(len(step.parts) for step in decision.steps if isinstance(step, Admit))
    assert at_work + more <= max(at_once, at_work)
    assert all(p.over for p in parts) == (decision.phase in OVER)


def test_of_a_large_array_only_some_ask_for_their_places_at_a_time() -> None:
    many = tuple(range(ASKING * 3))

    def admitted_of(parts: list[Part], admitted: int) -> Decision:
        return whole(*parts, indices=many, status=TaskStatus(admitted=admitted))

    parts = [part(n) for n in many]
    (first,) = admitted_of(parts, 0).steps
    assert isinstance(first, Admit) and len(first.parts) == ASKING
    waiting = admitted_of(parts, ASKING)
    assert waiting.steps == () and waiting.due == 1.0 + SOON
    parts[:10] = [part(n, Phase.RUNNING, placed=True) for n in range(10)]
    (next_ones,) = admitted_of(parts, ASKING).steps
    assert isinstance(next_ones, Admit) and next_ones.parts == tuple(p.id for p in parts[ASKING : ASKING + 10])
    running = [part(n, Phase.RUNNING, placed=True) for n in many]
    assert admitted_of(running, len(many)).due is None


def test_of_an_array_that_fills_its_place_as_many_as_run_stand_in_line() -> None:
    indices = tuple(range(200))

    def admitted_of(running: int, refused: int, in_line: int) -> tuple[int, bool]:
        states = [("running", running), ("refused", refused), ("in line", in_line)]
        names = [name for name, count in states for _ in range(count)]
        parts = [
            part(n, Phase.RUNNING, placed=True) if name == "running" else part(n)._replace(refused=name == "refused")
            for n, name in enumerate([*names, *["to come"] * (len(indices) - len(names))])
        ]
        status = TaskStatus(admitted=len(names), in_line=in_line > 0)
        steps = whole(*parts, indices=indices, status=status).steps
        return (len(steps[0].parts), steps[0].in_line) if steps and isinstance(steps[0], Admit) else (0, False)

    assert admitted_of(40, 10, 0) == (70, True)
    assert admitted_of(40, 10, 70) == (0, False)
    assert admitted_of(40, 0, 65) == (15, True)
    assert admitted_of(4, 1, 0) == (LINE - 1, True)
    assert admitted_of(40, 0, 0) == (160, False)


def test_a_gang_is_placed_together_and_ends_together() -> None:
    assert whole(part(0), part(1), replicas=2).steps == (PlaceTogether(("tsk-10", "tsk-11")),)
    placed = [part(n, Phase.RUNNING, placed=True) for n in range(2)]
    assert whole(*placed, replicas=2).steps == (Admit(("tsk-10", "tsk-11")),)
    failed = [part(0, Phase.FAILED, placed=True), placed[1]]
    assert whole(*failed, replicas=2, status=TaskStatus(admitted=2)).steps == (EndParts(("tsk-11",)),)
    ending = whole(*failed, replicas=2, status=TaskStatus(admitted=2, how=End.STOPPED))
    assert ending.steps == () and ending.phase is Phase.STOPPING


@pytest.mark.parametrize(
    ("phases", "phase"),
    [
        ((Phase.SUCCEEDED, Phase.SUCCEEDED), Phase.SUCCEEDED),
        ((Phase.SUCCEEDED, Phase.FAILED), Phase.FAILED),
        ((Phase.SUCCEEDED, Phase.STOPPED), Phase.STOPPED),
    ],
)
def test_a_whole_is_what_its_parts_are(phases: tuple[Phase, Phase], phase: Phase) -> None:
    decision = whole(*(part(n, p) for n, p in enumerate(phases)), indices=(0, 1))
    assert (decision.phase, decision.settled) == (phase, True)


def test_a_part_is_over_only_when_its_wish_is_answered() -> None:
    assert not part(0, Phase.SUCCEEDED, settled=False).over


def test_a_stopped_array_ends_what_is_left_and_a_deleted_one_waits_for_its_parts() -> None:
    parts = (part(0, Phase.SUCCEEDED), part(1, Phase.RUNNING), part(2))
    assert whole(*parts, indices=(0, 1, 2), stopped=True).steps == (EndParts(("tsk-11", "tsk-12")),)
    assert whole(*parts, indices=(0, 1, 2), deleting=True).steps == ()
    assert steps(whole(indices=(0, 1, 2), deleting=True)) == [Forget]


def test_a_task_in_a_machine_claims_nothing_on_the_machines_host() -> None:
    inside = task(on="machine", machine="mch-1", cores=8.0, memory=1 << 30, network=Network.OUTBOUND)
    needs = needs_of(inside, 1.0)
    assert (needs.cores, needs.memory, needs.disk, needs.traits) == (0, 0, 0, {"task:machine"})
    assert not any(vars_of(amounts_placed(inside.spec)))
    unplaced = replace(inside, status=TaskStatus())
    [place] = decide(unplaced, None, View(gate=Gate(host="hst-7")), 1.0).steps
    assert isinstance(place, Place) and place.needs.host == "hst-7"
    waiting = decide(unplaced, None, View(gate=Gate("waits for machine box", unheard=True)), 1.0)
    assert not waiting.steps and waiting.due is not None and 1.0 < waiting.due <= 16.0, "nobody wakes it"


def vars_of(amounts: Amounts) -> list[float]:
    return [getattr(amounts, measure) for measure in MEASURES]
