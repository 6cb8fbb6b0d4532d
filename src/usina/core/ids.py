"""Identifiers: a kind prefix, 48 bits of milliseconds and 80 random bits, in Crockford base32 (the ULID layout).

They sort by time of birth, are safe as host names, file names and libvirt names, and say what they name.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable

from usina.core.units import Instant

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_ID = re.compile(r"[a-z]{2,4}-[0-9a-z]{26}\Z")

PREFIX = {
    "tenant": "tnt",
    "project": "prj",
    "member": "mbr",
    "key": "key",
    "host": "hst",
    "machine": "mch",
    "volume": "vol",
    "network": "net",
    "image": "img",
    "security_group": "sgr",
    "forward": "fwd",
    "task": "tsk",
    "endpoint": "ept",
    "budget": "bdg",
    "model": "mdl",
}


class Ids:
    """Makes new identifiers. `entropy` is injectable, so that tests can repeat a run."""

    def __init__(self, now: Callable[[], Instant], entropy: Callable[[int], int] = secrets.randbits) -> None:
        self._now = now
        self._entropy = entropy

    def new(self, kind: str) -> str:
        """A new identifier for a `kind` of `PREFIX`."""
        value = (int(self._now() * 1000) & ((1 << 48) - 1)) << 80 | self._entropy(80)
        digits = "".join(_ALPHABET[(value >> shift) & 31] for shift in range(125, -1, -5))
        return f"{PREFIX[kind]}-{digits}"


def is_id(text: str, kind: str | None = None) -> bool:
    """Whether `text` has the shape of an identifier (of `kind`, if given)."""
    return bool(_ID.match(text)) and (kind is None or text.startswith(PREFIX[kind] + "-"))
