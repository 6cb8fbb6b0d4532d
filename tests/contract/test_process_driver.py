"""The process driver keeps the contract of every task driver, with real sandboxes."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from process_wardens import process_host

from usina.drivers.process import PLUGIN
from usina.drivers.process.driver import ProcessDriver
from usina.testing.task_contract import Sockets, TaskDriverContract

pytestmark = pytest.mark.real


class TestProcessDriver(TaskDriverContract):
    sockets = Sockets() if os.geteuid() == 0 else None

    @pytest.fixture
    async def stack(self, tmp_path: Path) -> AsyncIterator[ProcessDriver]:
        async with process_host(tmp_path, beside=self.sockets) as driver:
            yield driver


async def test_the_plugin_says_what_it_is_and_what_this_machine_has() -> None:
    assert (PLUGIN.name, PLUGIN.stack, PLUGIN.open) == ("process", "local", None)
    checks = {check.name: check for check in await PLUGIN.diagnose()}
    assert checks["sandbox"].ok, checks
