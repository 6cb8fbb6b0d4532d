"""How tasks are written on a command line, what goes along with them, and how their use is drawn."""

from __future__ import annotations

import tarfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usina.cli import chart, package, task_words
from usina.client import Usage
from usina.core.errors import Invalid


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90), ("90s", 90), ("1.5h", 5400), ("30m", 1800), ("1h30m", 5400), ("2d", 172800),
        ("01:30", 90), ("01:30:00", 5400), ("1-12:00", 129600), ("1-00:00:10", 86410),
    ],
)  # fmt: skip
def test_times(text: str, seconds: float) -> None:
    assert task_words.seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "1x", "1h 30m", "-5", "h", "1:2", "1:60:00x"])
def test_what_is_no_time_is_refused_by_name(text: str) -> None:
    with pytest.raises(Invalid) as refused:
        task_words.seconds(text, "idle")
    assert refused.value.field == "idle"


@pytest.mark.parametrize(
    ("text", "indices", "at_once"),
    [
        ("0-3", [0, 1, 2, 3], 0), ("1,3,7", [1, 3, 7], 0), ("0-10:5%2", [0, 5, 10], 2), ("5", [5], 0),
        ("3,1-2", [1, 2, 3], 0),
    ],
)  # fmt: skip
def test_arrays(text: str, indices: list[int], at_once: int) -> None:
    assert task_words.array(text) == (indices, at_once)


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "0-99%", "0-99%x", "0-9999999", "1;2"])
def test_what_is_no_array_is_refused(text: str) -> None:
    with pytest.raises(Invalid):
        task_words.array(text)


def test_devices() -> None:
    assert task_words.devices(["1"]) == [{"kind": "gpu", "count": 1, "memory": 0, "linked": False}]
    [found] = task_words.devices(["h100:2,linked,memory=80GiB,profile=1g.10gb"])
    assert (found["model"], found["count"], found["linked"], found["profile"]) == ("h100", 2, True, "1g.10gb")
    assert task_words.devices(["any,share=500"])[0]["share"] == 500
    with pytest.raises(Invalid):
        task_words.devices(["1,share=half"])


def test_secrets_never_stand_on_the_command_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TOKEN", "abc")
    file = tmp_path / "key"
    file.write_text("from a file\n")
    assert task_words.secrets(["TOKEN", f"KEY=@{file}"]) == {"TOKEN": "abc", "KEY": "from a file"}
    for bad in ("TOKEN=abc", "MISSING", f"KEY=@{tmp_path}/none"):
        with pytest.raises(Invalid) as refused:
            task_words.secrets([bad])
        assert "abc" not in refused.value.message


# --- what goes along


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in package.contents(folder)}


def make(folder: Path, **files: str) -> None:
    for name, text in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_what_git_ignores_stays_here(tmp_path: Path) -> None:
    make(tmp_path, a="1", **{"junk__b": "2", "sub__c.log": "3", "sub__d": "4", "sub__keep.log": "5"})
    make(tmp_path, **{".git__config": "x", ".venv__lib": "y"})
    (tmp_path / ".gitignore").write_text("junk/\n*.log\n")
    (tmp_path / "sub/.gitignore").write_text("!keep.log\n")
    assert names(tmp_path) == {".gitignore", "a", "sub/.gitignore", "sub/d", "sub/keep.log"}


def test_a_file_of_our_own_has_the_last_word(tmp_path: Path) -> None:
    make(tmp_path, a="1", b="2", **{"data__c": "3"})
    (tmp_path / ".gitignore").write_text("data/\n")
    (tmp_path / ".usinaignore").write_text("!data/\nb\n")
    assert names(tmp_path) == {".gitignore", ".usinaignore", "a", "data/c"}


def test_the_same_content_is_the_same_file(tmp_path: Path) -> None:
    make(tmp_path, a="1", **{"sub__b": "2"})
    (tmp_path / "link").symlink_to("a")
    with package.packed(tmp_path) as one, package.packed(tmp_path) as other:
        assert one.path.read_bytes() == other.path.read_bytes()
        assert (one.files, one.size) == (3, 2)
        with tarfile.open(one.path) as archive:
            assert archive.getnames() == ["a", "link", "sub/b"]
            assert {entry.uid for entry in archive} == {0}


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Invalid), package.packed(tmp_path / "none"):
        pass


# --- drawn


@given(st.lists(st.floats(0, 10), min_size=1, max_size=300), st.floats(0, 10))
def test_blocks_are_bounded(values: list[float], top: float) -> None:
    drawn = chart.blocks(values, top)
    assert 1 <= len(drawn) <= chart.WIDTH and set(drawn) <= set(chart.BLOCKS)


def test_use_is_drawn_when_there_is_enough_of_it() -> None:
    begun = datetime(2026, 1, 1, tzinfo=UTC)
    samples = [Usage(begun + timedelta(seconds=5 * n), 5.0 * n, 100 << 20, 200 << 20, ()) for n in range(4)]
    assert chart.lines(samples[:1], 1.0, 1 << 30) == []
    cpu, memory = chart.lines(samples, 2.0, 1 << 30)
    assert "1.00 cores on average" in cpu.plain and "200MiB at most" in memory.plain
