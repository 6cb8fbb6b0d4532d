"""What Slurm says of a job, in every state that it has → what Usina sees."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from usina.core.task import End, Queued, Running, Unit
from usina.drivers.slurm import sights
from usina.drivers.slurm.notes import Note
from usina.drivers.slurm.records import JobRecord
from usina.drivers.slurm.script import Place
from usina.drivers.slurm.sights import ExitNote

NOTE = Note("tsk-1.1", "ada", Place("/home/ada/.usina/fab/tsk-1.1", "work"), at=90.0, job=7)


def job(*states: str, **more: Any) -> JobRecord:
    given = {"submitted": 90.0, "start": 100.0, "end": 160.0, "nodes": "n[1-2]", "status": 0, **more}
    return JobRecord(7, "usina-fab:tsk-1.1", "ada", "main", frozenset(states), **given)


@pytest.mark.parametrize(
    ("states", "phase"),
    [
        ("PENDING", "queued"),
        ("CONFIGURING", "queued"),
        ("REQUEUED PENDING", "queued"),
        ("REQUEUE_HOLD", "queued"),
        ("SPECIAL_EXIT", "queued"),
        ("RESV_DEL_HOLD", "queued"),
        ("REQUEUE_FED", "queued"),
        ("RUNNING CONFIGURING", "queued"),
        ("PENDING COMPLETING", "queued"),
        ("RUNNING", "running"),
        ("SUSPENDED", "running"),
        ("STOPPED", "running"),
        ("RESIZING", "running"),
        ("SIGNALING", "running"),
        ("STAGE_OUT", "running"),
        ("COMPLETING", "running"),
        ("CANCELLED COMPLETING", "running"),
        ("COMPLETED", "ended"),
        ("CANCELLED", "ended"),
        ("FAILED", "ended"),
        ("TIMEOUT", "ended"),
        ("NODE_FAIL", "ended"),
        ("PREEMPTED", "ended"),
        ("BOOT_FAIL", "ended"),
        ("DEADLINE", "ended"),
        ("OUT_OF_MEMORY", "ended"),
        ("REVOKED", "ended"),
        ("LAUNCH_FAILED", "ended"),
        ("RECONFIG_FAIL", "ended"),
    ],
)
def test_every_state_is_queued_running_or_ended(states: str, phase: str) -> None:
    assert job(*states.split()).phase == phase


@pytest.mark.parametrize(
    ("state", "status", "how", "code"),
    [
        ("COMPLETED", 0, End.EXITED, 0),
        ("FAILED", 3 << 8, End.EXITED, 3),
        ("FAILED", 9, End.EXITED, 137),
        ("FAILED", 11, End.EXITED, 139),
        ("FAILED", None, End.EXITED, 1),  # nobody knows the code, but it is not well
        ("TIMEOUT", 0, End.TIME_LIMIT, 137),
        ("TIMEOUT", 15, End.TIME_LIMIT, 143),
        ("DEADLINE", 0, End.TIME_LIMIT, 137),
        ("OUT_OF_MEMORY", 9, End.MEMORY, 137),
        ("OUT_OF_MEMORY", 0, End.MEMORY, 137),
        ("NODE_FAIL", 0, End.NODE_FAILED, 0),
        ("BOOT_FAIL", 0, End.NODE_FAILED, 0),
        ("RECONFIG_FAIL", 0, End.NODE_FAILED, 0),
        ("PREEMPTED", 15, End.CANCELLED, 143),
        ("REVOKED", 0, End.CANCELLED, 0),
        ("CANCELLED", 15, End.CANCELLED, 143),
        ("LAUNCH_FAILED", 0, End.NOT_STARTED, 1),
    ],
)
def test_every_end(state: str, status: int | None, how: End, code: int) -> None:
    end = sights.ended(NOTE, job(state, status=status), None)
    assert (end.how, end.code, end.since, end.at) == (how, code, 100.0, 160.0)
    assert end.nodes == ("n1", "n2") and end.job == "7"
    assert bool(end.message) == (how in (End.NODE_FAILED, End.CANCELLED, End.NOT_STARTED) or state == "DEADLINE")


def test_cancelled_before_it_began() -> None:
    end = sights.ended(NOTE, job("CANCELLED", nodes="", start=150.0), None)
    assert (end.how, end.code, end.since) == (End.CANCELLED, None, 0.0)


@pytest.mark.parametrize(
    ("state", "own", "how", "code"),
    [
        ("CANCELLED", None, End.STOPPED, 143),
        ("FAILED", None, End.STOPPED, 143),
        ("FAILED", ExitNote("asked", 137, 1, 2), End.STOPPED, 137),
        ("COMPLETED", ExitNote("asked", 0, 1, 2), End.STOPPED, 0),
        ("COMPLETED", ExitNote("exited", 0, 1, 2), End.EXITED, 0),  # it was quicker than we
        ("FAILED", ExitNote("exited", 4, 1, 2), End.EXITED, 4),
        ("TIMEOUT", None, End.TIME_LIMIT, 143),
        ("NODE_FAIL", None, End.NODE_FAILED, 143),
    ],
)
def test_when_usina_asked_for_its_end(state: str, own: ExitNote | None, how: End, code: int) -> None:
    end = sights.ended(replace(NOTE, stopping=True), job(state, status=15 if own is None else 0), own)
    assert (end.how, end.code) == (how, code)


@pytest.mark.parametrize(
    ("own", "how", "code"),
    [
        (ExitNote("late", 143, 100.25, 102.5), End.TIME_LIMIT, 143),
        (ExitNote("not-started", 127, 100.25, 102.5), End.NOT_STARTED, 127),
        (ExitNote("asked", 143, 100.25, 102.5), End.EXITED, 143),  # somebody sent it a SIGTERM
    ],
)
def test_its_own_word_is_finer_than_slurms(own: ExitNote, how: End, code: int) -> None:
    end = sights.ended(NOTE, job("FAILED", status=code << 8), own)
    assert (end.how, end.code, end.since, end.at) == (how, code, 100.25, 102.5)


def test_the_word_of_an_earlier_attempt_does_not_count() -> None:
    own = ExitNote("asked", 143, 100.0, 101.0, restarts=0)
    assert sights.ended(NOTE, job("COMPLETED", restarts=1), own).code == 0
    assert sights.ended(NOTE, job("COMPLETED", restarts=None), own).code == 143  # accounting does not say


def test_a_limit_is_guessed_where_its_own_word_cannot_be_read() -> None:
    note = replace(NOTE, limit=60.0)
    assert sights.ended(note, job("FAILED", status=143 << 8), None).how is End.TIME_LIMIT
    assert sights.ended(note, job("FAILED", status=143 << 8, end=130.0), None).how is End.EXITED


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("exited 0 100.5 102.25 2\n0m0.1s 0m0.1s\n1m2.5s 0m0.3s\n", ExitNote("exited", 0, 100.5, 102.25, 63.0, 2)),
        ("late 143 100,5 102,25 0", ExitNote("late", 143, 100.5, 102.25, 0.0)),
        ("", None),
        ("exited x 1 2", None),
        ("exited 0 1", None),
        ("rm -rf 1 2", None),
        ("exited 9999 1 2", None),
    ],
)
def test_exit_notes(text: str, expected: ExitNote | None) -> None:
    found = sights.exit_note(text)
    assert found == expected or (found and expected and abs(found.cpu - expected.cpu) < 1e-6)


def test_what_waits_says_why() -> None:
    waiting = job("PENDING", reason="Resources", nodes="", start=500.0)
    assert sights.living(NOTE, [waiting]) == Queued("waits for free resources (Resources)", "7", 500.0)
    assert sights.living(NOTE, [job("PENDING", reason="QOSMaxJobsPerUserLimit", start=0.0)]) == Queued(
        "Slurm says: QOSMaxJobsPerUserLimit", "7", None
    )
    assert sights.living(NOTE, [job("RUNNING")]) == Running(100.0, "7", ("n1", "n2"))


def test_an_array_in_the_middle() -> None:
    note = replace(NOTE, kind="array", indices=(0, 1, 2), done={0: Unit(0, "ended", 0, End.EXITED, "n1", 1, 2)})
    one = job("RUNNING", array=7, index=1, nodes="n2")
    rest = job("PENDING", array=7, pending=(2,), nodes="", start=0.0)
    sight = sights.living(note, [one, rest])
    assert isinstance(sight, Running) and [unit.state for unit in sight.units] == ["ended", "running", "queued"]
    between = sights.living(note, [replace(rest, pending=(1, 2))])
    assert isinstance(between, Running), "it has begun, even if none of it runs now"


def test_an_array_is_as_bad_as_its_first_that_is_not_well() -> None:
    units = [Unit(0, "ended", 0, End.EXITED, "n1", 10, 20), Unit(1, "ended", 3, End.EXITED, "n2", 5, 30)]
    end = sights.ended_array(NOTE, units, "7")
    assert (end.how, end.code, end.since, end.at, end.nodes) == (End.EXITED, 3, 5, 30, ("n1", "n2"))
    late = sights.ended_array(NOTE, [*units[:1], Unit(1, "ended", 143, End.TIME_LIMIT, "", 5, 30)], "7")
    assert late.how is End.TIME_LIMIT


def test_a_gang_is_told_by_the_first_of_it_that_failed() -> None:
    note = replace(NOTE, kind="gang", indices=(0, 1))
    own = {0: ExitNote("asked", 143, 100.0, 103.0), 1: ExitNote("exited", 5, 100.5, 102.0)}
    end = sights.ended_gang(note, job("FAILED", status=143 << 8), own)
    assert (end.how, end.code, end.since, end.at) == (End.EXITED, 5, 100.0, 103.0)
    assert [(unit.index, unit.code) for unit in end.units] == [(0, 143), (1, 5)]
    late = {0: ExitNote("late", 143, 100.0, 103.0)}
    assert sights.ended_gang(note, job("FAILED", status=143 << 8), late).how is End.TIME_LIMIT


def test_what_nobody_knows_any_more() -> None:
    assert sights.vanished(NOTE, ExitNote("exited", 4, 1.0, 2.0)).code == 4
    lost = sights.vanished(NOTE, None)
    assert lost.how is End.NODE_FAILED and "no longer knows job 7" in lost.message and lost.code is None
    assert sights.vanished(replace(NOTE, stopping=True), None).how is End.STOPPED
