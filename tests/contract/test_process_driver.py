"""The process driver keeps the contract of every task driver, with real sandboxes."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from process_wardens import process_host

from usina.drivers.process import PLUGIN
from usina.drivers.process.driver import ProcessDriver
from usina.testing.task_contract import TaskDriverContract

pytestmark = [pytest.mark.real, pytest.mark.skipif(not shutil.which("bwrap"), reason="needs bubblewrap")]


class TestProcessDriver(TaskDriverContract):
    @pytest.fixture
    async def stack(self, tmp_path: Path) -> AsyncIterator[ProcessDriver]:
        async with process_host(tmp_path) as driver:
            yield driver


async def test_the_plugin_says_what_it_is_and_what_this_machine_has() -> None:
    assert (PLUGIN.name, PLUGIN.stack, PLUGIN.open) == ("process", "local", None)
    checks = {check.name: check for check in await PLUGIN.diagnose()}
    assert checks["bubblewrap"].ok and checks["sandbox"].ok, checks
