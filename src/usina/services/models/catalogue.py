"""Reads ``catalogue.toml``: models that a European centre may want to offer, as their makers describe them."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib.resources import files

import msgspec

from usina.core.catalogue import CatalogueEntry


@cache
def entries() -> tuple[CatalogueEntry, ...]:
    document = tomllib.loads((files("usina.services.models") / "catalogue.toml").read_text())
    return tuple(msgspec.convert(document["model"], list[CatalogueEntry]))
