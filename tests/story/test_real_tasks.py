"""Tasks through a real factory with real stacks: the same task as a process and as a container, with the command and
the typed client; a control plane that dies meanwhile; ways in, files in and out, idle shells."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from usina.client import Client
from usina.testing.process import FactoryProcess, end_helpers
from usina.testing.waiting import until

pytestmark = [pytest.mark.real, pytest.mark.timeout(180)]

Json = dict[str, Any]
STACKS = ["local", "container"]
OVER = {"succeeded", "failed", "stopped"}


@pytest.fixture(scope="module")
def factory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FactoryProcess]:
    """One host with two drivers; at the end nothing of theirs is left."""
    folder = tmp_path_factory.mktemp("tasks")
    folder.parent.chmod(0o755)
    with FactoryProcess(folder / "data", local_host=False).start() as process:
        process.call("POST", "/hosts", {"name": "here", "driver": "process", "also": {"podman": {}}})
        try:
            yield process
        finally:
            process.empty(("tasks",))
    end_helpers(folder)


@pytest.fixture
def site(factory: FactoryProcess) -> Iterator[Client]:
    with Client(f"http://127.0.0.1:{factory.port}", factory.token, project="main") as site:
        yield site


@pytest.fixture
def usina(factory: FactoryProcess, tmp_path: Path, archive: Path) -> Any:
    """Run the command in a folder of files, as a person would."""
    work = tmp_path / "work"
    work.mkdir()

    def usina(*words: str, input: str = "", **files: str) -> subprocess.CompletedProcess[str]:
        for name, text in files.items():
            (work / name.replace("__", ".")).write_text(text)
        environment = {
            **os.environ,
            "USINA_ENDPOINT": f"http://127.0.0.1:{factory.port}",
            "USINA_TOKEN": factory.token,
            "USINA_PROJECT": "main",
            "XDG_CONFIG_HOME": str(tmp_path / "config"),
            "API_KEY": "s3cr3t-word",
        }
        command = [sys.executable, "-m", "usina.cli", *words]
        return subprocess.run(
            command, cwd=work, env=environment, capture_output=True, text=True, input=input, timeout=120
        )

    return usina


def image_of(stack: str, archive: Path) -> list[str]:
    return ["--on", stack, *(["--archive", str(archive)] if stack == "container" else [])]


def over(factory: FactoryProcess, id: str, limit: float = 60) -> Json:
    return until(
        lambda: factory.call("GET", f"/tasks/{id}"),
        lambda t: t["phase"] in OVER and t["observed"] == t["generation"],
        limit,
    )


SCRIPT = """
cat data.txt
echo "env $NAME $API_KEY in $(pwd)"
echo trouble >&2
mkdir -p results && echo done > results/out.txt
exit 3
"""


@pytest.mark.parametrize("stack", STACKS)
def test_one_word_moves_a_task(usina: Any, stack: str, archive: Path, tmp_path: Path) -> None:
    ran = usina(
        "run", *image_of(stack, archive), "--mem", "64MiB", "--cores", "0.2", "--name", f"moved-{stack}",
        "-e", "NAME=value", "--secret", "API_KEY", "--keep", "results", "--", "sh", "job.sh",
        job__sh=SCRIPT, data__txt="forty-two\n", ignored="never sent", __gitignore="ignored\n",
    )  # fmt: skip
    assert ran.returncode == 3, ran
    assert ran.stdout.splitlines() == ["forty-two", "env value *** in /work"]
    assert "trouble" in ran.stderr and "exit code 3" in ran.stderr
    again = usina("task", "logs", f"moved-{stack}")
    assert again.stdout == ran.stdout
    assert usina("task", "download", f"moved-{stack}", str(tmp_path / "out")).returncode == 0
    assert (tmp_path / "out/results/out.txt").read_text() == "done\n"
    assert "s3cr3t" not in usina("task", "show", f"moved-{stack}", "-o", "json").stdout
    story = usina("story", f"moved-{stack}").stdout
    assert "ordered" in story and "placed on here" in story


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize(
    ("words", "script", "code", "told"),
    [
        (["--time", "2s"], "sleep 60", 124, "limit"),
        (["--mem", "32MiB"], "head -c 200000000 /dev/zero | tail -c 200000000 > /dev/null; exit $?", 137, "memory"),
    ],
)
def test_limits_end_it_and_say_so(
    usina: Any, stack: str, archive: Path, words: list[str], script: str, code: int, told: str
) -> None:
    ran = usina("run", "--bare", *image_of(stack, archive), *words, "--", "sh", "-c", script)
    assert ran.returncode == code, ran
    assert told in ran.stderr


@pytest.mark.parametrize("stack", STACKS)
def test_a_command_that_is_not_there(usina: Any, stack: str, archive: Path) -> None:
    ran = usina("run", "--bare", *image_of(stack, archive), "--mem", "64MiB", "--", "/no/such/thing")
    assert ran.returncode != 0
    assert "/no/such/thing" in ran.stderr


@pytest.mark.parametrize("stack", STACKS)
def test_an_array_and_a_dependency(usina: Any, stack: str, archive: Path) -> None:
    wish = [*image_of(stack, archive), "--bare", "--mem", "32MiB", "--cores", "0.1"]
    first = usina(
        "run", *wish, "--name", f"parts-{stack}", "--array", "0-4%2", "--", "sh", "-c", "echo part $USINA_INDEX"
    )
    assert first.returncode == 0, first
    assert sorted(first.stdout.splitlines()) == [f"[{n}] part {n}" for n in range(5)]
    then = usina("run", *wish, "--after", f"parts-{stack}", "--", "echo", "afterwards")
    assert (then.returncode, then.stdout) == (0, "afterwards\n")


@pytest.mark.parametrize("stack", STACKS)
def test_ways_in_while_it_runs(usina: Any, site: Client, factory: FactoryProcess, stack: str, archive: Path) -> None:
    serve = (  # 1FA3 is 8099
        "(until grep -q :1FA3 /proc/net/tcp /proc/net/tcp6; do sleep 0.1; done; echo up) &\n"
        "while :; do nc -l -p 8099 -e echo answered; done"
    )
    if stack == "local":
        serve = (
            'exec python3 -uc \'import socket\ns = socket.create_server(("", 8099))\nprint("up")\n'
            'while True: c, _ = s.accept(); c.sendall(b"answered"); c.close()\''
        )
    name = f"in-{stack}"
    ran = usina(
        "run", "--bare", *image_of(stack, archive), "--mem", "64MiB", "--cores", "0.2", "-d", "--name", name,
        "--port", "8099", "--", "sh", "-c", serve,
    )  # fmt: skip
    assert ran.returncode == 0, ran
    until(lambda: factory.call("GET", f"/tasks/{name}", project="main"), lambda t: t["phase"] == "running", 60)
    until(lambda: [line.text for line in site.tasks.logs(name)], lambda said: "up" in said, 30)
    with site.tasks.tunnel(name, 8099) as stream:
        assert stream.read(timeout=10).strip() == b"answered"
    beside = usina("task", "exec", name, "--", "sh", "-c", "cat; exit 5", input="typed\n")
    assert (beside.returncode, beside.stdout) == (5, "typed\n")
    stopped = usina("task", "stop", name)
    assert stopped.returncode == 0 and "stopped" in stopped.stderr


@pytest.mark.parametrize("stack", STACKS)
def test_a_shell_for_a_person(usina: Any, factory: FactoryProcess, stack: str, archive: Path) -> None:
    if stack == "container":
        return  # `usina shell` takes images by reference, and there is no registry here
    ran = usina("shell", "--on", stack, "--mem", "64MiB", input="echo I am here; exit 4\n")
    assert (ran.returncode, ran.stdout.strip()) == (4, "I am here"), ran
    until(lambda: all(not t["name"].startswith("shell-") for t in factory.call("GET", "/tasks")["items"]), limit=30)


def test_nobody_at_a_shell_ends_it(factory: FactoryProcess) -> None:
    wish = {"on": "local", "command": ["sleep", "600"], "idle_limit": 2, "cores": 0.1, "project": "main"}
    task = factory.call("POST", "/tasks", wish)
    done = over(factory, task["id"])
    assert done["phase"] == "stopped"


def test_a_shell_that_somebody_is_at_goes_on(factory: FactoryProcess, site: Client) -> None:
    wish = {"on": "local", "command": ["sleep", "600"], "idle_limit": 3, "cores": 0.1, "project": "main"}
    task = factory.call("POST", "/tasks", wish)
    path = f"/tasks/{task['id']}"
    until(lambda: factory.call("GET", path), lambda t: t["phase"] == "running", 30)
    with site.tasks.exec(task["id"], ["cat"]) as line:
        for number in range(16):  # twice its limit
            line.write(f"{number}\n".encode())
            assert line.read(timeout=5)
            time.sleep(0.4)  # a person types
        assert factory.call("GET", path)["phase"] == "running"
    assert over(factory, task["id"])["phase"] == "stopped"


def test_health_restarts_what_is_unwell(factory: FactoryProcess) -> None:
    script = "if [ $USINA_RUN = 1 ]; then sleep 600; fi; touch well; sleep 600"
    wish = {
        "on": "local", "command": ["sh", "-c", script], "cores": 0.1, "restart": "on-failure", "project": "main",
        "health": {"command": ["test", "-e", "well"], "every": 1, "failures": 2, "patience": 0}, "grace": 1,
    }  # fmt: skip
    task = factory.call("POST", "/tasks", wish)
    path = f"/tasks/{task['id']}"
    found = until(lambda: factory.call("GET", path), lambda t: t["status"]["healthy"] is True, 60)
    assert found["status"]["run"] == 2 and found["phase"] == "running"
    factory.call("POST", f"{path}/stop")
    assert over(factory, task["id"])["phase"] == "stopped"


@pytest.mark.parametrize("stack", STACKS)
def test_a_control_plane_that_dies_loses_and_doubles_nothing(
    usina: Any, factory: FactoryProcess, site: Client, stack: str, archive: Path
) -> None:
    script = "i=0; while [ $i -lt 12 ]; do echo line $i; i=$((i+1)); sleep 0.5; done; exit 6"
    name = f"kept-{stack}"
    wish = [*image_of(stack, archive), "--bare", "--mem", "32MiB", "--cores", "0.1", "-d", "--name", name]
    assert usina("run", *wish, "--", "sh", "-c", script).returncode == 0
    task = factory.call("GET", f"/tasks/{name}", project="main")
    until(lambda: [line.text for line in site.tasks.logs(name)], lambda said: "line 1" in said, 30)
    factory.kill()
    factory.start()
    done = over(factory, task["id"])
    assert (done["phase"], done["status"]["code"], done["status"]["run"]) == ("failed", 6, 1)
    assert [line.text for line in site.tasks.logs(name)] == [f"line {n}" for n in range(12)]


def test_afterwards_nothing_is_held(factory: FactoryProcess) -> None:
    factory.empty(("tasks",))
    assert not any(factory.call("GET", "/hosts/here")["used"].values())
    used = factory.call("GET", "/quotas/main")["used"]
    assert not any(used.values()), used
