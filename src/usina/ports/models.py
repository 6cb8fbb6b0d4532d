"""Models: what can be read from a repository's files, and the hub they can be imported from. Implemented by
`services.models`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from usina.core.model import ModelFacts
from usina.core.repository import Card
from usina.core.xet import XetFile


class ModelReader(Protocol):
    async def facts(self, files: Mapping[str, Path]) -> ModelFacts:
        """What the weights and configuration among `files` (path in the repository → where it lies) say; what they do
        not say is left empty. Never fails because of what is in a file: it may be anybody's."""
        ...

    def tells(self, path: str) -> bool:
        """Whether facts may follow from the file at `path`."""
        ...

    def card(self, text: str) -> Card:
        """What a README.md says at its top. Raises `Invalid` (field "README.md") where that is not YAML."""
        ...


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file at the upstream hub. Large ones are told by their sha256, the others by git's id."""

    path: str
    size: int  # bytes
    oid: str
    digest: str = ""  # sha256 of a large one


@dataclass(frozen=True, slots=True)
class RemoteModel:
    """A model at the upstream hub, at one commit."""

    name: str  # "namespace/name"
    commit: str
    licence: str
    gated: bool
    files: tuple[RemoteFile, ...]


class Upstream(Protocol):
    """A hub that speaks the Hugging Face protocol. Errors are `core.errors`, and never hold its token."""

    @property
    def address(self) -> str: ...

    async def describe(self, name: str, revision: str) -> RemoteModel:
        """Raises `NotFound` (field ``model``), `Unavailable`."""
        ...

    def content(self, model: RemoteModel, file: RemoteFile) -> AsyncIterator[bytes]:
        """The bytes of a file, gone on with where the connection breaks. Not checked: the caller does that."""
        ...


class Xorbs(Protocol):
    """What clients that speak Xet have sent, until files are made of it. Each member sees its own only."""

    async def receive(self, member: str, name: str, chunks: AsyncIterator[bytes]) -> bool:
        """Keep a xorb; whether it is new. Raises `Invalid` and `TooLarge` (field "xorb")."""
        ...

    def content(self, member: str, file: XetFile, blob: Callable[[str], Path]) -> AsyncIterator[bytes]:
        """The bytes of a file, made of xorbs that came, or of files that were made of them before; `blob`: where the
        content of a digest lies. Not checked: the caller does that. Raises `Invalid` (fields "shard", "xorb")."""
        ...

    async def remember(self, member: str, file: XetFile) -> None:
        """The file is kept, by its digest: chunks of its xorbs can be read from it."""
        ...

    async def sweep(self) -> None:
        """Forget what is old."""
        ...
