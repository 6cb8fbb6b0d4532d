"""A run's journal: one file of lines, each an object with one key, added as things happen and never changed.

A warden killed while it adds a line leaves at most half a line, which counts as not written. Nothing is forced to the
disk: a host that goes down takes its runs with it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any


def add(path: str, key: str, value: object) -> None:
    """One line, by one write. Makes the file."""
    _write(path, os.O_APPEND, _line(key, value))


def read(path: str) -> dict[str, Any]:
    """Key → value. Empty where nothing whole was ever written."""
    try:
        with open(path, "rb") as file:
            lines = file.read().split(b"\n")
    except OSError:
        return {}
    found: dict[str, Any] = {}
    for line in lines[:-1]:
        try:
            found.update(json.loads(line))
        except ValueError:
            continue
    return found


def replace(path: str, content: Mapping[str, Any]) -> None:
    """Write it anew, without what must not be kept."""
    _write(f"{path}.new", os.O_TRUNC, b"".join(_line(key, value) for key, value in content.items()))
    os.rename(f"{path}.new", path)


def _line(key: str, value: object) -> bytes:
    return json.dumps({key: value}, separators=(",", ":")).encode() + b"\n"


def _write(path: str, flags: int, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | flags, 0o600)
    try:
        if os.write(fd, data) < len(data):
            raise OSError(28, "No space left on device", path)
    finally:
        os.close(fd)
