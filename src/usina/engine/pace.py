"""When the engine sweeps: at once while little comes in, gathered while much does, and behind a burst of orders."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

GATHER: Final = 0.1
"""Seconds between two busy sweeps: one transaction for many costs little more than for one."""
BUSY: Final = 16
"""Resources that make a sweep a busy one. After one that found fewer, the next comes sooner, by the square."""
APART: Final = 0.01
"""Seconds between any two sweeps: where much is done, hints come all the time, and most of them have nothing to say."""
STREAM: Final = 10
"""Orders within `GATHER` that are a burst."""
PATIENCE: Final = 2.0
"""Seconds that the engine lets a burst go first; then it keeps pace with it."""


class Pace:
    """Orders go first while they come in a burst, for each has somebody waiting. Patience that is used up returns only
    when nothing is left to do: however long a burst lasts, what was ordered is not left lying."""

    def __init__(
        self,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sleep, self._clock = sleep, clock
        self._orders = self._orders_seen = 0  # ever, and at the last turn
        self._last = 0.0  # the last turn
        self._patience = PATIENCE
        self._gather = GATHER

    def ordered(self) -> None:
        """Somebody has ordered something."""
        self._orders += 1

    async def turn(self) -> None:
        """Wait until it is the engine's turn."""
        seen = self._orders_seen
        await self._sleep(max(0.0, self._last + self._gather - self._clock()))
        while self._orders - seen >= STREAM and self._patience > 0:
            seen = self._orders
            await self._sleep(GATHER)
            self._patience -= GATHER
        self._orders_seen, self._last = self._orders, self._clock()

    def took(self, count: int) -> None:
        """The sweep found so many."""
        self._gather = max(APART, GATHER * min(1.0, count / BUSY) ** 2)

    def rested(self) -> None:
        """Nothing was left to do."""
        self._patience = PATIENCE
