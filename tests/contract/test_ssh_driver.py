"""The driver of tasks in machines, in Debian 12 with its own systemd and sshd."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from usina.core.machine import Card, Power, Present, Seen
from usina.core.task import Inside, TaskPlan
from usina.core.units import MiB
from usina.drivers.ssh.driver import MachineTasks
from usina.ports.driver import HostSettings
from usina.testing.guests import USER, Box, box
from usina.testing.task_contract import Make, TaskDriverContract

pytestmark = [
    pytest.mark.real,
    pytest.mark.slow,
    pytest.mark.xdist_group("guest"),
    pytest.mark.timeout(300),
    pytest.mark.skipif(os.geteuid() != 0, reason="building debian-12 wants root"),
]


@pytest.fixture(scope="session")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    with box(tmp_path_factory.mktemp("box")) as guest:
        yield guest


@dataclass
class Machines:
    """What the driver of machines would be beside it."""

    guest: Box
    seen: Seen = field(default_factory=lambda: Present(Power.ON, 1, 512 * MiB))
    key: str = ""

    async def observe(self, handle: str) -> Seen:
        return self.seen

    def login_key(self, project: str) -> str:
        return self.key or self.guest.key.read_text()

    async def dial(self, handle: str, address: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        assert port == 22
        return await self.guest.dial(port)

    async def plug(self, handle: str, device: str, card: Card) -> None: ...

    async def unplug(self, handle: str, device: str, card: Card) -> None: ...


def opened(folder: Path, machines: Machines) -> MachineTasks:
    return MachineTasks(HostSettings("hst-1", "here", "fab", folder, {}, machines))


@pytest.fixture(scope="session")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.fixture
async def stack(guest: Box, state: Path) -> AsyncIterator[MachineTasks]:
    driver = opened(state, Machines(guest))
    yield driver
    await driver.close()


INSIDE = Inside("mch-1", "10.0.0.2", USER)


@pytest.fixture
def make() -> Make:
    plain = TaskDriverContract.make.__wrapped__(TaskDriverContract())  # type: ignore[attr-defined]

    def make(script: str = "true", **more: Any) -> TaskPlan:
        return replace(plain(script, **more), inside=INSIDE)

    return make


class TestInAMachine(TaskDriverContract):
    @pytest.fixture
    def make(self) -> Make:
        plain = TaskDriverContract.make.__wrapped__(self)  # type: ignore[attr-defined]

        def make(script: str = "true", **more: Any) -> TaskPlan:
            return replace(plain(script, **more), inside=INSIDE)

        return make

    @pytest.fixture(autouse=True)
    def as_the_machine_can(self, guest: Box) -> None:
        self.limits_memory = guest.limits_memory

    async def test_the_inventory_names_the_stack(self, stack: MachineTasks) -> None:
        inventory = await stack.inventory()
        assert "task:machine" in inventory.traits
        assert (inventory.cores, inventory.memory) == (0, 0), "its machines have claimed all they use"
