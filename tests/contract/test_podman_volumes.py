"""Volumes of containers: the contract, and that processes of the same host have the same ones."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from process_wardens import process_host

from usina.core.task import MountPlan, TaskPlan
from usina.drivers.podman.driver import PodmanDriver
from usina.drivers.podman.mounts import sees_ours
from usina.hardware.folders import mounts
from usina.ports.driver import DriverError, HostSettings
from usina.testing import images
from usina.testing.process import end_helpers
from usina.testing.task_contract import Make, TaskDriverContract, begun, ended, running, silent
from usina.testing.task_volumes import MINE, TaskVolumesContract, outcome, volume

pytestmark = [
    pytest.mark.real,
    pytest.mark.timeout(180),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = images.archive(tmp_path_factory.mktemp("image"))
    yield path
    images.drop(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A state folder, at which nothing is mounted in the end."""
    folder = tmp_path_factory.mktemp("volumes")
    yield folder
    end_helpers(folder)
    assert str(folder) not in Path("/proc/self/mountinfo").read_text()
    assert not list((folder / "volumes").iterdir())
    assert not list((folder / "podman" / "mounts").iterdir())
    shutil.rmtree(folder)


@pytest.fixture
async def stack(folder: Path) -> AsyncIterator[PodmanDriver]:
    driver = PodmanDriver(HostSettings("hst-volumes", "test", "test-volumes", folder))
    yield driver
    await driver.close()


@pytest.fixture
def make(image: Path) -> Make:
    plain = TaskDriverContract.make.__wrapped__(None)  # type: ignore[attr-defined]

    def make(script: str = "true", **more: object) -> TaskPlan:
        return replace(plain(script, **more), archive=str(image))

    return make


class TestPodmanVolumes(TaskVolumesContract):
    pass


async def test_processes_and_containers_have_the_same_files(stack: PodmanDriver, make: Make, folder: Path) -> None:
    plain: Make = lambda script: replace(make(script), archive="")  # noqa: E731
    async with process_host(folder) as processes, volume(processes) as handle:
        mount = MountPlan(handle, "/data")
        script = f"mkdir -m 700 /data/d; echo process > /data/d/a; f=/data/d/a; {MINE}"
        process = replace(plain(script), volumes=(mount,))
        async with begun(processes, process):
            assert (await ended(processes, process.handle)).code == 0
        container = (
            f"cat /data/d/a; f=/data/d/a; {MINE}; echo container > /data/d/b; chown 7:7 /data/d; chmod 777 /data/d"
        )
        assert await outcome(stack, make, container, mount) == (0, ["process", "mine"])

        def make_plain(script: str, **more: object) -> TaskPlan:
            return replace(plain(script), **more)  # type: ignore[arg-type]

        script = f"cat /data/d/b; f=/data/d/b; {MINE}; rm /data/d/b; mv /data/d /data/e; ls /data/e"
        assert await outcome(processes, make_plain, script, mount) == (0, ["container", "mine", "a"])


_APART = """
import socket, sys, signal
with socket.socket(socket.AF_UNIX) as line:
    line.bind(sys.argv[1])
    line.listen()
    print(flush=True)
    signal.pause()
"""


@pytest.mark.parametrize("apart", [False, True])
def test_a_service_that_does_not_see_our_mounts_is_noticed(tmp_path: Path, apart: bool) -> None:
    path = str(tmp_path / "s")
    words = [*(["unshare", "--mount"] if apart else []), sys.executable, "-c", _APART, path]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as service:
        try:
            assert service.stdout is not None
            service.stdout.readline()
            assert sees_ours(path) is not apart
        finally:
            service.kill()


async def test_a_start_that_fails_leaves_nothing_mounted(stack: PodmanDriver, make: Make, folder: Path) -> None:
    async with volume(stack) as handle:
        plan = replace(make(volumes=(MountPlan(handle, "/data"),)), command=("/no/such/command",))
        with pytest.raises(DriverError):
            await stack.start(plan, silent)
        assert str(folder) not in Path("/proc/self/mountinfo").read_text()


async def test_a_start_that_was_cut_short_is_swept(stack: PodmanDriver, make: Make, folder: Path) -> None:
    async with volume(stack) as handle:
        mount = (MountPlan(handle, "/data"),)
        begins = make("sleep 60", volumes=mount)
        async with begun(stack, begins):
            await running(stack, begins.handle)
            for run in (begins.handle, "tsk-never.1"):  # as one that was killed leaves it
                path = folder / "podman" / "mounts" / run / "0"
                path.mkdir(parents=True)
                fd = mounts.mounted(str(folder / "volumes" / f"{handle}.img"), mounts.many_users(5), read_only=False)
                mounts.move(fd, str(path))
                os.close(fd)
            assert list(await stack.leftovers()) == ["tsk-never.1"]
            await stack.remove("tsk-never.1")
            assert str(folder) not in Path("/proc/self/mountinfo").read_text()
            line = await stack.exec(begins.handle, ("touch", "/data/still"), terminal=False)
            await line.write(b"")
            assert await line.wait() == 0
            await line.close()
