"""One loop of descriptors and timers, and the processes that work beside it."""

from __future__ import annotations

import heapq
import itertools
import os
import selectors
import signal
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Final

Callback = Callable[[], object]
READ: Final = selectors.EVENT_READ
WRITE: Final = selectors.EVENT_WRITE
_MOST_FILES: Final = 1 << 20


class Loop:
    """Callbacks run one after the other; one that fails is told on standard error, and the loop goes on."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, int, Callback]] = []
        self._order = itertools.count()
        self.stopped = False

    def watch(self, fd: int, callback: Callback, events: int = READ) -> None:
        try:
            self._selector.modify(fd, events, callback)
        except KeyError:
            self._selector.register(fd, events, callback)

    def forget(self, fd: int) -> None:
        with suppress(KeyError, ValueError):
            self._selector.unregister(fd)

    def later(self, seconds: float, callback: Callback) -> None:
        """Timers cannot be taken back: a callback looks whether it still has something to do."""
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._order), callback))

    def run(self) -> None:
        while not self.stopped:
            for key, _ in self._selector.select(self._patience()):
                if self._is_watched(key):
                    _safely(key.data)
            now = time.monotonic()  # what is put off from here on has its turn after the next look
            while self._timers and self._timers[0][0] <= now:
                _safely(heapq.heappop(self._timers)[2])

    def _is_watched(self, key: selectors.SelectorKey) -> bool:
        """Not forgotten, nor its number used anew, by a callback before it in the same round."""
        return self._selector.get_map().get(key.fd) is key

    def _patience(self) -> float | None:
        return max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None

    def when_over(self, pid: int, callback: Callable[[int], None]) -> None:
        """Wait for a child; `callback` gets its exit code (negative: the signal)."""
        fd = os.pidfd_open(pid)

        def over() -> None:
            self.forget(fd)
            os.close(fd)
            _, status = os.waitpid(pid, 0)
            callback(os.waitstatus_to_exitcode(status))

        self.watch(fd, over)


def _safely(callback: Callback) -> None:
    try:
        callback()
    except Exception:
        traceback.print_exc()


def fork(work: Callable[[], int], keep: Iterable[int] = ()) -> int:
    """Do `work` in a process of its own, with no descriptors but 0 to 2 and `keep`. Returns its number."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        close_all_but(keep)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        code = work()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def close_all_but(keep: Iterable[int]) -> None:
    low = 3
    for fd in sorted({fd for fd in keep if fd > 2}):
        os.closerange(low, fd)
        low = fd + 1
    os.closerange(low, _MOST_FILES)


def run_program(command: Sequence[str]) -> int:
    """Start a program with nothing but standard error. Returns its number."""
    return os.posix_spawn(
        command[0],
        list(command),
        {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        setsigmask=[],
        setsigdef=[signal.SIGPIPE],
    )
