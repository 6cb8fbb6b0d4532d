"""Sandboxes that wait for runs to be their own, made while nothing else is to do.

What can be known of most runs beforehand is done: namespaces, mounts, control groups, and folders that are renamed when
a run comes. One that ends before that is forgotten.
"""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from . import files, kernel
from .groups import Group, Layout, Limits
from .loop import Loop
from .spares import Spares
from .spawn import Sandboxes, Started

_MOST: Final = 2
_QUIET: Final = 0.005  # seconds without a start, before another is made to wait
_PATIENCE: Final = 5.0  # seconds for one to end
_AGAIN: Final = 0.01  # seconds until another look at a group that is not empty


@dataclass(frozen=True, slots=True)
class Ready:
    """Its folders are called `name`."""

    name: str
    uid: int | None
    group: Group
    started: Started

    def waits(self) -> bool:
        """Its folders may be given another name only when it has mounted them."""
        try:
            return kernel.content(f"/proc/{self.started.pid}/comm") == b"usina-spare\n"
        except OSError:
            return False


class ReadySandboxes:
    """`lend` takes a user for one, `give_back` is told of one that no run came for."""

    def __init__(
        self,
        loop: Loop,
        state: str,
        layout: Layout,
        sandboxes: Sandboxes,
        spares: Spares,
        lend: Callable[[], int | None],
        give_back: Callable[[int | None], None],
    ) -> None:
        self._loop, self._state, self._layout = loop, state, layout
        self._sandboxes, self._spares = sandboxes, spares
        self._lend, self._give_back = lend, give_back
        self._waiting: list[Ready] = []
        self._dropped: list[Ready] = []  # whose end has not come yet
        self._clearing: list[Group] = []  # that the dead have not left yet
        self._begun_at = 0.0
        self._filling = True
        loop.later(0, self._fill)

    def take(self, record: Mapping[str, Any]) -> Ready | None:
        """One for a run, if that asks for nothing that must be known before a sandbox is made. Its user is lent."""
        special = (
            record["extra"]
            or record["volumes"]
            or record["devices"]
            or record.get("card")
            or record["cpus"]
            or record["nodes"]
        )
        if special or record["network"] == "host":
            return None
        ready = next((one for one in self._waiting if one.waits()), None)
        if ready is not None:
            self._waiting.remove(ready)
            self._loop.forget(ready.started.own)
        return ready

    def begun(self) -> None:
        """A run was begun: let another wait, once it is quiet."""
        self._begun_at = time.monotonic()
        if not self._filling:
            self._filling = True
            self._loop.later(_QUIET, self._fill)

    def _fill(self) -> None:
        if time.monotonic() - self._begun_at < _QUIET:
            return self._loop.later(_QUIET, self._fill)
        self._filling = False
        if len(self._waiting) >= _MOST:
            return
        try:
            ready = self._make()
        except (OSError, files.Refused):
            traceback.print_exc()  # a run that needs one will say it
            return
        self._waiting.append(ready)
        self._loop.watch(ready.started.own, lambda: self._lost(ready))
        self.begun()

    def _make(self) -> Ready:
        uid = self._lend()
        name = self._spares.take(uid)
        group = Group.of(self._layout, name, Limits())
        record = {"handle": name, "uid": uid, "network": "none", "extra": (), "devices": (), "volumes": ()}
        try:
            started = make(self._sandboxes, record, f"{self._state}/runs/{name}", group, Limits())
        except OSError:
            self._clear(group, time.monotonic() + _PATIENCE)
            self._give_back(uid)
            raise
        return Ready(name, uid, group, started)

    def _lost(self, ready: Ready) -> None:
        self._waiting.remove(ready)
        self._gone(ready)

    def drop(self, ready: Ready) -> None:
        """End one that was taken."""
        kernel.kill(ready.started.own)
        self._dropped.append(ready)
        self._loop.watch(ready.started.own, lambda: self._ended(ready))

    def _ended(self, ready: Ready) -> None:
        self._dropped.remove(ready)
        self._gone(ready)

    def _gone(self, ready: Ready) -> None:
        self._let_go(ready)
        self._clear(ready.group, time.monotonic() + _PATIENCE)

    def _let_go(self, ready: Ready) -> None:
        self._loop.forget(ready.started.own)
        ready.started.give_up()
        for fd in (ready.started.own, *ready.started.says):
            os.close(fd)
        self._give_back(ready.uid)

    def _clear(self, group: Group, until: float) -> None:
        """The dead may leave their group a moment after their end is told."""
        if group in self._clearing:
            self._clearing.remove(group)
        if not group.remove() and time.monotonic() < until:
            self._clearing.append(group)
            self._loop.later(_AGAIN, lambda: self._clear(group, until))

    def close(self) -> None:
        """End what waits, and see it gone; and what is going already."""
        until = time.monotonic() + _PATIENCE
        ending = [*self._waiting, *self._dropped]
        for ready in ending:
            kernel.kill(ready.started.own)
            kernel.has_ended(ready.started.own, until - time.monotonic())
            self._let_go(ready)
        for group in (*(ready.group for ready in ending), *self._clearing):
            while not group.remove() and time.monotonic() < until:
                time.sleep(_AGAIN)
        self._waiting, self._dropped, self._clearing = [], [], []


def make(
    sandboxes: Sandboxes,
    record: Mapping[str, Any],
    folder: str,
    group: Group,
    limits: Limits,
    mounts: Sequence[int] = (),
) -> Started:
    """A sandbox in a group of its own. Raises `OSError`."""
    group.make(limits)
    lists = group.lists()
    try:
        return sandboxes.make(record, folder, lists, mounts)
    finally:
        for fd in lists:
            os.close(fd)
