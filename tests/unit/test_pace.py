"""When the engine sweeps, on a clock of our own."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usina.engine.pace import APART, BUSY, GATHER, PATIENCE, STREAM, Pace


class Day:
    """A clock that moves by sleeping; `orders` come with every sleep."""

    def __init__(self, orders: Callable[[], int]) -> None:
        self.now, self._orders = 100.0, orders
        self.pace = Pace(self._sleep, lambda: self.now)

    async def _sleep(self, seconds: float) -> None:
        self.now += seconds
        self.order(self._orders() if seconds else 0)

    def order(self, count: int) -> None:
        for _ in range(count):
            self.pace.ordered()

    async def wait(self) -> float:
        before = self.now
        await self.pace.turn()
        return self.now - before


async def test_what_comes_after_a_quiet_time_waits_for_nothing() -> None:
    day = Day(lambda: 0)
    day.order(1)
    assert await day.wait() == 0
    day.now += 1
    day.order(1)
    assert await day.wait() == 0


async def test_a_stream_is_gathered() -> None:
    day = Day(lambda: STREAM - 1)
    await day.wait()
    for _ in range(20):
        assert await day.wait() == pytest.approx(GATHER)


async def test_after_a_sweep_that_found_little_the_next_comes_soon() -> None:
    day = Day(lambda: 0)
    await day.wait()
    waits = []
    for count in (0, 1, 4, BUSY, 10 * BUSY):
        day.pace.took(count)
        waits.append(await day.wait())
    assert waits == sorted(waits)
    assert waits[0] == waits[1] == pytest.approx(APART)
    assert waits[-1] == pytest.approx(GATHER)


async def test_a_burst_goes_first_but_not_for_ever() -> None:
    day = Day(lambda: STREAM)
    await day.wait()
    assert await day.wait() == pytest.approx(PATIENCE + GATHER)
    for _ in range(20):  # it still lasts: the engine keeps pace now
        assert await day.wait() == pytest.approx(GATHER)
    day.pace.rested()
    assert await day.wait() == pytest.approx(PATIENCE + GATHER)


@given(st.lists(st.integers(0, 3 * STREAM), min_size=1, max_size=100), st.lists(st.booleans(), min_size=1, max_size=60))
async def test_nobody_waits_longer_than_patience(orders: list[int], rests: list[bool]) -> None:
    coming = cycle(orders)
    day = Day(lambda: next(coming))
    for rest in rests:
        assert await day.wait() <= PATIENCE + 2 * GATHER
        if rest:
            day.pace.rested()
