"""What belongs to tasks besides their rows: parts, logs, samples of use, content of files, and who is who elsewhere."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil
from operator import itemgetter

import msgspec
from sqlalchemy import bindparam, delete, exists, func, insert, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from usina.core.errors import NotFound
from usina.core.grant import Grant, Proof
from usina.core.machine import Interface
from usina.core.resource import AnyResource, Kind, Phase
from usina.core.task import Usage
from usina.core.task_decide import OVER, Part
from usina.core.units import Instant
from usina.store import rows
from usina.store.database import Database
from usina.store.tables import blobs, identities, reservations, resources, task_logs, task_usage
from usina.store.work import CHANGE, FREE, TAKE, Work

_b = bindparam
WOKEN = 8  # tasks at most that are tried again when one has ended
_OVER = [phase.value for phase in OVER]


class _Index(msgspec.Struct):
    """The part of a task's spec that orders the parts of an array; the rest is skipped unread."""

    index: int = 0


_INDEX = msgspec.json.Decoder(_Index)
_PHASES = {phase.value: phase for phase in Phase}


@lru_cache(maxsize=8192)
def index_of(spec: bytes) -> int:
    """The index of a part; its spec hardly ever changes, and is asked often."""
    return _INDEX.decode(spec).index


_PARTS = select(
    resources.c.id,
    resources.c.phase,
    resources.c.provider.is_not(None),
    resources.c.observed == resources.c.generation,
    resources.c.attempts,
    resources.c.spec,
).where(resources.c.parent == _b("b_whole"))
_USAGE = msgspec.json.Decoder(Usage)


@dataclass(frozen=True, slots=True)
class KeptLog:
    """A piece of a log that was kept: whole lines, beginning at `start` of the log of its run."""

    run: int
    start: int
    data: bytes


class Tasks:
    """Reads."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def parts(self, whole: str) -> tuple[Part, ...]:
        """The parts of an array or gang, in order of index."""
        found = await self._database.fetch(_PARTS, {"b_whole": whole})
        parts = [
            (index_of(spec), Part(id, _PHASES[phase], placed, settled, attempts > 0))
            for id, phase, placed, settled, attempts, spec in map(tuple, found)
        ]
        return tuple([part for _, part in sorted(parts, key=itemgetter(0))])

    async def part_rows(self, whole: str) -> list[AnyResource]:
        """The same as resources."""
        found = await self._database.fetch(select(resources).where(resources.c.parent == whole))
        return sorted((rows.resource(row) for row in found), key=lambda part: part.spec.index)

    async def log(self, task: str, run: int, after: int = 0, limit: int = 64) -> list[KeptLog]:
        """Pieces of the log of one run that reach past `after`, in order."""
        query = (
            select(task_logs)
            .where(task_logs.c.task == task, task_logs.c.run == run, task_logs.c.start + task_logs.c.size > after)
            .order_by(task_logs.c.start)
            .limit(limit)
        )
        return [KeptLog(row.run, row.start, zlib.decompress(row.data)) for row in await self._database.fetch(query)]

    async def runs(self, task: str) -> list[int]:
        """Runs of which anything is kept, the first one first."""
        query = select(task_logs.c.run).where(task_logs.c.task == task).group_by(task_logs.c.run)
        return sorted(row.run for row in await self._database.fetch(query))

    async def usage(self, task: str, run: int) -> list[Usage]:
        query = (
            select(task_usage.c.sample)
            .where(task_usage.c.task == task, task_usage.c.run == run)
            .order_by(task_usage.c.at)
        )
        return [_USAGE.decode(row.sample) for row in await self._database.fetch(query)]

    async def identity(self, realm: str, member: str) -> str | None:
        """The name of a member in a realm."""
        query = select(identities.c.name).where(identities.c.realm == realm, identities.c.member == member)
        row = await self._database.first(query)
        return row.name if row else None

    async def identities(self, realm: str) -> dict[str, str]:
        """Member id → name."""
        found = await self._database.fetch(select(identities).where(identities.c.realm == realm))
        return {row.member: row.name for row in found}

    async def blobs(self, project: str, digests: Sequence[str]) -> dict[str, int]:
        """Of these digests, those that the project has: digest → bytes."""
        query = select(blobs.c.digest, blobs.c.size).where(blobs.c.project == project, blobs.c.digest.in_(digests))
        return {row.digest: row.size for row in await self._database.fetch(query)}

    async def stale_blobs(self, before: Instant, limit: int = 100) -> list[tuple[str, str]]:
        """(project, digest) of content that nothing uses and nobody gave or got lately."""
        query = select(blobs.c.project, blobs.c.digest).where(blobs.c.used_at < before, ~_IN_USE)
        return [(row.project, row.digest) for row in await self._database.fetch(query.limit(limit))]

    async def blob_is_owned(self, digest: str) -> bool:
        """Whether any project still has it."""
        row = await self._database.first(select(func.count()).where(blobs.c.digest == digest))
        return bool(row and row[0])


# --- writers

_WAKE = (
    update(resources)
    .where(resources.c.id == _b("b_id"), or_(resources.c.due_at.is_(None), resources.c.due_at > _b("b_at")))
    .values(due_at=_b("b_at"))
)
_WAKE_DEPENDENTS = (
    update(resources)
    .where(resources.c.id.in_(select(reservations.c.owner).where(reservations.c.scope == _b("b_scope"))))
    .values(due_at=_b("b_at"))
)
_waiting = resources.alias("waiting")
_WAKE_WAITING = (
    update(resources)
    .where(
        resources.c.id.in_(
            select(_waiting.c.id)
            .where(
                _waiting.c.due_at > _b("b_at"),
                _waiting.c.kind == Kind.TASK.value,
                _waiting.c.phase == Phase.PENDING.value,
                _waiting.c.lease_owner.is_(None),
            )
            .order_by(_waiting.c.updated_at, _waiting.c.id)
            .limit(_b("b_most"))
        )
    )
    .values(due_at=_b("b_at"))
)
_LOG = {
    True: sqlite.insert(task_logs).on_conflict_do_nothing(),
    False: postgresql.insert(task_logs).on_conflict_do_nothing(),
}
_SAMPLE = {
    True: sqlite.insert(task_usage).on_conflict_do_nothing(),
    False: postgresql.insert(task_usage).on_conflict_do_nothing(),
}
_FORGET_LOG = delete(task_logs).where(task_logs.c.task == _b("b_task"))
_FORGET_USAGE = delete(task_usage).where(task_usage.c.task == _b("b_task"))
_BLOB = {
    True: sqlite.insert(blobs).on_conflict_do_update(
        index_elements=["project", "digest"], set_={"used_at": _b("b_at")}
    ),
    False: postgresql.insert(blobs).on_conflict_do_update(
        index_elements=["project", "digest"], set_={"used_at": _b("b_at")}
    ),
}
_IN_USE = exists().where(reservations.c.scope == "blob:" + blobs.c.project + ":" + blobs.c.digest)
_DROP_BLOB = delete(blobs).where(
    blobs.c.project == _b("b_project"), blobs.c.digest == _b("b_digest"), blobs.c.used_at < _b("b_before"), ~_IN_USE
)
_USE_BLOB = insert(reservations).from_select(
    ["scope", "key", "owner"],
    select(_b("b_scope").label("s"), _b("b_key").label("k"), _b("b_owner").label("o")).where(
        exists().where(blobs.c.project == _b("b_project"), blobs.c.digest == _b("b_digest")).correlate(None)
    ),
)
_LET_GO = delete(reservations).where(
    reservations.c.scope == _b("b_scope"),
    reservations.c.owner == _b("b_owner"),
    exists().where(resources.c.id == _b("b_owner"), resources.c.generation == _b("b_generation")).correlate(None),
)
_MAP = insert(identities).inline()
_UNMAP = delete(identities).where(identities.c.realm == _b("b_realm"), identities.c.member == _b("b_member"))


def wake(work: Work, resource: str, at: Instant) -> None:
    """Have a resource looked at then, or earlier if it is due earlier; not lost while somebody works on it."""
    work.write(CHANGE, _WAKE, {"b_id": resource, "b_at": at})


def wake_dependents(work: Work, task: str, at: Instant) -> None:
    """Have those that wait for a task looked at."""
    work.write(CHANGE, _WAKE_DEPENDENTS, {"b_scope": waiting_for(task), "b_at": at})


def wake_waiting(work: Work, at: Instant, cores: float) -> None:
    """Capacity came free: have those that found no room looked at, one for each core; who has asked last comes last, so
    that one for which there is never room keeps nobody from theirs."""
    work.write(CHANGE, _WAKE_WAITING, {"b_at": at, "b_most": max(1, min(WOKEN, ceil(cores)))})


def waiting_for(task: str) -> str:
    """The scope of reservations by which tasks wait for another."""
    return f"after:{task}"


def keep_log(work: Work, task: str, run: int, start: int, data: bytes, proof: Proof) -> None:
    """Keep a piece of a log: whole lines. Kept once, however often it is told."""
    lines = data.splitlines()
    values = {
        "task": task,
        "run": run,
        "start": start,
        "size": len(data),
        "first_at": int(lines[0].partition(b" ")[0]),
        "last_at": int(lines[-1].partition(b" ")[0]),
        "data": zlib.compress(data, 1),
    }
    work.write(TAKE, _LOG[work.is_sqlite], values)


def keep_sample(work: Work, task: str, run: int, usage: Usage) -> None:
    """Keep a sample of use; a sight of the engine, so it needs no grant."""
    values = {"task": task, "run": run, "at": usage.at, "sample": rows.encode(usage)}
    work.write(TAKE, _SAMPLE[work.is_sqlite], values)


def forget(work: Work, task: str, proof: Proof) -> None:
    """All that was kept of a task besides its row."""
    work.write(FREE, _FORGET_LOG, {"b_task": task})
    work.write(FREE, _FORGET_USAGE, {"b_task": task})


def free_interface(work: Work, task: str, name: str, card: Interface, proof: Proof) -> None:
    """The address, the name on the network and the security groups of a task that is over are others' to use."""
    work.release(f"use:{card.network}", card.address, task, proof)
    work.release(f"dns:{card.network}", name, task, proof)
    for group in card.security_groups:
        work.release(f"use:{group}", f"{task}/{card.mac}", task, proof)


def let_go_of_volumes(work: Work, task: str, generation: int, volumes: Sequence[str], proof: Proof) -> None:
    """A task that is over needs its volumes no more, unless it is wished to run again already."""
    for volume in dict.fromkeys(volumes):
        values = {"b_scope": f"use:{volume}", "b_owner": task, "b_generation": generation}
        work.write(FREE, _LET_GO, values)


def own_blob(work: Work, project: str, digest: str, size: int, at: Instant, proof: Proof) -> None:
    """The project has this content (again)."""
    values = {"project": project, "digest": digest, "size": size, "used_at": at, "b_at": at}
    work.write(TAKE, _BLOB[work.is_sqlite], values)


def use_blob(work: Work, project: str, digest: str, owner: str, where: str, proof: Proof) -> None:
    """`owner` needs this content until it is forgotten. Raises `NotFound` where the project does not have it (any
    more)."""
    values = {
        "b_scope": f"blob:{project}:{digest}",
        "b_key": f"{owner}/{where}",
        "b_owner": owner,
        "b_project": project,
        "b_digest": digest,
    }
    work.write(CHANGE, _USE_BLOB, values, 1, lambda: NotFound(f"{where}: this content is gone", field=where))


def drop_blob(work: Work, project: str, digest: str, before: Instant) -> None:
    """Housekeeping: the project has this content no more, unless it was given again or used meanwhile."""
    work.write(FREE, _DROP_BLOB, {"b_project": project, "b_digest": digest, "b_before": before})


def map_identity(work: Work, realm: str, member: str, name: str | None, grant: Grant) -> None:
    """Who a member is in a realm; None: nobody."""
    work.write(FREE, _UNMAP, {"b_realm": realm, "b_member": member})
    if name is not None:
        work.write(TAKE, _MAP, {"realm": realm, "member": member, "name": name}, 1)
