"""Waiting without sleeping blindly: ask again until it is so, or fail with what was seen last."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

Found = TypeVar("Found")


async def eventually(
    ask: Callable[[], Awaitable[Found]], good: Callable[[Found], object] = bool, limit: float = 15.0
) -> Found:
    """The first answer of `ask` that is `good`. Raises `AssertionError` after `limit` seconds."""
    deadline = time.monotonic() + limit
    while True:
        found = await ask()
        if good(found):
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not so within {limit} s; last seen: {found!r}")
        await asyncio.sleep(0.02)


def until(
    ask: Callable[[], Found], good: Callable[[Found], object] = bool, limit: float = 15.0, pause: float = 0.05
) -> Found:
    """As `eventually`, for code without a loop. `pause` seconds lie between two looks, which are work, too."""
    deadline = time.monotonic() + limit
    while True:
        found = ask()
        if good(found):
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not so within {limit} s; last seen: {found!r}")
        time.sleep(pause)
