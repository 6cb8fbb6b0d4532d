"""Rates of one key: requests and tokens per minute, and requests at a time. Pure but for the clock that is handed in.

Each rate is a bucket that holds a minute's worth and fills evenly: a burst is let through, and no minute, however it is
laid, gets more than twice the rate, nor a long time more than the rate.
"""

from __future__ import annotations

from usina.core.llm import Limits
from usina.services.llm.refusal import too_many

MINUTE = 60.0


class Bucket:
    """At most `size` at once, filled again within a minute. May be overdrawn by what was used beyond the estimate."""

    __slots__ = ("at", "level", "size")

    def __init__(self, size: int, now: float) -> None:
        self.size, self.level, self.at = size, float(size), now

    def fill(self, now: float) -> None:
        self.level = min(self.size, self.level + max(0.0, now - self.at) * self.size / MINUTE)
        self.at = now

    def wait(self, amount: float) -> float:
        """Seconds until `amount` is there; more than fits at once needs a full bucket only."""
        missing = min(amount, self.size) - self.level
        return max(0.0, missing * MINUTE / self.size)

    def full_in(self) -> float:
        return (self.size - self.level) * MINUTE / self.size


class Rates:
    """What one key has used of its limits. `enter` and `leave` come in pairs."""

    __slots__ = ("limits", "requests", "running", "tokens")

    def __init__(self, limits: Limits, now: float) -> None:
        self.running = 0
        self.limits = limits
        self.requests = Bucket(limits.requests, now) if limits.requests else None
        self.tokens = Bucket(limits.tokens, now) if limits.tokens else None

    def change(self, limits: Limits, now: float) -> None:
        """Other limits; what was used of those that stay stays used."""
        if limits.requests != self.limits.requests:
            self.requests = Bucket(limits.requests, now) if limits.requests else None
        if limits.tokens != self.limits.tokens:
            self.tokens = Bucket(limits.tokens, now) if limits.tokens else None
        self.limits = limits

    def enter(self, tokens: int, now: float) -> None:
        """Take one request of about so many tokens, or raise `Refusal` and take nothing."""
        if self.limits.concurrency and self.running >= self.limits.concurrency:
            raise too_many(f"this key may have {self.limits.concurrency} requests at a time", 1.0)
        if self.requests is not None:
            self.requests.fill(now)
            if self.requests.level < 1:
                raise too_many(f"this key may make {self.limits.requests} requests a minute", self.requests.wait(1))
        if self.tokens is not None:
            self.tokens.fill(now)
            wait = self.tokens.wait(tokens)
            if wait > 0:
                raise too_many(f"this key may use {self.limits.tokens} tokens a minute", wait, "tokens")
            self.tokens.level -= tokens
        if self.requests is not None:
            self.requests.level -= 1
        self.running += 1

    def leave(self, estimated: int, used: int) -> None:
        """The request is over, and used so many tokens."""
        self.running -= 1
        if self.tokens is not None:
            self.tokens.level = min(self.tokens.size, self.tokens.level + estimated - used)

    def headers(self, now: float) -> list[tuple[bytes, bytes]]:
        """``x-ratelimit-*``, as OpenAI's."""
        found: list[tuple[bytes, bytes]] = []
        for word, bucket in ((b"requests", self.requests), (b"tokens", self.tokens)):
            if bucket is not None:
                bucket.fill(now)
                found += [
                    (b"x-ratelimit-limit-" + word, b"%d" % bucket.size),
                    (b"x-ratelimit-remaining-" + word, b"%d" % max(0, int(bucket.level))),
                    (b"x-ratelimit-reset-" + word, b"%.3fs" % max(0.0, bucket.full_in())),
                ]
        return found
