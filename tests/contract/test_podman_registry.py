"""The Podman driver and images of a real registry, which runs on loopback."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx2
import pytest

from usina.core.machine import Absent
from usina.core.task import TaskPlan
from usina.drivers.podman.driver import PodmanDriver
from usina.drivers.podman.service import command
from usina.ports.driver import DriverError, HostSettings
from usina.testing import images
from usina.testing.postgres import free_port
from usina.testing.process import end_helpers
from usina.testing.task_contract import ended, said, sh, silent
from usina.testing.waiting import until

pytestmark = [
    pytest.mark.real,
    pytest.mark.timeout(120),
    pytest.mark.skipif(not shutil.which("docker-registry"), reason="needs docker-registry"),
]

CONFIGURATION = """
version: 0.1
log: {{level: error}}
storage: {{filesystem: {{rootdirectory: {folder}/registry}}}}
http: {{addr: "127.0.0.1:{port}"}}
"""


def podman(*words: str) -> None:
    done = subprocess.run([*command(""), *words], capture_output=True, text=True)
    assert not done.returncode, done.stderr


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its address; it has one image, ``team/tools:1``."""
    folder, port = tmp_path_factory.mktemp("registry"), free_port()
    address = f"localhost:{port}"
    (folder / "config.yml").write_text(CONFIGURATION.format(folder=folder, port=port))
    with (folder / "said").open("wb") as log:
        process = subprocess.Popen(["docker-registry", "serve", folder / "config.yml"], stdout=log, stderr=log)
    try:
        until(lambda: answers(f"http://{address}/v2/"))
        image = images.archive(folder)
        podman("load", "-i", str(image))
        podman("tag", images.NAME, f"{address}/team/tools:1")
        podman("push", "--tls-verify=false", f"{address}/team/tools:1")
        images.drop(image)
        yield address
        images.drop(image)
    finally:
        process.terminate()
        process.wait(10)


def answers(url: str) -> bool:
    try:
        return httpx2.get(url).status_code == 200
    except httpx2.TransportError:
        return False


@pytest.fixture
async def stack(tmp_path: Path, registry: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[PodmanDriver]:
    """A service of its own, whose operator trusts the registry."""
    trusted = tmp_path / "registries.conf"
    trusted.write_text(f'[[registry]]\nlocation = "{registry}"\ninsecure = true\n')
    monkeypatch.setenv("CONTAINERS_REGISTRIES_CONF", str(trusted))
    driver = PodmanDriver(HostSettings("hst-reg", "test", "test", tmp_path, {"registries": [registry]}))
    yield driver
    await driver.close()
    end_helpers(tmp_path)


def plan(image: str, script: str = "true") -> TaskPlan:
    return TaskPlan("tsk-registry.1", "prj", command=sh(script), image=image, memory=64 << 20)


async def test_an_image_is_pulled_with_progress_and_then_is_there(stack: PodmanDriver, registry: str) -> None:
    told: list[tuple[float, str]] = []

    async def listen(share: float, doing: str) -> None:
        told.append((share, doing))

    run = plan(f"{registry}/team/tools:1", "echo from the registry")
    for pulls in (True, False):
        told.clear()
        await stack.start(run, listen)
        try:
            assert (await ended(stack, run.handle)).code == 0
            assert await said(stack, run.handle, "o") == ["from the registry"]
        finally:
            await stack.remove(run.handle)
        assert any("pulling" in doing for _, doing in told) is pulls
        assert [share for share, _ in told] == sorted(share for share, _ in told)


async def test_what_the_registry_does_not_have_is_told_for_good(stack: PodmanDriver, registry: str) -> None:
    run = plan(f"{registry}/team/tools:2")
    with pytest.raises(DriverError) as failure:
        await stack.start(run, silent)
    assert failure.value.lasting and f"{registry}/team/tools:2 cannot be pulled" in failure.value.public
    assert await stack.observe(run.handle) == Absent()


async def test_a_registry_that_does_not_answer_may_be_tried_again(stack: PodmanDriver, tmp_path: Path) -> None:
    away = f"localhost:{free_port()}"
    driver = PodmanDriver(HostSettings("hst-reg", "test", "test", tmp_path, {}))
    try:
        with pytest.raises(DriverError) as failure:
            await driver.start(plan(f"{away}/team/tools:1"), silent)
        assert not failure.value.lasting, failure.value.public
    finally:
        await driver.close()
