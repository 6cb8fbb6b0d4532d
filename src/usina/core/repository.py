"""Repository: where a model's files are kept over time. A commit's tree never changes; branches move, tags do not.

Names and paths follow the rules of the Hugging Face hub and of git, so that what is kept here can be told to their
clients. Nothing here does I/O.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from usina.core.errors import Conflict, Invalid, NotFound
from usina.core.goods import Visibility
from usina.core.model import Model, ModelFacts, ModelFile
from usina.core.units import Instant, MiB

MAIN = "main"
LARGE = 10 * MiB
"""A file from this size on is told by its sha256 ("LFS" in the hub's words), a smaller one by git's sha1."""
MOST_FILES = 20_000
WEIGHTS = ("gguf", "safetensors", "onnx")
"""Kinds of files that tell how a model can be run."""
_PART = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?\Z")
_REF = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/-]{0,126}[A-Za-z0-9_]\Z|[A-Za-z0-9_]\Z")
_COMMIT = re.compile(r"[0-9a-f]{40}\Z")
_DIGEST = re.compile(r"[0-9a-f]{64}\Z")
_BINARY = re.compile(
    r".*\.(7z|arrow|bin|bz2|ckpt|ftz|gguf|ggml|gz|h5|joblib|lfs\.[^/]*|mlmodel|model|msgpack|npy|npz|onnx|ot|parquet|pb"
    r"|pickle|pkl|pt|pth|rar|safetensors|tar|tflite|tgz|wasm|xz|zip|zst)\Z"
    r"|(.*/)?saved_model/.*\Z|.*tfevents[^/]*\Z",
    re.IGNORECASE | re.DOTALL,
)


class RefKind(StrEnum):
    BRANCH = "branch"
    TAG = "tag"
    ORIGIN = "origin"  # the commit of another hub that was imported; found by its id there


@dataclass(frozen=True, slots=True)
class Ref:
    """A name of a commit."""

    kind: RefKind
    name: str
    commit: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of a commit's tree."""

    path: str
    size: int  # bytes
    digest: str  # sha256, hex: what the blob store calls it
    oid: str  # git's id of it, 40 hex digits; of a large file, that of its LFS pointer
    large: bool = False

    @property
    def etag(self) -> str:
        """What clients of the hub call this content."""
        return self.digest if self.large else self.oid


@dataclass(frozen=True, slots=True)
class Card:
    """What README.md says at its top; "" and () where it does not."""

    licence: str = ""
    tags: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    library: str = ""
    task: str = ""  # "text-generation" …
    base_models: tuple[str, ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict)  # all of it


@dataclass(frozen=True, slots=True)
class Revision:
    """A commit: a whole tree, and what its files say."""

    commit: str
    parent: str | None
    at: Instant  # whole seconds, as git counts them
    author: str  # a member's name
    title: str
    message: str = ""
    entries: tuple[Entry, ...] = ()  # by path
    facts: ModelFacts = field(default_factory=ModelFacts)
    card: Card = field(default_factory=Card)

    def entry(self, path: str) -> Entry | None:
        return next((entry for entry in self.entries if entry.path == path), None)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.entries)


@dataclass(frozen=True, slots=True)
class Summary:
    """What lists show of the newest commit on `main`."""

    commit: str
    at: Instant
    size: int
    files: int
    kinds: tuple[str, ...]  # of WEIGHTS, those that it has
    facts: ModelFacts
    card: Card

    @classmethod
    def of(cls, revision: Revision) -> Summary:
        suffixes = {entry.path.rpartition(".")[2] for entry in revision.entries}
        kinds = tuple(kind for kind in WEIGHTS if kind in suffixes)
        files = len(revision.entries)
        card = replace(revision.card, data={})  # it may be long, and lists are
        return cls(revision.commit, revision.at, revision.size, files, kinds, revision.facts, card)


@dataclass(frozen=True, slots=True)
class Repository:
    id: str
    tenant: str
    project: str
    name: str  # "namespace/name", in the letters of its maker; found whatever their case
    visibility: Visibility
    gated: bool  # its licence must be accepted first
    terms: str  # the licence as its owner names it; "": as its card does
    origin: str  # what it was imported from, "" if it was not
    created_at: Instant
    updated_at: Instant
    main: Summary

    @property
    def licence(self) -> str:
        return self.terms or self.main.card.licence

    def model(self, revision: Revision) -> Model:
        files = tuple(ModelFile(entry.path, entry.size, entry.digest) for entry in revision.entries)
        return Model(self.id, self.name, revision.commit, files, revision.facts, self.terms or revision.card.licence)


@dataclass(frozen=True, slots=True)
class Acceptance:
    """That a member took a model's licence, under the name it then had."""

    member: str
    name: str
    licence: str
    at: Instant


def may_use(repository: Repository, tenant: str, project: str) -> bool:
    """Whether a project may use a model: its own, its tenant's shared ones, public ones."""
    return (
        repository.project == project
        or repository.visibility is Visibility.PUBLIC
        or (repository.visibility is Visibility.TENANT and repository.tenant == tenant)
    )


# --- changes of a tree


@dataclass(frozen=True, slots=True)
class Drop:
    """A file is taken out."""

    path: str


@dataclass(frozen=True, slots=True)
class DropFolder:
    """Everything below a path is taken out."""

    path: str


TreeChange = Entry | Drop | DropFolder


def changed(entries: Iterable[Entry], changes: Iterable[TreeChange]) -> tuple[Entry, ...]:
    """A tree after `changes`, in their order. Raises `NotFound` (``entry-not-found``), and `Invalid` for what would be
    a file and a folder."""
    tree = {entry.path: entry for entry in entries}
    for change in changes:
        match change:
            case Entry():
                tree[change.path] = change
            case Drop():
                if tree.pop(change.path, None) is None:
                    message = f"A file with this name doesn't exist: {change.path}"  # as the hub's clients expect
                    raise NotFound(message, code="entry-not-found")
            case DropFolder():
                below = change.path.rstrip("/") + "/"
                tree = {path: entry for path, entry in tree.items() if not path.startswith(below)}
    if len(tree) > MOST_FILES:
        raise Invalid(f"files: at most {MOST_FILES:,} in a repository", field="files")
    folders = {folder for path in tree for folder in folders_of(path)}
    both = sorted(folders & tree.keys())
    if both:
        raise Invalid(f"files: {both[0]!r} would be a file and a folder", field="files")
    return tuple(tree[path] for path in sorted(tree))


def folders_of(path: str) -> list[str]:
    """``a/b/c`` → ``["a", "a/b"]``."""
    parts = path.split("/")[:-1]
    return ["/".join(parts[: end + 1]) for end in range(len(parts))]


def is_large(path: str, size: int) -> bool:
    """Whether a file is told by its sha256: it is big, or of a kind that has no lines."""
    return size >= LARGE or _BINARY.match(path) is not None


# --- names that come in from outside


def check_model_name(name: str, field: str = "name") -> str:
    """``namespace/name`` as the hub's clients accept it. Raises `Invalid`."""
    parts = name.split("/")
    good = len(parts) == 2 and all(_PART.match(part) and "--" not in part and ".." not in part for part in parts)
    if not good or name.lower().endswith((".git", ".ipynb")):
        raise Invalid(
            f"{field}: use namespace/name, each of 1 to 96 letters, digits, '.', '_' and '-', "
            "beginning and ending with a letter, digit or '_', without '--' and '..'",
            field=field,
        )
    return name


def check_path(path: str, field: str = "path") -> str:
    """A path inside a repository: relative, of plain names. Raises `Invalid`."""
    parts = path.split("/")
    plain = all(
        part not in ("", ".", "..") and part.lower() != ".git" and len(part.encode(errors="replace")) <= 255
        for part in parts
    )
    if not plain or not path.isprintable() or "\\" in path or len(path) > 1024:
        raise Invalid(f"{field}: {path[:80]!r} is not a path inside a repository", field=field)
    return path


def check_ref_name(name: str, field: str = "name") -> str:
    """The name of a branch or tag. Raises `Invalid`."""
    bad = ("..", "//", "/.", "./", ".lock")
    if not _REF.match(name) or any(one in name for one in bad) or is_commit(name) or name.startswith("refs/"):
        raise Invalid(
            f"{field}: use 1 to 128 letters, digits, '.', '_', '-' and '/', and nothing like a commit", field=field
        )
    return name


def check_digest(digest: str, field: str = "digest") -> str:
    """A sha256 in hex. Raises `Invalid`."""
    if not _DIGEST.match(digest):
        raise Invalid(f"{field}: must be 64 hexadecimal digits", field=field)
    return digest


def is_commit(text: str) -> bool:
    return _COMMIT.match(text) is not None


def taken(name: str) -> Conflict:
    return Conflict(f"model {name!r} exists already in this project", field="name", code="name-taken")
