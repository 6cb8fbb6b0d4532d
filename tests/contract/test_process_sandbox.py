"""What the process driver promises beyond the contract, tried for real: hostile tasks, killed wardens, nothing left."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import tarfile
import threading
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from process_wardens import command_of, left_of, of_users, opened, pids, process_host, processes_that, waits

from usina.core.machine import Absent
from usina.core.task import End, Ended, FilePlan, Network, Running, TaskPlan
from usina.core.units import KiB, MiB
from usina.drivers.process.driver import ProcessDriver, network_program
from usina.ports.driver import DriverError
from usina.testing.task_contract import begun, ended, log_of, running, said, sh, silent, unpacked, until_said
from usina.testing.waiting import eventually, until

pytestmark = pytest.mark.real
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

PYTHON = "/usr/bin/python3"
UIDS = (1_700_000_000, 1_700_000_999)  # of no other driver: containers of other tests run beside
_HOSTILE = Path(__file__).with_name("process_hostile.py")
_EMPTY_HANDED = ("ENOENT", "EACCES", "EPERM", "EROFS", "ESRCH", "ENOSYS", "ECONNREFUSED", "EINVAL", "ENXIO")


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[ProcessDriver]:
    async with process_host(tmp_path, uids=f"{UIDS[0]}-{UIDS[1]}", log_limit=256 * KiB, pids=64) as driver:
        yield driver
        await driver.survey()
        warden(driver)  # it lives: nothing that a test did has ended it
    assert not of_users(*UIDS)


_count = iter(range(1, 1 << 30))


def plan(script: str = "true", **more: Any) -> TaskPlan:
    settings: dict[str, Any] = {"command": sh(script), "memory": 128 * MiB, "cores": 1.0, "grace": 1.0, **more}
    return TaskPlan(f"tsk-sandbox{next(_count)}.1", "prj-1", **settings)


def warden(driver: ProcessDriver) -> int:
    """The process number of a driver's warden."""
    pid = int(driver._client.facts["pid"])
    assert "warden" in command_of(pid)
    return pid


def host_pid(text: str) -> int:
    """The host's number of the innermost process whose command line has a text."""
    return until(lambda: [pid for pid in pids() if command_of(pid).startswith(text)])[0]


# --- hostile tasks


@root_only
async def test_a_hostile_task_comes_away_empty_handed(stack: ProcessDriver, tmp_path: Path) -> None:
    server = (
        "import os, socket, time; open('secret', 'w').write('the victims secret')\n"
        "s = socket.create_server(('127.0.0.1', 8321)); print('up', flush=True)\n"
        "while True: c, _ = s.accept(); c.sendall(b'the victims port'); c.close()"
    )
    victim = plan(command=(PYTHON, "-c", server, "victim-mark"), environment={"KEY": "the victims key"})
    async with begun(stack, victim):
        await until_said(stack, victim.handle, "up")
        pid = host_pid(f"{PYTHON} -c import os, socket")
        state = str(tmp_path / "process")
        attacker = plan(
            command=(PYTHON, "hostile.py", state, victim.handle, str(pid), "8321", stack.group),
            files=(FilePlan(str(_HOSTILE), "hostile.py"),),
        )
        async with begun(stack, attacker):
            await ended(stack, attacker.handle)
            lines = await said(stack, attacker.handle)
            assert lines and lines[0].startswith("{"), lines
            found = json.loads(lines[0])
        assert isinstance(await stack.observe(victim.handle), Running)
    assert found.pop("own memory works") == "done: None"
    assert len(found.pop("processes")) <= 3 and set(found.pop("signalled")) <= {1}
    assert "the victims" not in json.dumps(found)
    assert found.pop("files") == ["0", "1", "2", "3"]
    assert found.pop("groups") == []
    assert "cgroup" not in " ".join(found.pop("filesystems"))
    assert not {"vda", "mem", "kmsg", "kvm", "nvidiactl", "net"} & set(found.pop("devices"))
    status = found.pop("status")
    assert {status[name] for name in status if name.startswith("Cap")} == {"0000000000000000"}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert found.pop("clone3") == "ENOSYS"
    assert found.pop("be root by su").startswith("ValueError")
    assert {name: outcome for name, outcome in found.items() if outcome not in _EMPTY_HANDED} == {}


async def test_runs_see_the_topology_and_no_more_of_sys(stack: ProcessDriver, tmp_path: Path) -> None:
    """Libraries for parallel work ask for it: OpenMP's, MPI's, and vLLM by lscpu."""
    script = "lscpu --json --extended=CPU,CORE,NODE --online > said; ls /sys /sys/devices /sys/devices/system"
    apart = plan(script, files=(FilePlan(str(_HOSTILE), "/data/file"),))  # with a root of its own
    for one in (plan(script), apart):
        async with begun(stack, one):
            assert (await ended(stack, one.handle)).code == 0
            lines = [line for line in await said(stack, one.handle, "o") if line]
            assert lines == [
                "/sys:", "devices", "/sys/devices:", "system", "/sys/devices/system:", "cpu", "node"
            ]  # fmt: skip
            found = json.loads((await unpacked(stack, one.handle, "said"))["said"])
            assert {cpu["cpu"] for cpu in found["cpus"]} == os.sched_getaffinity(0)


async def test_runs_see_only_their_own_processes(stack: ProcessDriver) -> None:
    async with (
        begun(stack, plan("sleep 61 & sleep 61")) as one,
        begun(stack, plan("ls -d /proc/[0-9]*; kill -0 4")) as two,
    ):
        await running(stack, one.handle)
        await ended(stack, two.handle)
        assert len([line for line in await said(stack, two.handle, "o") if line.startswith("/proc/")]) <= 4


@root_only
async def test_a_network_is_used_again_only_where_nothing_was_sent(stack: ProcessDriver) -> None:
    networks: list[str] = []
    bytes_sent = "sed -n 's/ *lo: *\\([0-9]*\\).*/\\1/p' /proc/net/dev"

    async def one(more: str = "") -> str:
        """What had been sent in its network when it began."""
        async with begun(stack, plan(f"readlink /proc/self/ns/net; {bytes_sent}; {more}")) as run:
            await ended(stack, run.handle)
            network, sent, *after = await said(stack, run.handle)
            networks.append(network)
            assert not more or int(after[0])
        return sent

    send = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 9))"
    assert {await one() for _ in range(8)} == {"0"}
    assert len(set(networks)) < len(networks)
    assert await one(f'{PYTHON} -c "{send}"; {bytes_sent}') == "0"
    assert {await one() for _ in range(8)} == {"0"}
    both = [plan("readlink /proc/self/ns/net; sleep 60") for _ in range(2)]
    async with begun(stack, both[0]), begun(stack, both[1]):
        for run in both:
            await until_said(stack, run.handle, "net:")
        assert await said(stack, both[0].handle) != await said(stack, both[1].handle)


@root_only
async def test_every_run_is_a_user_of_its_own_and_its_tmp_its_own(stack: ProcessDriver) -> None:
    script = "echo mine > /tmp/note; ls /tmp /dev/shm; echo up; sleep 60"
    async with begun(stack, plan(script)) as one, begun(stack, plan(script)) as two:
        for run in (one, two):
            await until_said(stack, run.handle, "up")
            assert (await said(stack, run.handle))[:2] == ["/dev/shm:", ""]
        owners = {int(line.split()[0]): os.stat(f"/proc/{line.split()[0]}").st_uid for line in of_users(*UIDS)}
        assert len(set(owners.values())) == 2


async def test_a_secret_is_in_no_command_line_and_not_kept_after_the_end(stack: ProcessDriver, tmp_path: Path) -> None:
    secret = "xyzzy-4711-plugh"
    run = plan("mkfifo go; echo up; read x < go", environment={"KEY": secret}, secret=frozenset({"KEY"}))
    async with begun(stack, run):
        await until_said(stack, run.handle, "up")
        assert not processes_that(lambda text: secret in text)
        await stack.stop(run.handle, grace=0)
        folder = tmp_path / "process" / "runs" / run.handle
        assert not [path for path in folder.iterdir() if secret in path.read_text()]


async def test_a_fork_bomb_is_bounded_and_can_be_removed(stack: ProcessDriver) -> None:
    if "task:limits" not in (await stack.inventory()).traits:
        pytest.skip("no control groups here")
    bomb = "import os, time\nprint('up', flush=True)\nwhile True:\n try: os.fork()\n except OSError: time.sleep(0.01)"
    async with begun(stack, plan(command=(PYTHON, "-c", bomb))) as run:
        await until_said(stack, run.handle, "up")
        await eventually(lambda: _count_of(bomb), lambda count: count >= 40)
        assert await _count_of(bomb) <= 70
        async with asyncio.timeout(20):
            await stack.remove(run.handle)
        assert await _count_of(bomb) == 0


async def _count_of(text: str) -> int:
    return len(processes_that(lambda command: text.splitlines()[1] in command))


async def test_memory_ends_it_with_the_limit_in_words(stack: ProcessDriver) -> None:
    if "task:limits" not in (await stack.inventory()).traits:
        pytest.skip("no control groups here")
    eat = "b = bytearray(); print('up', flush=True)\nwhile True: b += bytes(1 << 20)"
    async with begun(stack, plan(command=(PYTHON, "-c", eat), memory=48 * MiB)) as run:
        end = await ended(stack, run.handle)
        assert (end.how, end.message) == (End.MEMORY, "used more than its 48 MiB of memory")
        assert end.usage is not None and 40 * MiB < end.usage.peak <= 48 * MiB
    async with begun(stack, plan("head -c 200000000 /dev/zero > /dev/shm/x; echo $?", memory=48 * MiB)) as run:
        await ended(stack, run.handle)  # what is in /dev/shm counts, too, and is bounded


async def test_a_flood_of_output_fills_no_disk(stack: ProcessDriver, tmp_path: Path) -> None:
    async with begun(
        stack, plan("yes 'a line that is said again and again' | head -c 20000000; echo; echo end")
    ) as run:
        assert (await ended(stack, run.handle)).code == 0
        folder = tmp_path / "process" / "runs" / run.handle
        assert sum(path.stat().st_size for path in folder.glob("log.*")) < 512 * KiB
        piece = await stack.log(run.handle, 0, 64 * KiB)
        assert piece.start > 20_000_000 and piece.data.count(b"\n") > 100
        assert (await said(stack, run.handle))[-1] == "end"
    async with begun(stack, plan("head -c 20000000 /dev/zero; echo; echo end")) as run:
        await ended(stack, run.handle)
        lines = await log_of(stack, run.handle)
        assert len(lines) == 2 and len(lines[0][2]) <= 16 * KiB and lines[1][2] == "end"


async def test_outputs_follow_no_link_and_open_no_device(stack: ProcessDriver) -> None:
    script = (
        "mkdir out; echo good > out/a.txt; ln -s /etc/passwd out/b.txt; ln -s / out/root; mkfifo out/pipe.txt;"
        "ln -s ../out out/again; ln out/a.txt out/hard.txt; echo hidden > out/mode.txt; chmod 0 out/mode.txt;"
        f"{PYTHON} -c \"import socket; socket.socket(socket.AF_UNIX).bind('out/sock.txt')\";"
        'd=deep; for i in 1 2 3 4 5; do d=$d/x; done; mkdir -p $d; echo 5 > $d/a.txt; printf x > "out/a b\\n.txt"'
    )
    async with begun(stack, plan(script)) as run:
        assert (await ended(stack, run.handle)).code == 0, await said(stack, run.handle)
        found = await unpacked(stack, run.handle, "out", "deep/**/*.txt", "../*", "/etc/*")
        assert {n for n in found if n.startswith("out")} == {"out/a.txt", "out/hard.txt", "out/a b\\n.txt"}
        assert found["out/a.txt"] == b"good\n"


async def test_outputs_of_a_task_that_swaps_files_for_links_meanwhile(stack: ProcessDriver) -> None:
    swap = (
        "import os\nos.mkdir('d'); open('d/f', 'w').write('mine'); os.mkdir('other')\n"
        "os.symlink('/etc', 'link'); print('up', flush=True)\n"
        "while True:\n os.rename('d', 'e'); os.rename('link', 'd'); os.rename('d', 'link'); os.rename('e', 'd')\n"
        " os.unlink('d/f'); os.symlink('/etc/passwd', 'd/f'); os.unlink('d/f'); open('d/f', 'w').write('mine')"
    )
    async with begun(stack, plan(command=(PYTHON, "-c", swap))) as run:
        await until_said(stack, run.handle, "up")
        for _ in range(30):
            found = await unpacked(stack, run.handle, "d", "e")
            assert set(found.values()) <= {b"mine", b""}, found


def _archive(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> FilePlan:
    with tarfile.open(path, "w:gz") as archive:
        for info, data in members:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return FilePlan(str(path), "", unpack=True)


def _member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


@pytest.mark.parametrize(
    "members",
    [
        [(_member("../../../escaped"), b"x")],
        [(_member("out", tarfile.SYMTYPE, "/tmp"), b""), (_member("out/escaped"), b"x")],
        [(_member("out", tarfile.SYMTYPE, "../../.."), b""), (_member("out/escaped"), b"x")],
        [(_member("hard", tarfile.LNKTYPE, "/etc/passwd"), b"")],
        [(_member("disk", tarfile.BLKTYPE), b"")],
        [(_member("pipe", tarfile.FIFOTYPE), b"")],
    ],
    ids=["up", "link-to-absolute", "link-up", "hard-link", "device", "fifo"],
)
async def test_a_hostile_archive_is_refused_and_leaves_nothing(
    stack: ProcessDriver, tmp_path: Path, members: list[tuple[tarfile.TarInfo, bytes]]
) -> None:
    run = plan(files=(_archive(tmp_path / "a.tgz", *members),))
    with pytest.raises(DriverError) as failure:
        await stack.start(run, silent)
    assert failure.value.lasting and failure.value.public
    assert await stack.observe(run.handle) == Absent()
    await stack.start(plan(), silent)  # and the driver goes on
    assert not list(tmp_path.rglob("escaped")) and not Path("/tmp/escaped").exists()
    assert not (tmp_path / "process" / "box" / run.handle).exists()


async def test_absolute_members_land_inside_and_special_modes_are_dropped(stack: ProcessDriver, tmp_path: Path) -> None:
    info = _member("/etc/inside")
    special = _member("special")
    special.mode = 0o6755
    files = (_archive(tmp_path / "a.tgz", (info, b"x"), (special, b"y")),)
    async with begun(stack, plan("cat etc/inside; stat -c %a special", files=files)) as run:
        await ended(stack, run.handle)
        assert await said(stack, run.handle, "o") == ["x755"]


async def test_files_are_bounded_by_the_disk_of_the_task(stack: ProcessDriver, tmp_path: Path) -> None:
    bomb = _archive(tmp_path / "a.tgz", *((_member(f"zeros{n}"), bytes(4 * MiB)) for n in range(4)))
    with pytest.raises(DriverError, match="larger than the task's disk") as failure:
        await stack.start(plan(files=(bomb,), disk=8 * MiB), silent)
    assert failure.value.lasting


async def test_files_at_absolute_places(stack: ProcessDriver, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("placed\n")
    there = (
        FilePlan(str(tmp_path / "f"), "/data/in.txt"),
        FilePlan(str(tmp_path / "f"), "/work/sub/in.txt", mode=0o600),
    )
    async with begun(stack, plan("cat /data/in.txt sub/in.txt; stat -c %a sub/in.txt", files=there)) as run:
        await ended(stack, run.handle)
        assert await said(stack, run.handle) == ["placed", "placed", "600"]
    for path in ("/etc/ld.so.preload", "/usr/bin/sh", "../escaped", "/"):
        with pytest.raises(DriverError) as failure:
            await stack.start(plan(files=(FilePlan(str(tmp_path / "f"), path),)), silent)
        assert failure.value.lasting


@root_only
async def test_a_refused_start_answers_when_nothing_is_left_of_it(stack: ProcessDriver, tmp_path: Path) -> None:
    if "task:limits" not in (await stack.inventory()).traits:
        pytest.skip("no control groups here")
    await stack.survey()
    until(lambda: sum(_said_to_wait(pid) for pid in pids()) == 2)
    before = _groups_of_waiting(tmp_path)
    (tmp_path / "f").write_text("placed\n")
    with _left_late(before.values()):
        with pytest.raises(DriverError):
            await stack.start(plan(files=(FilePlan(str(tmp_path / "f"), "../escaped"),)), silent)
        assert (len(before), len(_groups_of_waiting(tmp_path))) == (2, 1)


def _said_to_wait(pid: int) -> bool:
    try:
        return waits(pid, *UIDS) and Path(f"/proc/{pid}/comm").read_text() == "usina-spare\n"
    except OSError:
        return False


@contextlib.contextmanager
def _left_late(groups: Iterable[list[Path]]) -> Iterator[None]:
    """Groups that are not empty for a moment longer, as where the dead take theirs."""
    with contextlib.ExitStack() as lingering:
        for folders in groups:
            lingers = lingering.enter_context(subprocess.Popen(["sleep", "0.4"]))
            for folder in folders:
                (folder / "cgroup.procs").write_text(f"{lingers.pid}\n")
        yield


def _groups_of_waiting(folder: Path) -> dict[str, list[Path]]:
    """Of each sandbox that waits, the folders of its group."""
    found: dict[str, list[Path]] = {}
    for group in Path("/sys/fs/cgroup").glob(f"**/{opened(folder).group}/spare-*"):
        found.setdefault(group.name, []).append(group)
    return found


async def test_the_working_directory_may_be_below(stack: ProcessDriver) -> None:
    async with begun(stack, plan("pwd; echo $HOME", workdir="a/b")) as run:
        await ended(stack, run.handle)
        assert await said(stack, run.handle) == ["/work/a/b", "/work"]
    async with begun(stack, plan(workdir="/no/such")) as run:
        end = await ended(stack, run.handle)
        assert (end.how, end.code, end.message) == (End.NOT_STARTED, None, "there is no folder /no/such")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("/no/such",), "there is no command /no/such"),
        (("nosuch", "a"), "there is no command nosuch"),
        (("/etc",), "/etc: Permission denied"),
    ],
)
async def test_what_cannot_begin_says_why(stack: ProcessDriver, command: tuple[str, ...], message: str) -> None:
    async with begun(stack, plan(command=command)) as run:
        end = await ended(stack, run.handle)
        assert (end.how, end.code, end.message) == (End.NOT_STARTED, None, message)


# --- its end


async def test_a_time_limit_kills_what_ignores_it_and_says_the_limit(stack: ProcessDriver) -> None:
    async with begun(stack, plan("trap '' TERM; while :; do sleep 0.05; done", time_limit=1.0, grace=0.5)) as run:
        end = await ended(stack, run.handle)
        assert (end.how, end.code, end.message) == (End.TIME_LIMIT, 137, "ran for longer than its limit of 1 s")
        assert 1.4 < end.at - end.since < 4


async def test_stop_reaches_every_process_of_the_run(stack: ProcessDriver) -> None:
    waits = "sleep 60 & wait"
    script = (
        f"(trap 'echo child; exit' TERM; {waits}) & setsid sh -c 'trap \"echo apart; exit\" TERM; {waits}' &"
        "trap 'wait; exit 3' TERM; sleep 0.3; echo up; wait"
    )
    async with begun(stack, plan(script)) as run:
        await until_said(stack, run.handle, "up")
        await stack.stop(run.handle, grace=10)
        end = await stack.observe(run.handle)
        assert isinstance(end, Ended) and (end.how, end.code) == (End.STOPPED, 3)
        assert {"child", "apart"} <= set(await said(stack, run.handle))


async def test_stopping_while_it_is_being_prepared(stack: ProcessDriver, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(bytes(64 * MiB))
    run = plan("sleep 60", files=tuple(FilePlan(str(tmp_path / "big"), f"f{n}") for n in range(4)))
    starting = asyncio.create_task(stack.start(run, silent))
    await eventually(lambda: stack.observe(run.handle), lambda seen: seen != Absent())
    async with asyncio.timeout(30):
        await stack.stop(run.handle, grace=0)
        await starting
    seen = await stack.observe(run.handle)
    assert isinstance(seen, Ended) and seen.how is End.STOPPED


async def test_cores_that_are_named_are_the_only_ones(stack: ProcessDriver) -> None:
    last = max(os.sched_getaffinity(0))
    async with begun(stack, plan("nproc; grep Cpus_allowed_list /proc/self/status", cpus=(last,))) as run:
        await ended(stack, run.handle)
        assert await said(stack, run.handle) == ["1", f"Cpus_allowed_list:\t{last}"]


async def test_an_environment_that_is_too_large_is_refused(stack: ProcessDriver) -> None:
    for environment in ({"A": "x" * 2_000_000}, {f"A{n}": "ü" * 100 for n in range(5000)}):
        with pytest.raises(DriverError) as failure:
            await stack.start(plan(environment=environment), silent)
        assert failure.value.lasting
    async with begun(stack, plan("echo $A2999", environment={f"A{n}": str(n) for n in range(3000)})) as run:
        await ended(stack, run.handle)
        assert await said(stack, run.handle) == ["2999"]
    async with begun(stack, plan("echo ${#A} ${#B}", environment={"A": "x" * 100_000, "B": "y" * 100_000})) as run:
        await ended(stack, run.handle)
        assert await said(stack, run.handle) == ["100000 100000"]


async def test_removing_while_it_is_being_started(stack: ProcessDriver, tmp_path: Path) -> None:
    big = tmp_path / "big"
    big.write_bytes(bytes(64 * MiB))
    run = plan("sleep 60", files=tuple(FilePlan(str(big), f"f{n}") for n in range(4)))
    starting = asyncio.create_task(stack.start(run, silent))
    await eventually(lambda: stack.observe(run.handle), lambda seen: seen != Absent())
    await stack.remove(run.handle)
    with pytest.raises(DriverError):
        await starting
    assert await stack.observe(run.handle) == Absent()


async def test_changes_are_told_and_an_unchanged_survey_is_the_same_object(stack: ProcessDriver) -> None:
    told: list[str] = []

    async def watch() -> None:
        async for handle in stack.watch():
            told.append(handle)

    watching = asyncio.create_task(watch())
    try:
        async with begun(stack, plan("true")) as run:
            await ended(stack, run.handle)
            await eventually(lambda: _list(told), lambda handles: handles.count(run.handle) >= 2)
            one = await stack.survey()
            assert one is await stack.survey()
        assert one is not await stack.survey()
    finally:
        watching.cancel()


async def _list(values: list[str]) -> list[str]:
    return list(values)


# --- the warden comes and goes


async def test_a_killed_warden_loses_no_run(stack: ProcessDriver) -> None:
    count = "i=0; while [ $i -lt 40 ]; do echo line $i; i=$((i+1)); sleep 0.05; done; exit 9"
    secret = {"environment": {"KEY": "line 39"}, "secret": frozenset({"KEY"})}
    async with begun(stack, plan(count, **secret)) as counting, begun(stack, plan("sleep 0.3; exit 5")) as short:
        async with begun(stack, plan("sleep 600", time_limit=3.0)) as long:
            await until_said(stack, counting.handle, "line 3")
            await _kill(stack)
            until(lambda: not processes_that(lambda text: text.startswith("sleep 0.3")))
            assert (await ended(stack, short.handle)).code == 5
            end = await ended(stack, counting.handle)
            assert (end.how, end.code) == (End.EXITED, 9)
            texts = await said(stack, counting.handle)
            assert texts == [f"line {n}" for n in range(39)] + ["***"], (
                "nothing lost, nothing twice, secrets hidden yet"
            )
            assert (await ended(stack, long.handle)).how is End.TIME_LIMIT


async def _kill(driver: ProcessDriver) -> None:
    """Kill the warden, and wait until the driver has noticed."""
    os.kill(warden(driver), signal.SIGKILL)
    await eventually(lambda: _connected(driver), lambda connected: not connected)


async def _connected(driver: ProcessDriver) -> bool:
    return driver._client._writer is not None


async def test_a_run_can_be_stopped_and_entered_after_its_warden_was_killed(stack: ProcessDriver) -> None:
    async with begun(stack, plan("echo up; sleep 600")) as run:
        await until_said(stack, run.handle, "up")
        await _kill(stack)
        line = await stack.exec(run.handle, sh("echo inside"), terminal=False)
        assert await line.read() == b"inside\n"
        assert await line.wait() == 0
        await line.close()
        await _kill(stack)
        await stack.stop(run.handle, grace=1)
        end = await stack.observe(run.handle)
        assert isinstance(end, Ended) and end.how is End.STOPPED


async def test_a_control_plane_that_comes_back_finds_its_runs(stack: ProcessDriver, tmp_path: Path) -> None:
    async with begun(stack, plan("echo first; read x < /dev/null; sleep 600")) as run:
        await until_said(stack, run.handle, "first")
        other = opened(tmp_path)
        try:
            assert isinstance(await other.observe(run.handle), Running)
            assert await said(other, run.handle) == ["first"]
            await other.start(run, silent)
            await other.stop(run.handle, grace=1)
            seen = await eventually(lambda: stack.observe(run.handle), lambda seen: isinstance(seen, Ended))
            assert isinstance(seen, Ended) and seen.how is End.STOPPED
        finally:
            await other.close()


async def test_what_was_recorded_and_never_begun_may_begin(stack: ProcessDriver, tmp_path: Path) -> None:
    """A warden killed between making the folder and spawning."""
    async with begun(stack, plan("echo once")) as run:
        await ended(stack, run.handle)
        journal = tmp_path / "process" / "runs" / run.handle / "journal"
        first = journal.read_text().splitlines(keepends=True)[0]
        for text in (first, first[: len(first) // 2], ""):
            await _kill(stack)
            journal.write_text(text)
            for log in journal.parent.glob("log.*"):
                log.unlink()
            assert await stack.observe(run.handle) == Absent()
            await stack.start(run, silent)
            await ended(stack, run.handle)
            assert await said(stack, run.handle) == ["once"]


async def test_a_number_used_again_is_never_mistaken_for_a_run(stack: ProcessDriver, tmp_path: Path) -> None:
    bystander = await asyncio.create_subprocess_exec("sleep", "600")
    try:
        async with begun(stack, plan("true")) as run:
            await ended(stack, run.handle)
            folder = tmp_path / "process" / "runs" / run.handle
            lines = (folder / "journal").read_text().splitlines()
            process = json.loads(lines[1])
            process["process"]["pid"] = bystander.pid
            await _kill(stack)
            (folder / "journal").write_text(f"{lines[0]}\n{json.dumps(process)}\n")
            (folder / "status").unlink()
            end = await ended(stack, run.handle)
            assert end.how is End.NODE_FAILED
        assert bystander.returncode is None and os.path.exists(f"/proc/{bystander.pid}")
    finally:
        bystander.kill()
        await bystander.wait()


@root_only
async def test_a_killed_sandbox_takes_its_processes_along(stack: ProcessDriver) -> None:
    async with begun(stack, plan("echo up; exec sleep 613")) as run:
        await until_said(stack, run.handle, "up")
        first = next(int(line.split()[0]) for line in of_users(*UIDS) if "usina-sandbox" in line)
        os.kill(first, signal.SIGKILL)
        end = await ended(stack, run.handle)
        assert (end.how, end.code) == (End.EXITED, 137)
        until(lambda: not processes_that(lambda text: text.startswith("sleep 613")))


@root_only
async def test_a_waiting_sandbox_that_is_lost_is_replaced(stack: ProcessDriver) -> None:
    def waiting() -> list[int]:
        return [pid for pid in pids() if waits(pid, *UIDS)]

    await stack.survey()
    first = until(waiting)
    for pid in first:
        os.kill(pid, signal.SIGKILL)
    until(lambda: not set(first) & set(waiting()))
    async with begun(stack, plan("echo well")) as run:
        assert (await ended(stack, run.handle)).code == 0
        assert set(until(waiting)).isdisjoint(first)


async def test_a_shutdown_ends_the_warden_and_no_run(stack: ProcessDriver) -> None:
    async with begun(stack, plan("echo up; sleep 600")) as run:
        await until_said(stack, run.handle, "up")
        pid = warden(stack)
        await stack._client.shutdown()
        until(lambda: "warden" not in command_of(pid))
        assert isinstance(await stack.observe(run.handle), Running)
        assert warden(stack) != pid


async def test_nobody_else_is_served(stack: ProcessDriver, tmp_path: Path) -> None:
    await stack.survey()
    assert (tmp_path / "process" / "socket").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "process").stat().st_mode & 0o077 == 0


async def test_a_warden_that_nobody_needs_ends(tmp_path: Path) -> None:
    driver = opened(tmp_path, idle=1)
    await driver.survey()
    pid = warden(driver)
    await driver.close()
    until(lambda: "warden" not in command_of(pid), limit=20)
    assert left_of(tmp_path) == []


# --- beside it


async def test_a_command_beside_it_is_confined_as_the_run_is(stack: ProcessDriver) -> None:
    show = (
        "import os; print(os.getuid(), os.getgid(), os.getgroups(), os.getcwd());"
        "print({l.split(':')[0]: l.split()[1] for l in open('/proc/self/status') if l[:3] in ('Cap', 'NoN', 'Sec')});"
        "print([os.readlink('/proc/self/ns/' + n) for n in ('pid', 'net', 'mnt', 'ipc', 'uts', 'user', 'cgroup')]);"
        "print(sorted(os.listdir('/proc/self/fd'))); print(len([p for p in os.listdir('/proc') if p.isdecimal()]) < 6)"
    )
    script = f'{PYTHON} -c "$SHOW"; echo up; sleep 600'
    async with begun(stack, plan(script, environment={"SHOW": show})) as run:
        await until_said(stack, run.handle, "up")
        line = await stack.exec(run.handle, (PYTHON, "-c", show), terminal=False)
        heard = b""
        while data := await line.read():
            heard += data
        assert await line.wait() == 0
        assert heard.decode().splitlines() == (await said(stack, run.handle))[:5]
        with pytest.raises(DriverError, match="there is no command nosuch"):
            await stack.exec(run.handle, ("nosuch",), terminal=False)


async def test_a_command_beside_it_is_in_its_groups(stack: ProcessDriver, tmp_path: Path) -> None:
    if "task:limits" not in (await stack.inventory()).traits:
        pytest.skip("no control groups here")
    async with begun(stack, plan("echo up; sleep 600")) as run:
        await until_said(stack, run.handle, "up")
        line = await stack.exec(run.handle, ("sleep", "617"), terminal=False)
        pid = host_pid("sleep 617")
        journal = (tmp_path / "process" / "runs" / run.handle / "journal").read_text().splitlines()
        record = next(json.loads(line)["record"] for line in journal if line)
        assert record["groups"], "it has groups, and both are in each of them"
        for folder in record["groups"].values():
            members = Path(folder, "cgroup.procs").read_text().split()
            assert {str(pid), str(host_pid("sleep 600"))} <= set(members)
        await line.close()
        until(lambda: not processes_that(lambda text: text.startswith("sleep 617")))


async def test_a_terminal_has_a_size_and_a_name(stack: ProcessDriver) -> None:
    async with begun(stack, plan("echo up; sleep 600")) as run:
        await until_said(stack, run.handle, "up")
        line = await stack.exec(run.handle, sh("read x; stty size; tty; exit 4"), terminal=True)
        await line.resize(33, 111)
        await line.write(b"go\n")
        heard = b""
        while data := await line.read():
            heard += data
        assert b"33 111\r\n/dev/pts/" in heard, heard
        assert await line.wait() == 4
        await line.close()


async def test_much_goes_through_a_command_both_ways(stack: ProcessDriver) -> None:
    async with begun(stack, plan("echo up; sleep 600")) as run:
        await until_said(stack, run.handle, "up")
        line = await stack.exec(run.handle, ("cat",), terminal=False)
        sent = os.urandom(1 << 16) * 64

        async def write() -> None:
            for at in range(0, len(sent), 1 << 16):
                await line.write(sent[at : at + (1 << 16)])
            await line.write(b"")

        writing = asyncio.create_task(write())
        heard = b""
        while data := await line.read():
            heard += data
        await writing
        assert heard == sent
        await line.close()


# --- networks


@pytest.fixture
def host_service() -> Iterator[int]:
    """A service on every address of this host; its port."""
    server = socket.create_server(("0.0.0.0", 0))

    def serve() -> None:
        while True:
            try:
                line, _ = server.accept()
            except OSError:
                return
            line.sendall(b"a service of the host")
            line.close()

    threading.Thread(target=serve, daemon=True).start()
    yield server.getsockname()[1]
    server.shutdown(socket.SHUT_RDWR)
    server.close()


_TRY = """
import socket, sys
for word in sys.argv[1:]:
    host, _, port = word.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), 2) as line:
            print(word, "reached")
    except OSError as error:
        print(word, "not reached")
"""


def network_programs() -> list[int]:
    """Each names the resolver or the range of outbound networks."""
    return [pid for pid in pids() if " --" in command_of(pid) and "198.18.255." in command_of(pid)]


def own_addresses() -> list[str]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
        line.connect(("192.0.2.77", 9))
        return ["127.0.0.1", line.getsockname()[0]]


@pytest.mark.parametrize("network", [Network.NONE, Network.OUTBOUND])
async def test_nothing_of_the_host_is_reached(stack: ProcessDriver, host_service: int, network: Network) -> None:
    if network is Network.OUTBOUND and not network_program():
        pytest.skip("neither pasta nor slirp4netns")
    forbidden = [f"{address}:{host_service}" for address in own_addresses()]
    forbidden += [f"198.18.255.2:{host_service}", "169.254.169.254:80", "169.254.169.254:53"]
    async with begun(stack, plan(command=(PYTHON, "-c", _TRY, *forbidden), network=network)) as run:
        await ended(stack, run.handle)
        assert await said(stack, run.handle) == [f"{word} not reached" for word in forbidden]
    assert not network_programs(), "none outlives the removal"


async def test_outbound_reaches_what_the_host_reaches(stack: ProcessDriver) -> None:
    names = [line.split()[1] for line in Path("/etc/resolv.conf").read_text().splitlines() if "nameserver " in line]
    resolver = next(iter(names), "")
    try:
        socket.create_connection((resolver, 53), 2).close()
    except OSError:
        pytest.skip("this host reaches nothing that could be tried")
    if not network_program():
        pytest.skip("neither pasta nor slirp4netns")
    async with begun(stack, plan(command=(PYTHON, "-c", _TRY, f"{resolver}:53"), network=Network.OUTBOUND)) as run:
        await ended(stack, run.handle)
        assert await said(stack, run.handle) == [f"{resolver}:53 reached"]
    async with begun(stack, plan("echo up; sleep 600", network=Network.OUTBOUND)) as run:
        await until_said(stack, run.handle, "up")
        await _kill(stack)
        await stack.remove(run.handle)
    assert not network_programs()


@pytest.fixture
def busy_core() -> Iterator[int]:
    """A core that others use, for two minutes at most; what has little right to it waits long."""
    core = min(os.sched_getaffinity(0))
    work = f"import os, time; os.sched_setaffinity(0, [{core}])\nwhile time.process_time() < 5: pass"
    command = [PYTHON, "-c", work]
    hogs = [subprocess.Popen(command, start_new_session=True) for _ in range(24)]
    yield core
    for hog in hogs:
        hog.kill()
        hog.wait()


async def test_a_run_is_removed_when_the_program_of_its_network_is_gone(stack: ProcessDriver, busy_core: int) -> None:
    if not network_program():
        pytest.skip("neither pasta nor slirp4netns")
    async with begun(stack, plan("echo up; sleep 600", network=Network.OUTBOUND)) as run:
        await until_said(stack, run.handle, "up")
        found = network_programs()
        assert found
        for pid in found:  # slow to end
            os.sched_setaffinity(pid, [busy_core])
            os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0))
        await stack.remove(run.handle)
        assert not network_programs()


async def test_the_hosts_own_network_only_where_it_is_allowed(
    stack: ProcessDriver, tmp_path: Path, host_service: int
) -> None:
    run = plan(command=(PYTHON, "-c", _TRY, f"127.0.0.1:{host_service}"), network=Network.HOST)
    with pytest.raises(DriverError, match="host_network") as failure:
        await stack.start(run, silent)
    assert failure.value.lasting
    async with process_host(tmp_path / "other", host_network=True) as open_host:
        async with begun(open_host, run):
            await ended(open_host, run.handle)
            assert await said(open_host, run.handle) == [f"127.0.0.1:{host_service} reached"]


# --- who is not root


@root_only
async def test_without_root_it_works_with_less(tmp_path: Path) -> None:
    """Another process, of an ordinary user, runs a driver of its own."""
    source = Path(__file__).parents[2] / "src"
    program = tmp_path / "program.py"
    program.write_text(_ORDINARY)
    tmp_path.chmod(0o755)
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, 65_533, 65_533)
    for folder in tmp_path.parents:
        if folder.stat().st_mode & 0o005 != 0o005 and str(folder).startswith("/tmp/"):
            folder.chmod(0o755)
    process = await asyncio.create_subprocess_exec(
        *(PYTHON, str(program), str(home)),
        env={"PYTHONPATH": str(source), "PATH": "/usr/bin:/bin:/usr/sbin", "PYTHONDONTWRITEBYTECODE": "1"},
        user=65_533,
        group=65_533,
        extra_groups=(),
        cwd="/",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    if b"ModuleNotFoundError" in err or b"PermissionError" in err:
        pytest.skip(f"an ordinary user cannot run this source here: {err.decode()[-200:]}")
    assert process.returncode == 0, err.decode()
    told = json.loads(out)
    assert told["end"] == ["exited", 7] and told["said"] == ["hello", "1000"]
    assert told["exec"] == "inside\n" and told["stopped"] == "stopped" and told["dial"] == "hello"
    assert told["outbound"] in ("exited", "refused")
    until(lambda: not of_users(65_533, 65_533))


_ORDINARY = """
import asyncio, json, sys
from pathlib import Path
from usina.core.task import Ended, Network, TaskPlan
from usina.drivers.process import PLUGIN
from usina.ports.driver import DriverError, HostSettings

async def none(share, doing): pass

async def end_of(driver, handle):
    while not isinstance(seen := await driver.observe(handle), Ended): await asyncio.sleep(0.02)
    return seen

async def said(driver, handle):
    return [line.split(" ", 2)[2] for line in (await driver.log(handle, 0, 9999)).data.decode().splitlines()]

async def main():
    driver = PLUGIN.tasks(HostSettings("host-1", "h1", "test", Path(sys.argv[1])))
    told = {}
    try:
        await driver.inventory()
        await driver.start(TaskPlan("a.1", "p", command=("sh", "-c", "echo hello; id -u; exit 7")), none)
        seen = await end_of(driver, "a.1")
        told["end"], told["said"] = [seen.how.value, seen.code], await said(driver, "a.1")
        server = "import socket; s = socket.create_server(('127.0.0.1', 8100)); print('up', flush=True)\\n"
        server += "while True: c, _ = s.accept(); c.sendall(b'hello'); c.close()"
        await driver.start(TaskPlan("b.1", "p", command=("/usr/bin/python3", "-c", server)), none)
        while await said(driver, "b.1") != ["up"]: await asyncio.sleep(0.02)
        line = await driver.exec("b.1", ("sh", "-c", "echo inside"), terminal=False)
        told["exec"] = (await line.read()).decode()
        await line.close()
        reader, writer = await driver.dial("b.1", 8100)
        told["dial"] = (await reader.read()).decode()
        writer.close()
        await driver.stop("b.1", grace=2)
        told["stopped"] = (await driver.observe("b.1")).how.value
        try:
            await driver.start(TaskPlan("c.1", "p", command=("true",), network=Network.OUTBOUND), none)
            seen = await end_of(driver, "c.1")
            told["outbound"] = seen.how.value if seen.how.value == "exited" else "refused"
        except DriverError:
            told["outbound"] = "refused"
    finally:
        for handle in list(await driver.survey()): await driver.remove(handle)
        await driver._client.shutdown()
    print(json.dumps(told))

asyncio.run(main())
"""
