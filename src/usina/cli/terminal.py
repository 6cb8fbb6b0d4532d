"""A raw terminal on a two-way stream: every key goes through, but Ctrl-] which ends it."""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import threading
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from usina.client import Command, Stream
from usina.core.errors import UsinaError

LEAVE = b"\x1d"  # Ctrl-]
CHUNK = 4096


def sized(line: Command) -> None:
    """Tell the other side how large this terminal is, now and whenever it changes."""

    def tell(*_: object) -> None:
        size = os.get_terminal_size()
        with suppress(EOFError, OSError):
            line.resize(size.lines, size.columns)

    tell()
    signal.signal(signal.SIGWINCH, tell)


def attend(stream: Stream | Command) -> bool:
    """Connect this terminal (or pipe) with `stream`. True when the person left, False when the stream ended.

    Raises what the stream raises when it is refused.
    """
    over = threading.Event()
    faults: list[UsinaError] = []
    wake_read, wake_write = os.pipe()

    def show() -> None:
        try:
            while data := stream.read():
                os.write(1, data)
        except UsinaError as error:
            faults.append(error)
        except OSError:
            pass  # nobody looks any more
        finally:
            over.set()
            os.write(wake_write, b".")

    thread = threading.Thread(target=show, daemon=True)
    with _raw():
        thread.start()
        left = _type(stream, over, wake_read)
    stream.close()
    thread.join(timeout=2)
    if faults and not left:
        raise faults[0]
    return left


def _type(stream: Stream | Command, over: threading.Event, wake: int) -> bool:
    """Send what is typed until Ctrl-] (True) or the end of the stream or of the input."""
    inputs = [0, wake]
    while not over.is_set():
        ready, _, _ = select.select(inputs, [], [])
        if 0 not in ready:
            continue
        data = os.read(0, CHUNK)
        before, found, _ = data.partition(LEAVE)
        with suppress(EOFError):
            if before:
                stream.write(before)
        if found:
            return True
        if not data:
            inputs.remove(0)  # the input has ended; go on showing
            if isinstance(stream, Command):
                with suppress(EOFError):
                    stream.write(b"")
    return False


@contextmanager
def _raw() -> Iterator[None]:
    """The terminal in raw mode, and as it was afterwards, whatever happens."""
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(0)
    try:
        tty.setraw(0)
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)
