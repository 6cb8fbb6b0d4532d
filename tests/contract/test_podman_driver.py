"""The Podman driver against a real Podman, held to the contract of task drivers."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from usina.core.errors import Invalid
from usina.core.machine import Absent
from usina.core.task import End, FilePlan, Network, TaskPlan
from usina.drivers.podman import PLUGIN
from usina.drivers.podman.driver import PodmanDriver
from usina.drivers.podman.images import ARCHIVES
from usina.ports.driver import DriverError, HostSettings
from usina.testing import images
from usina.testing.process import end_helpers
from usina.testing.task_contract import Make, Sockets, TaskDriverContract, begun, ended, said, sh, silent, until_said

pytestmark = [pytest.mark.real, pytest.mark.timeout(180)]


SOCKETS = Sockets()


def podman(*words: str) -> str:
    return subprocess.run(["podman", *words], capture_output=True, text=True, check=True).stdout


def known(image: str) -> bool:
    return not subprocess.run(["podman", "image", "exists", image]).returncode


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = images.archive(tmp_path_factory.mktemp("image"))
    yield path
    images.drop(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A state folder; the service that was started there is ended, and what is left of its containers is told."""
    folder = tmp_path_factory.mktemp("podman")
    yield folder
    left = subprocess.run(
        ["podman", "ps", "-aq", "--filter", "label=usina.factory=test"], capture_output=True, text=True
    )
    end_helpers(folder)
    shutil.rmtree(folder, ignore_errors=True)
    assert not left.stdout.strip(), "containers were left"
    assert not Path("oom").exists(), "conmon wrote to where we are"


@pytest.fixture
async def stack(folder: Path) -> AsyncIterator[PodmanDriver]:
    driver = PodmanDriver(HostSettings("hst-test", "test", "test", folder, {}, SOCKETS))  # type: ignore[arg-type]
    yield driver
    await driver.close()


class TestPodmanDriver(TaskDriverContract):
    sockets = SOCKETS if os.geteuid() == 0 else None
    server = sh('echo up; while :; do nc -l -p 8123 -e sh -c \'read -t 1 x; printf "hello %s" "$x"\'; done')

    @pytest.fixture
    def make(self, image: Path) -> Make:
        plain = TaskDriverContract.make.__wrapped__(self)  # type: ignore[attr-defined]

        def make(script: str = "true", **more: Any) -> TaskPlan:
            return replace(plain(script, **more), archive=str(image))

        return make

    async def test_an_image_that_does_not_exist_is_told_so(self, stack: PodmanDriver, make: Make) -> None:
        plan = replace(make(), archive="", image="localhost/no-such-image:1")
        with pytest.raises(DriverError) as failure:
            await stack.start(plan, silent)
        assert "localhost/no-such-image:1" in failure.value.public
        assert await stack.observe(plan.handle) == Absent()

    async def test_an_archive_may_be_squeezed(self, stack: PodmanDriver, make: Make, image: Path) -> None:
        async with begun(stack, replace(make("echo well"), archive=str(images.compressed(image)))) as run:
            assert (await ended(stack, run.handle)).code == 0

    async def test_an_archive_may_have_the_form_of_oci(self, stack: PodmanDriver, make: Make, image: Path) -> None:
        path = image.with_name("oci.tar")
        podman("load", "-qi", str(image))
        podman("save", "-q", "--format", "oci-archive", "-o", str(path), images.NAME)
        images.drop(image)
        plan = replace(make("echo well"), archive=str(images.called_by_digest(path)))
        async with begun(stack, plan) as run:
            assert (await ended(stack, run.handle)).code == 0
        assert not known(images.NAME)

    async def test_what_an_archive_calls_itself_is_nothing_to_us(
        self, stack: PodmanDriver, make: Make, image: Path
    ) -> None:
        """Else a tenant's image would run where others ask for one of that name."""
        async with begun(stack, make("true")) as run:
            await ended(stack, run.handle)
        assert not known(images.NAME)
        ours = f"{ARCHIVES}:{image.name}"
        [found] = json.loads(podman("inspect", ours))
        assert found["RepoTags"] == [ours]
        for guess in (ours, ours.removeprefix("localhost/"), found["Id"], found["Id"][:6]):
            with pytest.raises(DriverError) as failure:
                await stack.start(replace(make(), archive="", image=guess), silent)
            assert failure.value.lasting, guess

    async def test_images_come_from_where_the_operator_allows(self, folder: Path, make: Make) -> None:
        driver = PodmanDriver(HostSettings("hst-2", "t", "test", folder, {"registries": ["registry.example/team"]}))
        try:
            with pytest.raises(DriverError) as failure:
                await driver.start(replace(make(), archive="", image="docker.example/x:1"), silent)
            assert failure.value.lasting and "registry.example/team" in failure.value.public
        finally:
            await driver.close()

    async def test_root_inside_is_nobody_outside(self, stack: PodmanDriver, make: Make) -> None:
        async with begun(stack, make("id -u; cat /proc/self/uid_map; mount -t tmpfs x /tmp && echo mounted")) as run:
            await ended(stack, run.handle)
            lines = await said(stack, run.handle, "o")
            assert lines[0] == "0" and lines[1].split() == ["0", "1900000000", "65536"]
            assert "mounted" not in lines

    async def test_without_a_network_there_is_only_itself(self, stack: PodmanDriver, make: Make) -> None:
        async with begun(stack, make("ls /sys/class/net")) as run:
            await ended(stack, run.handle)
            assert await said(stack, run.handle, "o") == ["lo"]

    async def test_the_hosts_network_is_the_operators_to_give(self, stack: PodmanDriver, make: Make) -> None:
        plan = make(network=Network.HOST)
        with pytest.raises(DriverError) as failure:
            await stack.start(plan, silent)
        assert failure.value.lasting

    async def test_outbound_does_not_lead_to_the_hosts_loopback(self, stack: PodmanDriver, make: Make) -> None:
        server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        script = f"ls /sys/class/net; nc -w 2 10.0.2.2 {port} < /dev/null && echo reached; true"
        async with server:
            async with begun(stack, make(script, network=Network.OUTBOUND)) as run:
                await ended(stack, run.handle)
                lines = await said(stack, run.handle, "o")
                assert "tap0" in lines and "reached" not in lines

    async def test_hostile_files_stay_inside(self, stack: PodmanDriver, make: Make, tmp_path: Path) -> None:
        import io
        import tarfile

        package = tmp_path / "evil.tar.gz"
        with tarfile.open(package, "w:gz") as archive:
            link = tarfile.TarInfo("out")
            link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path)
            archive.addfile(link)
            for name in ("out/planted", "../../../../tmp/usina-planted"):
                entry = tarfile.TarInfo(name)
                entry.size = 4
                archive.addfile(entry, io.BytesIO(b"evil"))
        plan = make("true", files=(FilePlan(str(package), "", unpack=True),))
        try:
            with suppress(DriverError):
                await stack.start(plan, silent)
        finally:
            await stack.remove(plan.handle)
        assert not (tmp_path / "planted").exists()
        assert not Path("/tmp/usina-planted").exists()

    async def test_a_new_control_plane_goes_on_with_what_runs(
        self, stack: PodmanDriver, make: Make, folder: Path
    ) -> None:
        async with begun(stack, make("echo first; sleep 2; echo second; sleep 1; exit 5", time_limit=60.0)) as run:
            await until_said(stack, run.handle, "first")
            piece = await stack.log(run.handle, 0, 65536)
            other = PodmanDriver(HostSettings("hst-test", "test", "test", folder, {}))
            try:
                end = await ended(other, run.handle)
                assert (end.how, end.code) == (End.EXITED, 5)
                again = await other.log(run.handle, 0, 65536)
                assert again.data.startswith(piece.data)
                assert await said(other, run.handle, "o") == ["first", "second"]
            finally:
                await other.close()


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"sockett": "/x"}, "sockett"),
        ({"socket": "relative"}, "socket"),
        ({"uids": "1-5"}, "uids"),
        ({"pids": 0}, "pids"),
        ({"registries": "docker.io"}, "registries"),
        ({"registries": ["-x"]}, "registries"),
        ({"host_network": "yes"}, "host_network"),
        ({"runtime": "runc; rm"}, "runtime"),
    ],
)
def test_options_are_checked_by_name(options: dict[str, Any], field: str) -> None:
    with pytest.raises(Invalid) as refused:
        PLUGIN.check(options)
    assert refused.value.field == field
