"""Time comes in through the door: pure code takes `now`, the rest takes a `Clock`."""

from __future__ import annotations

import time
from typing import Protocol

from usina.core.units import Instant


class Clock(Protocol):
    """Where the present comes from."""

    def now(self) -> Instant:
        """Seconds since the Unix epoch, UTC."""
        ...


class SystemClock:
    """The machine's own clock."""

    def now(self) -> Instant:
        return time.time()
