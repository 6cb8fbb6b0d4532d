"""Prompts and answers of projects that want them kept, on the disk of the control plane.

    <root>/<project>/2026-11-22.jsonl      one line for each request, as `Exchange` says, by the day in UTC

Lines gather in memory and are appended about once a second, in one call, so that several processes may write; a kill
may lose those of the last second. A project has `MOST` bytes: where more come, its oldest days go, and where one day
alone has more, nothing is added to it.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import structlog

from usina.core.errors import Invalid
from usina.core.units import GiB, Instant, KiB, MiB
from usina.ports.llm import Exchange, Kept

log = structlog.get_logger()

MOST = 2 * GiB  # bytes of one project
WAITING = 64 * MiB  # that may wait to be written; what comes then is not kept
LONGEST = 256 * KiB  # of a prompt, and of an answer
PAGE = 8 * MiB  # of one answer to who reads
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}\Z")
_CURSOR = re.compile(r"(\d{4}-\d{2}-\d{2}):(\d{1,18})\Z")
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Exchange).decode


class PromptFolder:
    def __init__(self, root: Path) -> None:
        self._root = root
        self._lines: dict[tuple[str, str], list[bytes]] = {}  # by project and day
        self._size = 0
        self._writing = asyncio.Lock()

    # --- writing

    def add(self, project: str, exchange: Exchange) -> None:
        if self._size > WAITING:
            return
        line = _encode(exchange) + b"\n"
        self._size += len(line)
        self._lines.setdefault((project, exchange.at[:10]), []).append(line)

    async def flush(self) -> None:
        if not self._lines:
            return
        async with self._writing:
            lines, self._lines, self._size = self._lines, {}, 0
            await asyncio.to_thread(self._write, lines)

    def _write(self, lines: Mapping[tuple[str, str], list[bytes]]) -> None:
        for (project, day), some in lines.items():
            data = b"".join(some)
            try:
                if self._has_room(project, day, len(data)):
                    self._append(self._root / project, day, data)
            except OSError as error:
                log.error("prompts could not be kept", project=project, reason=str(error))

    @staticmethod
    def _append(folder: Path, day: str, data: bytes) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(folder / f"{day}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.write(fd, data)
        finally:
            os.close(fd)

    def _has_room(self, project: str, day: str, more: int) -> bool:
        sizes = {path: path.stat().st_size for path in self._days(project)}
        for path in list(sizes):
            if sum(sizes.values()) + more <= MOST:
                return True
            if path.stem != day:
                path.unlink(missing_ok=True)
                del sizes[path]
                log.warning("a project has kept too much; a day of its prompts went", project=project, day=path.stem)
        return sum(sizes.values()) + more <= MOST

    def _days(self, project: str) -> list[Path]:
        """The oldest first."""
        return sorted(path for path in (self._root / project).glob("*.jsonl") if _DAY.match(path.stem))

    # --- reading

    async def page(self, project: str, since: Instant, cursor: str, limit: int) -> Kept:
        await self.flush()
        day, at = datetime.fromtimestamp(since, UTC).date().isoformat(), 0
        if cursor:
            found = _CURSOR.match(cursor)
            if found is None:
                raise Invalid("cursor: it was not given out here", field="cursor")
            day, at = found[1], int(found[2])
        earliest = datetime.fromtimestamp(since, UTC).isoformat(timespec="milliseconds")
        return await asyncio.to_thread(self._page, project, day, at, earliest, limit)

    def _page(self, project: str, day: str, at: int, earliest: str, limit: int) -> Kept:
        items: list[Exchange] = []
        size = 0
        for path in self._days(project):
            if path.stem < day:
                continue
            with suppress(FileNotFoundError), path.open("rb") as file:
                file.seek(at if path.stem == day else 0)
                while line := file.readline():
                    if not line.endswith(b"\n"):
                        break  # it is being written
                    size += len(line)
                    with suppress(msgspec.MsgspecError):
                        exchange = _decode(line)
                        if exchange.at >= earliest:
                            items.append(exchange)
                    if len(items) >= limit or size >= PAGE:
                        return Kept(items, f"{path.stem}:{file.tell()}")
        return Kept(items, None)

    # --- forgetting

    async def sweep(self, days: Mapping[str, int], now: Instant) -> None:
        await self.flush()
        await asyncio.to_thread(self._sweep, days, now)

    def _sweep(self, days: Mapping[str, int], now: Instant) -> None:
        today = datetime.fromtimestamp(now, UTC).date()
        for folder in self._root.glob("*"):
            kept = days.get(folder.name, 0)
            if not kept:
                shutil.rmtree(folder, ignore_errors=True)
                continue
            first = (today - timedelta(days=kept)).isoformat()
            for path in self._days(folder.name):
                if path.stem < first:
                    path.unlink(missing_ok=True)
