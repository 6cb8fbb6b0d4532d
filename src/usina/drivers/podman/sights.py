"""What an inspected container says about its run. Pure."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from usina.core.machine import Absent
from usina.core.task import End, Ended, Running, Sight

TIMED_OUT = -1
"""The exit code that Podman gives what conmon killed at its time limit."""
_BEFORE = frozenset({"created", "configured", "initialized", "stopping", "removing", ""})


def instant(text: str) -> float:
    """Podman's RFC 3339 with nanoseconds → seconds; 0 for its "never"."""
    head, dot, tail = text.partition(".")
    if head.startswith("0001-01-01"):
        return 0.0
    digits = len(tail) - len(tail.lstrip("0123456789"))
    zone = (tail[digits:] if dot else "").replace("Z", "+00:00") or "+00:00"
    base = datetime.fromisoformat(head.replace("Z", "") + (zone if dot else "+00:00")).timestamp()
    return base + (float(f"0.{tail[:digits]}") if digits else 0.0)


def sight(found: dict[str, Any], *, stopped: str, memory: bool) -> Sight:
    """`stopped`: why we ended it ("", "stopped" or "time-limit"); `memory`: the kernel killed it for its memory."""
    state, name = found["State"], str(found["Id"])[:12]
    since = instant(state["StartedAt"])
    status = state["Status"]
    if status in ("running", "paused"):
        return Running(since, job=name)
    if status in _BEFORE and not since:
        return Absent()  # it was made and never started: a start cut short, which is repeated
    if status in ("stopping", "removing"):
        return Running(since, job=name)
    at, code = max(since, instant(state["FinishedAt"])), int(state["ExitCode"])  # its clock is a coarse one
    if stopped == "time-limit" or code == TIMED_OUT:
        return Ended(at, End.TIME_LIMIT, 137, since=since, job=name)
    if stopped:
        return Ended(at, End.STOPPED, code, since=since, job=name)
    if state.get("OOMKilled") or (memory and code == 137):
        return Ended(at, End.MEMORY, code, since=since, job=name)
    return Ended(at, End.EXITED, code, since=since, job=name)
