"""Waiting for a resource: its story tells how it goes, its phase when it is done."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator

from usina.client.errors import ApiError, CannotConnect, ResourceFailed, WaitedTooLong
from usina.client.models import Event, Resource

SOONEST, LATEST = 0.05, 1.0  # seconds between two looks

Watch = Callable[[Resource, Event | None], None]
"""Called with the resource as it is, and with each event of its story once."""

Look = Callable[[], Resource | None]  # None: it is gone
Story = Callable[[int], Iterator[Event]]


def wait(
    look: Look,
    story: Story | None,
    wanted: Resource,
    until: Collection[str] | None,
    timeout: float,
    watch: Watch,
) -> Resource:
    """Until the wish of `wanted` is fulfilled, or its phase is one of `until`.

    Raises `ResourceFailed`, `WaitedTooLong`.
    """
    for now in _looks(look, story, wanted, timeout, watch):
        if now is None:
            raise ApiError(404, f"{wanted.title} is gone", code="not-found")
        answered = now.observed >= wanted.generation
        if answered and now.phase == "failed" and "failed" not in (until or ()):
            raise ResourceFailed(now)
        if (answered and now.phase in until) if until is not None else now.settled(wanted.generation):
            return now
    raise AssertionError("unreachable")


def wait_gone(look: Look, story: Story | None, leaving: Resource, timeout: float, watch: Watch) -> None:
    """Until nothing of it is left. Raises `WaitedTooLong`."""
    for now in _looks(look, story, leaving, timeout, watch):
        if now is None:
            return


def _looks(
    look: Look, story: Story | None, resource: Resource, timeout: float, watch: Watch
) -> Iterator[Resource | None]:
    """Look again and again until the time is over; a site that restarts meanwhile is waited for."""
    deadline = time.monotonic() + timeout
    pause, told, last = SOONEST, 0, resource
    failure: CannotConnect | None = None
    while True:
        try:
            now = look()
            events = list(story(told)) if story is not None else []
            failure = None
        except CannotConnect as error:
            now, events, failure = last, [], error
        last = now or last
        for event in events:
            told = event.seq
            watch(last, event)
        watch(last, None)
        if failure is None:
            yield now
        if time.monotonic() > deadline:
            if failure is not None:
                raise failure
            trouble = f": {last.trouble}" if last.trouble else ""
            raise WaitedTooLong(f"{resource.title} is still {last.phase} after {timeout:.0f} s{trouble}")
        pause = SOONEST if events else min(pause * 1.5, LATEST)
        time.sleep(min(pause, max(0.0, deadline - time.monotonic()) + 0.01))
