"""How many replicas an endpoint shall have. Pure.

It goes up at once, and down by one at a time, after load has asked for fewer for a while: a replica takes long to come
up, and one too many for a minute costs less than one too few. It goes down to none only where nobody has asked for
anything for `idle_limit` seconds, and the minimum allows it; up from none with the first request that waits.
"""

from __future__ import annotations

from math import ceil

from usina.core.endpoint import EndpointSpec, EndpointStatus, Load
from usina.core.units import Instant

SHARE = 0.75  # of its slots that a replica shall be busy with, where the wish does not say it
QUEUE = 2.0  # seconds that a request may wait while all replicas are there, until another replica is added
UP_AGAIN = 15.0  # seconds between two replicas that are added for that
STABLE = 60.0  # seconds in which load must have asked for fewer, before there is one fewer


def target(spec: EndpointSpec) -> float:
    """Requests in flight on one replica that scaling aims at."""
    return spec.target or max(1.0, SHARE * spec.slots)


def asked(spec: EndpointSpec, load: Load) -> int:
    """Replicas that load asks for, whatever is allowed: by requests at work and in the line, or by tokens."""
    by_requests = ceil((load.in_flight + load.waiting) / target(spec))
    by_tokens = ceil(load.tokens / spec.target_tokens) if spec.target_tokens else 0
    return max(by_requests, by_tokens)


def current(spec: EndpointSpec, status: EndpointStatus) -> int:
    """Replicas wanted until now, within what is allowed now."""
    return min(spec.maximum, max(spec.minimum, status.wanted))


def wanted(spec: EndpointSpec, status: EndpointStatus, load: Load, ready: int, now: Instant) -> tuple[int, str]:
    """Replicas to have from now on, and why, in words for people. `ready`: those that can be sent requests now."""
    have, asks = current(spec, status), asked(spec, load)
    if have == 0:
        waits = load.waiting or load.in_flight
        return (min(spec.maximum, max(1, asks)), _busy(load)) if waits else (0, "")
    if asks > have:
        return min(spec.maximum, asks), _busy(load)
    if load.oldest > QUEUE and ready >= have and now - status.scaled_at >= UP_AGAIN:
        return min(spec.maximum, have + 1), f"a request has waited for {load.oldest:.0f} s"
    if is_idle(spec, status, load, now):
        return 0, f"nothing was asked of it for {spec.idle_limit:.0f} s"
    least = max(1, spec.minimum)
    if have > least and not is_needed(spec, status, load) and now - status.needed_at >= STABLE:
        return max(least, have - 1), f"{max(1, asks)} would do for {STABLE:.0f} s"
    return have, ""


def is_needed(spec: EndpointSpec, status: EndpointStatus, load: Load) -> bool:
    """Whether load asks for all of them; also where requests wait although they are there."""
    return asked(spec, load) >= current(spec, status) or load.oldest > QUEUE


def is_idle(spec: EndpointSpec, status: EndpointStatus, load: Load, now: Instant) -> bool:
    """Whether it may go down to none."""
    busy = load.in_flight or load.waiting
    return spec.minimum == 0 and not busy and now - max(load.last_at, status.scaled_at) >= spec.idle_limit


def look_again(spec: EndpointSpec, status: EndpointStatus, load: Load) -> Instant | None:
    """When time alone may ask for another number; a load that changes is told."""
    have = current(spec, status)
    moments = []
    if have > max(1, spec.minimum) and not is_needed(spec, status, load):
        moments.append(status.needed_at + STABLE)
    if have and spec.minimum == 0 and not (load.in_flight or load.waiting):
        moments.append(max(load.last_at, status.scaled_at) + spec.idle_limit)
    if 0 < have < spec.maximum and load.oldest > 0:
        moments.append(status.scaled_at + UP_AGAIN)
    return min(moments, default=None)


def _busy(load: Load) -> str:
    parts = [f"{load.in_flight} requests at work"] if load.in_flight else []
    parts += [f"{load.waiting} waiting"] if load.waiting else []
    return " and ".join(parts) or f"{load.tokens:.0f} tokens per second"
