"""The line before an endpoint whose replicas are all at work: by priority, and in turns between tenants within one.

A tenant with a thousand requests waits no less, and makes a tenant with one wait no more, than if it had ten.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar


class Waiting(Protocol):
    tenant: str
    priority: int
    since: float


Waiter = TypeVar("Waiter", bound=Waiting)


class Line(Generic[Waiter]):
    def __init__(self) -> None:
        self._classes: dict[int, OrderedDict[str, deque[Waiter]]] = {}
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Waiter]:
        return (one for tenants in self._classes.values() for queue in tenants.values() for one in queue)

    def join(self, one: Waiter) -> None:
        tenants = self._classes.setdefault(one.priority, OrderedDict())
        tenants.setdefault(one.tenant, deque()).append(one)
        self._length += 1

    def next(self) -> Waiter | None:
        """Whose turn it is; it leaves the line."""
        for priority in sorted(self._classes, reverse=True):
            tenants = self._classes[priority]
            tenant, queue = next(iter(tenants.items()))
            one = queue.popleft()
            if queue:
                tenants.move_to_end(tenant)
            else:
                del tenants[tenant]
                if not tenants:
                    del self._classes[priority]
            self._length -= 1
            return one
        return None

    def leave(self, one: Waiter) -> bool:
        """Take one out who waits no more; whether it was in the line."""
        tenants = self._classes.get(one.priority, OrderedDict())
        queue = tenants.get(one.tenant)
        if queue is None or one not in queue:
            return False
        queue.remove(one)
        if not queue:
            del tenants[one.tenant]
            if not tenants:
                del self._classes[one.priority]
        self._length -= 1
        return True

    def oldest(self) -> float | None:
        """Since when the one waits who waits longest."""
        heads = [queue[0].since for tenants in self._classes.values() for queue in tenants.values()]
        return min(heads, default=None)
