"""Waiting where people can see it: one live line on stderr with the phase and the newest sentence of the story.

Without a terminal, each new phase is one line.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.status import Status
from rich.text import Text

from usina.cli import screen
from usina.client import Client, Event, Resource


class Watcher:
    """Tells how one resource gets on. Called by `Client.wait`."""

    def __init__(self, status: Status | None, aloud: bool = True) -> None:
        self._aloud = aloud
        self._status = status
        self._begun = time.monotonic()
        self._phase = ""
        self._sentence = ""

    def __call__(self, resource: Resource, event: Event | None) -> None:
        if event is not None:
            self._sentence = event.text
        sentence = self._building(resource) or self._sentence
        if self._status is not None:
            took = Text(f" {time.monotonic() - self._begun:.0f}s ", style="dim")
            line = Text.assemble(screen.clean(resource.title), " ", screen.phase(resource.phase), took)
            self._status.update(line.append(screen.clean(sentence)[:120], style="dim"))
        elif self._aloud and event is not None and event.kind.endswith((".refused", ".failed")):
            screen.say(f"{resource.title}: {event.text}")
        elif self._aloud and resource.phase != self._phase and event is None:
            screen.say(f"{resource.title}: {resource.phase}")
            self._phase = resource.phase

    def tell(self, sentence: str) -> None:
        """Show a sentence that is in no story."""
        self._sentence = sentence

    @staticmethod
    def _building(resource: Resource) -> str:
        """How far an image is, in percent and words."""
        progress = resource.status.get("progress")
        if resource.kind != "image" or not isinstance(progress, int | float) or resource.phase != "building":
            return ""
        return f"{progress:.0%} {resource.status.get('message', '')}"


@contextmanager
def watching(quiet: bool = False) -> Iterator[Watcher]:
    """A watcher with a live line for as long as the block lasts."""
    console = screen.err()
    if quiet or not console.is_terminal:
        yield Watcher(None, aloud=not quiet)
        return
    with console.status("…", spinner="dots") as status:
        yield Watcher(status)


def settle(
    site: Client, ordered: Resource, wait: bool, timeout: float, until: tuple[str, ...] | None = None
) -> Resource:
    """Wait for what was ordered, if that is asked for; the resource as it is then."""
    if not wait:
        return ordered
    with _standing(ordered), watching() as watcher:
        return site.wait(ordered, until, timeout=timeout, watch=watcher)


def leave(site: Client, leaving: Resource, wait: bool, timeout: float) -> None:
    """Wait until what was asked to go is gone, if that is asked for, and say so."""
    if not wait:
        screen.done(f"{leaving.title} is going")
        return
    with _standing(leaving), watching() as watcher:
        site.wait_gone(leaving, timeout=timeout, watch=watcher)
    screen.done(f"{leaving.title} is gone")


@contextmanager
def _standing(ordered: Resource) -> Iterator[None]:
    """Ctrl-C ends the waiting, not the order; say so."""
    try:
        yield
    except KeyboardInterrupt:
        screen.warn(f"no longer waiting; the order stands: usina story {ordered.name} --follow")
        raise
