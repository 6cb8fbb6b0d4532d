"""Fault points: places where a test may kill this process, between a deed and its record.

``USINA_FAULT="after:Start:2"`` kills with SIGKILL when the point ``after:Start`` is passed for the second time.
Without the variable a point costs one dictionary look-up.
"""

from __future__ import annotations

import os
import signal

_wanted = os.environ.get("USINA_FAULT", "")
_point, _, _count = _wanted.rpartition(":")
_left = int(_count) if _point else 0


def fault(point: str) -> None:
    """Die here if the test asked for it."""
    global _left
    if point != _point:
        return
    _left -= 1
    if _left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
