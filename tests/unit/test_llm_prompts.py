"""Prompts that a project wants kept: written, read by pages, and forgotten."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from usina.core.errors import Invalid
from usina.ports.llm import Exchange
from usina.services.llm import prompts
from usina.services.llm.prompts import PromptFolder

NOON = datetime(2026, 3, 10, 12, tzinfo=UTC).timestamp()
DAY = 86_400.0


def exchange(at: float, asked: str = "hi") -> Exchange:
    told = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
    return Exchange(told, "req-1", "mbr", "key", "ept", "m", "/chat/completions", 200, 1, 2, asked, "hello")


async def filled(folder: Path, days: int = 3, each: int = 4) -> PromptFolder:
    kept = PromptFolder(folder)
    for day in range(days):
        for n in range(each):
            kept.add("prj-a", exchange(NOON - day * DAY + n, f"{day}.{n}"))
    await kept.flush()
    return kept


async def everything(kept: PromptFolder, since: float, limit: int) -> list[str]:
    found, cursor = list[str](), ""
    while True:
        page = await kept.page("prj-a", since, cursor, limit)
        assert len(page.items) <= limit
        found += [one.asked for one in page.items]
        if page.next is None:
            return found
        cursor = page.next


@pytest.mark.parametrize("limit", [1, 3, 4, 5, 100])
async def test_pages_have_everything_once_and_in_order(tmp_path: Path, limit: int) -> None:
    kept = await filled(tmp_path)
    assert await everything(kept, 0, limit) == [f"{day}.{n}" for day in (2, 1, 0) for n in range(4)]
    assert await everything(kept, NOON - DAY + 2, limit) == ["1.2", "1.3", "0.0", "0.1", "0.2", "0.3"]
    assert (await kept.page("prj-b", 0, "", limit)).items == []


async def test_a_line_that_is_being_written_is_not_read(tmp_path: Path) -> None:
    kept = await filled(tmp_path, days=1, each=2)
    [file] = (tmp_path / "prj-a").iterdir()
    with file.open("ab") as more:
        more.write(b"not JSON\n" + msgspec.json.encode(exchange(NOON + 9))[:-5])
    assert await everything(kept, 0, 10) == ["0.0", "0.1"]


@pytest.mark.parametrize("cursor", ["x", "2026-03-10", "../../etc:0", "2026-03-10:-1", "2026-03-10:0:0"])
async def test_a_cursor_of_somebody_elses_making_is_refused(tmp_path: Path, cursor: str) -> None:
    kept = await filled(tmp_path)
    with pytest.raises(Invalid):
        await kept.page("prj-a", 0, cursor, 10)


async def test_only_its_owner_can_open_the_files(tmp_path: Path) -> None:
    await filled(tmp_path)
    for path in [tmp_path / "prj-a", *(tmp_path / "prj-a").iterdir()]:
        assert os.stat(path).st_mode & 0o077 == 0


async def test_what_is_old_goes_and_so_does_what_nobody_wants_kept(tmp_path: Path) -> None:
    kept = await filled(tmp_path)
    kept.add("prj-b", exchange(NOON))
    await kept.sweep({"prj-a": 1, "prj-b": 0}, NOON)
    assert sorted(path.name for path in (tmp_path / "prj-a").iterdir()) == ["2026-03-09.jsonl", "2026-03-10.jsonl"]
    assert not (tmp_path / "prj-b").exists()
    await kept.sweep({}, NOON)
    assert list(tmp_path.iterdir()) == []


async def test_a_project_has_so_much_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = len(msgspec.json.encode(exchange(NOON, "0.0"))) + 1
    monkeypatch.setattr(prompts, "MOST", 9 * line)
    kept = await filled(tmp_path)
    assert len(await everything(kept, 0, 100)) == 8  # the oldest day went
    for n in range(6):
        kept.add("prj-a", exchange(NOON, f"9.{n}"))
    await kept.flush()
    assert await everything(kept, 0, 100) == [f"0.{n}" for n in range(4)]  # nor has it so much for one day
