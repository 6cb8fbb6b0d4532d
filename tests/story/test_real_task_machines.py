"""Tasks inside a machine, through a real factory: a Debian guest by libvirt, and the command as a person uses it.

One guest serves all stories, in the order of this file.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from usina.drivers.libvirt.daemon import ensure_local_daemon
from usina.testing.process import FactoryProcess, Json, factory_process
from usina.testing.traces import traces
from usina.testing.waiting import until

pytestmark = [
    pytest.mark.real,
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.skipif(os.geteuid() != 0, reason="qemu:///system wants root"),
]

OVER = {"succeeded", "failed", "stopped"}
Usina = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def factory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FactoryProcess]:
    ensure_local_daemon()
    with factory_process(tmp_path_factory.mktemp("inside") / "factory", local_host=False) as factory:
        factory.call("POST", "/hosts", {"name": "here", "driver": "libvirt", "options": {}, "also": {"ssh": {}}})
        image = factory.call(
            "POST", "/images", {"name": "debian-12", "recipe": "debian-12", "visibility": "public", "project": "main"}
        )
        factory.phase(f"/images/{image['id']}", "ready", limit=300)
        id = factory.id
        try:
            yield factory
        finally:
            factory.empty(("tasks",))
            factory.wipe()
    assert traces(id, factory.made) == set(), "something of it is left"


@pytest.fixture
def usina(factory: FactoryProcess, tmp_path: Path) -> Usina:
    """Run the command in a folder of files, as a person would."""

    def usina(*words: str, limit: float = 240, **files: str) -> subprocess.CompletedProcess[str]:
        for name, text in files.items():
            (tmp_path / name.replace("__", ".")).write_text(text)
        environment = {
            **os.environ,
            "USINA_ENDPOINT": factory.endpoint,
            "USINA_TOKEN": factory.token,
            "USINA_PROJECT": "main",
            "XDG_CONFIG_HOME": str(tmp_path.with_name("config")),
            "API_KEY": "s3cr3t-word",
        }
        command = [sys.executable, "-m", "usina.cli", *words]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=limit)

    return usina


def show(factory: FactoryProcess, name: str) -> Json:
    return factory.call("GET", f"/tasks/{name}", project="main")


def over(factory: FactoryProcess, name: str, limit: float = 90) -> Json:
    return until(lambda: show(factory, name), lambda t: t["phase"] in OVER and t["observed"] == t["generation"], limit)


JOB = """
cat data.txt
echo "env $NAME $API_KEY as $(id -un) on $(hostname)"
echo trouble >&2
mkdir -p results && echo done > results/out.txt
exit 3
"""


def test_a_task_waits_for_its_machine_and_runs_in_it(factory: FactoryProcess, usina: Usina, tmp_path: Path) -> None:
    made = usina("machine", "create", "box", "--image", "debian-12", "--memory", "512MiB", "--no-wait")
    assert made.returncode == 0, made
    ran = usina(
        "run", "--machine", "box", "--name", "first", "--mem", "64MiB", "-e", "NAME=value", "--secret", "API_KEY",
        "--keep", "results", "--", "sh", "job.sh", job__sh=JOB, data__txt="forty-two\n",
    )  # fmt: skip
    assert ran.returncode == 3, ran
    assert ran.stdout.splitlines() == ["forty-two", "env value *** as debian on box"]
    assert "trouble" in ran.stderr
    assert "task first: pending" in ran.stderr, "it waited for its machine"
    assert usina("task", "logs", "first").stdout == ran.stdout
    assert usina("task", "download", "first", str(tmp_path / "out")).returncode == 0
    assert (tmp_path / "out/results/out.txt").read_text() == "done\n"
    assert "s3cr3t" not in usina("task", "show", "first", "-o", "json").stdout


def test_a_control_plane_that_dies_meanwhile_loses_nothing(factory: FactoryProcess, usina: Usina) -> None:
    script = "echo begun; while ! [ -e go ]; do sleep 0.5; done; echo later; exit 4"
    words = ("--machine", "box", "--name", "long", "--mem", "64MiB", "--bare", "--detach")
    assert usina("run", *words, "--", "sh", "-c", script).returncode == 0
    until(lambda: "begun" in usina("task", "logs", "long").stdout, limit=60)
    factory.kill()
    factory.start()
    beside = usina("task", "exec", "long", "--", "id", "-un")
    assert (beside.returncode, beside.stdout.strip()) == (0, "debian"), beside
    usina("task", "exec", "long", "--", "touch", "go")  # which ends it, and this with it
    followed = usina("task", "logs", "-f", "long")
    assert followed.stdout.splitlines() == ["begun", "later"]
    found = over(factory, "long")
    assert (found["phase"], found["status"]["code"]) == ("failed", 4)


def test_its_memory_is_its_limit_in_the_machine(usina: Usina) -> None:
    script = "head -c 200000000 /dev/zero | tail -c 200000000 > /dev/null; exit $?"
    ran = usina("run", "--bare", "--machine", "box", "--mem", "32MiB", "--", "sh", "-c", script)
    assert ran.returncode == 137 and "memory" in ran.stderr, ran


def test_nothing_of_a_task_is_left_in_the_machine(usina: Usina) -> None:
    left = "ls /var/lib/usina/runs; systemctl list-units --all --plain --no-legend 'usina-*' | cut -d' ' -f1"

    def others() -> set[str]:
        ran = usina("run", "--bare", "--machine", "box", "--", "sudo", "-n", "sh", "-c", left)
        assert ran.returncode == 0, ran
        names = [line.removesuffix(".service").removesuffix("-keeper") for line in ran.stdout.splitlines()]
        return {name.removeprefix("usina-") for name in names}

    until(others, lambda found: len(found) == 1, limit=90)  # the one that looks


def test_a_machine_that_is_switched_off_ends_its_tasks(factory: FactoryProcess, usina: Usina) -> None:
    words = ("--machine", "box", "--name", "cut", "--mem", "32MiB", "--bare", "--detach")
    assert usina("run", *words, "--", "sh", "-c", "echo up; sleep 600").returncode == 0
    until(lambda: "up" in usina("task", "logs", "cut").stdout, limit=60)
    assert usina("machine", "stop", "box").returncode == 0
    found = over(factory, "cut")
    assert (found["phase"], found["status"]["how"]) == ("failed", "node-failed"), found
    assert "machine" in found["status"]["message"]


def test_a_machine_that_goes_leaves_no_task_waiting(factory: FactoryProcess, usina: Usina) -> None:
    words = ("--machine", "box", "--name", "late", "--bare", "--detach")
    assert usina("run", *words, "--", "true").returncode == 0
    until(lambda: "waits for machine box" in usina("task", "show", "late").stdout, limit=20)
    assert usina("machine", "delete", "box", "--yes").returncode == 0
    assert over(factory, "late")["phase"] == "failed"
    assert "machine is gone" in usina("task", "show", "late").stdout


def test_a_machine_without_systemd_says_so(factory: FactoryProcess, usina: Usina) -> None:
    image = factory.call(
        "POST", "/images", {"name": "tiny", "recipe": "tiny", "visibility": "public", "project": "main"}
    )
    factory.phase(f"/images/{image['id']}", "ready", limit=300)
    made = usina("machine", "create", "small", "--image", "tiny", "--memory", "128MiB", "--disk", "16MiB")
    assert made.returncode == 0, made
    ran = usina("run", "--machine", "small", "--name", "lost", "--bare", "--", "true")
    assert ran.returncode != 0 and "there is no systemd in the machine" in ran.stderr, ran
    assert show(factory, "lost")["status"]["how"] == "could-not-start"


def test_a_machine_may_be_made_to_run_none(usina: Usina) -> None:
    made = usina("machine", "create", "shut", "--image", "debian-12", "--memory", "512MiB", "--no-tasks", "--no-wait")
    assert made.returncode == 0, made
    refused = usina("run", "--bare", "--machine", "shut", "--", "true")
    assert refused.returncode != 0 and "made to run no tasks" in refused.stderr
