"""The Slurm driver's reading and writing: documents of several versions, text of commands, options, names, requests."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from pathlib import Path
from typing import Any

import pytest

from usina.core.capacity import DeviceKind, DeviceRequest, Part
from usina.core.errors import Invalid
from usina.core.task import TaskPlan
from usina.core.units import GiB, MiB
from usina.drivers.slurm import check, documents, label, text
from usina.drivers.slurm.folder import Read, place_for
from usina.drivers.slurm.identity import Person, person_for
from usina.drivers.slurm.inventory import devices, inventory
from usina.drivers.slurm.logs import Logs
from usina.drivers.slurm.records import Gres, JobRecord, NodeRecord, PartitionRecord, expand, gres_of, numbers
from usina.drivers.slurm.request import JobRequest, gres_for, handle_in, job_name, job_request, spans
from usina.drivers.slurm.rest import token
from usina.drivers.slurm.settings import Settings
from usina.drivers.slurm.wire import failure, is_over
from usina.ports.driver import DriverError, HostUnreachable

SETTINGS = Settings("fab", Path("/nowhere"), partition="main")
NODES = (
    NodeRecord("n1", "10.0.0.1", 8, 16 * GiB, "gpu:h100:2(S:0-1)", ("fast",), "x86_64", frozenset({"IDLE"})),
    NodeRecord("n2", "10.0.0.2", 4, 8 * GiB, "gpu:a100_1g.10gb:4,nic:1", (), "x86_64", frozenset({"DOWN"})),
)


def set_(value: int) -> dict[str, Any]:
    return {"set": True, "infinite": False, "number": value}


NOT_SET = {"set": False, "infinite": False, "number": 0}
OLD_JOB = {  # v0.0.38, as slurmrestd 22.05 gives it
    "job_id": 6,
    "name": "usina-fab:tsk-1.1",
    "user_name": "ada",
    "partition": "main",
    "job_state": "RUNNING",
    "state_reason": "None",
    "exit_code": 256,
    "submit_time": 90,
    "start_time": 100,
    "end_time": 700,
    "nodes": "n1",
    "batch_host": "n1",
    "array_job_id": 5,
    "array_task_id": 1,
    "array_task_string": "",
    "restart_cnt": 0,
}
NEW_JOB = {  # v0.0.40 to v0.0.44
    **OLD_JOB,
    "job_state": ["RUNNING"],
    "submit_time": set_(90),
    "start_time": set_(100),
    "end_time": set_(700),
    "array_job_id": set_(5),
    "array_task_id": set_(1),
    "exit_code": {"status": ["ERROR"], "return_code": set_(1), "signal": {"id": NOT_SET, "name": ""}},
}
MIDDLE_JOB = {**NEW_JOB, "job_state": "RUNNING", "exit_code": set_(256)}  # v0.0.39


@pytest.mark.parametrize("document", [OLD_JOB, MIDDLE_JOB, NEW_JOB])
def test_a_job_reads_alike_in_every_version(document: dict[str, Any]) -> None:
    assert documents.job_of(document) == JobRecord(
        6, "usina-fab:tsk-1.1", "ada", "main", frozenset({"RUNNING"}), "None", 256, 90, 100, 700, "n1", "n1", 5, 1
    )


@pytest.mark.parametrize(
    ("array", "none"),
    [(5, None), (set_(5), NOT_SET), (set_(5), {"set": True, "infinite": True, "number": 0}), (5, 0xFFFFFFFE)],
)
def test_elements_that_wait_are_one_record(array: Any, none: Any) -> None:
    found = documents.job_of({**OLD_JOB, "array_job_id": array, "array_task_id": none, "array_task_string": "2-4,7%2"})
    assert (found.array, found.index, found.pending, found.said_as) == (5, None, (2, 3, 4, 7), "5")


def test_a_killed_job_of_a_new_version() -> None:
    code = {"status": ["SIGNALED"], "return_code": NOT_SET, "signal": {"id": set_(9), "name": "KILL"}}
    assert documents.job_of({**NEW_JOB, "exit_code": code}).status == 9
    older = {"status": "SIGNALED", "return_code": 0, "signal": {"signal_id": 9, "name": "Killed"}}
    assert documents.job_of({**NEW_JOB, "exit_code": older}).status == 9


def test_what_accounting_says() -> None:
    step = {
        "time": {"total": {"seconds": 2, "microseconds": 500000}},
        "tres": {"requested": {"max": [{"type": "mem", "count": 4096}, {"type": "cpu", "count": 9}]}},
    }
    document = {
        "job_id": 6,
        "name": "usina-fab:tsk-1.1",
        "user": "ada",
        "partition": "main",
        "nodes": "n1",
        "state": {"current": "FAILED", "reason": "None"},
        "exit_code": {"status": "SUCCESS", "return_code": 0},
        "time": {"submission": 90, "start": 100, "end": 160},
        "array": {"job_id": 0, "task_id": None},
        "steps": [step, step],
    }
    found = documents.past_of(document)
    assert found.job.status is None, "a failed job's 0 of v0.0.38 is not believed"
    assert found.usage and (found.usage.cpu, found.usage.peak) == (5.0, 4096)
    newer = documents.past_of(
        {
            **document,
            "state": {"current": ["FAILED"], "reason": "None"},
            "array": {"job_id": 5, "task_id": set_(3)},
            "exit_code": {"status": ["ERROR"], "return_code": set_(3), "signal": {"id": NOT_SET}},
        }
    )
    assert (newer.job.status, newer.job.array, newer.job.index) == (3 * 256, 5, 3)


def test_nodes_and_partitions_of_both_kinds() -> None:
    old = {
        "name": "n1",
        "address": "a",
        "cpus": 4,
        "real_memory": 100,
        "gres": "gpu:2",
        "features": "x,y",
        "state": "idle",
    }
    old |= {"state_flags": ["DRAIN"], "architecture": "x86_64", "slurmd_version": "22.05.8"}
    new = {**old, "features": ["x", "y"], "state": ["IDLE", "DRAIN"], "state_flags": None, "version": "24.05.1"}
    for document in (old, new):
        node = documents.node_of(document)
        assert node.features == ("x", "y") and node.memory == 100 * MiB and not node.up
    flat = {
        "name": "main",
        "nodes": "n[1-2]",
        "max_time_limit": 60,
        "maximum_nodes_per_job": -1,
        "state": "UP",
        "qos": "",
    }
    grouped = {
        "name": "main",
        "nodes": {"configured": "n[1-2]", "total": 2},
        "maximums": {"time": set_(60), "nodes": NOT_SET},
        "partition": {"state": ["UP"]},
        "qos": {"assigned": ""},
    }
    assert documents.partition_of(flat) == documents.partition_of(grouped)
    assert documents.partition_of(flat).limits == {"MaxTime": "60 minutes"}


REQUEST = JobRequest(
    "usina-fab:tsk-1.1",
    "#!/bin/bash\n",
    "main",
    cpus=2,
    memory=100,
    gres=(Gres("gpu", "h100", 1),),
    nodes="1",
    minutes=2,
    array="0-3%2",
    output="/o",
    environment={"A": "b=c"},
    qos="urgent",
)


@pytest.mark.parametrize("version", documents.VERSIONS)
def test_a_submission_in_every_version(version: str) -> None:
    body = documents.submission(REQUEST, version)
    job, minor = body["job"], int(version.rpartition(".")[2])
    assert ("script" in job) == (minor >= 40) and ("script" in body) == (minor < 40)
    assert job["environment"] == ({"A": "b=c"} if minor == 38 else ["A=b=c"])
    assert job["time_limit"] == (2 if minor == 38 else set_(2)) and job["memory_per_node"] == (
        100 if minor == 38 else set_(100)
    )
    assert (job.get("gres"), job.get("tres_per_node")) == (
        ("gpu:h100:1", None) if minor == 38 else (None, "gres/gpu:h100:1")
    )
    assert job["nodes"] == "1-1" and job["qos"] == "urgent" and "account" not in job
    assert job["array"] == "0-3%2" and job["name"] == job["comment"] == "usina-fab:tsk-1.1"


def test_problems_are_told_in_slurms_words() -> None:
    assert documents.problems(None) == documents.problems([]) == []
    assert documents.problems([{"error": "Invalid account", "error_code": 2045}]) == ["Invalid account"]
    assert documents.problems([{"error": "Unspecified error", "description": "no conf"}]) == [
        "no conf (Unspecified error)"
    ]
    assert documents.problems([{"error_number": 7}]) == ["error 7"]


@pytest.mark.parametrize(
    ("words", "kind", "lasting"),
    [
        ("sbatch: error: Unable to contact slurm controller (connect failure)", HostUnreachable, False),
        ("sbatch: error: Munge encode failed: Failed to access /run/munge", HostUnreachable, False),
        ("sbatch: error: Batch job submission failed: Invalid qos specification", DriverError, True),
        (
            "sbatch: error: QOSMaxSubmitJobPerUserLimit\nsbatch: error: Batch job submission failed: Job violates "
            "accounting/QOS policy (job submit limit, user's size and/or time limits)",
            DriverError,
            False,
        ),
        ("", DriverError, True),
    ],
)
def test_failures_are_told_apart(words: str, kind: type[DriverError], lasting: bool) -> None:
    error = failure(words, "the job")
    assert type(error) is kind and error.lasting is lasting and "error:" not in error.public


def test_what_is_over_is_no_failure() -> None:
    assert is_over("scancel: error: Kill job error on job id 1: Invalid job id specified") and is_over("")
    assert is_over("Job/step already completing or completed") and not is_over("Access/permission denied")


# --- text of commands


def test_accounting_as_text() -> None:
    rows = [
        "5_0|6|usina-fab:t.1|ada|main|CANCELLED by 0|3:0|90|100|160|n1|00:02.500||None",
        "5_0.batch|6.batch|batch|||FAILED|3:0|100|100|160|n1|00:01.500|4096K|",
        "5_0.0|6.0|sleep|||FAILED|0:9|100|100|160|n1|00:01.000|1M|",
        "5_[1-3%2]|5|usina-fab:t.1|ada|main|PENDING|0:0|90|Unknown|Unknown|None assigned|00:00:00||Resources",
        "broken",
    ]
    done, waiting = text.past("\n".join(rows))
    assert (done.job.id, done.job.array, done.job.index, done.job.status) == (6, 5, 0, 768)
    assert done.job.states == {"CANCELLED"} and done.usage and (done.usage.cpu, done.usage.peak) == (2.5, 4 * MiB)
    assert (waiting.job.array, waiting.job.index, waiting.job.nodes, waiting.job.start) == (5, None, "", 0.0)


def test_nodes_partitions_and_switches_as_text() -> None:
    line = (
        "NodeName=g1 Arch=x86_64 CoresPerSocket=1  CPUAlloc=0 CPUTot=8 AvailableFeatures=nvlink,x Gres=gpu:h100:2 "
        "NodeAddr=10.0.0.9 Version=22.05.8 OS=Linux 6.1 #1 SMP @0  RealMemory=8000 State=IDLE+DRAIN* Partitions=gpu"
    )
    (node,) = text.nodes(line)
    assert (node.name, node.address, node.cpus, node.memory, node.gres) == (
        "g1",
        "10.0.0.9",
        8,
        8000 * MiB,
        "gpu:h100:2",
    )
    assert node.states == {"IDLE", "DRAIN", "NOT_RESPONDING"} and not node.up and node.features == ("nvlink", "x")
    (partition,) = text.partitions(
        "PartitionName=gpu AllowGroups=ALL QoS=N/A MaxTime=12:00:00 MaxNodes=UNLIMITED Nodes=g[1-2] State=UP"
    )
    assert partition == PartitionRecord("gpu", "g[1-2]", frozenset({"UP"}), {"MaxTime": "12:00:00"})
    topology = "SwitchName=leaf1 Level=0 Nodes=n1,n2\nSwitchName=spine Level=1 Nodes=n[1-2] Switches=leaf1"
    assert text.switches(topology) == "leaf1: n1,n2; spine: leaf1"


def test_use_of_a_running_job() -> None:
    used = text.used("00:00:02|2048K|1\n00:00:03|1024K|2\n||\n")
    assert used and (used.cpu, used.memory) == (8.0, 3 * MiB)
    assert text.used("") is None


@pytest.mark.parametrize(("said", "seconds"), [("1-02:03:04", 93784), ("02:03.5", 123.5), ("00:00:01", 1), ("?", 0)])
def test_times(said: str, seconds: float) -> None:
    assert text.spent(said) == seconds


# --- records


def test_host_lists_and_indices() -> None:
    assert expand("n[1-3,07],g1,r[1-2]c[0-1]x") == ("n1", "n2", "n3", "n07", "g1", "r1c0x", "r1c1x", "r2c0x", "r2c1x")
    assert expand("") == expand("(null)") == () and len(expand("n[1-999999999]")) == 100_000
    assert numbers("0-3,7,9-15:3%4") == (0, 1, 2, 3, 7, 9, 12, 15) and numbers("") == ()
    assert spans((0, 1, 2, 5, 7, 8)) == "0-2,5,7-8" and numbers(spans((3, 1, 2, 9))) == (1, 2, 3, 9)


def test_gres() -> None:
    assert gres_of("gpu:h100:2(S:0-1),gpu:4,nic,mps:1K,(null)") == (
        Gres("gpu", "h100", 2),
        Gres("gpu", "", 4),
        Gres("nic", "", 1),
        Gres("mps", "", 1024),
    )
    assert gres_of("") == gres_of("(null)") == ()


# --- what there is


def test_an_inventory() -> None:
    found = inventory(PartitionRecord("main", "n[1-2]", frozenset({"UP"})), NODES, version="22.05", wire="commands")
    assert found.cores == 12 and found.memory == 24 * GiB and "feature:fast" in found.traits
    assert found.facts["nodes"] == "1 up, 1 down or drained" and found.facts["largest_node.cores"] == "8"
    assert len(found.devices) == 6 and {d.mode for d in found.devices} == {"", "mig"}
    for device in devices(NODES):
        assert (
            str(Part.parse(device.address)) == device.address and Part.parse(device.address).address == device.address
        )


# --- options and names


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"url": "http://ctl:6820", "jwt_key": "/etc/slurm/jwt.key"},
        {"url": "unix:///run/slurmrestd", "jwt_key": "/k"},
        {
            "conf": "/etc/slurm/slurm.conf",
            "partition": "gpu",
            "workdir": "/scratch/%u",
            "shared": "false",
            "min_uid": "500",
        },
        {"service_account": "usina", "shared": True, "account": "lab", "qos": "low", "reader": "slurm"},
    ],
)
def test_good_options(options: dict[str, Any]) -> None:
    check(options)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"colour": "red"}, "colour"),
        ({"url": "http://x"}, "jwt_key"),
        ({"jwt_key": "/k"}, "url"),
        ({"url": "ftp://x", "jwt_key": "/k"}, "url"),
        ({"url": "http://u:p@x", "jwt_key": "/k"}, "url"),
        ({"url": "http://x:99999", "jwt_key": "/k"}, "url"),
        ({"conf": "slurm.conf"}, "conf"),
        ({"conf": "/a/../b"}, "conf"),
        ({"conf": "/a b"}, "conf"),
        ({"partition": "-p"}, "partition"),
        ({"partition": "a\nb"}, "partition"),
        ({"workdir": "/x/%h"}, "workdir"),
        ({"workdir": "x"}, "workdir"),
        ({"shared": "maybe"}, "shared"),
        ({"shared": 3}, "shared"),
        ({"min_uid": 0}, "min_uid"),
        ({"min_uid": True}, "min_uid"),
        ({"min_uid": "x"}, "min_uid"),
        ({"service_account": "root"}, "service_account"),
        ({"service_account": "-u"}, "service_account"),
        ({"qos": 3}, "qos"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], field: str) -> None:
    with pytest.raises(Invalid) as error:
        check(options)
    assert error.value.field == field


@pytest.mark.parametrize(
    "name", ["", "root", "daemon", "0", "-u", "a b", "a\n", "$(id)", "x;y", "a/b", "é", "toor" * 30]
)
def test_whom_no_task_may_be(name: str) -> None:
    with pytest.raises(DriverError) as error:
        person_for(SETTINGS, name)
    assert error.value.lasting


def test_one_whom_only_the_cluster_knows_needs_no_entry_here() -> None:
    far = Settings("fab", Path("/"), url="http://x", jwt_key="/k", partition="main", shared=False)
    assert person_for(far, "far-away") == Person("far-away")


def test_names_of_jobs_and_partitions() -> None:
    assert handle_in("fab", job_name("fab", "tsk-1.2")) == "tsk-1.2"
    for other in ("x", "usina-other:tsk-1.1", "usina-fab:", "usina-fab:a b", "usina-fab:a\nb", "usina-fab:../x"):
        assert handle_in("fab", other) == ""
    assert label("GPU_Large") == "gpu-large" and label("__") == "partition"


def test_a_token_is_a_jwt_that_slurm_takes() -> None:
    head, claims, signature = token(b"key", "ada", 1000.7).split(".")
    assert json.loads(base64.urlsafe_b64decode(head + "==")) == {"alg": "HS256", "typ": "JWT"}
    assert json.loads(base64.urlsafe_b64decode(claims + "==")) == {"iat": 1000, "exp": 1300, "sun": "ada"}
    expected = hmac.new(b"key", f"{head}.{claims}".encode(), hashlib.sha256).digest()
    assert base64.urlsafe_b64decode(signature + "=") == expected


def test_places() -> None:
    ada = Person("ada", 2000, 2000, "/home/ada")
    assert place_for("", "fab", ada, "t.1", "").absolute_work == "/home/ada/.usina/fab/t.1/work"
    assert place_for("/scratch/%u/x", "fab", ada, "t.1", "sub").absolute_work == "/scratch/ada/x/fab/t.1/work/sub"
    assert place_for("/scratch", "fab", ada, "t.1", "/data/ada").absolute_work == "/data/ada"
    assert place_for("/scratch", "fab", ada, "t.1", "").folder == "/scratch/ada/fab/t.1"
    assert place_for("", "fab", Person("far"), "t.1", "").folder == "~/.usina/fab/t.1"


# --- what is asked


def asked(**more: Any) -> JobRequest:
    plan = TaskPlan("tsk-1.1", "prj-1", command=("true",), cores=1.5, memory=100 * MiB + 1, **more)
    return job_request(plan, SETTINGS, NODES, "#!", "/o", {})


def test_a_request_is_rounded_up() -> None:
    found = asked(time_limit=61, indices=(0, 1, 4), at_once=2)
    assert (found.cpus, found.memory, found.minutes, found.array, found.nodes) == (2, 101, 2, "0-1,4%2", "1")
    assert asked(replicas=3).nodes == "" and asked(replicas=3).memory_per_cpu == 51


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (DeviceRequest(DeviceKind.GPU, 2, model="A100|H100"), Gres("gpu", "h100", 2)),
        (DeviceRequest(DeviceKind.GPU, 1), Gres("gpu", "h100", 1)),
        (DeviceRequest(DeviceKind.GPU, 3, profile="1G.10GB"), Gres("gpu", "a100_1g.10gb", 3)),
    ],
)
def test_gpus_are_found_among_gres(request_: DeviceRequest, expected: Gres) -> None:
    assert gres_for(request_, NODES) == expected


@pytest.mark.parametrize(
    "more",
    [
        {"requests": (DeviceRequest(DeviceKind.GPU, 1, model="B200"),)},
        {"requests": (DeviceRequest(DeviceKind.GPU, 3, model="h100"),)},
        {"requests": (DeviceRequest(DeviceKind.VF, 1),)},
        {"requests": (DeviceRequest(DeviceKind.GPU, 1, share=500),)},
        {"dialect": {"partition": "other"}},
        {"dialect": {"wrap": "x"}},
        {"dialect": {"qos": "-x"}},
        {"dialect": {"qos": "a b"}},
        {"dialect": {"constraint": "a\nb"}},
        {"dialect": {"nodes": "3"}},
        {"dialect": {"nodes": "0"}},
        {"dialect": {"requeue": "yes"}},
        {"dialect": {"dependency": "--x"}},
        {"dialect": {"account": ""}},
    ],
)
def test_what_cannot_be_is_refused(more: dict[str, Any]) -> None:
    with pytest.raises(DriverError) as error:
        asked(**more)
    assert error.value.lasting


# --- logs


def test_a_log_keeps_its_positions_whatever_becomes_of_the_files(tmp_path: Path) -> None:
    logs = Logs(tmp_path)
    logs.take("r", [Read("say/o", 0, b"one\ntw", 1.0), Read("say/e.3", 0, b"bad\n", 0.5)], (), last=False)
    first = logs.piece("r", 0, 100)
    assert first.data == b"500 e [3] bad\n1000 o one\n"
    logs.take("r", [Read("say/o", 4, b"two\nend", 2.0)], (), last=True)
    assert logs.piece("r", first.end, 100).data == b"2000 o two\n2000 o end\n"
    again = Logs(tmp_path)
    assert again.piece("r", 0, 10_000).data == first.data + b"2000 o two\n2000 o end\n"
    assert again.piece("r", 0, 1).data == b"500 e [3] bad\n" and not again.piece("r", 10_000, 10).data
    again.forget("r")
    assert not list(tmp_path.iterdir())


def test_what_a_crash_left_unfinished_is_written_again(tmp_path: Path) -> None:
    logs = Logs(tmp_path)
    logs.take("r", [Read("say/o", 0, b"one\n", 1.0)], (), last=False)
    with (tmp_path / "r" / "0.log").open("ab") as file:
        file.write(b"1000 o tw")  # and then the power went
    after = Logs(tmp_path)
    after.take("r", [Read("say/o", 4, b"two\n", 2.0)], (), last=False)
    assert after.piece("r", 0, 1000).data == b"1000 o one\n2000 o two\n"


def test_logs_mask_cut_and_mend(tmp_path: Path) -> None:
    logs = Logs(tmp_path)
    data = b"a\xffb s3cret s3cret-longer\r\n" + b"x" * 40_000 + b"\n"
    logs.take("r", [Read("say/o", 0, data, 1.0)], ("s3cret-longer", "s3cret"), last=False)
    lines = logs.piece("r", 0, 100_000).data.splitlines()
    assert lines[0].decode() == "1000 o a\N{REPLACEMENT CHARACTER}b *** ***" and len(lines[1]) <= 16 << 10


def test_a_long_log_loses_its_oldest_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("usina.drivers.slurm.logs.CHUNK", 100)
    monkeypatch.setattr("usina.drivers.slurm.logs.CHUNKS", 3)
    logs = Logs(tmp_path)
    for number in range(100):
        logs.take("r", [Read("say/o", 3 * number, b"%02d\n" % number, 1.0)], (), last=False)
    piece, seen = logs.piece("r", 0, 50), b""
    assert piece.start > 0
    while piece.data:
        seen += piece.data
        piece = logs.piece("r", piece.end, 50)
    assert seen.endswith(b"1000 o 99\n") and seen.count(b"\n") < 40 and len(list((tmp_path / "r").glob("*.log"))) <= 3
