"""Finds plugins: every folder on a shelf that exports `PLUGIN`, and every entry point of the shelf's group.

A plugin whose library is not installed is left out, with the reason, so that one missing extra never stops a factory.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from usina.core.errors import Invalid
from usina.ports.driver import DriverPlugin
from usina.ports.facade import FacadePlugin
from usina.ports.guard import GuardPlugin
from usina.ports.runtime import RuntimePlugin

Plugin = TypeVar("Plugin")


@dataclass(frozen=True, slots=True)
class Shelf(Generic[Plugin]):
    """What was found, by name, and what could not be used, with the reason."""

    plugins: dict[str, Plugin] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


def drivers() -> Shelf[DriverPlugin]:
    return _discover("usina.drivers", DriverPlugin)


def runtimes() -> Shelf[RuntimePlugin]:
    return _discover("usina.runtimes", RuntimePlugin)


def guards() -> Shelf[GuardPlugin]:
    return _discover("usina.guards", GuardPlugin)


def check_runtimes(settings: Mapping[str, Mapping[str, str]]) -> None:
    """Settings of runtimes that nobody knows are refused. Raises `Invalid`."""
    known = runtimes().plugins
    for name, given in settings.items():
        if name not in known:
            raise Invalid(f"runtime: {name!r} is not one of {', '.join(sorted(known))}", field="runtime")
        for setting in given:
            if setting not in known[name].settings:
                words = ", ".join(known[name].settings) or "none"
                raise Invalid(f"runtime: {name} has no setting {setting!r}; it has {words}", field="runtime")


def facades(only: Collection[str] = ()) -> Shelf[FacadePlugin]:
    """`only`: names of folders and entry points that are looked at; all where there are none."""
    return _discover("usina.facades", FacadePlugin, only)


def _discover(shelf: str, kind: type[Plugin], only: Collection[str] = ()) -> Shelf[Plugin]:
    found: Shelf[Plugin] = Shelf()
    package = importlib.import_module(shelf)
    for module in pkgutil.iter_modules(package.__path__):
        if only and module.name not in only:
            continue
        _take(
            found,
            module.name,
            kind,
            lambda name=module.name: importlib.import_module(f"{shelf}.{name}").PLUGIN,
        )
    for entry in entry_points(group=shelf):
        if not only or entry.name in only:
            _take(found, entry.name, kind, entry.load)
    return found


def _take(found: Shelf[Plugin], name: str, kind: type[Plugin], load: Any) -> None:
    try:
        plugin = load()
    except ImportError as error:
        found.missing[name] = str(error)
        return
    if not isinstance(plugin, kind):
        found.missing[name] = f"PLUGIN is not a {kind.__name__}"
        return
    found.plugins[getattr(plugin, "name", name)] = plugin
