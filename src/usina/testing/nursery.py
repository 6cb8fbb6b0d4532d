"""A nursery: a process that has imported everything and forks a factory whenever it is asked to.

Importing takes seconds, forking none; tests that start a factory dozens of times need this. What is forked is a process
of its own in every respect that matters to them: it opens its own files and database, and can be killed.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import subprocess
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self


class Nursery:
    """Use as a context; `start` one factory at a time."""

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "usina.testing.nursery"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):
            _pipe(self._process.stdin).close()
        self._process.wait(10)

    def start(self, arguments: Sequence[str], fault: str, log: Path) -> Forked:
        """The program of `usina.testing.process` with these arguments."""
        wish = {"arguments": list(arguments), "fault": fault, "log": str(log)}
        pipe = _pipe(self._process.stdin)
        pipe.write(json.dumps(wish).encode() + b"\n")
        pipe.flush()
        return Forked(int(_pipe(self._process.stdout).readline()), _pipe(self._process.stdout))


class Forked:
    """A factory from the nursery, as `subprocess.Popen` shows processes."""

    def __init__(self, pid: int, ends: IO[bytes]) -> None:
        self.pid = pid
        self._ends = ends
        self._code: int | None = None

    def poll(self) -> int | None:
        return self._look(0)

    def wait(self, timeout: float | None = None) -> int:
        code = self._look(timeout)
        if code is None:
            raise subprocess.TimeoutExpired("factory", timeout or 0)
        return code

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def terminate(self) -> None:
        self._signal(signal.SIGTERM)

    def _signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def _look(self, timeout: float | None) -> int | None:
        if self._code is None and select.select([self._ends], [], [], timeout)[0]:
            self._code = int(self._ends.readline())
        return self._code


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe


def _main() -> None:
    """One wish per line; answers with the child's pid, and with its exit code once it has ended."""
    from usina.server import discovery
    from usina.testing import process

    discovery.drivers()
    discovery.facades()
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    while line := sys.stdin.buffer.readline():
        wish = json.loads(line)
        child = os.fork()
        if child == 0:
            answers.close()
            _become(process.serve, wish)
        answers.write(f"{child}\n".encode())
        answers.write(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n".encode())


def _become(serve: object, wish: dict[str, object]) -> None:
    """In the child: the wish's log and fault, then serve. Never returns."""
    log = os.open(str(wish["log"]), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    empty = os.open(os.devnull, os.O_RDONLY)
    for number, target in ((empty, 0), (log, 1), (log, 2)):
        os.dup2(number, target)
    os.environ["USINA_FAULT"] = str(wish["fault"])
    importlib.reload(importlib.import_module("usina.engine.faults"))  # it reads the environment when imported
    code = 1
    try:
        serve(wish["arguments"])  # type: ignore[operator]
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _main()
