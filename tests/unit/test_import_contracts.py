"""Each import contract bites: a planted violation breaks it, and nothing else does."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PLANTED = {
    "core-is-pure": ("core/resource.py", "import sqlalchemy"),
    "placement-is-pure": ("placement/choose.py", "import time"),
    "the-floors": ("store/events.py", "import usina.app.context"),
    "only-server-knows-plugins": ("engine/fleet.py", "import usina.drivers.fake"),
    "doors-call-operations": ("facades/native/hosts.py", "import usina.engine.fleet"),
    "operations-are-not-the-engine": ("app/hosts.py", "import usina.engine.fleet"),
    "drivers-stand-alone": ("drivers/fake/world.py", "import usina.store.store"),
    "drivers-are-blind": ("drivers/fake/driver.py", "import usina.drivers.libvirt"),
    "runtimes-decide-only": ("runtimes/vllm/recipe.py", "import usina.store.store"),
    "runtimes-are-blind": ("runtimes/vllm/recipe.py", "import usina.runtimes.nim"),
    "guards-look-only": ("guards/patterns/guard.py", "import usina.services.reach"),
    "guards-are-blind": ("guards/patterns/guard.py", "import usina.guards.http"),
    "hardware-is-below-drivers": ("hardware/health.py", "import usina.store.store"),
    "services-are-slices": ("services/images/library.py", "import usina.store.store"),
    "cli-is-a-client": ("cli/main.py", "import usina.app.context"),
}


def lint(tree: Path, *options: str) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("lint-imports")
    environment = os.environ | {"PYTHONPATH": str(tree / "src"), "COLUMNS": "200"}
    command = [str(program), "--config", str(tree / "pyproject.toml"), "--no-cache", *options]
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_every_contract_is_planted_against() -> None:
    import tomllib

    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert {c["id"] for c in settings["tool"]["importlinter"]["contracts"]} == set(PLANTED)


def test_the_house_keeps_its_contracts() -> None:
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("contract", PLANTED)
def test_a_planted_violation_is_found(tree: Path, contract: str) -> None:
    place, line = PLANTED[contract]
    file = tree / "src/usina" / place
    file.write_text(file.read_text() + f"\n{line}\n")
    done = lint(tree, "--contract", contract)
    assert done.returncode == 1, done.stdout
    assert "BROKEN" in done.stdout
