"""Builds what is not Python: the program that sandboxes are forked from."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = "src/usina/drivers/process/warden/sandbox.c"
OPTIONS = ("-std=c11", "-O2", "-static", "-Wall", "-Wextra")


class Sandbox(BuildHookInterface):  # type: ignore[type-arg]
    """Where there is no compiler, or no Linux, all else of Usina is built; tasks as processes need it."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        compiler = shutil.which(os.environ.get("CC", "cc"))
        if sys.platform != "linux" or compiler is None:
            self.app.display_warning("no C compiler for Linux: tasks will not run as processes of this host")
            return
        source = Path(self.root, SOURCE)
        program = source.with_suffix("")
        fresh = program.with_suffix(".new")
        subprocess.run([compiler, *OPTIONS, "-o", fresh, source], check=True)
        fresh.replace(program)  # one that runs is left as it is
        build_data["artifacts"].append(f"/{program.relative_to(self.root)}")
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
