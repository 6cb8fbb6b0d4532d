"""Catalogue: models that a centre may want, as their makers describe them. To be in it is not to be here."""

from __future__ import annotations

from dataclasses import dataclass

WIDTHS = {"bf16": 16, "int8": 8, "int4": 4}
"""Bits of one parameter, by the type that weights are kept in."""


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    name: str
    maker: str
    about: str  # one sentence
    hub: str = ""  # "namespace/name" at a Hugging Face hub; "" where its weights are not given out there
    parameters: int = 0  # as published; 0 where that is not known for sure
    licence: str = ""  # an SPDX-like word, as the hub spells it
    languages: tuple[str, ...] = ()  # ISO 639-1; "" where the maker lists too many
    runtimes: tuple[str, ...] = ()  # known to serve it
    task: str = "text-generation"
    context: int = 0  # tokens

    @property
    def memory(self) -> dict[str, int]:
        """Bytes that the weights alone take, by type: parameters × width. What serves them needs more."""
        return {dtype: self.parameters * width // 8 for dtype, width in WIDTHS.items()} if self.parameters else {}
