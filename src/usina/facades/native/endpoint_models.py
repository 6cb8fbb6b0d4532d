"""What comes in, and goes out, about endpoints of models at the native door."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field, StringConstraints

from usina.core.endpoint import Shared
from usina.facades.native.models import Body, Labels, Name, Ref, RefOrNone, TaskDeviceIn

ModelRef = Annotated[
    str,
    StringConstraints(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9][A-Za-z0-9._/@:-]*$"),
]
Revision = Annotated[str, StringConstraints(max_length=200, pattern=r"^[A-Za-z0-9._/-]*$")]
Seconds = Annotated[float, Field(ge=0, le=86_400 * 30)]
Text = Annotated[str, StringConstraints(max_length=1000)]
Word = Annotated[str, StringConstraints(max_length=64)]

_MODEL = "namespace/name, optionally @revision; for external, what its upstream calls it."
_TARGET = "Requests in flight on a replica that scaling aims at; 0: three quarters of its slots."


class EndpointIn(Body):
    name: Name = Field(description="What clients ask for as `model`.")
    model: ModelRef = Field(description=_MODEL)
    revision: Revision = Field("", description="Branch, tag or commit; empty: main.")
    project: Ref | None = None
    runtime: RefOrNone = Field(
        "", description="llama.cpp, vllm, nim, external …; empty: the first that reads its files."
    )
    minimum: int = Field(1, ge=0, le=256, description="Replicas. 0: down to none when nothing is asked of it.")
    maximum: int = Field(1, ge=1, le=256)
    on: RefOrNone = Field("", description="Stack; empty: the first of the runtime's that has room for a replica.")
    context: int = Field(0, ge=0, le=10_000_000, description="Tokens of one request; 0: what the model was made for.")
    slots: int = Field(4, ge=1, le=1024, description="Requests that one replica works on at once.")
    cores: float = Field(0, ge=0, le=1024, description="Of a replica; 0: by the runtime's formula.")
    memory: int = Field(0, ge=0, le=1 << 46)
    devices: list[TaskDeviceIn] = Field(default=[], max_length=16)
    adapters: dict[Word, ModelRef] = Field(default={}, description="LoRA: name that clients ask for -> model.")
    options: dict[Word, Text] = Field(default={}, description="What only one runtime understands; see /runtimes.")
    url: Text = Field("", description="Of external: its base, such as https://host/v1.")
    secret: Annotated[str, StringConstraints(max_length=8192)] = Field(
        "", description="Key for the upstream of external; of nim, for its registry. Sealed, and never shown again."
    )
    target: float = Field(0, ge=0, le=1_000_000, description=_TARGET)
    target_tokens: float = Field(0, ge=0, le=1_000_000, description="Tokens per second of one replica; 0: no matter.")
    idle_limit: Seconds = Field(600, description="Without requests, until it goes down to none.")
    patience: Seconds = Field(300, description="That a request may wait for a place.")
    waiting: int = Field(256, ge=0, le=100_000, description="Requests that may wait.")
    drain: Seconds = Field(120, description="That a replica has to end what it has begun.")
    shared: Shared = Field(Shared.PROJECT, description="Whose keys open it.")
    fallback: list[Name] = Field(
        default=[], max_length=8, description="Endpoints to try where this one has none ready."
    )
    guards: list[Word] = Field(default=[], max_length=8, description="Guards of the site, by name.")
    guards_open: bool = Field(False, description="Let pass what these guards cannot tell, as they do not answer.")
    labels: Labels = Field(default={})


class EndpointChange(Body):
    """What is absent stays."""

    model: ModelRef | None = Field(None, description=_MODEL)
    revision: Revision | None = None
    minimum: int | None = Field(None, ge=0, le=256)
    maximum: int | None = Field(None, ge=1, le=256)
    context: int | None = Field(None, ge=0, le=10_000_000)
    slots: int | None = Field(None, ge=1, le=1024)
    cores: float | None = Field(None, ge=0, le=1024)
    memory: int | None = Field(None, ge=0, le=1 << 46)
    adapters: dict[Word, ModelRef] | None = None
    options: dict[Word, Text] | None = None
    url: Text | None = None
    secret: Annotated[str, StringConstraints(max_length=8192)] | None = None
    target: float | None = Field(None, ge=0, le=1_000_000)
    target_tokens: float | None = Field(None, ge=0, le=1_000_000)
    idle_limit: Seconds | None = None
    patience: Seconds | None = None
    waiting: int | None = Field(None, ge=0, le=100_000)
    drain: Seconds | None = None
    shared: Shared | None = None
    fallback: list[Name] | None = Field(None, max_length=8)
    guards: list[Word] | None = Field(None, max_length=8)
    guards_open: bool | None = None
    labels: Labels | None = None


class CanaryIn(Body):
    model: ModelRef | None = Field(None, description="Absent: the same, at another revision; or only another weight.")
    revision: Revision | None = None
    weight: float = Field(0.1, ge=0, le=1, description="Share of the requests that it gets.")


class RuntimeOut(BaseModel):
    name: str
    summary: str
    formats: list[str]
    stacks: list[str]
    options: dict[str, str]


class RuntimeList(BaseModel):
    items: list[RuntimeOut]
    next: str | None
