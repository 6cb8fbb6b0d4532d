"""The spool of a container's log: what conmon wrote is in it once, whoever reads and wherever a reading was cut."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from usina.drivers.podman.logs import Spool

LINES = [f"line {n}" for n in range(2000)]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "ctr.log"
    path.write_text("".join(f"2026-05-01T10:00:00.123456789+00:00 stdout F {line}\n" for line in LINES))
    return path


def spool(folder: Path, limit: int = 1 << 20) -> Spool:
    return Spool(folder / "run.log", (b"hunter2",), limit, threading.Lock())


def said(spool: Spool) -> list[str]:
    out, after = b"", 0
    while (piece := spool.piece(after, 1000)).data:
        out, after = out + piece.data, piece.end
    return [line.split(b" ", 2)[2].decode() for line in out.splitlines()]


def test_many_readers_at_once_write_each_line_once(tmp_path: Path, source: Path) -> None:
    one = spool(tmp_path)
    together = threading.Barrier(8)

    def read(_: int) -> None:
        together.wait()
        one.take(str(source), False)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read, range(8)))
    assert said(one) == LINES


def test_what_was_written_but_not_noted_before_a_crash_is_written_once(tmp_path: Path, source: Path) -> None:
    one = spool(tmp_path)
    one.take(str(source), False)
    mark = (tmp_path / "run.mark").read_text()
    with source.open("a") as file:
        file.write("2026-05-01T10:00:01.5+00:00 stderr F the password is hunter2\n")
    one.take(str(source), False)
    (tmp_path / "run.mark").write_text(mark)  # as if killed between the two

    again = spool(tmp_path)
    assert said(again) == LINES
    again.take(str(source), True)
    assert said(again) == [*LINES, "the password is ***"]


def test_positions_stay_when_the_older_half_goes_even_with_a_crash(tmp_path: Path, source: Path) -> None:
    whole = spool(tmp_path)
    whole.take(str(source), True)
    all_of_it = whole.piece(0, 1 << 20)
    whole.drop()
    assert said(whole) == []

    cut = spool(tmp_path, limit=8000)
    cut.take(str(source), True)
    kept = cut.piece(0, 1 << 20)
    assert kept.start > 0 and len(kept.data) <= 8000
    assert all_of_it.data[kept.start :] == kept.data

    inode, offset, _, end = (tmp_path / "run.mark").read_text().split()
    (tmp_path / "run.mark").write_text(f"{inode} {offset} 0 {end}")  # as if killed before the trimming was noted
    assert spool(tmp_path).piece(0, 1 << 20) == kept
