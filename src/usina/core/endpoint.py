"""Endpoint: a model behind a name that clients call. The wish, and what is known of its replicas.

Replicas are tasks whose `parent` is the endpoint; an endpoint of the runtime ``external`` has one without a task. The
gateway reads nothing but endpoints: whatever it must know to send a request stands in `EndpointStatus`.

How a replica is made is worked out once, when it is ordered, and kept as a `Recipe`: who makes replicas knows neither
models nor runtimes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from usina.core.capacity import DeviceRequest
from usina.core.task import TaskSpec
from usina.core.units import Instant


class Shared(StrEnum):
    """Whose keys open an endpoint."""

    PROJECT = "project"
    TENANT = "tenant"


class ReplicaState(StrEnum):
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"  # ends what it has begun, and gets nothing new


@dataclass(frozen=True, slots=True)
class Variant:
    """What replicas serve: a model at one revision. A rolling change has two for a while."""

    model: str  # "namespace/name"; for `external`, what its upstream calls it
    revision: str = ""  # commit


@dataclass(frozen=True, slots=True)
class Recipe:
    """How replicas of a variant are made. ``{port}`` in a command or an environment stands for the port of each."""

    variant: Variant  # its revision is a commit
    task: TaskSpec  # of a replica, but for who ordered it
    port: int  # that it listens on; 0: one of its own for each, on stacks where replicas share their host's network
    formula: str  # how memory and devices were worked out, in one line
    mark: str  # changes with anything above that replicas must be made anew for
    secret: str = ""  # the variable in which a replica finds the secret of the endpoint
    homes: Mapping[str, str] = field(default_factory=dict)  # digest -> the project that has the content
    models: tuple[str, ...] = ()  # ids of the models that it is made of
    adapters: tuple[str, ...] = ()  # names, in the order of their numbers


@dataclass(frozen=True, slots=True)
class Canary:
    """A variant on trial, and the share of requests that it gets."""

    variant: Variant
    weight: float  # 0 to 1
    recipe: Recipe | None = None


@dataclass(frozen=True, slots=True)
class EndpointSpec:
    """Sizes in bytes, times in seconds."""

    variant: Variant
    runtime: str  # a plugin's name: "llama.cpp", "vllm", "nim", "external"
    minimum: int = 1  # replicas
    maximum: int = 1
    on: str = ""  # stack; "": whichever the runtime runs on and has room
    context: int = 0  # tokens of one request; 0: what the model was made for
    slots: int = 4  # requests that one replica works on at once
    cores: float = 0.0  # of a replica; 0: by the runtime's formula
    memory: int = 0
    devices: tuple[DeviceRequest, ...] = ()
    adapters: Mapping[str, Variant] = field(default_factory=dict)  # LoRA: name that clients ask for -> its weights
    options: Mapping[str, str] = field(default_factory=dict)  # what only one runtime understands
    url: str = ""  # of `external`
    secret: str = ""  # sealed key: of `external` for its upstream, of others as their runtime says
    target: float = 0.0  # requests in flight on a replica that scaling aims at; 0: three quarters of its slots
    target_tokens: float = 0.0  # tokens per second that one replica shall give out at most; 0: they do not matter
    idle_limit: float = 600.0  # without requests, after which it goes down to zero, where `minimum` is 0
    patience: float = 300.0  # that a request may wait for a place
    waiting: int = 256  # requests that may wait
    drain: float = 120.0  # that a replica has to end what it has begun
    shared: Shared = Shared.PROJECT
    fallback: tuple[str, ...] = ()  # names of endpoints to try, in order, where this one has nothing to offer
    guards: tuple[str, ...] = ()  # names of the site's that it has besides those that are everywhere
    guards_open: bool = False  # what they cannot tell passes
    canary: Canary | None = None
    member: str = ""  # who ordered it
    recipe: Recipe | None = None  # of `variant`; None for `external`
    previous: Variant | None = None  # what it served before; where a rollback leads


@dataclass(frozen=True, slots=True)
class Replica:
    """One place where requests can be sent: a port of a run, or the URL of the endpoint."""

    id: str  # of the task; of the endpoint itself where it is external
    state: ReplicaState
    variant: Variant
    provider: str = ""
    stack: str = ""
    handle: str = ""  # of the run
    port: int = 0
    since: Instant = 0.0  # in this state
    adapters: tuple[str, ...] = ()  # that it was made with


@dataclass(frozen=True, slots=True)
class EndpointStatus:
    wanted: int = 0  # replicas, as scaling has decided
    replicas: tuple[Replica, ...] = ()  # those that are to be there; not those that have ended or are going
    scaled_at: Instant = 0.0
    formula: str = ""  # how memory and devices of a replica were worked out, in one line
    needed_at: Instant = 0.0  # when load last asked for as many replicas as are wanted
    failures: int = 0  # replicas that failed, since one was ready for a while or the wish was changed
    tried: int = 0  # the generation of the wish that they are counted of
    failed_at: Instant = 0.0
    failed: str = ""  # the task of the one that failed last, which is kept for its log
    refusal: str = ""  # why there are fewer replicas than wanted, where that is not for a lack of room
    refused_at: Instant = 0.0


@dataclass(frozen=True, slots=True)
class Load:
    """What gateways have measured of an endpoint lately, over all of them."""

    in_flight: int = 0
    waiting: int = 0
    oldest: float = 0.0  # seconds that the request at the head of the line waits
    tokens: float = 0.0  # given out per second
    last_at: Instant = 0.0  # the end of the last request, or now while one is under way
    by_replica: Mapping[str, int] = field(default_factory=dict)  # requests in flight
