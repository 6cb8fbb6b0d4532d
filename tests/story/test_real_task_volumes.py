"""Volumes of tasks for real, with the command: a process writes, a container reads, nobody deletes it meanwhile, and
nothing is left on the host."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from usina.testing.process import FactoryProcess, end_helpers
from usina.testing.task_volumes import loops_of
from usina.testing.waiting import until

pytestmark = [
    pytest.mark.real,
    pytest.mark.timeout(180),
    pytest.mark.skipif(os.geteuid() != 0, reason="volumes want root"),
]

SMALL = ["--bare", "--mem", "64MiB", "--cores", "0.1"]
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def factory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FactoryProcess]:
    """One host with two drivers; at the end nothing of theirs is left."""
    folder = tmp_path_factory.mktemp("volumes")
    folder.parent.chmod(0o755)
    with FactoryProcess(folder / "data", local_host=False).start() as process:
        process.call("POST", "/hosts", {"name": "here", "driver": "process", "also": {"podman": {}}})
        try:
            yield process
        finally:
            if not process.alive:
                process.start()
            process.empty(("tasks", "volumes"))
    end_helpers(folder)
    assert str(folder) not in Path("/proc/self/mountinfo").read_text()
    assert not list(folder.glob("data/hosts/*/volumes/*"))
    assert not loops_of(str(folder))


def test_written_by_a_process_and_read_by_a_container(factory: FactoryProcess, usina: Run, archive: Path) -> None:
    made = usina("volume", "create", "data", "64MiB", "--folder")
    assert made.returncode == 0 and "folder" in made.stdout, made
    assert "folder" in usina("volume", "list").stdout

    writes = ["sh", "-c", "echo forty-two > /data/answer; df -k /data | tail -1"]
    wrote = usina("run", *SMALL, "--volume", "data:/data", "--", *writes)
    assert wrote.returncode == 0 and "/data" in wrote.stdout, wrote

    image = ["--on", "container", "--archive", str(archive)]
    reads = ["sh", "-c", "cat in/answer; touch in/more || echo refused"]
    read = usina("run", *image, *SMALL, "--volume", "data:in:ro", "--", *reads)
    assert read.stdout.splitlines() == ["forty-two", "refused"], read

    again = usina("run", *image, *SMALL, "-v", "data:/data", "--", "sh", "-c", "echo more >> /data/answer")
    assert again.returncode == 0, again

    holds = ["sh", "-c", "echo up; while ! [ -e /data/end ]; do sleep 0.1; done; cat /data/answer"]
    assert usina("run", *SMALL, "-d", "--name", "holder", "-v", "data:/data", "--", *holds).returncode == 0
    until(lambda: usina("task", "logs", "holder").stdout, lambda said: "up" in said, 30, pause=0.3)
    assert "/data" in usina("task", "show", "holder").stdout
    refused = usina("volume", "delete", "data", "--yes")
    assert refused.returncode != 0 and "task holder uses it" in refused.stderr, refused
    seen = usina("task", "exec", "holder", "--", "cat", "/data/answer")
    assert seen.stdout.splitlines() == ["forty-two", "more"], seen

    shell = usina("shell", "--mem", "64MiB", "-v", "data:/data", input="tail -n 1 /data/answer\nexit 5\n")
    assert (shell.returncode, shell.stdout.splitlines()) == (5, ["more"]), shell

    factory.kill()  # what runs, and its volume, do not mind
    factory.start()
    assert usina("run", *image, *SMALL, "-v", "data:/data", "--", "touch", "/data/end").returncode == 0
    until(lambda: json.loads(usina("task", "show", "holder", "-o", "json").stdout), lambda t: t["phase"] == "succeeded")
    assert usina("task", "logs", "holder").stdout.splitlines() == ["up", "forty-two", "more"]

    grown = usina("volume", "grow", "data", "128MiB")
    assert grown.returncode == 0, grown
    size = usina("run", *SMALL, "-v", "data:/data", "--", "sh", "-c", "df -k /data | awk 'END {print $2}'")
    assert int(size.stdout) > 100 << 10, size

    deleted = usina("volume", "delete", "data", "--yes")
    assert deleted.returncode == 0, deleted
    gone = usina("task", "rerun", "holder")
    assert gone.returncode != 0 and "was deleted" in gone.stderr, gone


def test_a_gang_and_an_array_share_one(usina: Run) -> None:
    assert usina("volume", "create", "shared", "32MiB", "--folder").returncode == 0
    script = "touch /shared/$USINA_RANK; while [ $(ls /shared | wc -l) -lt 3 ]; do sleep 0.1; done; echo met"
    gang = usina("run", *SMALL, "--replicas", "3", "-v", "shared:/shared", "--", "sh", "-c", script)
    assert (gang.returncode, gang.stdout.count("met")) == (0, 3), gang
    array = usina(
        "run", *SMALL, "--array", "0-2", "-v", "shared:/shared:ro", "--", "sh", "-c", "ls /shared/$USINA_INDEX"
    )
    assert array.returncode == 0, array
    assert usina("volume", "delete", "shared", "--yes").returncode == 0
