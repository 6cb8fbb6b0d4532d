"""Volumes of processes: the contract, and what is only so for them: hostile places, killed wardens, broken starts."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from process_wardens import opened, process_host

from usina.core.machine import VolumePlan
from usina.core.task import End, FilePlan, MountPlan, TaskPlan
from usina.core.units import MiB
from usina.drivers.process.driver import ProcessDriver
from usina.hardware.folders import mounts
from usina.ports.driver import DriverError
from usina.testing.task_contract import Make, TaskDriverContract, begun, ended, said, silent, until_said
from usina.testing.task_volumes import TaskVolumesContract, loops_of, outcome, volume
from usina.testing.waiting import eventually

pytestmark = [pytest.mark.real, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[ProcessDriver]:
    async with process_host(tmp_path) as driver:
        yield driver


@pytest.fixture
def make() -> Make:
    plain: Make = TaskDriverContract.make.__wrapped__(None)  # type: ignore[attr-defined]
    return plain


class TestProcessVolumes(TaskVolumesContract):
    pass


async def test_each_run_is_another_user_and_the_owner(stack: ProcessDriver, make: Make, tmp_path: Path) -> None:
    async with volume(stack) as handle:
        mount = MountPlan(handle, "/data")
        plans = [make(f"touch /data/{n}; echo up; sleep 60", volumes=(mount,)) for n in range(2)]
        async with begun(stack, plans[0]), begun(stack, plans[1]):
            for plan in plans:
                await until_said(stack, plan.handle, "up")
            assert len(loops_of(handle)) == 1
        fd = mounts.mounted(str(tmp_path / "volumes" / f"{handle}.img"), mounts.one_user(4711), read_only=True)
        try:
            assert {os.stat(name, dir_fd=fd).st_uid for name in "01"} == {4711}
        finally:
            os.close(fd)


async def test_no_other_number_of_the_host_is_on_it(stack: ProcessDriver, tmp_path: Path) -> None:
    async with volume(stack) as handle:
        fd = mounts.mounted(str(tmp_path / "volumes" / f"{handle}.img"), mounts.one_user(4711), read_only=False)
        try:
            with pytest.raises(OSError):  # not even we can make something there as root
                os.mkdir("mine", dir_fd=fd)
        finally:
            os.close(fd)


async def test_the_host_keeps_its_room(stack: ProcessDriver, make: Make, tmp_path: Path) -> None:
    async with volume(stack, 16 * MiB) as handle:
        await outcome(stack, make, "cat /dev/zero > /data/big", MountPlan(handle, "/data"))
        image = tmp_path / "volumes" / f"{handle}.img"
        assert image.stat().st_size == 16 * MiB and image.stat().st_blocks * 512 <= 16 * MiB + 65536
        await outcome(stack, make, "rm /data/big", MountPlan(handle, "/data"))
        assert image.stat().st_blocks * 512 < 4 * MiB


async def test_a_planted_link_is_not_followed(stack: ProcessDriver, make: Make, tmp_path: Path) -> None:
    async with volume(stack) as handle:
        for target in ("/etc", "/proc", "../../..", "."):
            archive = tmp_path / "links.tar.gz"
            _plant(archive, "data", target)
            plan = make("true", files=(FilePlan(str(archive), "", unpack=True),))
            try:
                await stack.start(plan, silent)
            except DriverError:
                continue  # it leads out, and is not even unpacked
            finally:
                await stack.remove(plan.handle)
            plan = make("ls /etc/passwd /proc/self", volumes=(MountPlan(handle, "/work/data"),), files=plan.files)
            assert "no folder for a volume" in await _why_not(stack, plan)


async def _why_not(stack: ProcessDriver, plan: TaskPlan) -> str:
    """Why a run was not begun: told at once, or, where its sandbox took longer to find out, as its end."""
    try:
        async with begun(stack, plan):
            end = await ended(stack, plan.handle)
            assert end.how is End.NOT_STARTED
            return end.message
    except DriverError as error:
        assert error.lasting
        return error.public


def _plant(archive: Path, name: str, target: str) -> None:
    with tarfile.open(archive, "w:gz") as file:
        entry = tarfile.TarInfo(name)
        entry.type, entry.linkname = tarfile.SYMTYPE, target
        file.addfile(entry, io.BytesIO())


@pytest.mark.parametrize("path", ["/usr/x", "/etc", "/proc/self", "/dev/shm", "/"])
async def test_places_of_the_host_are_refused(stack: ProcessDriver, make: Make, path: str) -> None:
    async with volume(stack) as handle:
        with pytest.raises(DriverError) as failure:
            await stack.start(make(volumes=(MountPlan(handle, path),)), silent)
        assert failure.value.lasting


async def test_a_run_keeps_it_when_its_warden_is_killed(stack: ProcessDriver, make: Make, tmp_path: Path) -> None:
    async def connected() -> bool:
        return stack._client._writer is not None

    async with volume(stack) as handle:
        script = "echo one > /data/a; echo up; while ! [ -e /data/go ]; do sleep 0.05; done; cat /data/b"
        plan = make(script, volumes=(MountPlan(handle, "/data"),))
        async with begun(stack, plan):
            await until_said(stack, plan.handle, "up")
            os.kill(int(stack._client.facts["pid"]), signal.SIGKILL)
            await eventually(connected, lambda still: not still)
            after = opened(tmp_path)
            try:
                await until_said(after, plan.handle, "up")
                assert len(loops_of(handle)) == 1
                with pytest.raises(DriverError):
                    await after.remove_volume(handle)
                await outcome(after, make, "echo two > /data/b; touch /data/go", MountPlan(handle, "/data"))
                assert (await ended(after, plan.handle)).code == 0
                assert (await said(after, plan.handle))[-1] == "two"
            finally:
                await after.close()


async def test_one_that_is_broken_is_told_and_nothing_is_left(stack: ProcessDriver, make: Make, tmp_path: Path) -> None:
    async with volume(stack) as handle:
        with (tmp_path / "volumes" / f"{handle}.img").open("r+b") as file:
            file.write(bytes(65536))
        plan = make(volumes=(MountPlan(handle, "/data"),))
        with pytest.raises(DriverError) as failure:
            await stack.start(plan, silent)
        assert "file system of the volume" in failure.value.public and not failure.value.lasting


# --- the files themselves

_KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import mounts
whole = mounts._format
mounts._format = lambda fd, size: (whole(fd, size), os.kill(os.getpid(), signal.SIGKILL))
mounts.make(sys.argv[2], 16 << 20)
"""


def test_one_that_is_half_made_leaves_nothing(tmp_path: Path) -> None:
    image = str(tmp_path / "one.img")
    folder = str(Path(mounts.__file__).parent)
    done = subprocess.run([sys.executable, "-c", _KILLED, folder, image], check=False)
    assert (done.returncode, list(tmp_path.iterdir())) == (-signal.SIGKILL, [])
    mounts.make(image, 16 * MiB)
    inode = os.stat(image).st_ino
    mounts.make(image, 16 * MiB)
    assert os.stat(image).st_ino == inode
    assert mounts.remove(image) and not list(tmp_path.iterdir())


def test_growth_that_was_cut_short_is_finished(tmp_path: Path) -> None:
    image = str(tmp_path / "one.img")
    mounts.make(image, 16 * MiB)
    os.truncate(image, 64 * MiB)
    assert mounts.grow(image, 64 * MiB) and mounts._formatted(image) == 64 * MiB
    assert mounts.grow(image, 16 * MiB) and os.stat(image).st_size == 64 * MiB


def test_there_is_never_a_second_loop_device(tmp_path: Path) -> None:
    image = str(tmp_path / f"race-{os.getpid()}.img")
    mounts.make(image, 16 * MiB)
    name = os.path.basename(image)

    def use(number: int) -> int:
        fd = mounts.mounted(image, mounts.one_user(4711 + number), read_only=bool(number % 2))
        found = len(loops_of(name))
        os.close(fd)
        return found

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(use, range(64))) == {1}
    assert not loops_of(name)


async def test_another_driver_of_the_host_has_the_same_ones(stack: ProcessDriver, make: Make, tmp_path: Path) -> None:
    other = opened(tmp_path)
    try:
        async with volume(stack) as handle:
            await other.ensure_volume(VolumePlan(handle, 32 * MiB))
            mount = MountPlan(handle, "/data")
            await outcome(stack, make, "echo x > /data/a", mount)
            assert await outcome(other, make, "cat /data/a", mount) == (0, ["x"])
            await other.remove_volume(handle)
    finally:
        await other.close()


_TAKES = """
import socket, time, os
line = socket.socket(socket.AF_UNIX); line.bind('/data/line'); line.listen(); print('up', flush=True)
_, taken, _, _ = socket.recv_fds(line.accept()[0], 10, 1)
open('/data/taken', 'w').close()
while not os.path.exists('/data/go'): time.sleep(0.02)
try: socket.socket(fileno=taken[0]).connect(('127.0.0.1', 8124)); print('reached a stranger')
except OSError as error: print('refused', error)
"""
_GIVES = """
import socket, time, os
line = socket.socket(socket.AF_UNIX); line.connect('/data/line')
mine = socket.socket(); socket.send_fds(line, [b'x'], [mine.fileno()])
while not os.path.exists('/data/taken'): time.sleep(0.02)
"""
_STRANGER = (
    "import socket, time; s = socket.create_server(('127.0.0.1', 8124)); print('up', flush=True); time.sleep(60)"
)


async def test_a_socket_that_one_run_gives_another_leads_to_no_third(stack: ProcessDriver, make: Make) -> None:
    """Network namespaces of runs are used again; not of those that could have given a socket away, by a volume."""
    async with volume(stack) as handle:
        mount = (MountPlan(handle, "/data"),)
        taker = make(command=("python3", "-c", _TAKES), volumes=mount)
        async with begun(stack, taker):
            await until_said(stack, taker.handle, "up")
            giver = make(command=("python3", "-c", _GIVES), volumes=mount)
            async with begun(stack, giver):
                assert (await ended(stack, giver.handle)).code == 0, await said(stack, giver.handle)
            strangers = [make(command=("python3", "-c", _STRANGER)) for _ in range(3)]
            async with begun(stack, strangers[0]), begun(stack, strangers[1]), begun(stack, strangers[2]):
                for stranger in strangers:
                    await until_said(stack, stranger.handle, "up")
                await outcome(stack, make, "touch /data/go", *mount)
                await ended(stack, taker.handle)
                assert (await said(stack, taker.handle))[-1].startswith("refused")
