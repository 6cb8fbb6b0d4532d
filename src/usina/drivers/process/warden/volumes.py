"""Mounts of volumes for sandboxes. How one is made is in a file of its own, which other drivers have too: the settings
name it, it knows the standard library alone as all of this does, and it is read when the first run comes that has any.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from .files import Refused


class Volumes:
    """`module`: the path of `usina.hardware.folders.mounts`."""

    def __init__(self, module: str) -> None:
        self._path = module
        self._module: ModuleType | None = None

    @contextmanager
    def mounted(self, wanted: Sequence[Mapping[str, Any]], uid: int | None) -> Iterator[list[int]]:
        """Descriptors of mounts that are attached nowhere, on which the user `uid` owns what is the volume's owner's.
        Raises `Refused`, `OSError`."""
        made: list[int] = []
        try:
            for one in wanted:
                made.append(self._mounted(one, uid))
            yield made
        finally:
            for fd in made:
                os.close(fd)

    def _mounted(self, one: Mapping[str, Any], uid: int | None) -> int:
        if uid is None:
            raise Refused("volumes need root on this host")
        mounts = self._load()
        try:
            fd: int = mounts.mounted(one["image"], mounts.one_user(uid), read_only=one["read_only"])
        except FileNotFoundError:
            raise Refused(f"the volume at {one['path']} is not on this host") from None
        return fd

    def _load(self) -> ModuleType:
        if self._module is None:
            spec = importlib.util.spec_from_file_location("mounts", self._path)
            assert spec is not None and spec.loader is not None
            self._module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(self._module)
        return self._module
