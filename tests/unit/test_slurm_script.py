"""The batch script of a Slurm run: hostile words stay words, and a real bash does what Slurm would have it do."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from usina.core.task import TaskPlan
from usina.drivers.slurm.folder import inside, matches
from usina.drivers.slurm.script import Place, batch_script, checked, embed, environment_file
from usina.drivers.slurm.sights import exit_note
from usina.ports.driver import DriverError
from usina.testing.waiting import until

words = st.text(st.characters(blacklist_characters="\0", blacklist_categories=("Cs",)), max_size=30)
hostile = st.one_of(
    words,
    st.sampled_from(
        ["'", '"', "$(id)", "`id`", "\n", "a\nUSINA\nb", "-n", "--", "~", "*", "\\", "${x}", "'; id #", "!"]
    ),
)


class Run:
    """A run's folder, and its script run by a bash of ours as if Slurm had."""

    def __init__(
        self, root: Path, plan: TaskPlan, environment: Mapping[str, str] | None = None, embedded: str = ""
    ) -> None:
        self.folder = root / "it's a folder"
        if not embedded:
            for name in ("work", "say", "exit"):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
            (self.folder / "environment").write_text(environment_file(plan.environment))
        self.script = root / "script"
        self.script.write_text(batch_script(plan, Place(str(self.folder), "work"), embedded))
        self.environment = {"PATH": os.environ["PATH"], "SLURM_JOB_ID": "7", **(environment or {})}

    def begin(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            ["/bin/bash", str(self.script)], env=self.environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip

    def to_its_end(self) -> int:
        process = self.begin()
        try:
            _, self.errors = process.communicate(timeout=20)
            return process.returncode
        finally:
            process.kill()

    def said(self, name: str = "o") -> str:
        return (self.folder / "say" / name).read_text(errors="surrogateescape")

    def note(self, unit: int = 0) -> tuple[str, int]:
        found = exit_note((self.folder / "exit" / str(unit)).read_text())
        assert found and found.began <= found.ended
        return found.how, found.code


def plan(*command: str, **more: object) -> TaskPlan:
    return TaskPlan("tsk-1.1", "prj-1", command=command, **more)  # type: ignore[arg-type]


def sh(script: str, **more: object) -> TaskPlan:
    return plan("/bin/sh", "-c", script, **more)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(hostile, max_size=4),
    st.dictionaries(st.sampled_from(["A", "LONG_NAME", "_x", "folder"]), hostile, max_size=3),
)
def test_words_and_variables_arrive_as_they_are(arguments: list[str], environment: dict[str, str]) -> None:
    with tempfile.TemporaryDirectory() as root:
        show = 'printf "%s\\0" "$@"; for n in A LONG_NAME _x folder; do eval "printf \'%s\\0\' \\"\\${$n-}\\""; done'
        run = Run(Path(root), plan("/bin/sh", "-c", show, "sh", *arguments, environment=environment))
        assert run.to_its_end() == 0, run.errors
        raw = (run.folder / "say" / "o").read_bytes().decode()
        expected = ([*arguments] or [""]) + [environment.get(n, "") for n in ("A", "LONG_NAME", "_x", "folder")]
        assert raw.split("\0")[:-1] == expected


@settings(max_examples=60, deadline=None)
@given(st.lists(hostile, min_size=1, max_size=3), hostile, st.integers(1, 3), st.booleans())
def test_every_script_is_a_script(command: list[str], folder: str, replicas: int, array: bool) -> None:
    made = batch_script(
        plan(*command, replicas=replicas, indices=(0, 1) if array else (), time_limit=1.5),
        Place(f"/x/{folder}", "work"),
    )
    assert subprocess.run(["/bin/bash", "-n"], input=made.encode(), capture_output=True).stderr == b""


def test_an_exit_code_is_told_and_kept(tmp_path: Path) -> None:
    run = Run(tmp_path, sh("echo out; echo err >&2; exit 7"))
    assert run.to_its_end() == 7
    assert (run.note(), run.said(), run.said("e")) == (("exited", 7), "out\n", "err\n")


def test_a_command_or_folder_that_is_not_there(tmp_path: Path) -> None:
    run = Run(tmp_path, plan("/no/such"))
    assert run.to_its_end() == 127 and run.note() == ("not-started", 127) and "/no/such" in run.said("e")
    (run.folder / "work").rmdir()
    assert run.to_its_end() == 126 and run.note() == ("not-started", 126)


def test_a_path_in_the_members_own_environment_counts(tmp_path: Path) -> None:
    (tmp_path / "tool").write_text("#!/bin/sh\necho tool\n")
    (tmp_path / "tool").chmod(0o755)
    run = Run(tmp_path, plan("tool", environment={"PATH": f"{tmp_path}:/usr/bin:/bin"}))
    assert run.to_its_end() == 0 and run.said() == "tool\n"


def test_seconds_are_held(tmp_path: Path) -> None:
    run, began = (
        Run(tmp_path, sh("trap '' TERM; while :; do sleep 0.1; done", time_limit=0.5, grace=0.5)),
        time.monotonic(),
    )
    assert run.to_its_end() == 137 and run.note() == ("late", 137)
    assert 0.9 < time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("sent", "script", "code"),
    [
        (signal.SIGTERM, "trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.1; done", 3),
        (signal.SIGTERM, "echo up; sleep 60", 143),
        (signal.SIGUSR2, "trap '' TERM USR2; echo up; while :; do sleep 0.1; done", 137),
    ],
)
def test_signals_are_passed_on(tmp_path: Path, sent: signal.Signals, script: str, code: int) -> None:
    for round_ in range(5):  # a lost exit code is a matter of luck
        root = tmp_path / str(round_)
        root.mkdir()
        run = Run(root, sh(script))
        process = run.begin()
        until(lambda r=run: (r.folder / "say" / "o").exists() and "up" in r.said())
        process.send_signal(sent)
        assert process.wait(20) == code and run.note() == ("asked", code)


def test_an_element_of_an_array_has_files_of_its_own(tmp_path: Path) -> None:
    given_ = {"SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "3"}
    run = Run(tmp_path, sh("echo at $USINA_INDEX; exit 4", indices=(2, 3)), given_)
    assert run.to_its_end() == 4 and run.said("o.3") == "at 3\n" and run.note(3) == ("exited", 4)


def test_another_job_under_the_same_handle_does_nothing(tmp_path: Path) -> None:
    run = Run(tmp_path, sh("echo once"))
    assert run.to_its_end() == 0
    run.environment["SLURM_JOB_ID"] = "8"
    assert run.to_its_end() != 0 and run.said() == "once\n" and b"job 7 runs this" in run.errors
    run.environment["SLURM_JOB_ID"] = "7"  # put back into the queue
    assert run.to_its_end() == 0 and run.said() == "once\nonce\n"


def test_a_run_that_was_removed_does_nothing(tmp_path: Path) -> None:
    run = Run(tmp_path, sh("echo never"))
    run.folder.rename(tmp_path / "gone")
    assert run.to_its_end() != 0 and b"removed" in run.errors and not run.folder.exists()


@settings(max_examples=15, deadline=None)
@given(st.binary(max_size=300), st.sampled_from(["a", "b c/d'e", "-f", "$x/y"]))
def test_embedded_files_arrive_as_they_are(content: bytes, path: str) -> None:
    with tempfile.TemporaryDirectory() as root:
        run = Run(Path(root), sh("true"), embedded=embed("export A=1\n", [(path, content, 0o750, False)]))
        assert run.to_its_end() == 0, run.errors
        assert (run.folder / "work" / path).read_bytes() == content
        assert (run.folder / "environment").read_text() == "export A=1\n"
        assert (run.folder / "work" / path).stat().st_mode & 0o777 == 0o750


def test_too_much_to_embed_is_refused() -> None:
    with pytest.raises(DriverError, match="3 MiB") as failure:
        embed("", [("a", bytes(3 << 20), 0o600, False)])
    assert failure.value.lasting


@pytest.mark.parametrize("name", ["", "1A", "A B", "A=B", "a\nb", "_usina", "A'", "é"])
def test_names_that_no_variable_can_have_are_refused(name: str) -> None:
    with pytest.raises(DriverError) as failure:
        checked({name: "secret value"})
    assert failure.value.lasting and "secret" not in failure.value.public


def test_a_value_with_nul_is_refused_without_being_shown() -> None:
    with pytest.raises(DriverError, match="NUL") as failure:
        environment_file({"A": "secret\0value"})
    assert "secret" not in failure.value.public


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../b", "a\0b", "a\nb"])
def test_paths_that_lead_out_are_refused(path: str) -> None:
    with pytest.raises(DriverError):
        inside(path)


def test_patterns_mean_files_and_folders_with_all_within() -> None:
    assert matches("out/deep/b.txt", ("out",)) and matches("c.log", ("*.log",)) and matches("x/c.log", ("*.log",))
    assert matches("out/a", ("out/",)) and not matches("other/a", ("out",)) and not matches("a", ("", "b"))
