"""What every guard on the shelf keeps to."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from usina.core.errors import Invalid
from usina.ports.guard import Found, Guard, Side, changed
from usina.server import discovery
from usina.services.reach import Reach

SHELF = discovery.guards()
MAIL = "write to ann@example.org today"


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A service that does what `patterns` does with the word "ann@example.org", and denies "bomb"."""
    with suppress(asyncio.IncompleteReadError):
        while True:
            await _answer(reader, writer)
    writer.close()


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    size = int(next(line for line in head.split("\r\n") if line.startswith("content-length")).split(":")[1])
    asked = json.loads(await reader.readexactly(size))
    told: dict[str, Any] = {"verdict": "allow"}
    if any("bomb" in text for text in asked["texts"]):
        told = {"verdict": "deny", "reason": "it has what is known as words"}
    elif any("ann@" in text for text in asked["texts"]):
        told = {"verdict": "change", "texts": [t.replace("ann@example.org", "[email]") for t in asked["texts"]]}
    if "authorization: hush" not in head:
        told = {"verdict": "who are you?"}
    body = json.dumps(told).encode()
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
    await writer.drain()


@asynccontextmanager
async def made(name: str, folder: Any) -> AsyncIterator[Guard]:
    """Each as it redacts e-mail addresses and denies a word. In the end it has nothing open."""
    lines: list[asyncio.Event] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines.append(ended := asyncio.Event())
        await _serve(reader, writer)
        ended.set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    (folder / "secret").write_text("hush\n")
    given: dict[str, dict[str, Any]] = {
        "patterns": {"redact": ["email"], "deny": ["words"], "words": ["bomb"]},
        "http": {
            "url": f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/look",
            "secret_file": str(folder / "secret"),
        },
    }
    guard = SHELF.plugins[name].make(given[name], Reach(allow_private=True))
    async with server:
        try:
            yield guard
        finally:
            await guard.close()
            await guard.close()
        async with asyncio.timeout(10):
            await asyncio.gather(*(line.wait() for line in lines))


async def look(guard: Guard, texts: list[str], behind: int = 0) -> Found:
    found = guard.look(texts, Side.REQUEST, behind)
    assert inspect.isawaitable(found) == guard.waits
    return found if isinstance(found, Found) else await found


def test_nothing_on_the_shelf_is_missing() -> None:
    assert not SHELF.missing
    assert {"patterns", "http"} <= set(SHELF.plugins)


@pytest.mark.parametrize("name", SHELF.plugins)
async def test_it_allows_changes_and_denies(name: str, tmp_path: Any) -> None:
    async with made(name, tmp_path) as guard:
        assert not any((await look(guard, ["hello", ""])).changes)
        found = await look(guard, ["hello", MAIL])
        assert changed(MAIL, found.changes[1]) == "write to [email] today"
        assert changed("hello", found.changes[0]) == "hello"
        denied = await look(guard, ["a bomb"])
        assert denied.denied and "bomb" not in denied.denied


@pytest.mark.parametrize("name", SHELF.plugins)
async def test_what_went_out_before_is_not_changed(name: str, tmp_path: Any) -> None:
    async with made(name, tmp_path) as guard:
        found = await look(guard, ["x" + MAIL], behind=1)
        assert changed("x" + MAIL, found.changes[0]) == "xwrite to [email] today"
        assert all(one.start >= 1 for one in found.changes[0])


@pytest.mark.parametrize("name", SHELF.plugins)
def test_settings_that_make_no_sense_are_refused_with_the_field(name: str) -> None:
    plugin = SHELF.plugins[name]
    assert plugin.settings and plugin.summary
    with pytest.raises(Invalid) as caught:
        plugin.make({}, Reach())
    assert caught.value.field in plugin.settings


async def test_http_goes_nowhere_within_unless_that_is_allowed(tmp_path: Any) -> None:
    guard = SHELF.plugins["http"].make({"url": "http://127.0.0.1:9/"}, Reach())
    with pytest.raises(Invalid, match="public"):
        await look(guard, ["x"])
