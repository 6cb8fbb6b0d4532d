"""The small file that says an image folder is complete.

Written last, in one rename; without it the folder is a draft.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path

from usina.core.machine import ImageFiles

NAME = "image.json"
_BLOCK = 1 << 20


def write(folder: Path, files: ImageFiles) -> ImageFiles:
    """Record `files`, whose paths are names inside `folder`. Returns them with absolute paths."""
    draft = folder / f".{NAME}.part"
    with draft.open("w") as stream:
        json.dump(asdict(files), stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
    draft.replace(folder / NAME)
    _sync(folder)
    return placed(folder, files)


def read(folder: Path) -> ImageFiles | None:
    """What `folder` holds, with absolute paths; ``None`` when it is not complete."""
    try:
        files = ImageFiles(**json.loads((folder / NAME).read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return placed(folder, files)


def placed(folder: Path, files: ImageFiles) -> ImageFiles:
    """`files` with every name made absolute under `folder`."""
    return replace(
        files,
        disk=_under(folder, files.disk),
        kernel=_under(folder, files.kernel),
        initrd=_under(folder, files.initrd),
    )


def digest(paths: Iterable[Path]) -> str:
    """sha256, hex, over the content of `paths` in their order."""
    total = hashlib.sha256()
    for path in paths:
        with path.open("rb") as stream:
            while block := stream.read(_BLOCK):
                total.update(block)
    return total.hexdigest()


def _under(folder: Path, name: str) -> str:
    return str(folder / Path(name).name) if name else ""


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
