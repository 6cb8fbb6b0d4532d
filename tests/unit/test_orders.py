"""The short way of orders, at its ASGI edge; what it answers is tested with every other route, in the stories."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.types import Message

from usina.core.errors import Unauthenticated
from usina.facades.native.api import serve
from usina.facades.native.door import BODY_LIMIT


class _Doors:
    async def bearer(self, token: str) -> str:
        if token != "good":
            raise Unauthenticated("no")
        return token


class _House:
    plugins: dict[str, Any] = {}
    recipes: dict[str, str] = {}
    doors = _Doors()


async def post(*chunks: bytes, token: str = "good", headers: tuple[tuple[bytes, bytes], ...] = ()) -> list[Message]:
    """What the door sends for an order whose body comes in `chunks`, and then nothing more; ``[]`` if it hangs up."""
    scope = {
        "type": "http", "method": "POST", "path": "/api/v1/machines", "root_path": "/api", "query_string": b"",
        "headers": [(b"authorization", b"Bearer " + token.encode()), *headers],
    }  # fmt: skip
    coming: list[Message] = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    sent: list[Message] = []

    async def receive() -> Message:
        return coming.pop(0) if coming else {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    async with asyncio.timeout(5):
        await serve(_House())(scope, receive, send)  # type: ignore[arg-type]
    return sent


def test_plain_orders_and_nothing_else_take_it() -> None:
    orders = ("machines", "machines/batch", "tasks", "endpoints", "volumes", "networks", "security-groups", "forwards")
    orders += ("images",)
    assert serve(_House()).paths == {f"/v1/{order}" for order in orders}  # type: ignore[arg-type]


async def test_who_hangs_up_gets_no_answer() -> None:
    assert await post(b'{"name":') == []


async def test_a_stranger_is_refused_before_anything_is_read() -> None:
    [start, _] = await post(b"x" * (BODY_LIMIT + 1), token="bad")
    assert start["status"] == 401


@pytest.mark.parametrize("told", [(), ((b"content-length", str(BODY_LIMIT + 1).encode()),)])
async def test_too_much_is_refused_as_soon_as_it_is_seen(told: tuple[tuple[bytes, bytes], ...]) -> None:
    [start, body] = await post(b"x" * BODY_LIMIT, b"x", headers=told)
    assert start["status"] == 413
    assert b'"code":"too-large"' in body["body"]
