"""The account that `usina demo` gives of itself: numbered steps, their times, checks, what could not be undone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.text import Text

from usina.cli import screen


class Steps:
    def __init__(self) -> None:
        self.problems: list[str] = []
        self._number = 0
        self._begun = time.monotonic()
        self._undone = False

    @contextmanager
    def step(self, title: str) -> Iterator[Callable[[str], None]]:
        """One numbered step; what is said within it is shown below its title, with the time it took."""
        self._number += 1
        begun = time.monotonic()
        said: list[str] = []
        console = screen.out()
        console.print(Text.assemble((f"{self._number:>2}  ", "bold cyan"), (title, "bold")), soft_wrap=True)
        yield said.append
        lead = f"{time.monotonic() - begun:9.1f} s  "
        for line in said:
            console.print(Text.assemble((lead, "dim"), screen.clean(line)), soft_wrap=True)
            lead = " " * len(lead)

    def undoing(self, what: str, undo: Callable[[], object]) -> None:
        """Undo one thing; what goes wrong is remembered, and the rest is undone all the same."""
        if not self._undone:
            self._undone = True
            self._number += 1
            title = Text.assemble((f"{self._number:>2}  ", "bold cyan"), ("Clearing the stage", "bold"))
            screen.out().print(title)
        begun = time.monotonic()
        try:
            undo()
        except Exception as error:
            self.problems.append(f"{what}: {error}")
            sign, style = "✘", "red"
            what = f"{what}: {error}"
        else:
            sign, style = "✔", "green"
        took = f"{time.monotonic() - begun:9.1f} s"
        screen.out().print(Text.assemble((took, "dim"), "  ", (sign, style), f" {what}"), soft_wrap=True)

    def check(self, claim: str, holds: bool) -> None:
        """Something that must be so at the end."""
        if not holds:
            self.problems.append(f"not so: {claim}")

    def total(self) -> float:
        return time.monotonic() - self._begun
