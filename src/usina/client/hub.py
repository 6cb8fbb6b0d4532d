"""Models: repositories of weights and what belongs to them. Files go up by their sha256, and no content twice.

To read files, use `huggingface_hub` with ``HF_ENDPOINT=<endpoint>/hf``.
"""

from __future__ import annotations

import builtins
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path

import msgspec

from usina.client.errors import ApiError, CannotConnect, read_problem
from usina.client.models import Blob, given
from usina.client.wire import Wire, segment
from usina.core.errors import NotFound

CHUNK = 1 << 20
AT_ONCE = 1000  # digests in one question

Told = Callable[[str, int], None]
"""Called with what is done ("reading" or "sending" a file) and the bytes that this took further."""


class Facts(msgspec.Struct, frozen=True):
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


class ModelCard(msgspec.Struct, frozen=True):
    licence: str
    tags: tuple[str, ...]
    languages: tuple[str, ...]
    library: str
    task: str
    base_models: tuple[str, ...]


class Model(msgspec.Struct, frozen=True):
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
    facts: Facts
    card: ModelCard
    created_at: datetime
    updated_at: datetime


class ModelFile(msgspec.Struct, frozen=True):
    path: str
    size: int
    digest: str


class ModelRef(msgspec.Struct, frozen=True):
    """A branch, a tag, or the commit of another hub (`kind`), and the revision here that it names."""

    kind: str
    name: str
    revision: str


class ModelRevision(msgspec.Struct, frozen=True):
    """A commit; its files never change."""

    revision: str
    parent: str | None
    at: datetime
    author: str
    title: str
    message: str


class ModelDetail(Model, frozen=True):
    """A model at one revision, with its files, its names and the text of its card."""

    entries: tuple[ModelFile, ...]
    refs: tuple[ModelRef, ...]
    readme: str
    accepted: bool


class Acceptance(msgspec.Struct, frozen=True):
    member: str
    name: str
    licence: str
    at: datetime


class CatalogueEntry(msgspec.Struct, frozen=True):
    """A model that one may want. `model` is what is here of it, None where nothing is. `memory`: of weights alone."""

    name: str
    maker: str
    about: str
    hub: str
    parameters: int
    licence: str
    languages: tuple[str, ...]
    runtimes: tuple[str, ...]
    task: str
    context: int
    memory: dict[str, int]
    model: str | None


class ImportStep(msgspec.Struct, frozen=True):
    """How far an import is; `model` at its end."""

    done: int = 0
    total: int = 0
    file: str = ""
    model: Model | None = None
    problem: dict[str, str | None] | None = None


class Models:
    """`ref` is an id, "namespace/name" or a bare name that is unique. Names are looked up in `project`, if one is
    given, else among all that the key may see."""

    def __init__(self, wire: Wire, project: str | None) -> None:
        self._wire, self._project = wire, project

    def list(self, *, search: str = "", project: str | None = None, everywhere: bool = False) -> Iterator[Model]:
        """A project's own and what is shared with it, or (`everywhere`) all that the key may see."""
        within = None if everywhere else project or self._project
        return self._wire.pages(Model, "/models", {"project": within, "search": search or None})

    def get(self, ref: str, revision: str | None = None) -> ModelDetail:
        return self._wire.one(ModelDetail, "GET", self._path(ref), query=self._asked(ref) | {"revision": revision})

    def create(
        self, name: str, *, visibility: str = "project", gated: bool = False, licence: str = "",
        project: str | None = None,
    ) -> Model:  # fmt: skip
        body = {"name": name, "visibility": visibility, "gated": gated, "licence": licence}
        return self._wire.one(Model, "POST", "/models", body=body | given(project=project or self._project))

    def change(
        self, ref: str, *, visibility: str | None = None, gated: bool | None = None, licence: str | None = None
    ) -> Model:
        """Who may use it, and whether its licence must be accepted first."""
        body = given(visibility=visibility, gated=gated, licence=licence)
        return self._wire.one(Model, "PATCH", self._path(ref), query=self._asked(ref), body=body)

    def delete(self, ref: str) -> None:
        self._wire.call("DELETE", self._path(ref), query=self._asked(ref))

    def accept(self, ref: str) -> Model:
        """Its licence, for oneself."""
        return self._wire.one(Model, "POST", self._path(ref) + "/accept", query=self._asked(ref))

    def acceptances(self, ref: str) -> Iterator[Acceptance]:
        return self._wire.pages(Acceptance, self._path(ref) + "/acceptances", self._asked(ref))

    def commits(self, ref: str, revision: str | None = None) -> Iterator[ModelRevision]:
        return self._wire.pages(ModelRevision, self._path(ref) + "/commits", self._asked(ref) | {"revision": revision})

    def catalogue(self) -> Iterator[CatalogueEntry]:
        return self._wire.pages(CatalogueEntry, "/models/catalogue")

    def import_from_hub(
        self, model: str, *, revision: str = "main", name: str | None = None, licence: str = "",
        project: str | None = None,
    ) -> Iterator[ImportStep]:  # fmt: skip
        """Have the site fetch a model from its upstream hub. Raises `ApiError`; ends when the iteration is left."""
        body = {"model": model, "revision": revision, "licence": licence}
        body |= given(name=name, project=project or self._project)
        try:
            with self._wire.http.stream("POST", "/models/import", json=body, timeout=None) as answer:
                if not answer.is_success:
                    raise read_problem(answer.status_code, answer.read())
                for line in answer.iter_lines():
                    step = msgspec.json.decode(line, type=ImportStep)
                    if step.problem is not None:
                        said = step.problem
                        raise ApiError(
                            409, said.get("detail") or "", code=said.get("code") or "", field=said.get("field")
                        )
                    yield step
        except CannotConnect:
            raise
        except OSError as error:
            raise self._wire.unanswered(error) from error

    def push(
        self, model: Model, files: Mapping[str, Path], title: str, told: Told = lambda what, size: None
    ) -> ModelRevision:
        """Commit `files` (path in the repository → where it lies) to `main`, sending what is not there already."""
        base = f"/models/{segment(model.id)}"
        digests = {path: _digest(place, lambda size: told("reading", size)) for path, place in files.items()}
        known = self._known(base, sorted(set(digests.values())))
        for path, place in files.items():
            digest = digests[path]
            if digest in known:
                told("sending", place.stat().st_size)
            else:
                address = f"{base}/content/{digest}"
                self._wire.send_file("PUT", address, place, told=lambda size: told("sending", size))
                known.add(digest)
        body = {"title": title, "files": [{"path": path, "digest": digest} for path, digest in digests.items()]}
        return self._wire.one(ModelRevision, "POST", f"{base}/commits", body=body)

    def _known(self, base: str, digests: Sequence[str]) -> set[str]:
        found: set[str] = set()
        for start in range(0, len(digests), AT_ONCE):
            asked = {"digests": list(digests[start : start + AT_ONCE])}
            page = self._wire.one(_Blobs, "POST", f"{base}/content/known", body=asked)
            found |= {blob.digest for blob in page.items}
        return found

    def _path(self, ref: str) -> str:
        """The path of one model. Whole names have a slash, so they are looked up first."""
        if "/" not in ref:
            return f"/models/{segment(ref)}"
        found = self._wire.one(_Models, "GET", "/models", query={"name": ref, "project": self._project})
        if not found.items:
            raise NotFound("model not found", field="model")
        return f"/models/{segment(found.items[0].id)}"

    def _asked(self, ref: str) -> dict[str, str | int | None]:
        return {"project": self._project}


class _Blobs(msgspec.Struct):
    items: builtins.list[Blob]


class _Models(msgspec.Struct):
    items: builtins.list[Model]


def _digest(place: Path, told: Callable[[int], None]) -> str:
    hasher = hashlib.sha256()
    with place.open("rb") as file:
        while chunk := file.read(CHUNK):
            hasher.update(chunk)
            told(len(chunk))
    return hasher.hexdigest()
