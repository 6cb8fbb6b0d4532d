"""Sandboxes that wait: their groups go, even where the dead take a moment to leave them."""

from __future__ import annotations

import os
import subprocess
from typing import Any, cast

import pytest

from usina.drivers.process.warden.loop import Loop
from usina.drivers.process.warden.ready import Ready, ReadySandboxes


class SlowGroup:
    """Removed at the fourth try; then nothing is left to do."""

    def __init__(self, loop: Loop) -> None:
        self.loop, self.tries = loop, 0

    def remove(self) -> bool:
        self.tries += 1
        self.loop.stopped = self.tries >= 4
        return self.loop.stopped


class Begun:
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.own, self.pid, self.says = os.pidfd_open(process.pid), process.pid, ()

    def give_up(self) -> None:
        pass


@pytest.mark.parametrize("closes", [True, False], ids=["at the end", "while others run"])
def test_a_group_is_tried_until_it_is_empty(closes: bool) -> None:
    loop, given_back = Loop(), list[int | None]()
    group = SlowGroup(loop)
    any_of: Any = cast("Any", None)
    waiting = ReadySandboxes(loop, "/nowhere", any_of, any_of, any_of, lambda: None, given_back.append)
    with subprocess.Popen(["sleep", "60"]) as process:
        ready = Ready("spare", 7, cast("Any", group), cast("Any", Begun(process)))
        waiting._waiting.append(ready)
        if closes:
            waiting.close()
        else:
            waiting._waiting.clear()
            loop._timers.clear()  # no other is made
            waiting.drop(ready)
            loop.run()
    assert group.tries == 4
    assert given_back == [7]
