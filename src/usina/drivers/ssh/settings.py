"""Options: there are none. Which machine, and who to be there, is in each task's plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from usina.core.errors import Invalid

OPTIONS: Final[Mapping[str, str]] = {}


def check(options: Mapping[str, Any]) -> None:
    for name in options:
        raise Invalid(f"{name}: tasks in machines have no options", field=name)
