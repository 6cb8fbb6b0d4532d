"""The decision table of endpoints, row by row: a wish, replicas as they stand, their load, and a moment."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from usina.core.endpoint import Canary, EndpointSpec, EndpointStatus, Load, Recipe, Replica, ReplicaState, Variant
from usina.core.endpoint_decide import (
    GIVE_UP,
    HEARD,
    LOST,
    RETRY,
    STEADY,
    Endpoint,
    Instance,
    View,
    after,
    decide,
    draining,
    failed,
    shares,
)
from usina.core.endpoint_scale import STABLE
from usina.core.lifecycle import (
    AddReplicas,
    CountFailures,
    Decision,
    DrainReplicas,
    DropReplicas,
    Forget,
    Scale,
    pause,
)
from usina.core.resource import Kind, Phase, Resource
from usina.core.task import TaskSpec

NOW = 1_000_000.0
OLD, NEW = Variant("a/m", "1" * 40), Variant("a/m", "2" * 40)


def recipe(mark: str = "one", variant: Variant = OLD) -> Recipe:
    return Recipe(variant, TaskSpec("local"), 8000, "a formula", mark)


def endpoint(status: EndpointStatus | None = None, **more: Any) -> Endpoint:
    wished = {name: more.pop(name) for name in ("deleting", "generation", "observed") if name in more}
    spec = EndpointSpec(OLD, "llama.cpp", **{"recipe": recipe(), **more})
    found: Endpoint = Resource(
        "ept-1", Kind.ENDPOINT, "tnt-1", "prj-1", "chat", spec, status or EndpointStatus(tried=1), NOW, NOW
    )
    return replace(found, **wished)


def up(id: str = "a", mark: str = "one", **more: Any) -> Instance:
    wishes = {"phase": Phase.RUNNING, "healthy": True, "provider": "hst-1", "handle": f"{id}.1", "port": 8000} | more
    return Instance(id, mark, OLD if mark == "one" else NEW, **wishes)


def coming(id: str = "a", mark: str = "one", **more: Any) -> Instance:
    return up(id, mark, **{"phase": Phase.STARTING, "healthy": False} | more)


def status(*replicas: Replica, wanted: int = 1, **more: Any) -> EndpointStatus:
    return EndpointStatus(wanted, replicas, **{"needed_at": NOW, "scaled_at": NOW - 100, "tried": 1} | more)


def ready(*ids: str, since: float = NOW - 10) -> tuple[Replica, ...]:
    return tuple(Replica(id, ReplicaState.READY, OLD, since=since) for id in ids)


def steps(decision: Decision) -> tuple[object, ...]:
    return decision.steps


# --- hosts that are being drained


def test_a_replica_on_a_host_that_is_drained_leaves_when_another_is_ready() -> None:
    spot = up("a", evicted=True)
    alone = endpoint(status(*ready("a")))
    assert steps(decide(alone, View((spot,)), NOW)) == (AddReplicas(1, canary=False),)
    both = endpoint(status(*ready("a"), Replica("b", ReplicaState.STARTING, OLD, since=NOW)))
    assert steps(decide(both, View((spot, coming("b"))), NOW)) == ()
    assert steps(decide(both, View((spot, up("b"))), NOW)) == (DrainReplicas(("a",)),)


def test_where_there_is_no_room_elsewhere_the_last_one_stays() -> None:
    both = endpoint(status(*ready("a"), Replica("b", ReplicaState.STARTING, OLD, since=NOW)))
    homeless = coming("b", provider="", trouble="no room", phase=Phase.PENDING)
    decision = decide(both, View((up("a", evicted=True), homeless)), NOW)
    assert decision.steps == ()
    assert decision.phase is Phase.READY


# --- bringing up


def test_a_new_endpoint_is_scaled_first_and_then_given_replicas() -> None:
    first = decide(endpoint(), View(), NOW)
    assert (first.phase, steps(first)) == (Phase.PENDING, (Scale(1, "as was ordered"),))
    assert steps(decide(endpoint(status(wanted=1)), View(), NOW)) == (AddReplicas(1),)
    assert steps(decide(endpoint(status(wanted=3), minimum=3, maximum=3), View((up(),)), NOW)) == (AddReplicas(2),)


def test_it_is_starting_until_one_is_ready() -> None:
    waiting = decide(endpoint(status()), View((coming(provider=""),)), NOW)
    assert (waiting.phase, waiting.settled, waiting.steps) == (Phase.PENDING, False, ())
    assert decide(endpoint(status()), View((coming(),)), NOW).phase is Phase.STARTING
    done = decide(endpoint(status()), View((up(),)), NOW)
    assert (done.phase, done.settled, done.steps, done.due) == (Phase.READY, True, (), None)


def test_with_some_ready_it_is_ready_and_not_settled() -> None:
    wish = endpoint(status(wanted=2), minimum=2, maximum=2)
    found = decide(wish, View((up("a"), coming("b"))), NOW)
    assert (found.phase, found.settled) == (Phase.READY, False)


def test_scaled_to_zero_it_is_ready_with_none() -> None:
    wish = endpoint(EndpointStatus(tried=1), minimum=0, maximum=4)
    found = decide(wish, View(), NOW)
    assert (found.phase, found.settled, found.steps) == (Phase.READY, True, ())
    assert found.answers[0].reason == "scaled-to-zero"


def test_a_request_that_waits_brings_the_first() -> None:
    wish = endpoint(EndpointStatus(tried=1), minimum=0, maximum=4)
    (step,) = decide(wish, View(load=Load(waiting=1)), NOW).steps
    assert isinstance(step, Scale) and step.wanted == 1 and "1 waiting" in step.why


def test_an_endpoint_of_somebody_else_is_ready_as_it_is() -> None:
    wish = endpoint(recipe=None, url="https://host/v1")
    assert decide(wish, View(), NOW).phase is Phase.READY
    (replica,) = after(wish, View(), NOW).replicas
    assert (replica.id, replica.state) == ("ept-1", ReplicaState.READY)


# --- less


def test_what_is_too_many_is_drained_least_useful_first() -> None:
    wish = endpoint(status(*ready("a", "b"), wanted=1), minimum=1, maximum=1)
    load = Load(by_replica={"a": 3, "b": 1})
    assert steps(decide(wish, View((up("a"), up("b")), load), NOW)) == (DrainReplicas(("b",)),)
    assert steps(decide(wish, View((up("a"), coming("b")), load), NOW)) == (DrainReplicas(("b",)),)


def test_a_drained_replica_goes_when_it_is_empty_and_all_have_heard() -> None:
    wish = endpoint(draining(status(*ready("a", "b")), ["b"], NOW), drain=120.0)
    here = (up("a"), up("b"))
    assert decide(wish, View(here), NOW).steps == ()  # gateways may not have heard
    assert decide(wish, View(here), NOW).due == NOW + HEARD
    assert steps(decide(wish, View(here), NOW + HEARD)) == (DropReplicas(("b",)),)
    busy = View(here, Load(in_flight=1, by_replica={"b": 1}))
    assert decide(wish, busy, NOW + 60).steps == ()
    assert steps(decide(wish, busy, NOW + 120)) == (DropReplicas(("b",)),)


def test_one_that_never_was_ready_goes_at_once() -> None:
    wish = endpoint(draining(status(*ready("a", "b")), ["b"], NOW))
    assert steps(decide(wish, View((up("a"), coming("b"))), NOW)) == (DropReplicas(("b",)),)


def test_idle_long_enough_it_goes_to_none() -> None:
    wish = endpoint(status(*ready("a"), scaled_at=NOW - 1000), minimum=0, maximum=2, idle_limit=600)
    quiet = Load(last_at=NOW - 599)
    assert decide(wish, View((up(),), quiet), NOW).due == NOW + 1
    (step,) = decide(wish, View((up(),), quiet), NOW + 1).steps
    assert isinstance(step, Scale) and step.wanted == 0 and "600 s" in step.why


def test_one_fewer_after_a_stable_while() -> None:
    wish = endpoint(status(*ready("a", "b"), wanted=2, needed_at=NOW - STABLE), minimum=1, maximum=4)
    (step,) = decide(wish, View((up("a"), up("b"))), NOW).steps
    assert isinstance(step, Scale) and step.wanted == 1
    soon = endpoint(status(*ready("a", "b"), wanted=2, needed_at=NOW - 1), minimum=1, maximum=4)
    assert decide(soon, View((up("a"), up("b"))), NOW).due == NOW - 1 + STABLE


# --- failures


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        (coming("a", phase=Phase.FAILED, trouble="exit code 3"), "exit code 3"),
        (up("a", healthy=False, unwell=True), "did not answer well"),
        (up("a", healthy=False, phase=Phase.UNREACHABLE, silent_since=NOW - LOST), "host does not answer"),
    ],
)
def test_what_has_failed_is_counted(broken: Instance, why: str) -> None:
    (step,) = decide(endpoint(status(*ready("a"))), View((broken,)), NOW).steps
    assert isinstance(step, CountFailures) and step.replicas == ("a",) and why in step.why


def test_a_host_that_is_silent_for_a_moment_is_no_failure() -> None:
    quiet = up("a", healthy=False, phase=Phase.UNREACHABLE, silent_since=NOW - 1)
    found = decide(endpoint(status(*ready("a"))), View((quiet,)), NOW)
    assert (found.steps, found.due) == ((), NOW - 1 + LOST)


def test_another_is_made_after_a_pause_and_the_failed_one_is_kept() -> None:
    broken = coming("a", phase=Phase.FAILED, trouble="exit code 3")
    wish = endpoint(failed(status(*ready("a")), ("a",), NOW))
    waiting = decide(wish, View((broken,)), NOW)
    assert (waiting.steps, waiting.due) == ((), NOW + 1.0)
    assert waiting.answers[1].message == "1 replica failed; the last: exit code 3"
    assert steps(decide(wish, View((broken,)), NOW + pause(1))) == (AddReplicas(1),)


def test_after_many_it_is_called_failed_and_tries_on() -> None:
    wish = endpoint(status(failures=GIVE_UP, failed_at=NOW))
    found = decide(wish, View(), NOW)
    assert (found.phase, found.settled) == (Phase.FAILED, True)
    assert found.due == NOW + pause(GIVE_UP)
    assert steps(decide(wish, View(), NOW + pause(GIVE_UP))) == (AddReplicas(1),)


def test_a_steady_replica_or_a_new_wish_forgets_failures() -> None:
    past = status(*ready("a", since=NOW - STEADY), failures=3)
    assert after(endpoint(past), View((up(),)), NOW).failures == 0
    assert after(endpoint(status(failures=3)), View((up(),)), NOW).failures == 3
    assert after(endpoint(status(failures=3), generation=2), View(), NOW).failures == 0


# --- another variant


def rolling(*old: str, wanted: int, **more: Any) -> Endpoint:
    return endpoint(
        status(*ready(*old), wanted=wanted), minimum=wanted, maximum=wanted, recipe=recipe("two", NEW), **more
    )


def test_new_ones_come_up_first_then_old_ones_go_one_for_one() -> None:
    wish = rolling("a", "b", wanted=2)
    old = (up("a"), up("b"))
    assert steps(decide(wish, View(old), NOW)) == (AddReplicas(2),)
    assert decide(wish, View((*old, coming("c", "two"), coming("d", "two"))), NOW).steps == ()
    assert steps(decide(wish, View((*old, up("c", "two"), coming("d", "two"))), NOW)) == (DrainReplicas(("b",)),)
    both = View((*old, up("c", "two"), up("d", "two")))
    (step,) = decide(wish, both, NOW).steps
    assert isinstance(step, DrainReplicas) and set(step.replicas) == {"a", "b"}


def test_old_ones_that_are_not_ready_go_at_once() -> None:
    wish = rolling(wanted=1)
    assert steps(decide(wish, View((coming("a"), coming("b", "two"))), NOW)) == (DrainReplicas(("a",)),)


def test_without_room_beside_them_an_old_one_makes_room_unless_it_is_the_last() -> None:
    homeless = coming("c", "two", provider="", trouble="1 host: 1 lacks memory")
    assert decide(rolling("a", wanted=1), View((up("a"), homeless)), NOW).steps == ()
    told = decide(rolling("a", wanted=1), View((up("a"), homeless)), NOW).answers[0]
    assert (told.ok, told.reason) == (False, "no-room") and "lacks memory" in told.message
    two = decide(rolling("a", "b", wanted=2), View((up("a"), up("b"), homeless, homeless._replace(id="d"))), NOW)
    assert steps(two) == (DrainReplicas(("b",)),)


def test_a_trial_has_its_share_and_at_least_one() -> None:
    spec = endpoint(canary=Canary(NEW, 0.1, recipe("two", NEW))).spec
    assert [shares(spec, n) for n in (0, 1, 2, 10, 20)] == [(0, 0), (1, 1), (1, 1), (9, 1), (18, 2)]
    wish = endpoint(status(*ready("a")), canary=Canary(NEW, 0.1, recipe("two", NEW)))
    assert steps(decide(wish, View((up("a"),)), NOW)) == (AddReplicas(1, canary=True),)
    assert decide(wish, View((up("a"), up("b", "two"))), NOW).settled


def test_the_end_of_a_trial_drains_its_replicas() -> None:
    wish = endpoint(status(*ready("a", "b")))
    assert steps(decide(wish, View((up("a"), up("b", "two"))), NOW)) == (DrainReplicas(("b",)),)


# --- quota, and the end


def test_a_refusal_is_told_and_tried_again_later() -> None:
    wish = endpoint(status(*ready("a"), wanted=2, refusal="the quota …", refused_at=NOW), minimum=2, maximum=2)
    found = decide(wish, View((up("a"),)), NOW)
    assert (found.steps, found.due) == ((), NOW + RETRY)
    assert (found.answers[0].ok, found.answers[0].reason) == (False, "quota")
    assert steps(decide(wish, View((up("a"),)), NOW + RETRY)) == (AddReplicas(1),)


def test_deleting_takes_all_replicas_and_waits_for_the_last() -> None:
    wish = endpoint(status(*ready("a")), deleting=True)
    assert steps(decide(wish, View((up("a"), coming("b"))), NOW)) == (DropReplicas(("a", "b")),)
    going = View((up("a", leaving=True), coming("b", leaving=True)))
    assert (decide(wish, going, NOW).phase, decide(wish, going, NOW).steps) == (Phase.DELETING, ())
    assert steps(decide(wish, View(), NOW)) == (Forget(),)
    assert steps(decide(endpoint(recipe=None, deleting=True), View(), NOW)) == (Forget(),)


def test_the_status_keeps_since_and_drops_what_ended() -> None:
    before = status(*ready("a", since=5.0))
    assert after(endpoint(before), View((up("a"),)), NOW).replicas[0].since == 5.0
    worse = after(endpoint(before), View((coming("a"),)), NOW).replicas[0]
    assert (worse.state, worse.since) == (ReplicaState.STARTING, NOW)
    for gone in (up("a", leaving=True), up("a", phase=Phase.SUCCEEDED), up("a", unwell=True)):
        assert after(endpoint(before), View((gone,)), NOW).replicas == ()
