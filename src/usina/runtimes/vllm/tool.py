"""vLLM as it is installed on this machine: in a virtual environment of its own, for it wants other versions of much
that Usina wants. Runs see that, and the Python behind it, at places of ours."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from usina.core.errors import Invalid
from usina.ports.driver import Tool

_PLACE = "/usina/vllm"
_MAIN = "vllm/entrypoints/cli/main.py"


def tool(settings: Mapping[str, str]) -> Tool | None:
    """None where the operator told of none. Raises `Invalid`."""
    told = settings.get("environment", "")
    if not told:
        return None
    folder = Path(told).absolute()
    packages = next((main.parents[3] for main in folder.glob(f"lib/python3*/site-packages/{_MAIN}")), None)
    if packages is None:
        raise Invalid(f"runtime: vllm.environment: there is no vLLM in {folder}", field="runtime")
    python = Path(os.path.realpath(folder / "bin" / "python"))
    base = python.parents[1]
    folders = {f"{_PLACE}/environment": str(folder)}
    inside = f"{_PLACE}/environment"
    words = ["/usr/bin/env", "PYTHONSAFEPATH=1", f"PYTHONPATH={inside}/{packages.relative_to(folder)}"]
    words.append(f"PATH={inside}/bin:/usr/local/bin:/usr/bin:/bin")  # with ninja, that compilers of kernels call
    if not base.is_relative_to("/usr"):  # which every run sees
        folders[f"{_PLACE}/python"] = str(base)
        words.append(f"LD_LIBRARY_PATH={_PLACE}/python/lib")
        python = Path(_PLACE, "python", python.relative_to(base))
    return Tool((*words, str(python), "-m", "vllm.entrypoints.cli.main"), folders)
