"""What of the driver of tasks in machines needs no machine: what its watch says, logs and their stamps, requests."""

from __future__ import annotations

import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from usina.core.task import End, Ended, Inside, Running, TaskPlan
from usina.core.units import MiB
from usina.drivers.ssh import request, scripts
from usina.drivers.ssh.link import Pins
from usina.drivers.ssh.logs import LIMIT, Copies, Mark, Reading, Stream, masks, reading, taken
from usina.drivers.ssh.notes import MachineNotes, Note
from usina.drivers.ssh.sights import Found, found
from usina.ports.driver import DriverError
from usina.server.login_keys import DerivedKeys

INSIDE = Inside("mch-1", "10.0.0.2", "debian")
NOTE = Note("tsk-1.1", "prj-1", INSIDE, limit=10.0, memory=64 * MiB)
PLAN = TaskPlan("tsk-1.1", "prj-1", "a/b", ("echo", "a b"), cores=0.5, memory=64 * MiB, inside=INSIDE)


# --- what the watch says


@pytest.mark.parametrize(
    ("rest", "how", "code"),
    [
        ("0 success exited 0 105.0 5000 0", End.EXITED, 0),
        ("0 exit-code exited 7 105.0 5000 0", End.EXITED, 7),
        ("0 signal killed KILL 105.0 5000 0", End.EXITED, 137),
        ("1 success killed TERM 105.0 5000 0", End.STOPPED, 143),
        ("1 timeout killed KILL 105.0 5000 0", End.STOPPED, 137),
        ("0 timeout killed TERM 110.2 5000 0", End.TIME_LIMIT, 143),
        ("0 timeout exited 3 105.0 5000 0", End.EXITED, 3),  # only what it left behind was slow to end
        ("0 oom-kill killed KILL 105.0 5000 0", End.MEMORY, 137),
        ("0 shutdown exited 0 105.0 5000 0", End.NODE_FAILED, 0),
        ("0 exit-code exited 127 105.0 5000 0 usina: no such command: x", End.NOT_STARTED, 127),
        ("0 none - - 105.0 0 0 Failed to start transient service unit: no", End.NOT_STARTED, None),
    ],
)
def test_how_a_run_ended(rest: str, how: End, code: int | None) -> None:
    told = found(f"tsk-1.1 end 1000.0 100.0 {rest}", NOTE, 2000.0)
    assert told is not None and isinstance(told.sight, Ended)
    assert (told.sight.how, told.sight.code) == (how, code)
    assert told.sight.since == 1000.0 and 1005.0 <= told.sight.at <= 1010.3, "by the clock that never jumps"


def test_a_clock_that_is_ahead_is_seen_through() -> None:
    told = found("tsk-1.1 end 1000.0 100.0 0 success exited 0 105.0 5000 0", replace(NOTE, skew=600.0), 2000.0)
    assert told is not None and isinstance(told.sight, Ended)
    assert (told.sight.since, told.sight.at) == (400.0, 405.0)


def test_a_run_that_runs_or_is_lost() -> None:
    told = found("tsk-1.1 running 1000.0 2500000 1024 2048", NOTE, 2000.0)
    assert told is not None and told.sight == Running(1000.0) and told.usage is not None
    assert (told.usage.cpu, told.usage.memory, told.usage.peak) == (2.5, 1024, 2048)
    lost = found("tsk-1.1 lost 1000.0 boot", NOTE, 2000.0)
    assert lost is not None and isinstance(lost.sight, Ended)
    assert lost.sight.how is End.NODE_FAILED and "restarted" in lost.sight.message
    assert found("tsk-1.1 making", NOTE, 1.0) == Found("tsk-1.1", None)


@pytest.mark.parametrize(
    "line",
    [
        "", "x", "tsk-1.1 end 1", "tsk-1.1 running a b c d", "tsk-1.1 dance 1 2", "tsk-1.1 running inf 1 1 1",
        "tsk-1.1 running nan 1 1 1", "tsk-1.1 running 1e300 1 1 1", "tsk-1.1 running 1.0 -1 1 1",
        f"tsk-1.1 running 1.0 1 {1 << 80} 1", "tsk-1.1 lost -1e300 boot",
    ],
)  # fmt: skip
def test_what_is_broken_off_says_nothing(line: str) -> None:
    assert found(line, NOTE, 1.0) is None


# --- logs


def read(o: bytes, e: bytes = b"", t: bytes = b"", over: bool = False, now: int = 9000, **starts: int) -> Reading:
    of, ef, tf = (starts.get(name, 0) for name in ("o_from", "e_from", "t_from"))
    return Reading(now, over, of, ef, tf, (of + len(o), ef + len(e), tf + len(t)), o, e, t)


def fresh() -> Mark:
    return Mark(Stream(), Stream())


def test_a_line_has_the_time_of_the_first_tick_that_knows_its_end() -> None:
    lines = taken(fresh(), read(b"one\ntwo\nthree\n", b"bad\n", b"1000 4 0\n2000 8 4\n"), (), 0)
    assert lines == [b"1000 o one\n", b"2000 o two\n", b"2000 e bad\n", b"9000 o three\n"]


def test_a_line_without_an_end_waits_for_it_or_for_the_end_of_all() -> None:
    mark = fresh()
    assert taken(mark, read(b"one\nunfin"), (), 0) == [b"9000 o one\n"]
    assert (mark.o.at, mark.whole) == (4, False)
    assert taken(mark, read(b"unfinished", over=True, o_from=4), (), 0) == [b"9000 o unfinished\n"]
    assert mark.whole


def test_a_tick_ahead_of_what_was_read_waits() -> None:
    mark = fresh()
    assert taken(mark, replace(read(b"one\n", t=b"1000 4 0\n2000 8 0\n"), sizes=(8, 0, 18)), (), 0) == [b"1000 o one\n"]
    assert mark.ticks == len(b"1000 4 0\n")
    assert taken(mark, read(b"two\n", t=b"2000 8 0\n", o_from=4, t_from=9), (), 500) == [b"1500 o two\n"]


def test_ticks_that_are_further_apart_than_a_reading_goes() -> None:
    mark = fresh()
    whole, tick = b"line\n" * 10, b"1000 50 0\n"
    lines = []
    while mark.o.at < len(whole):
        start = mark.o.at
        piece = read(whole[start : start + 12], t=tick, o_from=start, now=9000)
        lines += taken(mark, replace(piece, sizes=(50, 0, len(tick)), t=tick[mark.ticks :], t_from=mark.ticks), (), 0)
    assert lines == [b"1000 o line\n"] * 10 and mark.ticks == len(tick)


def test_secrets_are_masked_even_at_the_edge_of_a_long_line() -> None:
    hidden = masks(["s3cr3t-v4lue", "first line of it\nsecond line of it"])
    assert taken(fresh(), read(b"it is s3cr3t-v4lue.\nsecond line of it\n"), hidden, 0) == [
        b"9000 o it is ***.\n",
        b"9000 o ***\n",
    ]
    mark = fresh()
    text = b"x" * (16384 - 5) + b"s3cr3t-v4lue" + b"y" * 100_000
    [line] = taken(mark, read(text + b"\nnext"), hidden, 0)
    assert b"s3c" not in line and len(line) < 16384 + 20
    assert taken(mark, read(b"next\n", o_from=len(text) + 1), hidden, 0) == [b"9000 o next\n"]


def test_what_the_machine_has_dropped_leaves_a_gap_of_whole_lines() -> None:
    mark = fresh()
    assert taken(mark, read(b"est of it\nwhole\n", o_from=1000), (), 0) == [b"9000 o whole\n"]


def test_an_answer_that_was_broken_off_is_none() -> None:
    good = b"9000 1 0 4 0 0 0 0 4 0 0\none\n"
    assert reading(good) == replace(read(b"one\n"), over=True)
    assert reading(good[:-1]) is None and reading(b"") is None and reading(b"sudo: no\n") is None


def test_copies_are_bounded_and_forget_what_was_not_noted(tmp_path: Path) -> None:
    copies = Copies(tmp_path)
    mark = copies.mark("tsk-1.1")
    copies.add("tsk-1.1", mark, [b"1 o one\n"])
    (tmp_path / "tsk-1.1.log").open("ab").write(b"1 o not noted")
    copies.add("tsk-1.1", copies.mark("tsk-1.1"), [b"2 o two\n"])
    piece = Copies(tmp_path).piece("tsk-1.1", 0, 100)
    assert (piece.start, piece.data) == (0, b"1 o one\n2 o two\n")
    assert copies.piece("tsk-1.1", 8, 1).data == b"2 o two\n"
    copies.add("tsk-1.1", copies.mark("tsk-1.1"), [b"3 o " + b"x" * 4000 + b"\n"] * (LIMIT // 4000))
    copies.add("tsk-1.1", copies.mark("tsk-1.1"), [b"4 o last\n"])
    assert sum(path.stat().st_size for path in tmp_path.glob("*.log")) <= LIMIT
    piece = copies.piece("tsk-1.1", 0, 10)
    assert piece.start > 0 and piece.data.startswith(b"3 o x")
    end = copies.mark("tsk-1.1").end
    assert copies.piece("tsk-1.1", end - 9, 100).data == b"4 o last\n"
    copies.drop("tsk-1.1")
    assert not list(tmp_path.iterdir())


# --- what is laid down


def test_the_command_and_its_variables_arrive_as_they_are(tmp_path: Path) -> None:
    hostile = "a 'b' \"c\" $HOME `id` \\ ; é ~ * -n\nx"
    text = request.environment({"VALUE": hostile})
    done = subprocess.run(["sh", "-c", f'{text}printf %s "$VALUE"'], capture_output=True, text=True, check=True)
    assert done.stdout == hostile
    assert shlex.join(("echo", hostile)) in request.run(replace(PLAN, command=("echo", hostile)))


def test_limits_are_the_services() -> None:
    words = request.properties(replace(PLAN, time_limit=5.0, grace=20.0), "debian")
    assert words[::2] == ["-p"] * (len(words) // 2)
    limits = {"CPUQuota=50%", f"MemoryMax={64 * MiB}", "RuntimeMaxSec=5.000", "TimeoutStopSec=20.000", "User=debian"}
    assert limits <= set(words[1::2])


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ({"inside": None}, "machine"), ({"handle": "../x"}, "handle"), ({"command": ()}, "command"),
        ({"image": "debian"}, "image"), ({"replicas": 2}, "gangs"), ({"environment": {"A B": ""}}, "'A B'"),
        ({"command": ("a\0",)}, "zero"), ({"inside": replace(INSIDE, user="-x")}, "-x"),
    ],
)  # fmt: skip
def test_what_can_never_be_run_is_refused(more: dict[str, object], word: str) -> None:
    with pytest.raises(DriverError, match=word) as failure:
        request.checked(replace(PLAN, **more))  # type: ignore[arg-type]
    assert failure.value.lasting


@pytest.mark.parametrize("name", [name for name in vars(scripts) if name.isupper() and name not in ("RUNS",)])
def test_scripts_are_shell(name: str) -> None:
    text = getattr(scripts, name)
    if isinstance(text, str):
        assert subprocess.run(["sh", "-n"], input=text, text=True, check=False).returncode == 0
        assert "{" + "RUNS}" not in text and "{{" not in text


# --- what is remembered


def test_notes_are_there_after_a_restart(tmp_path: Path) -> None:
    ended = Ended(5.0, End.EXITED, 3, since=1.0)
    MachineNotes(tmp_path, Note).put(replace(NOTE, launched=1.0, ended=ended))
    notes = MachineNotes(tmp_path, Note)
    assert notes.get("tsk-1.1") == replace(NOTE, launched=1.0, ended=ended)
    notes.drop("tsk-1.1")
    assert not MachineNotes(tmp_path, Note).all()


def test_another_host_key_is_refused_but_for_a_rebuilt_machine(tmp_path: Path) -> None:
    pins = Pins(tmp_path)
    assert pins.accepts(INSIDE, "key one") and Pins(tmp_path).accepts(INSIDE, "key one")
    assert not pins.accepts(INSIDE, "key two")
    assert pins.accepts(replace(INSIDE, rebuilds=1), "key two") and not pins.accepts(INSIDE, "key two")
    assert pins.machines() == {"mch-1"}
    pins.forget("mch-1")
    assert pins.accepts(INSIDE, "key two")


def test_login_keys_are_derived_one_for_each_project() -> None:
    keys, again = DerivedKeys(b"m" * 32), DerivedKeys(b"m" * 32)
    assert keys.public("prj-1") == again.public("prj-1")
    assert keys.public("prj-1") != keys.public("prj-2") != DerivedKeys(b"n" * 32).public("prj-2")
    assert keys.public("prj-1").startswith("ssh-ed25519 ") and keys.public("prj-1").endswith(" usina-tasks-of-prj-1")
    assert "OPENSSH PRIVATE KEY" in keys.private("prj-1")
