"""Guards as the operator sets them up, in a TOML file::

[guards.pii]
plugin = "patterns"
redact = ["email", "iban"]
everywhere = true    # for all endpoints; else for those that ask for it
fails_open = false   # of one that is everywhere: whether what it cannot tell passes
timeout = 5          # seconds
"""

from __future__ import annotations

import tomllib
from typing import Any

from usina.core.errors import Invalid
from usina.core.names import check_name
from usina.ports.guard import Placed
from usina.server import discovery
from usina.server.settings import Settings
from usina.services.reach import Reach

MOST = 64
_OURS: dict[str, tuple[type, ...]] = {
    "plugin": (str,),
    "everywhere": (bool,),
    "fails_open": (bool,),
    "timeout": (int, float),
}


def placed(settings: Settings) -> dict[str, Placed]:
    """By name. Raises `Invalid` naming the field."""
    if settings.guards is None:
        return {}
    try:
        told = tomllib.loads(settings.guards.read_text())
    except (OSError, UnicodeDecodeError):
        raise Invalid(f"guards: {settings.guards} cannot be read", field="guards") from None
    except tomllib.TOMLDecodeError as error:
        raise Invalid(f"guards: {settings.guards} is not TOML: {error}", field="guards") from None
    tables = told.pop("guards", {})
    if told or not isinstance(tables, dict) or len(tables) > MOST:
        raise Invalid(f"guards: {settings.guards} must have tables like [guards.pii], at most {MOST}", field="guards")
    reach = Reach(allow_private=settings.allow_private_urls)
    return {name: _one(name, given, reach) for name, given in tables.items()}


def _one(name: str, given: Any, reach: Reach) -> Placed:
    field = f"guards.{name}"
    check_name(name, field)
    if not isinstance(given, dict):
        raise Invalid(f"{field}: must be a table", field=field)
    for setting, kinds in _OURS.items():
        if setting in given and type(given[setting]) not in kinds:
            told = " or ".join(kind.__name__ for kind in kinds)
            raise Invalid(f"{field}.{setting}: must be of the kind {told}", field=f"{field}.{setting}")
    shelf = discovery.guards()
    plugin = shelf.plugins.get(given.get("plugin", ""))
    if plugin is None:
        reason = shelf.missing.get(given.get("plugin", ""))
        known = reason or f"must be one of {', '.join(sorted(shelf.plugins))}"
        raise Invalid(f"{field}.plugin: {known}", field=f"{field}.plugin")
    own = {setting: value for setting, value in given.items() if setting not in _OURS}
    for setting in own:
        if setting not in plugin.settings:
            words = ", ".join(plugin.settings)
            raise Invalid(f"{field}.{setting}: {plugin.name} has no such setting; it has {words}", field=field)
    timeout = float(given.get("timeout", 5.0))
    if not 0 < timeout <= 60:
        raise Invalid(f"{field}.timeout: must be above 0 and at most 60 seconds", field=f"{field}.timeout")
    try:
        guard = plugin.make(own, reach)
    except Invalid as error:
        raise Invalid(f"{field}.{error.message}", field=f"{field}.{error.field}") from None
    return Placed(name, guard, given.get("everywhere", False), given.get("fails_open", False), timeout)
