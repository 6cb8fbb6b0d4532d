"""Doors: one key opens every door. Checks a key and its secret, and says who is asking.

The secret is HMAC-SHA256 over the key id and its version under the master key, so that none is stored and protocols
that sign with the secret (AWS Signature V4) can be checked. What a key means is remembered for a second at most, so
that a revocation holds everywhere within a second, and at once in the process that made it.
"""

from __future__ import annotations

import base64
import hmac
from dataclasses import dataclass
from hashlib import sha256

from usina.core.clock import Clock
from usina.core.errors import Unauthenticated
from usina.core.ids import is_id
from usina.core.tenancy import Actor, Key, Member, Role
from usina.core.units import Instant
from usina.store.flights import Flights
from usina.store.identity import note_use
from usina.store.store import Store

TOKEN = "usk-"  # noqa: S105 - a prefix, not a secret
FRESH = 1.0
NOTE_USE_EVERY = 60.0
_REFUSED = "the key is unknown, expired or revoked"


@dataclass(slots=True)
class _Known:
    at: Instant
    key: Key
    member: Member
    secret: str


class Doors:
    def __init__(self, store: Store, clock: Clock, master: bytes) -> None:
        self._store, self._clock, self._master = store, clock, master
        self._known: dict[str, _Known] = {}
        self._noted: dict[str, Instant] = {}
        self._flights = Flights()

    def secret(self, key: Key) -> str:
        """The secret of a key: 43 characters of URL-safe base64 (256 bits)."""
        digest = hmac.new(self._master, f"{key.id}:{key.version}".encode(), sha256).digest()
        return base64.urlsafe_b64encode(digest).decode().rstrip("=")

    def token(self, key: Key) -> str:
        """The same pair as a Bearer token."""
        return f"{TOKEN}{key.id.removeprefix('key-')}-{self.secret(key)}"

    def forget(self) -> None:
        """Identity changed here: look everything up anew."""
        self._known.clear()

    async def bearer(self, token: str) -> Actor:
        """Who a ``usk-<id>-<secret>`` token is. Raises `Unauthenticated`."""
        id, _, secret = token.removeprefix(TOKEN).partition("-")
        if not token.startswith(TOKEN) or not secret:
            raise Unauthenticated("not a Usina token; it looks like usk-<id>-<secret>")
        return await self.pair(f"key-{id}", secret)

    async def pair(self, key_id: str, secret: str) -> Actor:
        """Who a key id and its secret are. Raises `Unauthenticated`, always in the same words."""
        now = self._clock.now()
        known = await self._know(key_id, now)
        if known is None or not hmac.compare_digest(known.secret.encode(), secret.encode()):
            raise Unauthenticated(_REFUSED)
        return await self._let_in(known, now)

    async def trusted(self, key_id: str) -> Actor:
        """Who a key is whose secret was checked earlier, as in an address that we signed. Raises `Unauthenticated`."""
        now = self._clock.now()
        known = await self._know(key_id, now)
        if known is None:
            raise Unauthenticated(_REFUSED)
        return await self._let_in(known, now)

    def sign(self, text: str) -> str:
        """Marks `text`, which says what it is for and until when, as ours."""
        return hmac.new(self._master, f"signed:{text}".encode(), sha256).hexdigest()

    def signed(self, text: str, mark: str) -> bool:
        return hmac.compare_digest(self.sign(text).encode(), mark.encode())

    async def _let_in(self, known: _Known, now: Instant) -> Actor:
        key, member = known.key, known.member
        if not _open(key, member, now):
            raise Unauthenticated(_REFUSED)
        await self._note_use(key, now)
        return Actor(
            member=member.id,
            name=member.name,
            roles=member.roles,
            tenant=member.tenant,
            key=key.id,
            only_project=key.project,
            ceiling=key.role or Role.OPERATOR,
        )

    async def holds(self, actor: Actor) -> bool:
        """Whether an actor let in earlier would be let in now with the same roles."""
        now = self._clock.now()
        known = await self._know(actor.key, now)
        return known is not None and _open(known.key, known.member, now) and known.member.roles == actor.roles

    async def _know(self, key_id: str, now: Instant) -> _Known | None:
        known = self._known.get(key_id)
        if known is not None and 0 <= now - known.at < FRESH:
            return known
        return await self._flights.join(key_id, lambda: self._look_up(key_id, now))

    async def _look_up(self, key_id: str, now: Instant) -> _Known | None:
        key = await self._store.identity.key(key_id) if is_id(key_id, "key") else None
        member = await self._store.identity.member(key.member) if key else None
        if key is None or member is None:
            return None
        if len(self._known) > 10_000:
            self._known.clear()
        known = self._known[key_id] = _Known(now, key, member, self.secret(key))
        return known

    async def _note_use(self, key: Key, now: Instant) -> None:
        if now - self._noted.get(key.id, key.last_used_at or 0.0) < NOTE_USE_EVERY:
            return
        self._noted[key.id] = now
        work = self._store.work()
        note_use(work, key.id, now)
        await work.commit()


def _open(key: Key, member: Member, now: Instant) -> bool:
    expired = key.expires_at is not None and key.expires_at <= now
    return key.revoked_at is None and not expired and not member.disabled
