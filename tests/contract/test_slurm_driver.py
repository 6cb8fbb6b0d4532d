"""The Slurm driver against a real Slurm, by slurmrestd and by commands."""

from __future__ import annotations

import asyncio
import itertools
import json
import pwd
import secrets
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from usina.core.capacity import DeviceKind, DeviceRequest
from usina.core.machine import Absent, Unreachable
from usina.core.task import End, Ended, FilePlan, Queued, Running, TaskPlan
from usina.core.units import GiB, MiB
from usina.drivers.slurm import PLUGIN
from usina.drivers.slurm.driver import SlurmDriver
from usina.ports.driver import DriverError, HostSettings, HostUnreachable
from usina.testing import slurm
from usina.testing.task_contract import (
    Make,
    TaskDriverContract,
    begun,
    ended,
    log_of,
    running,
    said,
    sh,
    silent,
    until_said,
)
from usina.testing.waiting import eventually

pytestmark = [
    pytest.mark.real,
    pytest.mark.xdist_group("slurm"),
    pytest.mark.skipif(bool(slurm.missing()), reason=f"no Slurm: {slurm.missing()}"),
]


@pytest.fixture(scope="session")
def cluster() -> Iterator[slurm.Cluster]:
    with slurm.cluster() as found:
        yield found


def options(cluster: slurm.Cluster, wire: str, **more: Any) -> dict[str, Any]:
    """By slurmrestd, Slurm's commands being there for `exec` only; or by commands alone."""
    rest = {"url": cluster.rest_url, "jwt_key": str(cluster.jwt_key)} if wire == "rest" else {}
    return {"conf": str(cluster.conf), "partition": "main", **rest, **more}


def opened(cluster: slurm.Cluster, folder: Path, wire: str, factory: str = "fab", **more: Any) -> SlurmDriver:
    return SlurmDriver(HostSettings("hst-1", "lab-main", factory, folder, options(cluster, wire, **more)))


@pytest.fixture(scope="session", params=["rest", "commands"])
def wire(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
async def stack(cluster: slurm.Cluster, wire: str, tmp_path: Path) -> AsyncIterator[SlurmDriver]:
    driver = opened(cluster, tmp_path / "state", wire)
    yield driver
    await driver.close()


class TestSlurm(TaskDriverContract):
    limits_memory = False  # proctrack/linuxproc has no cgroups
    gangs = True

    @pytest.fixture
    def make(self, cluster: slurm.Cluster) -> Make:
        plain = TaskDriverContract.make.__wrapped__(self)  # type: ignore[attr-defined]

        def make(script: str = "true", **more: Any) -> TaskPlan:
            return replace(plain(script, **more), identity=cluster.users[0])

        return make


@pytest.fixture
def make(cluster: slurm.Cluster) -> Make:
    def make(script: str = "true", **more: Any) -> TaskPlan:
        plan = TaskPlan(
            f"tsk-{secrets.token_hex(6)}.1", "prj-1", "lab/a/b", sh(script), cores=1, memory=100 * MiB, grace=2.0,
            identity=cluster.users[0],
        )  # fmt: skip
        return replace(plan, **more)

    return make


def shown(cluster: slurm.Cluster, job: str, field: str) -> str:
    """A field of `scontrol show job`."""
    text = cluster.command("scontrol", "-o", "show", "job", job)
    return text.partition(f" {field}=")[2].split(" ")[0]


async def refused(stack: SlurmDriver, plan: TaskPlan, *words: str) -> None:
    """It is refused for good, in words, and nothing of it is left."""
    with pytest.raises(DriverError) as failure:
        await stack.start(plan, silent)
    assert failure.value.lasting and not isinstance(failure.value, HostUnreachable)
    assert all(word in failure.value.public for word in words), failure.value.public
    assert await stack.observe(plan.handle) == Absent()
    assert not list((stack._settings.state_dir / "slurm" / "runs").glob(f"{plan.handle}*"))


class TestPeople:
    async def test_a_job_is_the_members_own(self, cluster: slurm.Cluster, stack: SlurmDriver, make: Make) -> None:
        for user in cluster.users:
            async with begun(stack, make("id -un; echo $HOME $USER; touch mine; sleep 60", identity=user)) as run:
                sight = await running(stack, run.handle)
                assert shown(cluster, sight.job, "UserId").startswith(f"{user}(")
                await until_said(stack, run.handle, user)
                home = cluster.folder / "homes" / user
                assert await said(stack, run.handle, "o") == [user, f"{home} {user}"]
                folder = home / ".usina" / "fab" / run.handle
                assert {path.lstat().st_uid for path in folder.rglob("*")} == {pwd.getpwnam(user).pw_uid}
                assert (folder / "environment").stat().st_mode & 0o777 == 0o600
            assert not folder.exists()

    async def test_nobody_in_particular_is_refused(self, stack: SlurmDriver, make: Make) -> None:
        await refused(stack, make(identity=""), "Unix user", "operator")

    @pytest.mark.parametrize(
        "name", ["root", "daemon", "-u root", "a b", "x;id", "../x", "0", "no-such-person", "a\nb", "$(id)"]
    )
    async def test_a_hostile_name_is_refused(self, stack: SlurmDriver, make: Make, name: str) -> None:
        await refused(stack, make(identity=name))

    async def test_one_whom_accounting_does_not_know_is_refused_in_its_words(
        self, cluster: slurm.Cluster, stack: SlurmDriver, make: Make
    ) -> None:
        await refused(stack, make(identity=cluster.stranger), "Invalid account")
        assert not list((cluster.folder / "homes" / cluster.stranger / ".usina" / "fab").iterdir())

    async def test_a_service_account_runs_what_nobody_owns(
        self, cluster: slurm.Cluster, wire: str, tmp_path: Path, make: Make
    ) -> None:
        stack = opened(cluster, tmp_path, wire, service_account=cluster.users[1])
        async with begun(stack, make("id -un", identity="")) as run:
            await ended(stack, run.handle)
            assert await said(stack, run.handle) == [cluster.users[1]]
        await stack.close()


class TestWhatIsAsked:
    async def test_account_qos_reservation_and_features_are_passed_on(
        self, cluster: slurm.Cluster, stack: SlurmDriver, make: Make
    ) -> None:
        name = f"res{secrets.token_hex(3)}"
        cluster.command(
            "scontrol", "create", "reservation", f"ReservationName={name}", "StartTime=now", "Duration=10",
            f"Users={cluster.users[0]}", "PartitionName=main", "NodeCnt=1", "Features=fast",
        )  # fmt: skip
        dialect = {"account": "guests", "qos": "urgent", "reservation": name, "constraint": "fast", "partition": "main"}
        try:
            async with begun(stack, make("echo $SLURM_JOB_NODELIST; sleep 60", dialect=dialect)) as run:
                sight = await running(stack, run.handle)
                assert [shown(cluster, sight.job, f) for f in ("Account", "QOS", "Reservation", "Features")] == [
                    "guests", "urgent", name, "fast",
                ]  # fmt: skip
                assert sight.nodes == ("n1",)
        finally:
            cluster.command("scontrol", "delete", f"ReservationName={name}")

    @pytest.mark.parametrize(
        ("dialect", "word"),
        [
            ({"account": "nope"}, "account"), ({"qos": "nope"}, "qos"), ({"reservation": "nope"}, "eservation"),
            ({"partition": "gpu"}, "partition"), ({"wrap": "id"}, "'wrap'"), ({"account": "-x"}, "account"),
            ({"qos": "a\nb"}, "qos"), ({"constraint": "nope"}, "feature"), ({"nodes": "9"}, "has 2"),
        ],
    )  # fmt: skip
    async def test_what_the_cluster_will_never_take_is_refused_in_words(
        self, stack: SlurmDriver, make: Make, dialect: dict[str, str], word: str
    ) -> None:
        await refused(stack, make(dialect=dialect), word)

    async def test_more_than_any_node_has_is_refused(self, stack: SlurmDriver, make: Make) -> None:
        await refused(stack, make(cores=64), "64 cores", "the largest has 4")

    async def test_a_time_limit_is_slurms_as_well_in_minutes(
        self, cluster: slurm.Cluster, stack: SlurmDriver, make: Make
    ) -> None:
        async with begun(stack, make("sleep 60", time_limit=61)) as run:
            sight = await running(stack, run.handle)
            assert shown(cluster, sight.job, "TimeLimit") == "00:02:00"

    async def test_gpus_are_given_by_model_and_by_profile(
        self, cluster: slurm.Cluster, wire: str, tmp_path: Path, make: Make
    ) -> None:
        stack = opened(cluster, tmp_path, wire, partition="gpu")
        script = "echo $SLURM_JOB_GPUS; echo $CUDA_VISIBLE_DEVICES; sleep 60"
        whole = make(script, requests=(DeviceRequest(DeviceKind.GPU, 2, model="A100|H100"),))
        part = make(script, requests=(DeviceRequest(DeviceKind.GPU, 1, profile="1g.10gb"),))
        async with begun(stack, whole) as one, begun(stack, part) as other:
            await running(stack, one.handle)
            assert "gpu:h100:2" in cluster.command("scontrol", "show", "job", (await running(stack, one.handle)).job)
            await until_said(stack, one.handle, "0,1")
            assert await said(stack, one.handle, "o") == ["0,1", "0,1"]
            await until_said(stack, other.handle, "2")
        await refused(stack, make(requests=(DeviceRequest(DeviceKind.GPU, 1, model="MI300"),)), "MI300", "h100")
        await refused(stack, make(requests=(DeviceRequest(DeviceKind.GPU, 9, model="h100"),)), "9 x h100")
        await stack.close()

    async def test_secrets_are_nowhere_to_be_seen(
        self, cluster: slurm.Cluster, stack: SlurmDriver, make: Make, tmp_path: Path
    ) -> None:
        plan = make('echo "$TOKEN"; sleep 60', environment={"TOKEN": "hush-hush"}, secret=frozenset({"TOKEN"}))
        async with begun(stack, plan) as run:
            job = (await running(stack, run.handle)).job
            await until_said(stack, run.handle, "***")
            seen = cluster.command("scontrol", "-d", "show", "job", job)
            seen += cluster.command("scontrol", "write", "batch_script", job, "-")
            seen += cluster.command("squeue", "--json") + cluster.command("sacct", "-P", "-o", "ALL", "-j", job)
            seen += "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
            assert "hush-hush" not in seen and run.handle in seen

            again = opened(cluster, tmp_path / "state", "commands")  # after a restart it is still known what to hide
            assert await said(again, run.handle) == ["***"]


class TestArraysAndGangs:
    async def test_so_many_of_an_array_run_at_a_time(self, stack: SlurmDriver, make: Make) -> None:
        with tempfile.TemporaryDirectory() as place:  # where the job's user can look, too
            gate = Path(place)
            gate.chmod(0o755)
            wish = make(f"until [ -e {gate}/open ]; do sleep 0.1; done", indices=(1, 2, 3), at_once=1, memory=50 * MiB)
            async with begun(stack, wish) as run:
                sight = await running(stack, run.handle)
                assert {unit.state for unit in sight.units} == {"running", "queued"}
                (gate / "open").touch()
                end = await ended(stack, run.handle)
                spans = sorted((unit.since, unit.at) for unit in end.units)
                assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans)), spans
                assert end.usage and end.code == 0 and [unit.code for unit in end.units] == [0, 0, 0]

    async def test_a_stopped_array_begins_nothing_more(self, stack: SlurmDriver, make: Make) -> None:
        async with begun(stack, make("echo begun; sleep 60", indices=tuple(range(6)), at_once=2)) as run:
            await until_said(stack, run.handle, "begun")
            await stack.stop(run.handle, grace=10)
            end = await stack.observe(run.handle)
            assert isinstance(end, Ended) and end.how is End.STOPPED
            assert {unit.how for unit in end.units} == {End.STOPPED} and len(end.units) == 6
            assert len(await said(stack, run.handle, "o")) <= 2

    async def test_a_gang_spans_nodes(self, stack: SlurmDriver, make: Make) -> None:
        script = "echo $SLURMD_NODENAME; while ! [ -e go ]; do sleep 0.1; done; exit $USINA_RANK"
        async with begun(stack, make(script, replicas=2, dialect={"nodes": "2"})) as run:
            sight = await running(stack, run.handle)
            assert sight.nodes == ("n1", "n2") and [unit.index for unit in sight.units] == [0, 1]
            await until_said(stack, run.handle, "[1]")
            assert sorted(await said(stack, run.handle, "o")) == ["[0] n1", "[1] n2"]
            line = await stack.exec(run.handle, sh("touch go"), terminal=False)
            assert await line.wait() == 0
            end = await ended(stack, run.handle)
            assert (end.how, end.code) == (End.EXITED, 1)
            assert [(unit.index, unit.code) for unit in end.units if unit.index == 1] == [(1, 1)]

    async def test_a_gang_is_stopped_and_keeps_its_time(self, stack: SlurmDriver, make: Make) -> None:
        script = "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.1; done"
        async with begun(stack, make(script, replicas=2, cores=1)) as run:
            await until_said(stack, run.handle, "[1] up")
            await until_said(stack, run.handle, "[0] up")
            await stack.stop(run.handle, grace=20)
            end = await stack.observe(run.handle)
            assert isinstance(end, Ended) and end.how is End.STOPPED, end
            assert sorted(await said(stack, run.handle, "o")) == ["[0] bye", "[0] up", "[1] bye", "[1] up"]
        async with begun(stack, make("sleep 60", replicas=2, time_limit=1)) as run:
            end = await ended(stack, run.handle)
            assert end.how is End.TIME_LIMIT and 0.5 < end.at - end.since < 10, end


class TestInterruptions:
    async def test_a_wish_to_stop_outlives_a_listing_on_its_way(
        self, stack: SlurmDriver, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with begun(stack, make("sleep 60")) as run:
            await running(stack, run.handle)
            notes, wire = stack._notes, stack._register._wire
            listing = wire.jobs

            async def meanwhile() -> Any:
                found = await listing()
                note = notes.get(run.handle)
                assert note
                notes.put(replace(note, stopping=True))
                return found

            note = notes.get(run.handle)
            assert note
            notes.put(replace(note, since=0.0))  # a listing has something to note, too
            with monkeypatch.context() as patch:
                patch.setattr(wire, "jobs", meanwhile)
                await stack._register.look(fresh=True)
            note = notes.get(run.handle)
            assert note and note.stopping and note.since

    async def test_a_controller_that_is_away_and_comes_back(
        self, cluster: slurm.Cluster, stack: SlurmDriver, make: Make
    ) -> None:
        async with begun(stack, make("echo up; while ! [ -e go ]; do sleep 0.1; done; exit 3")) as run:
            await until_said(stack, run.handle, "up")
            cluster.stop_controller()
            try:
                sight = await eventually(lambda: stack.observe(run.handle), lambda s: isinstance(s, Unreachable))
                assert isinstance(sight, Unreachable) and "answer" in sight.reason, sight
                failed = await asyncio.gather(stack.inventory(), stack.start(make(), silent), return_exceptions=True)
                assert [type(error) for error in failed] == [HostUnreachable] * 2
            finally:
                cluster.start_controller()
            await running(stack, run.handle)
            (cluster.folder / "homes" / cluster.users[0] / ".usina/fab" / run.handle / "work" / "go").touch()
            assert (await ended(stack, run.handle)).code == 3

    async def test_a_start_cut_short_after_submitting_is_not_repeated(
        self, cluster: slurm.Cluster, wire: str, tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plan, stack = make("echo once"), opened(cluster, tmp_path, wire)
        submit = stack._wire.submit

        async def lost(*given: Any) -> int:
            await submit(*given)
            raise HostUnreachable("the line broke")

        monkeypatch.setattr(stack._wire, "submit", lost)
        with pytest.raises(HostUnreachable):
            await stack.start(plan, silent)
        after = opened(cluster, tmp_path, wire)
        async with begun(after, plan):
            await ended(after, plan.handle)
            assert await said(after, plan.handle, "o") == ["once"]
            name = f"usina-fab:{plan.handle}"
            found = await eventually(lambda: after._wire.past((), name), lambda found: len(found) > 0)
            assert len(found) == 1


class TestOutside:
    @pytest.fixture
    def wire(self) -> str:
        """What is tested here is the same by either."""
        return "commands"

    async def test_a_job_cancelled_by_others_is_told_so(
        self, cluster: slurm.Cluster, stack: SlurmDriver, make: Make
    ) -> None:
        async with begun(stack, make("echo up; sleep 60")) as run:
            await until_said(stack, run.handle, "up")
            cluster.command("scancel", (await running(stack, run.handle)).job)
            end = await ended(stack, run.handle)
            assert end.how is End.CANCELLED and "cancelled" in end.message and end.since
            await stack.stop(run.handle, grace=1)
            assert await stack.observe(run.handle) == end

    async def test_a_job_held_and_then_cancelled_by_others(
        self, cluster: slurm.Cluster, stack: SlurmDriver, make: Make
    ) -> None:
        async with begun(stack, make("sleep 60", dialect={"requeue": "true"})) as run:
            job = await _job(stack, run)
            await running(stack, run.handle)
            cluster.command("scontrol", "requeuehold", job)
            await eventually(
                lambda: stack.observe(run.handle), lambda s: isinstance(s, Queued) and "held" in s.reason, 30
            )
            cluster.command("scancel", job)
            end = await ended(stack, run.handle)
            assert end.how is End.CANCELLED

    async def test_a_job_put_back_into_the_queue_runs_again(
        self, cluster: slurm.Cluster, stack: SlurmDriver, make: Make
    ) -> None:
        async with begun(
            stack,
            make("[ -e second ] || { touch second; echo try; exec sleep 60; }; echo try", dialect={"requeue": "true"}),
        ) as run:
            await until_said(stack, run.handle, "try")
            job = (await running(stack, run.handle)).job
            cluster.command("scontrol", "requeue", job)
            await eventually(lambda: stack.observe(run.handle), lambda s: isinstance(s, Queued), 30)
            cluster.command("scontrol", "update", f"JobId={job}", "StartTime=now+2")  # not two minutes
            end = await ended(stack, run.handle)
            assert (end.how, end.code, end.job) == (End.EXITED, 0, job)
            assert await said(stack, run.handle, "o") == ["try", "try"]

    async def test_a_queue_says_why_and_until_when(
        self, cluster: slurm.Cluster, stack: SlurmDriver, make: Make
    ) -> None:
        big = dict(memory=3900 * MiB, time_limit=300)
        async with begun(stack, make("sleep 60", **big)), begun(stack, make("sleep 60", **big)):
            async with begun(stack, make("sleep 60", **big)) as run:
                sight = await eventually(
                    lambda: stack.observe(run.handle),
                    lambda s: isinstance(s, Queued) and s.estimate and "Res" in s.reason,
                    30,
                )
                assert isinstance(sight, Queued) and sight.estimate and sight.job
                assert time.time() < sight.estimate < time.time() + 400 and "(Resources)" in sight.reason, sight
                await stack.stop(run.handle, grace=5)
                end = await stack.observe(run.handle)
                assert isinstance(end, Ended) and (end.how, end.code, end.since) == (End.STOPPED, None, 0.0)


class TestMemory:
    @pytest.fixture
    def wire(self) -> str:
        """What is tested here is the same by either."""
        return "rest"

    async def test_accounting_tells_what_was_used(self, stack: SlurmDriver, make: Make) -> None:
        # It works, and lives long enough to be looked at: once a second.
        async with begun(stack, make("i=0; while [ $i -lt 700000 ]; do i=$((i+1)); done; sleep 3")) as run:
            end = await ended(stack, run.handle)
            assert end.usage and end.usage.cpu > 0.1 and end.usage.peak > 100_000, end

    async def test_a_job_that_the_controller_forgot_is_still_known(
        self, stack: SlurmDriver, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with begun(stack, make("exit 6")) as by_accounting, begun(stack, make("exit 7")) as by_itself:

            async def nothing(*_: Any) -> tuple[()]:
                return ()

            for run in (by_accounting, by_itself):
                job = await _job(stack, run)
                await eventually(
                    lambda j=job: stack._wire.past([int(j)]), lambda p: p and p[0].job.phase == "ended", 30
                )
            with monkeypatch.context() as patch:
                patch.setattr(stack._wire, "jobs", nothing)
                end = await ended(stack, by_accounting.handle)
                assert (end.how, end.code) == (End.EXITED, 6)
                patch.setattr(stack._wire, "past", nothing)
                end = await ended(stack, by_itself.handle)
                assert (end.how, end.code) == (End.EXITED, 7)

    async def test_of_two_jobs_under_one_handle_one_runs(
        self, cluster: slurm.Cluster, stack: SlurmDriver, make: Make
    ) -> None:
        plan = make("echo once; sleep 3")
        submit = stack._wire.submit

        async def twice(*given: Any) -> int:
            await submit(*given)
            return await submit(*given)

        stack._wire.submit = twice  # type: ignore[method-assign]
        async with begun(stack, plan):
            await until_said(stack, plan.handle, "once")
            jobs = cluster.command("squeue", "-h", "-o", "%j").split()
            await eventually(lambda: _listed(cluster, plan.handle), lambda found: found <= 1)
            assert await said(stack, plan.handle, "o") == ["once"], jobs

    async def test_a_lost_state_folder_heals(
        self, cluster: slurm.Cluster, stack: SlurmDriver, wire: str, tmp_path: Path, make: Make
    ) -> None:
        async with begun(stack, make("echo up; sleep 60")) as run:
            await until_said(stack, run.handle, "up")
            other = opened(cluster, tmp_path / "other", wire)
            assert isinstance((await other.survey())[run.handle], Running)
            await other.stop(run.handle, grace=5)
            end = await other.observe(run.handle)
            assert isinstance(end, Ended) and end.how is End.STOPPED
            await other.remove(run.handle)
            assert run.handle not in await other.survey()
            assert run.handle not in await opened(cluster, tmp_path / "far", wire, factory="another").survey()

    async def test_that_usina_stopped_it_is_remembered(
        self, cluster: slurm.Cluster, stack: SlurmDriver, wire: str, tmp_path: Path, make: Make
    ) -> None:
        async with begun(stack, make("trap '' TERM; echo up; while :; do sleep 0.1; done")) as run:
            await until_said(stack, run.handle, "up")
            stopping = asyncio.ensure_future(stack.stop(run.handle, grace=60))
            note = tmp_path / "state/slurm/runs" / f"{run.handle}.json"
            await eventually(lambda: asyncio.sleep(0, json.loads(note.read_bytes())["stopping"]))
            stopping.cancel()
            after = opened(cluster, tmp_path / "state", wire)
            cluster.command("scancel", (await running(after, run.handle)).job)
            assert (await ended(after, run.handle)).how is End.STOPPED


class TestWithoutSharedFiles:
    async def test_files_travel_in_the_script(
        self, cluster: slurm.Cluster, wire: str, tmp_path: Path, make: Make
    ) -> None:
        stack = opened(cluster, tmp_path, wire, shared=False)
        data = tmp_path / "data"
        data.write_bytes(b"\0\xff'\n" * 500)
        files = (FilePlan(str(data), "in/the file"),)
        script = 'test "$(wc -c <"in/the file")" = 2000 && test "$TOKEN" = "a b" && exit 5'
        async with begun(stack, make(script, files=files, environment={"TOKEN": "a b"})) as run:
            end = await ended(stack, run.handle)
            assert (end.how, end.code) == (End.EXITED, 5)
            assert "on the cluster" in (await log_of(stack, run.handle))[0][2]
        data.write_bytes(b"x" * (3 * MiB))
        await refused(stack, make(files=files), "3 MiB")
        async with begun(stack, make("sleep 60", time_limit=1)) as run:
            end = await ended(stack, run.handle)
            assert end.how is End.TIME_LIMIT, end
        await stack.close()


class TestWhatThereIs:
    async def test_a_partition_with_gpus(self, cluster: slurm.Cluster, wire: str, tmp_path: Path) -> None:
        stack = opened(cluster, tmp_path, wire, partition="gpu")
        found = await stack.inventory()
        assert (found.cores, found.memory) == (8, 8000 * MiB)
        assert {"task:slurm", "queue", "partition:gpu", "feature:nvlink", "x86_64"} <= found.traits
        whole, parts = [d for d in found.devices if not d.mode], [d for d in found.devices if d.mode == "mig"]
        assert [d.address for d in whole] == ["gres:gpu:h100#0", "gres:gpu:h100#1"] and whole[0].model == "H100"
        assert len(parts) == 2 and parts[0].traits == {"1g.10gb"} and parts[0].memory == 10 * GiB
        assert found.facts["slurm"].startswith("22.05") or found.facts["slurm"]
        assert found.facts["largest_node.gpus"] == "4" and "MaxTime" in found.facts["limits"]
        assert str(cluster.jwt_key) not in repr(found)
        await stack.close()

    async def test_partitions_become_parts(self, cluster: slurm.Cluster, wire: str, tmp_path: Path) -> None:
        given = options(cluster, wire)
        del given["partition"]
        assert PLUGIN.parts
        found = await PLUGIN.parts(HostSettings("hst-1", "lab", "fab", tmp_path, given))
        assert [(part.name, part.options["partition"]) for part in found] == [("gpu", "gpu"), ("main", "main")]
        assert not await PLUGIN.parts(HostSettings("hst-1", "lab", "fab", tmp_path, options(cluster, wire)))
        assert PLUGIN.realm_of(found[0].options) == PLUGIN.realm_of(found[1].options) != PLUGIN.realm_of({})
        with pytest.raises(DriverError):
            SlurmDriver(HostSettings("hst-1", "lab", "fab", tmp_path, given))

    async def test_without_commands_there_is_no_exec(self, cluster: slurm.Cluster, tmp_path: Path, make: Make) -> None:
        given = options(cluster, "rest")
        del given["conf"]
        stack = SlurmDriver(HostSettings("hst-1", "lab", "fab", tmp_path, given))
        async with begun(stack, make("sleep 60")) as run:
            await running(stack, run.handle)
            with pytest.raises(DriverError, match="commands are needed"):
                await stack.exec(run.handle, ("true",), terminal=False)
            with pytest.raises(DriverError, match="port 22"):
                await stack.dial(run.handle, 22)
        await stack.close()

    async def test_a_wrong_key_is_told_and_not_shown(self, cluster: slurm.Cluster, tmp_path: Path) -> None:
        key = tmp_path / "key"
        key.write_bytes(b"not-the-cluster's-key-at-all")
        stack = opened(cluster, tmp_path, "rest", jwt_key=str(key))
        sight = await stack.observe("tsk-1.1")
        assert isinstance(sight, Unreachable) and "token" in sight.reason and "not-the-cluster" not in sight.reason
        await stack.close()

    async def test_watch_tells_of_changes(self, stack: SlurmDriver, make: Make) -> None:
        hints = stack.watch()
        first = asyncio.ensure_future(anext(hints))
        async with begun(stack, make("sleep 60")):
            assert await asyncio.wait_for(first, 15) == ""
        await hints.aclose()  # type: ignore[attr-defined]


async def _job(stack: SlurmDriver, run: TaskPlan) -> str:
    sight = (await stack.survey())[run.handle]
    assert isinstance(sight, Queued | Running | Ended)
    return sight.job


async def _listed(cluster: slurm.Cluster, handle: str) -> int:
    return cluster.command("squeue", "-h", "-t", "PD,R", "-o", "%j").split().count(f"usina-fab:{handle}")
