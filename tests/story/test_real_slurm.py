"""An existing Slurm adopted by a real factory: partitions as hosts, members as themselves, the command as elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from usina.testing import slurm
from usina.testing.process import FactoryProcess, Refused
from usina.testing.waiting import until

pytestmark = [
    pytest.mark.real,
    pytest.mark.timeout(240),
    pytest.mark.skipif(bool(slurm.missing()), reason=slurm.missing()),
]

Json = dict[str, Any]
OVER = {"succeeded", "failed", "stopped"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[slurm.Cluster]:
    with slurm.cluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def factory(cluster: slurm.Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FactoryProcess]:
    with FactoryProcess(tmp_path_factory.mktemp("slurm") / "data", local_host=False).start() as process:
        options = {"url": cluster.rest_url, "jwt_key": str(cluster.jwt_key), "conf": str(cluster.conf)}
        made = process.call("POST", "/hosts/adopt", {"name": "hpc", "driver": "slurm", "options": options}, key="")
        assert {host["name"] for host in made["items"]} >= {"hpc-main", "hpc-gpu"}
        yield process


@pytest.fixture
def usina(factory: FactoryProcess, tmp_path: Path) -> Any:
    def usina(*words: str) -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ,
            "USINA_ENDPOINT": f"http://127.0.0.1:{factory.port}",
            "USINA_TOKEN": factory.token,
            "USINA_PROJECT": "main",
            "XDG_CONFIG_HOME": str(tmp_path / "config"),
        }
        command = [sys.executable, "-m", "usina.cli", *words]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=180)

    return usina


def over(factory: FactoryProcess, id: str) -> Json:
    def good(task: Json) -> bool:
        return task["phase"] in OVER and task["observed"] == task["generation"]

    return until(lambda: factory.call("GET", f"/tasks/{id}"), good, 120)


def test_a_member_without_a_name_there_is_refused_and_with_one_is_that_person(
    usina: Any, factory: FactoryProcess, cluster: slurm.Cluster
) -> None:
    refused = usina("run", "--bare", "--on", "slurm", "--partition", "main", "--mem", "100MiB", "--", "id", "-un")
    assert refused.returncode != 0
    assert "identity" in refused.stderr or "Unix" in refused.stderr, refused
    assert usina("host", "identity", "hpc-main", "me", cluster.users[0]).returncode == 0
    ran = usina("run", "--bare", "--on", "slurm", "--partition", "main", "--mem", "100MiB", "--", "id", "-un")
    assert (ran.returncode, ran.stdout.strip()) == (0, cluster.users[0]), ran
    assert cluster.users[0] in usina("host", "identity", "hpc-gpu").stdout, "partitions share their accounts"


def test_the_folder_goes_along_and_results_come_back(usina: Any, tmp_path: Path) -> None:
    (tmp_path / "job.sh").write_text("cat data.txt; echo kept > result.txt; exit 3\n")
    (tmp_path / "data.txt").write_text("forty-two\n")
    ran = usina(
        "run",
        "--on",
        "slurm",
        "--partition",
        "main",
        "--mem",
        "100MiB",
        "--name",
        "kept",
        "--keep",
        "*.txt",
        "--",
        "sh",
        "job.sh",
    )
    assert (ran.returncode, ran.stdout) == (3, "forty-two\n"), ran
    assert usina("task", "download", "kept", str(tmp_path / "out")).returncode == 0
    assert (tmp_path / "out/result.txt").read_text() == "kept\n"


def test_an_array_and_a_gang_are_one_job_each(usina: Any, factory: FactoryProcess) -> None:
    wish = ("run", "--bare", "--on", "slurm", "--partition", "main", "--mem", "50MiB")
    array = usina(*wish, "--array", "0-3%2", "--name", "sweep", "--", "sh", "-c", "echo part $USINA_INDEX")
    assert array.returncode == 0, array
    assert sorted(array.stdout.splitlines()) == [f"[{n}] part {n}" for n in range(4)]
    gang = usina(*wish, "--replicas", "2", "--name", "pair", "--", "sh", "-c", "echo rank $USINA_RANK of $USINA_SIZE")
    assert gang.returncode == 0, gang
    assert {line.rpartition("] ")[2] for line in gang.stdout.splitlines()} == {"rank 0 of 2", "rank 1 of 2"}
    for name in ("sweep", "pair"):
        task = factory.call("GET", f"/tasks/{name}", project="main")
        assert task["status"]["job"]
        assert factory.call("GET", f"/tasks/{task['id']}/parts")["items"] == []


def test_gpus_are_asked_for_as_anywhere(usina: Any) -> None:
    ran = usina(
        "run",
        "--bare",
        "--on",
        "slurm",
        "--gpus",
        "h100:2",
        "--mem",
        "50MiB",
        "--",
        "sh",
        "-c",
        "echo $CUDA_VISIBLE_DEVICES",
    )
    assert (ran.returncode, ran.stdout.strip()) == (0, "0,1"), ran
    refused = usina("run", "--bare", "--on", "slurm", "--gpus", "h100:64", "--mem", "50MiB", "--", "true")
    assert refused.returncode != 0


def test_a_partition_that_is_not_there_is_refused_with_counts(usina: Any) -> None:
    ran = usina("run", "--bare", "--on", "slurm", "--partition", "nowhere", "--", "true")
    assert ran.returncode == 1
    assert "no host can ever hold this" in ran.stderr


def test_a_job_cancelled_by_hand_is_noticed(usina: Any, factory: FactoryProcess, cluster: slurm.Cluster) -> None:
    wish = ("run", "--bare", "--on", "slurm", "--partition", "main", "--mem", "50MiB", "-d", "--name", "long")
    assert usina(*wish, "--", "sleep", "600").returncode == 0
    task = factory.call("GET", "/tasks/long", project="main")
    running = until(lambda: factory.call("GET", f"/tasks/{task['id']}"), lambda t: t["phase"] == "running", 60)
    cluster.command("scancel", running["status"]["job"])
    done = over(factory, task["id"])
    assert (done["phase"], done["status"]["how"]) == ("failed", "cancelled-outside")


def test_a_control_plane_that_dies_loses_and_doubles_nothing(
    usina: Any, factory: FactoryProcess, cluster: slurm.Cluster
) -> None:
    wish = ("run", "--bare", "--on", "slurm", "--partition", "main", "--mem", "50MiB", "-d", "--name", "survivor")
    assert usina(*wish, "--", "sh", "-c", "echo begun; sleep 8; echo ended; exit 6").returncode == 0
    task = factory.call("GET", "/tasks/survivor", project="main")
    until(lambda: factory.call("GET", f"/tasks/{task['id']}"), lambda t: t["phase"] == "running", 60)
    factory.kill()
    factory.start()
    done = over(factory, task["id"])
    assert (done["phase"], done["status"]["code"], done["status"]["run"]) == ("failed", 6, 1)
    assert usina("task", "logs", "survivor").stdout == "begun\nended\n"


def test_afterwards_nothing_is_left(factory: FactoryProcess, cluster: slurm.Cluster) -> None:
    factory.empty(("tasks",))
    until(lambda: cluster.command("squeue", "-h").strip() == "", limit=30)
    for name in ("hpc-main", "hpc-gpu"):
        assert not any(factory.call("GET", f"/hosts/{name}")["used"].values())
    assert not any(factory.call("GET", "/quotas/main")["used"].values())
    with pytest.raises(Refused):
        factory.call("GET", "/tasks/survivor", project="main")
