"""What an image recipe is: a name to choose it by, what its machines need, and how its files are made."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from usina.core.errors import Unavailable
from usina.core.machine import ImageFiles
from usina.services.images.workshop import Workshop

Cook = Callable[[Path, Workshop], Awaitable[ImageFiles]]
"""Puts the files into a folder and returns them by their names inside it, with digest and virtual size."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """An image that Usina can build by itself. Sizes in bytes."""

    name: str
    summary: str
    user: str  # whom `usina ssh` logs in as
    memory: int  # least memory a machine of it boots with
    disk: int  # least root disk; 0 for a diskless appliance
    tools: Mapping[str, str]  # tool that must be on the host → Debian package that has it
    sources: Path  # folder whose files are the recipe's text
    cook: Cook
    needs_root: bool = False

    def check(self) -> None:
        """Raise `Unavailable` when this process may not build the recipe."""
        if self.needs_root and os.geteuid() != 0:
            raise Unavailable(
                f"building {self.name} needs root; use a ready image, or build it as root once",
                code="root-needed",
            )

    def digest(self, month: str) -> str:
        """Names an edition: the recipe's text and the month (``"2026-11"``) whose packages it holds."""
        total = hashlib.sha256(f"{self.name} {month}\n".encode())
        here = Path(__file__).parent
        for path in [
            *sorted(self.sources.iterdir()),
            here / "debian.py",
            here / "cpio.py",
            here / "appliance.py",
        ]:
            if path.is_file() and path.suffix in {".py", ".sh", ".cfg"}:
                total.update(f"{path.name} {path.stat().st_size}\n".encode())
                total.update(path.read_bytes())
        return total.hexdigest()
