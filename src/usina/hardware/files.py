"""Small files of /proc and /sys, which may be missing, unreadable or nonsense: reading never raises.

A broken card answers reads with errors or garbage, and must not keep the others from being found.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

_ADDRESS: Final = re.compile(r"([0-9a-f]{1,8}):([0-9a-f]{1,2}):([0-9a-f]{1,2})(?:\.([0-7]))?", re.IGNORECASE)
_MOST: Final = 1 << 63  # what claims to be more is garbage
_DIGITS: Final = 19


def text(path: str | Path) -> str:
    """What it says without spaces around it; "" if it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except (OSError, ValueError):
        return ""


def number(path: str | Path) -> int:
    """Decimal or 0x…; 0 for anything else, also for what is negative."""
    return parse_number(text(path)) or 0


def parse_number(words: str) -> int | None:
    """A number from 0 to 2**63, decimal or 0x…."""
    if re.fullmatch(r"0x[0-9a-fA-F]{1,16}", words):
        return int(words, 16) if int(words, 16) < _MOST else None
    return int(words) if words.isascii() and words.isdecimal() and len(words) < _DIGITS else None


def entries(folder: str | Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except (OSError, ValueError):
        return []


def target(link: str | Path) -> str:
    """The last part of what a symbolic link points to; "" where there is none."""
    try:
        return os.path.basename(os.readlink(link))
    except (OSError, ValueError):
        return ""


def pci_address(words: str) -> str | None:
    """A PCI address as sysfs writes it: ``00000000:3B:00.0`` and ``0000:3b:00`` → ``0000:3b:00.0``."""
    found = _ADDRESS.fullmatch(words.strip())
    if found is None:
        return None
    domain, bus, slot = (int(part, 16) for part in found.group(1, 2, 3))
    return f"{domain:04x}:{bus:02x}:{slot:02x}.{found.group(4) or 0}"
