"""What a request may not have although a host fits it, an idea a file.

Unlike a filter, a rule depends on more than the row: on where others are, on when the request runs, on what is
promised. It is asked anew for every request, over all rows, and only where it concerns the request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from usina.core.capacity import Needs
from usina.placement.fleet import Fleet, Mask
from usina.placement.promises import Promises
from usina.placement.rules import affinity, maintenance, reserved

Rule = Callable[[Fleet, Promises, Needs], Iterator[tuple[str, Mask]]]

RULES: tuple[Rule, ...] = (maintenance.close, affinity.close, reserved.close)

__all__ = ["RULES", "Rule"]
