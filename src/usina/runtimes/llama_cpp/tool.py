"""llama.cpp as this installation has it: the library xllamacpp, and the Python that runs Usina, seen by runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from usina.ports.driver import Tool

_PLACE = "/usina/llama.cpp"
_PYTHON = "/usina/python"


def tool(_settings: Mapping[str, str]) -> Tool | None:
    """None where the library is not installed."""
    found = find_spec("xllamacpp")
    if found is None or found.origin is None:
        return None
    library = Path(found.origin).parent
    folders = {f"{_PLACE}/library/xllamacpp": str(library), f"{_PLACE}/program": str(Path(__file__).parent)}
    beside = library.with_name("xllamacpp.libs")  # where wheels keep what they are linked to
    if beside.is_dir():
        folders[f"{_PLACE}/library/xllamacpp.libs"] = str(beside)
    python, base = os.path.realpath(sys.executable), os.path.realpath(sys.base_prefix)
    words: tuple[str, ...] = (python,)
    if not base.startswith("/usr"):  # which every run sees
        folders[_PYTHON] = base
        inside = f"{_PYTHON}/{os.path.relpath(python, base)}"
        words = ("/usr/bin/env", f"LD_LIBRARY_PATH={_PYTHON}/lib", inside)
    return Tool((*words, "-I", f"{_PLACE}/program/serve.py", f"--library={_PLACE}/library"), folders)
