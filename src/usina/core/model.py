"""Model: weights and what belongs to them, at one revision. Facts are read from the files, never believed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModelFile:
    """One file of a revision; its bytes lie in the blob store."""

    path: str  # relative, with "/"
    size: int  # bytes
    digest: str  # sha256, hex


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the files say about the network in them; 0 or "" where they do not say it."""

    architecture: str = ""  # "llama", "mistral" …
    parameters: int = 0
    dtype: str = ""  # of the weights as stored: "bf16", "f16", "q4_1" …
    layers: int = 0
    heads: int = 0
    kv_heads: int = 0
    head_size: int = 0
    hidden: int = 0
    vocabulary: int = 0
    context: int = 0  # tokens it was made for
    embeddings: bool = False  # answers with vectors, not with text


@dataclass(frozen=True, slots=True)
class Model:
    """A model repository at one revision."""

    id: str
    name: str  # "namespace/name"
    revision: str  # commit, 40 hex digits; its files never change
    files: tuple[ModelFile, ...]
    facts: ModelFacts = ModelFacts()
    licence: str = ""
