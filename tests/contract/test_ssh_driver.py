"""The driver of tasks in machines, in Debian 12 with its own systemd and sshd."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from usina.core.machine import Absent, Card, Power, Present, Seen, Unreachable
from usina.core.task import End, Ended, Inside, TaskPlan
from usina.core.units import MiB
from usina.drivers.ssh.driver import MachineTasks
from usina.ports.driver import DriverError, HostSettings, HostUnreachable
from usina.server.login_keys import DerivedKeys
from usina.testing.guests import USER, Box, box
from usina.testing.task_contract import (
    Make,
    TaskDriverContract,
    begun,
    ended,
    running,
    said,
    silent,
    until_said,
)
from usina.testing.waiting import eventually

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
    cut: bool = False  # nothing gets through
    streams: list[asyncio.StreamWriter] = field(default_factory=list)

    async def observe(self, handle: str) -> Seen:
        return self.seen

    def login_key(self, project: str) -> str:
        return self.key or self.guest.key.read_text()

    async def dial(self, handle: str, address: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        assert port == 22
        if self.cut:
            raise DriverError("the guest does not answer on port 22")
        reader, writer = await self.guest.dial(port)
        self.streams.append(writer)
        return reader, writer

    def break_off(self, seen: Seen | None = None) -> None:
        """From now on nothing gets through, and what did is broken off."""
        self.cut, self.seen = True, seen or self.seen
        for writer in self.streams:
            writer.transport.abort()

    def mend(self) -> None:
        self.cut, self.seen = False, Present(Power.ON, 1, 512 * MiB)

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


@dataclass
class Bench:
    """A driver of one's own, and what is beside it."""

    driver: MachineTasks
    machines: Machines
    folder: Path

    async def again(self) -> MachineTasks:
        """As after a restart of the control plane."""
        await self.driver.close()
        self.driver = opened(self.folder, self.machines)
        return self.driver


@pytest.fixture
async def bench(guest: Box, tmp_path: Path) -> AsyncIterator[Bench]:
    machines = Machines(guest)
    bench = Bench(opened(tmp_path, machines), machines, tmp_path)
    yield bench
    await bench.driver.close()


class TestWhatHoldsBesides:
    async def test_a_restart_of_the_control_plane_changes_nothing(self, bench: Bench, make: Make) -> None:
        script = 'echo "it is $TOKEN"; while ! [ -e go ]; do sleep 0.1; done; echo "still $TOKEN"; exit 5'
        plan = make(script, environment={"TOKEN": "s3cr3t-v4lue"}, secret=frozenset({"TOKEN"}))
        async with begun(bench.driver, plan) as run:
            await until_said(bench.driver, run.handle, "***")
            before = await bench.driver.log(run.handle, 0, 65536)
            seen = await running(bench.driver, run.handle)
            stack = await bench.again()
            assert (await stack.survey())[run.handle] == seen == await stack.observe(run.handle)
            assert (await stack.log(run.handle, 0, 65536)).data == before.data
            await stack.start(plan, silent)  # the engine may not know that it has begun
            bench.machines.guest.sh(f"touch /var/lib/usina/runs/{run.handle}/work/go")
            end = await ended(stack, run.handle)
            assert (end.how, end.code) == (End.EXITED, 5)
            assert await said(stack, run.handle) == ["it is ***", "still ***"]
            await stack.remove(run.handle)

    async def test_what_a_task_is_and_may(self, bench: Bench, make: Make) -> None:
        script = "id -un; pwd; echo $HOME; sleep 60"
        async with begun(bench.driver, make(script, time_limit=900, cores=0.25)) as run:
            await until_said(bench.driver, run.handle, "/home")
            work = f"/var/lib/usina/runs/{run.handle}/work"
            assert await said(bench.driver, run.handle) == [USER, work, f"/home/{USER}"]
            shown = bench.machines.guest.sh(f"systemctl show usina-{run.handle}.service")
            wanted = {"RuntimeMaxUSec=15min", f"MemoryMax={128 * MiB}", "CPUQuotaPerSecUSec=250ms", f"User={USER}"}
            assert wanted <= set(shown.splitlines())

    async def test_secrets_are_nowhere_to_be_seen(self, bench: Bench, make: Make) -> None:
        plan = make("echo up; sleep 60", environment={"TOKEN": "hush-hush"}, secret=frozenset({"TOKEN"}))
        async with begun(bench.driver, plan) as run:
            await until_said(bench.driver, run.handle, "up")
            guest = bench.machines.guest
            seen = guest.sh("ps axww -o args; systemctl show '*' --property=ExecStart,Environment; journalctl -o cat")
            seen += "".join(path.read_text() for path in bench.folder.rglob("*") if path.is_file())
            assert "hush-hush" not in seen and run.handle in seen
            modes = guest.sh(f"cd /var/lib/usina/runs/{run.handle}; stat -c '%n %a %U' .. environment run work say/o")
            assert modes.splitlines() == [
                ".. 711 root", f"environment 600 {USER}", f"run 600 {USER}", f"work 700 {USER}", "say/o 600 root",
            ]  # fmt: skip

    async def test_one_that_kills_all_it_can_ends_alone(self, bench: Bench, make: Make) -> None:
        stack = bench.driver
        async with begun(stack, make("echo said; kill -9 -1")) as run:  # our own SSH session is the user's as well
            end = await eventually(lambda: stack.observe(run.handle), lambda s: isinstance(s, Ended))
            assert isinstance(end, Ended) and end.how is End.EXITED, end
            assert await said(bench.driver, run.handle) == ["said"]

    async def test_a_keeper_that_was_killed_is_told(self, bench: Bench, make: Make) -> None:
        async with begun(bench.driver, make("echo up; sleep 60")) as run:
            await until_said(bench.driver, run.handle, "up")
            bench.machines.guest.sh(f"systemctl kill -s KILL usina-{run.handle}-keeper.service")
            end = await ended(bench.driver, run.handle)
            assert end.how is End.NODE_FAILED and "keeper" in end.message
        assert bench.machines.guest.sh("systemctl list-units --all --no-legend 'usina-*'") == ""

    async def test_an_end_that_systemd_could_not_tell_is_told_by_the_keeper(self, bench: Bench, make: Make) -> None:
        async with begun(bench.driver, make("echo up; while ! [ -e go ]; do sleep 0.1; done; exit 9")) as run:
            await until_said(bench.driver, run.handle, "up")
            bench.machines.guest.sh(f"cd /var/lib/usina/runs/{run.handle}; : >told; touch work/go")
            end = await ended(bench.driver, run.handle)
            assert (end.how, end.code) == (End.EXITED, 9), end

    async def test_a_flood_of_words_is_bounded_in_the_machine_and_here(self, bench: Bench, make: Make) -> None:
        script = "yes 0123456789012345678901234567890123456789 | head -c 150000000; echo; sleep 1; echo the last"
        async with begun(bench.driver, make(script)) as run:
            await ended(bench.driver, run.handle)
            size = int(bench.machines.guest.sh(f"du -sk /var/lib/usina/runs/{run.handle}/say | cut -f1"))
            assert size < 110_000, "what was said is not all kept"
            lines = await said(bench.driver, run.handle)
            assert lines[-1] == "the last" and len(set(lines)) == 3
            assert sum(path.stat().st_size for path in bench.folder.rglob("*.log")) <= 16 * MiB

    async def test_nothing_of_it_is_left_anywhere(self, bench: Bench, make: Make) -> None:
        async with begun(bench.driver, make("sleep 60 & echo up; sleep 60")) as run:
            await until_said(bench.driver, run.handle, "up")
        guest = bench.machines.guest
        assert (
            guest.sh("ls /var/lib/usina/runs; systemctl list-units --all --no-legend 'usina-*'; pgrep sleep || :") == ""
        )
        await bench.driver.close()
        await eventually(lambda: asyncio.to_thread(guest.sh, "ls /run/usina"), lambda text: text == "")
        assert {path.name for path in bench.folder.rglob("*") if path.is_file()} == {"mch-1.0"}  # its host key


class TestMachinesThatAreNotThere:
    async def test_one_that_does_not_answer_is_unreachable_and_comes_back(self, bench: Bench, make: Make) -> None:
        stack = bench.driver
        async with begun(stack, make("echo up; while ! [ -e go ]; do sleep 0.1; done; exit 6")) as run:
            await until_said(stack, run.handle, "up")
            bench.machines.break_off()
            sight = await eventually(lambda: stack.observe(run.handle), lambda s: isinstance(s, Unreachable))
            assert isinstance(sight, Unreachable) and "SSH" in sight.reason
            assert isinstance((await stack.survey())[run.handle], Unreachable)
            for attempt in (stack.stop(run.handle, grace=1), stack.remove(run.handle), stack.start(make(), silent)):
                with pytest.raises(HostUnreachable):
                    await attempt
            bench.machines.mend()
            bench.machines.guest.sh(f"touch /var/lib/usina/runs/{run.handle}/work/go")
            end = await eventually(lambda: stack.observe(run.handle), lambda s: isinstance(s, Ended), 40)
            assert isinstance(end, Ended) and end.code == 6

    async def test_one_that_is_switched_off_has_ended_its_runs(self, bench: Bench, make: Make) -> None:
        stack = bench.driver
        async with begun(stack, make("echo up; sleep 60")) as run:
            await until_said(stack, run.handle, "up")
            bench.machines.break_off(Present(Power.OFF, 1, 512 * MiB))
            end = await eventually(lambda: stack.observe(run.handle), lambda s: isinstance(s, Ended))
            assert isinstance(end, Ended) and end.how is End.NODE_FAILED and "switched off" in end.message
            assert await said(stack, run.handle) == ["up"], "what was read of it is kept"
            await stack.remove(run.handle)
            assert run.handle not in await stack.survey()
            bench.machines.mend()
            ls = "ls /var/lib/usina/runs"
            await eventually(lambda: asyncio.to_thread(bench.machines.guest.sh, ls), lambda text: text == "", 40)

    async def test_one_that_is_gone_has_ended_its_runs_and_takes_no_more(self, bench: Bench, make: Make) -> None:
        stack = bench.driver
        run = make("echo up; sleep 60")
        await stack.start(run, silent)
        await until_said(stack, run.handle, "up")
        bench.machines.break_off(Absent())
        end = await eventually(lambda: stack.observe(run.handle), lambda s: isinstance(s, Ended))
        assert isinstance(end, Ended) and "gone" in end.message
        with pytest.raises(DriverError, match="gone") as failure:
            await stack.start(make(), silent)
        assert failure.value.lasting
        await stack.remove(run.handle)
        assert not await stack.survey()
        await stack.inventory()
        assert not [path for path in bench.folder.rglob("*") if path.is_file()], "its host key is forgotten, too"
        bench.machines.guest.sh(f"systemctl stop 'usina-{run.handle}*'; rm -rf /var/lib/usina/runs/{run.handle}")

    async def test_one_that_does_not_know_the_key_says_so(self, bench: Bench, make: Make) -> None:
        bench.machines.key = DerivedKeys(b"another" * 5).private("prj-1")
        plan = make()
        with pytest.raises(DriverError, match="rebuild the machine"):
            await bench.driver.start(plan, silent)
        await bench.driver.remove(plan.handle)

    async def test_one_with_another_host_key_is_left_alone(self, bench: Bench, make: Make) -> None:
        (bench.folder / "ssh" / "hosts" / "mch-1.0").write_text("ssh-ed25519 AAAA")
        with pytest.raises(DriverError, match="another SSH host key") as failure:
            await bench.driver.start(make(), silent)
        assert failure.value.lasting and not await bench.driver.survey()
