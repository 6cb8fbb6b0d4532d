"""Shapes of the native door's answers about models, which `hub` writes, and of what comes in."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field, StringConstraints

from usina.core.goods import Visibility
from usina.facades.native.models import DIGEST, Body, Ref

MODEL = r"^[A-Za-z0-9_]([A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?$"
FULL = r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,95}/[A-Za-z0-9._-]{0,95}[A-Za-z0-9_]$"
REVISION = r"^[A-Za-z0-9_][A-Za-z0-9._/-]{0,127}$"

FullName = Annotated[str, StringConstraints(pattern=FULL, max_length=193)]
Revision = Annotated[str, StringConstraints(pattern=REVISION, max_length=128)]
Terms = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]*$", max_length=128)]
Path = Annotated[str, StringConstraints(min_length=1, max_length=1024)]


class FactsOut(BaseModel):
    """What the files say of the network in them; 0 or "" where they do not."""

    architecture: str
    parameters: int
    dtype: str
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    hidden: int
    vocabulary: int
    context: int
    embeddings: bool


class ModelCardOut(BaseModel):
    """What README.md says at its top."""

    licence: str
    tags: list[str]
    languages: list[str]
    library: str
    task: str
    base_models: list[str]


class ModelOut(BaseModel):
    """A model repository, at the newest commit on `main`."""

    id: str
    tenant: str
    project: str
    name: str
    visibility: str
    gated: bool
    licence: str
    origin: str
    revision: str
    size: int
    files: int
    facts: FactsOut
    card: ModelCardOut
    created_at: str
    updated_at: str


class ModelPage(BaseModel):
    items: list[ModelOut]
    next: str | None


class ModelFileOut(BaseModel):
    path: str
    size: int
    digest: str


class ModelRefOut(BaseModel):
    kind: str
    name: str
    revision: str


class ModelRevisionOut(BaseModel):
    """A commit; its files never change."""

    revision: str
    parent: str | None
    at: str
    author: str
    title: str
    message: str


class ModelDetailOut(ModelOut):
    """A model at one revision, with its files, its names and the text of its card."""

    entries: list[ModelFileOut]
    refs: list[ModelRefOut]
    readme: str
    accepted: bool


class AcceptanceOut(BaseModel):
    member: str
    name: str
    licence: str
    at: str


class AcceptanceList(BaseModel):
    items: list[AcceptanceOut]
    next: str | None


class ModelRevisionList(BaseModel):
    items: list[ModelRevisionOut]
    next: str | None


class CatalogueEntryOut(BaseModel):
    """A model that one may want. `model` is what is here of it, None where nothing is. `memory` is what weights alone
    take, by the type they are kept in."""

    name: str
    maker: str
    about: str
    hub: str
    parameters: int
    licence: str
    languages: list[str]
    runtimes: list[str]
    task: str
    context: int
    memory: dict[str, int]
    model: str | None


class CatalogueList(BaseModel):
    items: list[CatalogueEntryOut]
    next: str | None


# --- what comes in


class ModelIn(Body):
    name: FullName
    project: Ref | None = None
    visibility: Annotated[Visibility, Field(strict=False)] = Visibility.PROJECT
    gated: bool = Field(False, description="Its licence must be accepted before its files can be read.")
    licence: Terms = Field("", description="Empty: as its card says.")


class ModelChange(Body):
    visibility: Annotated[Visibility, Field(strict=False)] | None = None
    gated: bool | None = None
    licence: Terms | None = None


class ModelFileIn(Body):
    path: Path
    digest: Annotated[str, StringConstraints(pattern=DIGEST)] = Field(description="Its content was sent before.")


class CommitIn(Body):
    title: Annotated[str, StringConstraints(min_length=1, max_length=500)]
    message: Annotated[str, StringConstraints(max_length=20_000)] = ""
    branch: Revision = "main"
    parent: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")] | None = Field(
        None, description="The newest commit on the branch, as far as is known; 409 if it has moved on."
    )
    files: list[ModelFileIn] = Field(default=[], max_length=20_000)
    delete: list[Path] = Field(default=[], max_length=20_000)


class ImportIn(Body):
    model: FullName = Field(description="Its name at the upstream hub.")
    revision: Revision = "main"
    name: FullName | None = Field(None, description="Its name here; else the same.")
    project: Ref | None = None
    licence: Terms = ""
