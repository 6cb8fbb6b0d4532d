"""The one-folder promise: a driver dropped in is found, served, documented and held to the contract. No other edit."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]

THROWAWAY = '''"""A driver that was not there yesterday."""
from dataclasses import replace
from usina.drivers.fake import PLUGIN as FAKE
PLUGIN = replace(FAKE, name="throwaway", summary="Dropped in by a test.")
'''

ASK = """
import asyncio, pathlib, sys
from usina.testing.factory import running
from usina.server.reference import drivers_page

async def main():
    assert "throwaway" in drivers_page(), "not documented"
    async with running(pathlib.Path(sys.argv[1])) as factory:
        async with factory.client() as client:
            site = (await client.get("/site")).json()
            assert site["drivers"]["throwaway"]["summary"] == "Dropped in by a test."
            host = await client.post("/hosts", json={"name": "h1", "driver": "throwaway"})
            assert host.status_code == 201, host.text

asyncio.run(main())
"""


def by_folder(tmp_path: Path) -> Path:
    """A copy of the house with one more folder on the shelf."""
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shelf = tmp_path / "src/usina/drivers/throwaway"
    shelf.mkdir()
    (shelf / "__init__.py").write_text(THROWAWAY)
    return tmp_path / "src"


def by_entry_point(tmp_path: Path) -> Path:
    """An installed package of somebody else's."""
    (tmp_path / "throwaway_driver.py").write_text(THROWAWAY)
    info = tmp_path / "throwaway-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: throwaway\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[usina.drivers]\nthrowaway = throwaway_driver:PLUGIN\n")
    return tmp_path


@pytest.mark.parametrize("way", [by_folder, by_entry_point])
def test_a_driver_dropped_in_is_served_documented_and_contract_tested(way: object, tmp_path: Path) -> None:
    path = way(tmp_path)  # type: ignore[operator]
    environment = os.environ | {"PYTHONPATH": str(path)}

    def run(*command: str) -> str:
        done = subprocess.run(
            [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run("-c", ASK, str(tmp_path / "data"))
    told = run("-m", "pytest", "tests/contract/test_every_driver.py", "-k", "throwaway", "-p", "no:cacheprovider")
    passed = re.search(r"(\d+) passed", told)
    assert passed is not None and int(passed[1]) > 20, told


RUNTIME = '''"""A runtime that was not there yesterday."""
from dataclasses import replace
from usina.runtimes.external import PLUGIN as EXTERNAL
PLUGIN = replace(EXTERNAL, name="throwaway", summary="Dropped in by a test.")
'''

ASK_RUNTIMES = """
import asyncio, pathlib, sys
from usina.server.reference import runtimes_page
from usina.testing.factory import running

async def main():
    assert "throwaway" in runtimes_page(), "not documented"
    async with running(pathlib.Path(sys.argv[1]), plugins={}) as factory:
        async with factory.client() as client:
            found = (await client.get("/runtimes")).json()["items"]
            assert "throwaway" in [one["name"] for one in found]

asyncio.run(main())
"""


def test_a_runtime_dropped_in_is_served_and_documented(tmp_path: Path) -> None:
    path = by_folder(tmp_path)
    shelf = path / "usina/runtimes/throwaway"
    shelf.mkdir()
    (shelf / "__init__.py").write_text(RUNTIME)
    environment = os.environ | {"PYTHONPATH": str(path)}
    command = [sys.executable, "-c", ASK_RUNTIMES, str(tmp_path / "data")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
