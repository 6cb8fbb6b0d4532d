"""Unit of work: what one operation writes, gathered and committed as one.

Every writer demands a proof (`Grant` from `permit`, or `Lease` from the store). Nothing touches the database before
`commit`; a guard that does not hold raises its failure and then nothing was written.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import and_, bindparam, case, delete, exists, insert, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from usina.core.capacity import Claim
from usina.core.errors import Conflict, NotFound, QuotaExceeded, Stale, UsinaError
from usina.core.event import Event
from usina.core.grant import Lease, Proof
from usina.core.resource import AnyResource, Phase
from usina.core.tenancy import MEASURES, Amounts
from usina.core.units import Instant
from usina.store import rows
from usina.store.database import Database, Write
from usina.store.leases import Leased
from usina.store.tables import claims, events, providers, quotas, requests, reservations, resources

FREE, COUNT, TAKE, CHANGE, TELL = range(5)  # ranks: what frees comes first, what tells last

_b = bindparam
_IN_USE = exists().where(reservations.c.scope == _b("b_scope")).correlate(None)

_ORDER = insert(resources).inline()
_WISH = (
    update(resources)
    .where(
        resources.c.id == _b("b_id"),
        resources.c.generation == _b("b_generation") - 1,
        resources.c.deleting.is_(False),
    )
    .values(
        spec=_b("b_spec"),
        generation=_b("b_generation"),
        name=_b("b_name"),
        labels=_b("b_labels"),
        attempts=0,
        updated_at=_b("b_at"),
        due_at=_b("b_at"),
    )
)
_LEAVE = (
    update(resources)
    .where(resources.c.id == _b("b_id"), resources.c.deleting.is_(False), ~_IN_USE)
    .values(
        deleting=True,
        generation=resources.c.generation + 1,
        attempts=0,
        updated_at=_b("b_at"),
        due_at=_b("b_at"),
    )
)
# A lease sets the due time to its own end. An earlier one means that a wish or a hint came while the engine worked, and
# must not be lost.
_LEASED = update(resources).where(resources.c.id == _b("b_id"), resources.c.lease_owner == _b("b_owner"))
_SEEN: dict[str, Any] = {
    "status": _b("b_status"),
    "observed": _b("b_observed"),
    "phase": _b("b_phase"),
    "conditions": _b("b_conditions"),
    "provider": _b("b_provider"),
    "attempts": case((resources.c.generation == _b("b_generation"), _b("b_attempts")), else_=0),
    "updated_at": _b("b_at"),
}
_KEEP = _LEASED.values(_SEEN)
_OBSERVE = _LEASED.values(
    _SEEN
    | {
        "due_at": case((resources.c.due_at < resources.c.lease_until, resources.c.due_at), else_=_b("b_due")),
        "lease_owner": None,
        "lease_until": None,
    }
)
_PLACE_PART = (
    update(resources)
    .where(resources.c.id == _b("b_id"), resources.c.provider.is_(None), resources.c.lease_owner.is_(None))
    .values(
        provider=_b("b_provider"),
        status=_b("b_status"),
        phase=Phase.BUILDING.value,
        updated_at=_b("b_at"),
        due_at=_b("b_at"),
    )
)
_FORGET = delete(resources).where(resources.c.id == _b("b_id"), resources.c.lease_owner == _b("b_owner"))
_FREE_OWNED = delete(reservations).where(reservations.c.owner == _b("b_owner"))
_FREE_ONE = delete(reservations).where(
    reservations.c.scope == _b("b_scope"),
    reservations.c.key == _b("b_key"),
    reservations.c.owner == _b("b_owner"),
)
# What a machine gives up is free only when the host has let go of it: noted at the wish, freed when that wish settles.
_left = reservations.alias("given_up")
_SETTLED = exists().where(resources.c.id == _b("b_owner"), resources.c.generation == _b("b_generation")).correlate(None)
_FREE_LEFT = delete(reservations).where(
    reservations.c.owner == _b("b_owner"),
    (reservations.c.scope + "|" + reservations.c.key).in_(
        select(_left.c.key).where(_left.c.scope == _b("b_leaving")).correlate(None)
    ),
    _SETTLED,
)
_FREE_NOTES = delete(reservations).where(reservations.c.scope == _b("b_leaving"), _SETTLED)
_RESERVE = insert(reservations).inline()
_NAME = insert(reservations).inline()
_RESERVE_ALIVE = insert(reservations).from_select(
    ["scope", "key", "owner"],
    select(
        _b("b_scope").label("s"),
        _b("b_key").label("k"),
        _b("b_owner").label("o"),
    ).where(exists().where(resources.c.id == _b("b_alive"), resources.c.deleting.is_(False)).correlate(None)),
)
_CHARGE = (
    update(quotas)
    .where(
        quotas.c.scope == _b("b_scope"),
        and_(
            *(
                or_(
                    _b(f"b_{m}") <= 0,
                    quotas.c[f"limit_{m}"].is_(None),
                    quotas.c[f"used_{m}"] + _b(f"b_{m}") <= quotas.c[f"limit_{m}"],
                )
                for m in MEASURES
            )
        ),
    )
    .values({f"used_{m}": quotas.c[f"used_{m}"] + _b(f"b_{m}") for m in MEASURES})
)
_CLAIM = insert(claims).inline()
_DROP_CLAIMS = delete(claims).where(claims.c.resource == _b("b_resource"))
_DROP_CLAIM = delete(claims).where(claims.c.resource == _b("b_resource"), claims.c.provider == _b("b_provider"))
_TAKE = (
    update(providers)
    .where(providers.c.id == _b("b_provider"), providers.c.generation == _b("b_generation"))
    .values(
        generation=providers.c.generation + 1,
        used_cores=providers.c.used_cores + _b("b_cores"),
        used_memory=providers.c.used_memory + _b("b_memory"),
        used_disk=providers.c.used_disk + _b("b_disk"),
    )
)
_GIVE_BACK = (
    update(providers)
    .where(providers.c.id == _b("b_provider"))
    .values(
        releases=providers.c.releases + 1,  # not its generation: a claim that fits, fits all the more
        used_cores=providers.c.used_cores - _b("b_cores"),
        used_memory=providers.c.used_memory - _b("b_memory"),
        used_disk=providers.c.used_disk - _b("b_disk"),
    )
)
_TELL = insert(events).inline()
_REQUEST = insert(requests).inline()


class Work:
    """Gathers writes; see the module. Make one with `Store.work()`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.writes: list[Write] = []
        self.leased: list[Leased] = []  # what was ordered with a lease

    @property
    def is_sqlite(self) -> bool:
        return self._database.is_sqlite

    def write(
        self,
        rank: int,
        statement: Any,
        values: dict[str, Any],
        expect: int | None = None,
        failure: Callable[[], UsinaError] | None = None,
    ) -> None:
        """Add one guarded statement; for the other modules of `store`."""
        self.writes.append(Write(rank, statement, values, expect, failure or Stale.meanwhile))

    # --- resources

    def order(self, resource: AnyResource, proof: Proof, *, due: Instant | None, lease: Lease | None = None) -> None:
        """A new resource. `due` is when the engine shall look first. With `lease`, it is leased from the beginning, and
        must be given to the engine once it is committed; see `leased`."""
        leased: dict[str, Any] = {"due_at": due, "lease_owner": None, "lease_until": None}
        if lease is not None:
            leased = {"due_at": lease.until, "lease_owner": lease.owner, "lease_until": lease.until}
            self.leased.append(Leased(resource, lease))
        self.write(TAKE, _ORDER, rows.resource_values(resource) | leased, 1)

    def wish(self, resource: AnyResource, proof: Proof) -> None:
        """A changed wish: `resource` is already one generation on. Raises `Stale` if it changed meanwhile."""
        self.write(
            CHANGE,
            _WISH,
            {
                "b_id": resource.id,
                "b_generation": resource.generation,
                "b_spec": rows.encode(resource.spec),
                "b_name": resource.name,
                "b_labels": rows.encode(resource.labels),
                "b_at": resource.updated_at,
            },
            1,
            Stale.meanwhile,
        )

    def leave(self, resource: AnyResource, proof: Proof, at: Instant) -> None:
        """Ask a resource to go. Raises `Conflict` while anything uses it."""
        self.write(
            CHANGE,
            _LEAVE,
            {"b_id": resource.id, "b_scope": f"use:{resource.id}", "b_at": at},
            1,
            lambda: Conflict(f"{resource.kind.value.replace('_', ' ')} {resource.name} is in use", code="in-use"),
        )

    def observe(self, resource: AnyResource, lease: Lease, *, due: Instant | None = None, keep: bool = False) -> None:
        """What the engine saw. Writes status, never the wish. Ends the lease, and says when to look again, unless
        `keep`."""
        values = {
            "b_id": resource.id,
            "b_owner": lease.owner,
            "b_status": rows.encode(resource.status),
            "b_observed": resource.observed,
            "b_phase": resource.phase.value,
            "b_conditions": rows.encode(resource.conditions),
            "b_provider": resource.provider,
            "b_attempts": resource.attempts,
            "b_generation": resource.generation,
            "b_at": resource.updated_at,
        }
        if keep:
            self.write(CHANGE, _KEEP, values, 1, LeaseLost)
        else:
            self.write(CHANGE, _OBSERVE, values | {"b_due": due}, 1, LeaseLost)

    def place_part(self, part: AnyResource, lease: Lease, at: Instant) -> None:
        """A part was given its place under the lease of its whole, and has its turn. Raises `Stale` if it is leased or
        was placed already."""
        values = {"b_id": part.id, "b_provider": part.provider, "b_status": rows.encode(part.status), "b_at": at}
        self.write(CHANGE, _PLACE_PART, values, 1, Stale.meanwhile)

    def forget(self, resource: AnyResource, lease: Lease) -> None:
        """The end of a resource: its row, its claims' particulars and all it had reserved."""
        self.write(CHANGE, _FORGET, {"b_id": resource.id, "b_owner": lease.owner}, 1, LeaseLost)
        self.write(FREE, _FREE_OWNED, {"b_owner": resource.id})

    # --- reservations: "this key is taken in this scope"

    def reserve(
        self,
        scope: str,
        key: str,
        owner: str,
        proof: Proof,
        failure: Callable[[], UsinaError],
        alive: str | None = None,
    ) -> None:
        """Take `key` in `scope` for `owner`, or raise `failure`; with `alive`, only while that resource stays."""
        if alive is None:
            self.write(TAKE, _RESERVE, {"scope": scope, "key": key, "owner": owner}, 1, failure)
        else:
            values = {"b_scope": scope, "b_key": key, "b_owner": owner, "b_alive": alive}
            self.write(TAKE, _RESERVE_ALIVE, values, 1, failure)

    def name(self, resource: AnyResource, proof: Proof) -> None:
        """Take the name of a new resource, before all else of its order, so that a clash of names is told as such."""
        what = resource.kind.value.replace("_", " ")
        taken = Conflict(f"{what} {resource.name!r} exists already in this project", field="name", code="name-taken")
        scope = f"name:{resource.project}:{resource.kind.value}"
        self.write(COUNT, _NAME, {"scope": scope, "key": resource.name, "owner": resource.id}, 1, lambda: taken)

    def release(self, scope: str, key: str, owner: str, proof: Proof) -> None:
        self.write(FREE, _FREE_ONE, {"b_scope": scope, "b_key": key, "b_owner": owner})

    def remember(self, member: str, key: str, digest: str, resource: str, at: Instant, proof: Proof) -> None:
        """Tie an idempotency key to the resource it made."""
        self.write(
            TAKE,
            _REQUEST,
            {"member": member, "key": key, "digest": digest, "resource": resource, "at": at},
            1,
            RepeatedRequest,
        )

    def give_up(self, scope: str, key: str, owner: str, proof: Proof, failure: Callable[[], UsinaError]) -> None:
        """Note that `owner` will let go of `key`; it stays taken until `free_given_up`."""
        self.reserve(f"leaving:{owner}", f"{scope}|{key}", owner, proof, failure)

    def free_given_up(self, owner: str, generation: int, lease: Lease) -> None:
        """The wish of `generation` is fulfilled: what `owner` gave up is free, unless it wishes anew already."""
        values = {"b_owner": owner, "b_generation": generation, "b_leaving": f"leaving:{owner}"}
        self.write(FREE, _FREE_LEFT, values)
        self.write(FREE, _FREE_NOTES, values)

    # --- quotas

    def charge(self, scope: str, amounts: Amounts, proof: Proof) -> None:
        """Count `amounts` (negative: give back) against the quota of `scope`. Raises `QuotaExceeded`."""
        if amounts:
            values = {f"b_{m}": rows.measured(m, getattr(amounts, m)) for m in MEASURES}
            self.write(
                COUNT,
                _CHARGE,
                {"b_scope": scope} | values,
                1,
                lambda: QuotaExceeded("quota", data={"scope": scope}),
            )

    # --- claims

    def claim(self, claim: Claim, resource: str, proof: Proof) -> None:
        self.write(TAKE, _CLAIM, _claim_values(claim, resource), 1)

    def note_presence(self, provider: str, resource: str, proof: Proof) -> None:
        """Note, before it is so, that `resource` has something on `provider` that takes no capacity."""
        statement = _NOTE_SQLITE if self._database.is_sqlite else _NOTE_POSTGRESQL
        self.write(TAKE, statement, _claim_values(Claim(provider), resource))

    def take(self, provider: str, generation: int, held: Claim) -> None:
        """Compare-and-set: add `held` to what `provider` has given out, if it is still at `generation`."""
        values = {"b_provider": provider, "b_generation": generation} | _sizes(held)
        self.write(COUNT, _TAKE, values, 1, Stale.meanwhile)

    def drop_claims(self, resource: str, held: list[Claim], lease: Lease) -> None:
        """Release every claim of `resource`."""
        if not held:
            return
        self.write(FREE, _DROP_CLAIMS, {"b_resource": resource}, len(held))
        for one in held:
            if one.cores or one.memory or one.disk:
                self.write(COUNT, _GIVE_BACK, {"b_provider": one.provider} | _sizes(one), 1)

    def drop_claim(self, resource: str, provider: str, proof: Proof) -> None:
        """Release the claim row of `resource` on one provider without touching totals (the caller accounts)."""
        self.write(FREE, _DROP_CLAIM, {"b_resource": resource, "b_provider": provider}, 1)

    # --- events

    def emit(self, event: Event) -> None:
        self.write(TELL, _TELL, rows.event_values(event), 1)

    async def commit(self) -> None:
        """Write all of it, or raise the failure of the first guard that does not hold."""
        writes, self.writes = self.writes, []
        await self._database.commit(writes)


def _claim_values(claim: Claim, resource: str) -> dict[str, Any]:
    return {
        "provider": claim.provider,
        "resource": resource,
        "cores": rows.milli(claim.cores),
        "memory": claim.memory,
        "disk": claim.disk,
        "exact": rows.encode(claim),
        "particular": bool(claim.cpus or claim.nodes or claim.devices),
    }


def _sizes(claim: Claim) -> dict[str, int]:
    """What counts against a provider's totals; memory in huge pages is counted by node instead."""
    return {"b_cores": rows.milli(claim.cores), "b_memory": 0 if claim.hugepage else claim.memory, "b_disk": claim.disk}


_NOTE_SQLITE = sqlite.insert(claims).on_conflict_do_nothing()
_NOTE_POSTGRESQL = postgresql.insert(claims).on_conflict_do_nothing()


class LeaseLost(UsinaError):
    """Another control plane took over while this one worked; what it records wins."""

    code = "lease-lost"

    def __init__(self) -> None:
        super().__init__("the lease was lost")


class RepeatedRequest(Conflict):
    """The idempotency key was used a moment ago by a parallel request."""

    code = "repeated"

    def __init__(self) -> None:
        super().__init__("this Idempotency-Key is in use", field="Idempotency-Key")


def missing(kind: str, field: str | None = None) -> Callable[[], UsinaError]:
    """The failure for something that was there and is gone."""
    return lambda: NotFound(f"{kind} not found", field=field)
