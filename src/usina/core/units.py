"""Sizes in bytes, times in seconds. ``MiB`` and friends exist only at edges; this is the edge's parser."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final

from usina.core.errors import Invalid

KiB: Final = 1 << 10
MiB: Final = 1 << 20
GiB: Final = 1 << 30
TiB: Final = 1 << 40

_SCALE = {"": 1, "b": 1, "k": KiB, "m": MiB, "g": GiB, "t": TiB}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?b)?\s*\Z", re.IGNORECASE)

Instant = float
"""A moment: seconds since the Unix epoch, UTC."""


def parse_size(text: str, field: str = "size") -> int:
    """``"2GiB"``, ``"512M"``, ``"1024"`` → bytes. All units are binary. Raises `Invalid` naming `field`."""
    found = _SIZE.match(text)
    if not found:
        raise Invalid(f"{field}: {text!r} is not a size such as 512MiB or 2GiB", field=field)
    return int(float(found[1]) * _SCALE[found[2].lower()])


def show_size(size: int) -> str:
    """Bytes → the shortest exact binary unit, else one decimal: ``2GiB``, ``1.5GiB``, ``900B``."""
    for unit, scale in (("TiB", TiB), ("GiB", GiB), ("MiB", MiB), ("KiB", KiB)):
        if size >= scale:
            return f"{size // scale}{unit}" if size % scale == 0 else f"{size / scale:.1f}{unit}"
    return f"{size}B"


def iso(at: Instant | None) -> str | None:
    """An instant as RFC 3339 in UTC with milliseconds, ``None`` staying ``None``."""
    if at is None:
        return None
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def parse_instant(text: str, field: str = "time") -> Instant:
    """RFC 3339 → instant. Raises `Invalid` naming `field`."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise Invalid(f"{field}: {text!r} is not an RFC 3339 time", field=field) from None
    if moment.tzinfo is None:
        raise Invalid(f"{field}: say the time zone, for example {text}Z", field=field)
    try:
        return moment.timestamp()
    except (OverflowError, ValueError):
        raise Invalid(f"{field}: out of range", field=field) from None
