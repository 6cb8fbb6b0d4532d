"""Options: few. Which machine, and who to be there, is in each task's plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from usina.core.errors import Invalid
from usina.core.units import GiB

OPTIONS: Final[Mapping[str, str]] = {
    "shared_limit": "Bytes of weights and alike that are kept in a machine, beside what its runs use (64 GiB).",
}
SHARED_LIMIT: Final = 64 * GiB


def check(options: Mapping[str, Any]) -> None:
    """Raises `Invalid` naming the option."""
    for name, value in options.items():
        if name not in OPTIONS:
            raise Invalid(f"{name}: tasks in machines have no such option", field=name)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 60:
            raise Invalid(f"{name}: must be a whole number of bytes", field=name)
