"""The hand for endpoints: steps of a decision become tasks that are ordered, drained and deleted.

Whatever changes what gateways may send requests to is told as an event ``endpoint.…`` in the same commit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from usina.core import endpoint_decide
from usina.core.clock import Clock
from usina.core.endpoint import EndpointStatus, Recipe, Replica, ReplicaState
from usina.core.endpoint_decide import Endpoint, View, recipe_of
from usina.core.endpoint_tasks import instance_of, replica_task
from usina.core.errors import NotFound, QuotaExceeded
from usina.core.event import Event
from usina.core.grant import Lease
from usina.core.ids import Ids
from usina.core.lifecycle import AddReplicas, CountFailures, Decision, DrainReplicas, DropReplicas, Scale, Step
from usina.core.quota import excess, total
from usina.core.resource import AnyResource, Kind
from usina.core.task_decide import OVER, Task
from usina.core.units import Instant
from usina.engine.faults import fault
from usina.engine.hand import Held, Report
from usina.ports.vault import Vault
from usina.store import tasks as writers
from usina.store.store import Store
from usina.store.work import Work


class EndpointHand:
    gives_up = False

    def __init__(self, store: Store, clock: Clock, ids: Ids, vault: Vault) -> None:
        self._store, self._clock, self._ids, self._vault = store, clock, ids, vault

    # --- looking

    async def look(self, endpoint: Endpoint, held: Held) -> View:
        tasks = await self._store.tasks.part_rows(endpoint.id)
        load = await self._store.llm.load(endpoint.id, self._clock.now())
        draining = await self._store.hosts.draining({task.provider for task in tasks if task.provider})
        born = sorted(tasks, key=lambda task: task.id)  # ids sort by time of birth
        return View(tuple(instance_of(task, task.provider in draining) for task in born), load)

    def decide(self, endpoint: Endpoint, held: Held, view: View, now: Instant) -> Decision:
        return endpoint_decide.decide(endpoint, view, now)

    def status(self, endpoint: Endpoint, view: View) -> EndpointStatus:
        return endpoint_decide.after(endpoint, view, self._clock.now())

    def presences(self, endpoint: Endpoint) -> tuple[str, ...]:
        return ()

    def placing(self, endpoint: Endpoint) -> EndpointStatus:
        return endpoint.status

    # --- doing

    async def do(self, step: Step, endpoint: Endpoint, held: Held, report: Report) -> None:
        """What a step changes is recorded with how all replicas look now."""
        endpoint = replace(endpoint, status=self.status(endpoint, await self.look(endpoint, held)))
        match step:
            case Scale(wanted, why):
                await self._scale(endpoint, wanted, why, report)
            case AddReplicas(count, canary):
                await self._add(endpoint, count, canary, report)
            case DrainReplicas(replicas):
                await self._drain(endpoint, replicas, report)
            case DropReplicas(replicas):
                await self._drop(endpoint, replicas, report)
            case CountFailures(replicas, why):
                await self._fail(endpoint, replicas, why, report)
            case _:
                raise AssertionError(f"no hand for {step}")

    async def _scale(self, endpoint: Endpoint, wanted: int, why: str, report: Report) -> None:
        now = self._clock.now()
        text = f"{wanted} replica{'' if wanted == 1 else 's'} wanted: {why}"
        status = replace(endpoint.status, wanted=wanted, scaled_at=now, needed_at=now)
        await report(status, self._telling(endpoint, "scaled", text))

    async def _add(self, endpoint: Endpoint, count: int, canary: bool, report: Report) -> None:
        """Order tasks, all in one commit with what is told of them; or fewer, where a quota does not allow so many."""
        recipe = recipe_of(endpoint.spec, canary)
        assert recipe is not None  # decide asks for none else
        for number in range(count, 0, -1):
            tasks = [self._ordered(endpoint, recipe) for _ in range(number)]
            fresh = tuple(
                Replica(
                    task.id, ReplicaState.STARTING, recipe.variant, since=self._clock.now(), adapters=recipe.adapters
                )
                for task in tasks
            )
            replicas = (*endpoint.status.replicas, *fresh)
            status = replace(endpoint.status, replicas=replicas, refusal="", refused_at=0.0)
            try:
                await report(status, partial(self._write_tasks, endpoint, recipe, tasks))
                return
            except QuotaExceeded:
                continue
            except NotFound as error:
                status = replace(endpoint.status, refusal=error.message, refused_at=self._clock.now())
                await report(status)
                return
        await report(await self._refused(endpoint, self._ordered(endpoint, recipe)))

    def _ordered(self, endpoint: Endpoint, recipe: Recipe) -> Task:
        id = self._ids.new(Kind.TASK.value)
        secrets = {}
        if recipe.secret and endpoint.spec.secret:
            opened = self._vault.open(endpoint.spec.secret, endpoint.id)
            secrets = {recipe.secret: self._vault.seal(opened, id)}
        return replica_task(endpoint, recipe, id, secrets, self._clock.now())

    def _write_tasks(self, endpoint: Endpoint, recipe: Recipe, tasks: Sequence[Task], work: Work, lease: Lease) -> None:
        now = self._clock.now()
        for task in tasks:
            work.name(task, lease)
            work.order(task, lease, due=now)
            for number, file in enumerate(task.spec.files):
                home = recipe.homes.get(file.digest, endpoint.project)
                writers.use_blob(work, home, file.digest, task.id, f"files[{number}]", lease)
            work.emit(self._event(task, "ordered", f"a replica of endpoint {endpoint.name}", endpoint.id))
        for scope in (endpoint.tenant, endpoint.project):
            work.charge(scope, total(tasks), lease)
        names = ", ".join(task.name for task in tasks)
        work.emit(self._event(endpoint, "added", f"ordered {names}", tasks[-1].id))

    async def _refused(self, endpoint: Endpoint, task: Task) -> EndpointStatus:
        """The status in which it is said which quota does not allow one more, in numbers."""
        number = len(endpoint.status.replicas) + 1
        why = f"a quota does not allow {number} replicas"
        for whose, scope in (("project", endpoint.project), ("tenant", endpoint.tenant)):
            quota = await self._store.identity.quota(scope)
            over = excess(quota, total([task])) if quota is not None else []
            if over:
                measure, _, used, limit = over[0]
                told = f"{measure}: {used:g} of {limit:g} are used"
                why = f"the quota of the {whose} does not allow {number} replicas: {told}"
                break
        return replace(endpoint.status, refusal=why, refused_at=self._clock.now())

    async def _drain(self, endpoint: Endpoint, ids: tuple[str, ...], report: Report) -> None:
        fault("before:drained")
        status = endpoint_decide.draining(endpoint.status, ids, self._clock.now())
        text = f"{len(ids)} replica{'' if len(ids) == 1 else 's'} drained"
        await report(status, self._telling(endpoint, "draining", text, {"replicas": ids}))

    async def _drop(self, endpoint: Endpoint, ids: Sequence[str], report: Report) -> None:
        left = tuple(one for one in endpoint.status.replicas if one.id not in ids)
        leaving = await self._leaving(ids)

        def more(work: Work, lease: Lease) -> None:
            leaving(work, lease)
            text = f"{len(ids)} replica{'' if len(ids) == 1 else 's'} taken away"
            work.emit(self._event(endpoint, "dropped", text, data={"replicas": ids}))

        await report(replace(endpoint.status, replicas=left), more)

    async def _leaving(self, ids: Sequence[str]) -> Callable[[Work, Lease], None]:
        """Tasks asked to go, with the parts of those that are gangs."""
        found = await self._store.resources.get_many(ids)
        tasks = [task for task in found.values() if not task.deleting]
        for task in list(tasks):
            if task.spec.replicas > 1:
                tasks += [part for part in await self._store.tasks.part_rows(task.id) if not part.deleting]

        def more(work: Work, lease: Lease) -> None:
            for task in tasks:
                work.leave(task, lease, self._clock.now())

        return more

    async def _fail(self, endpoint: Endpoint, ids: tuple[str, ...], why: str, report: Report) -> None:
        """Count them. The last one is ended and stays, for its log; those before it go."""
        status = endpoint_decide.failed(endpoint.status, ids, self._clock.now())
        gone = [*ids[:-1], *([endpoint.status.failed] if endpoint.status.failed else [])]
        leaving = await self._leaving(gone)
        last = (await self._store.resources.get_many(ids[-1:])).get(ids[-1])

        def more(work: Work, lease: Lease) -> None:
            leaving(work, lease)
            if last is not None and last.phase not in OVER and not last.deleting and not last.spec.stopped:
                work.wish(last.wishing(replace(last.spec, stopped=True), self._clock.now()), lease)
            name = last.name if last is not None else ids[-1]
            work.emit(self._event(endpoint, "replica-failed", f"{name}: {why}", ids[-1]))

        await report(status, more)

    # --- records

    def settled(self, endpoint: Endpoint, work: Work, lease: Lease) -> None:
        """It gives nothing up by it."""

    def changed(self, before: AnyResource, endpoint: AnyResource, work: Work, lease: Lease) -> bool:
        """Tell gateways what they may send requests to now."""
        if before.status.replicas != endpoint.status.replicas:
            ready = sum(one.state is ReplicaState.READY for one in endpoint.status.replicas)
            text = f"{ready} of {endpoint.status.wanted} replicas are ready"
            work.emit(self._event(endpoint, "replicas", text))
        return False

    def leave(self, endpoint: Endpoint, work: Work, lease: Lease) -> None:
        """Its row and what it had reserved are all there is."""

    def _telling(
        self, endpoint: Endpoint, verb: str, text: str, data: dict[str, object] | None = None
    ) -> Callable[[Work, Lease], None]:
        def more(work: Work, lease: Lease) -> None:
            work.emit(self._event(endpoint, verb, text, data=data))

        return more

    def _event(
        self,
        resource: AnyResource,
        verb: str,
        text: str,
        related: str | None = None,
        data: dict[str, object] | None = None,
    ) -> Event:
        return Event(
            f"{resource.kind.value}.{verb}",
            resource.id,
            self._clock.now(),
            text,
            related=related,
            tenant=resource.tenant,
            project=resource.project,
            actor="engine",
            cause=f"generation {resource.generation}",
            data=data or {},
        )
