"""Every driver that discovery finds keeps the contract, but for those that bring a test file of their own.

A driver comes in by folder or by entry point; nothing here names it.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from usina.core.ids import Ids
from usina.core.machine import ImageFiles
from usina.ports.driver import Driver, HostSettings
from usina.server import discovery
from usina.testing.driver_contract import DriverContract

OWN_FILE = {
    p.stem.removeprefix("test_").removesuffix("_driver") for p in Path(__file__).parent.glob("test_*_driver.py")
}
DRIVERS = sorted(set(discovery.drivers().plugins) - OWN_FILE)


class TestDriver(DriverContract):
    @pytest.fixture(params=DRIVERS)
    async def driver(self, request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Driver]:
        plugin = discovery.drivers().plugins[request.param]
        plugin.check({})
        driver = plugin.open(HostSettings(Ids(time.time).new("host"), "h1", "test", tmp_path))
        yield driver
        await driver.close()

    @pytest.fixture
    def image(self) -> ImageFiles:
        return ImageFiles(digest="0" * 64, disk="", format="raw")


@pytest.mark.parametrize("name", DRIVERS)
async def test_a_plugin_says_what_it_is_and_what_it_needs(name: str) -> None:
    plugin = discovery.drivers().plugins[name]
    assert plugin.name == name
    assert plugin.summary
    assert all(plugin.options.values())
    assert await plugin.diagnose()
