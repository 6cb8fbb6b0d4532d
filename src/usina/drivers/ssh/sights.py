"""What the watch in a machine says → what Usina sees. Pure.

A machine is its owner's, who may have it say anything: numbers are bounded here, and words cleaned.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass, replace

from usina.core.task import End, Ended, Running, Usage
from usina.core.units import Instant
from usina.drivers.ssh.notes import Note

LATE = 0.5  # seconds before its limit at which systemd may have ended it for its time
_BOOT = "its machine was restarted"
_SHUTDOWN = "its machine was switched off or restarted"
_KEEPER = "its keeper in the machine was killed, so nobody knows how it went"


@dataclass(frozen=True, slots=True)
class Found:
    """One line: a run as it is in its machine, by the machine's clock."""

    handle: str
    sight: Running | Ended | None  # None: it has not begun
    usage: Usage | None = None


def found(line: str, note: Note | None, now: Instant) -> Found | None:
    """None where the line says nothing."""
    handle, _, rest = line.partition(" ")
    word, _, rest = rest.partition(" ")
    skew = note.skew if note else 0.0
    try:
        match word:
            case "running":
                at, cpu, memory, peak = rest.split()
                usage = Usage(_count(cpu) / 1e6, _count(memory), _count(peak), at=now)
                return Found(handle, Running(_moment(at) - skew), usage)
            case "end":
                return Found(handle, _moved(_ended(rest, note), skew))
            case "lost":
                at, _, why = rest.partition(" ")
                message = _BOOT if why == "boot" else _KEEPER
                return Found(handle, Ended(now, End.NODE_FAILED, message=message, since=_moment(at) - skew))
            case "making":
                return Found(handle, None)
    except ValueError:  # broken off, or meddled with
        return None
    return None


def _ended(text: str, note: Note | None) -> Ended:
    """`began up asked result code status up cpu peak [why]`; `up` in seconds since the boot."""
    began, up, asked, result, word, status, down, cpu, peak, *why = text.split(" ", 9)
    since = _moment(began)
    at = since + max(0.0, _moment(down) - _moment(up))
    reason = why[0].strip() if why else ""
    code = code_of(word, status)
    usage = Usage(_count(cpu) / 1e6, 0, _count(peak), at=at)
    end = Ended(at, End.EXITED, code, since=since, usage=usage)
    if asked == "1":
        return replace(end, how=End.STOPPED)
    if result == "shutdown":
        return replace(end, how=End.NODE_FAILED, message=_SHUTDOWN)
    if result == "none" or reason:
        return replace(end, how=End.NOT_STARTED, message=_plain(reason) or "systemd in the machine did not begin it")
    if result == "oom-kill":
        return replace(end, how=End.MEMORY, message=_too_much(note))
    if result == "timeout" and note and note.limit and end.at - end.since >= note.limit - LATE:
        return replace(end, how=End.TIME_LIMIT, message=f"ran for longer than its limit of {note.limit:g} s")
    return end


def _moved(end: Ended, skew: float) -> Ended:
    usage = replace(end.usage, at=end.usage.at - skew) if end.usage else None
    return replace(end, at=end.at - skew, since=end.since - skew, usage=usage) if skew else end


def _too_much(note: Note | None) -> str:
    return f"used more than its {note.memory >> 20} MiB of memory" if note and note.memory else ""


def _plain(reason: str) -> str:
    return "".join(letter for letter in reason.removeprefix("usina: ")[:300] if letter.isprintable())


def _moment(text: str) -> float:
    """Seconds. Raises `ValueError` for what no clock says."""
    if not 0 <= (value := float(text)) < 1e11:
        raise ValueError(text[:40])
    return value


def _count(text: str) -> int:
    if not 0 <= (value := int(text)) < 1 << 62:
        raise ValueError(text[:40])
    return value


def code_of(word: str, status: str) -> int | None:
    """An exit code of systemd's $EXIT_CODE and $EXIT_STATUS: a signal's is 128 and its number."""
    if word == "exited":
        return min(255, _count(status))
    if word in ("killed", "dumped"):
        number = getattr(signal, f"SIG{status}", None)
        return 128 + int(number) if number is not None else 255
    return None
