"""The contract of every task driver, as tests. A driver's own tests subclass `TaskDriverContract`.

A subclass gives one fixture, `stack` (an open task driver), and adapts `make` where plans of its stack need more (an
image, an identity). Commands are POSIX ``sh``. Every test makes runs under handles of its own and removes them, so that
one open driver can serve them all. Nothing here knows which driver it is.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import tarfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from usina.core.capacity import FOLDERS
from usina.core.ids import Ids
from usina.core.machine import Absent, Card, InterfacePlan, NetworkPlan, VolumePlan
from usina.core.task import End, Ended, FilePlan, MountPlan, Network, Queued, Running, Sight, TaskPlan, handle_of
from usina.core.units import MiB
from usina.ports.driver import DriverError, HostUnreachable
from usina.ports.tasks import TaskDriver

PATIENCE = 60.0  # seconds for anything that a run does by itself

_ids = Ids(time.time)
Make = Callable[..., TaskPlan]


async def silent(share: float, doing: str) -> None:
    """A progress that nobody watches."""


def sh(script: str) -> tuple[str, ...]:
    return ("/bin/sh", "-c", script)


@asynccontextmanager
async def begun(stack: TaskDriver, plan: TaskPlan) -> AsyncIterator[TaskPlan]:
    """A run that was started, removed in the end."""
    try:
        await stack.start(plan, silent)
        yield plan
    finally:
        await stack.remove(plan.handle)


async def ended(stack: TaskDriver, handle: str, patience: float = PATIENCE) -> Ended:
    """Wait until the run is over."""
    sight = await _until(stack, handle, lambda sight: isinstance(sight, Ended), patience)
    assert isinstance(sight, Ended)
    return sight


async def running(stack: TaskDriver, handle: str, patience: float = PATIENCE) -> Running:
    """Wait until the run has begun; it must not end meanwhile."""
    sight = await _until(stack, handle, lambda sight: isinstance(sight, Running | Ended), patience)
    assert isinstance(sight, Running), f"{handle} is {sight}; it said {await said(stack, handle)}"
    return sight


async def _until(stack: TaskDriver, handle: str, good: Callable[[Sight], bool], patience: float) -> Sight:
    deadline = time.monotonic() + patience
    while True:
        sight = await stack.observe(handle)
        if good(sight):
            return sight
        assert isinstance(sight, Queued | Running), f"{handle} is {sight}"
        assert time.monotonic() < deadline, f"{handle} is still {sight} after {patience:g} s"
        await asyncio.sleep(0.05)


async def log_of(stack: TaskDriver, handle: str, after: int = 0) -> list[tuple[int, str, str]]:
    """Every line said past a position: (milliseconds, stream, text)."""
    data = b""
    while (piece := await stack.log(handle, after, 65536)).data:
        assert piece.start >= after
        data += piece.data
        after = piece.end
    assert not data or data.endswith(b"\n")
    lines = (line.split(" ", 2) for line in data.decode().splitlines())
    return [(int(at), stream, text) for at, stream, text in lines]


async def said(stack: TaskDriver, handle: str, streams: str = "oe") -> list[str]:
    """The texts of the log, without what the stack itself says."""
    return [text for _, stream, text in await log_of(stack, handle) if stream in streams]


async def until_said(stack: TaskDriver, handle: str, text: str, patience: float = PATIENCE) -> None:
    """Wait until the run has said a line that contains `text`."""
    deadline = time.monotonic() + patience
    while not any(text in line for line in await said(stack, handle)):
        found = f"it is {await stack.observe(handle)} and said {await said(stack, handle)}"
        assert time.monotonic() < deadline, f"{handle} has not said {text!r}: {found}"
        await asyncio.sleep(0.05)


def packed(folder: Path, files: dict[str, str]) -> Path:
    """A tar.gz of small files, called by its digest."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text.encode())
            entry.mode = 0o755 if text.startswith("#!") else 0o644
            archive.addfile(entry, io.BytesIO(text.encode()))
    path = folder / hashlib.sha256(buffer.getvalue()).hexdigest()
    path.write_bytes(buffer.getvalue())
    return path


async def unpacked(stack: TaskDriver, handle: str, *patterns: str) -> dict[str, bytes]:
    """The outputs that match, by name."""
    data = b"".join([chunk async for chunk in stack.outputs(handle, patterns)])
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        members = [m for m in archive.getmembers() if not m.isdir()]
        assert all(m.isreg() for m in members), "only plain files go out"
        return {m.name.removeprefix("./"): archive.extractfile(m).read() for m in members}  # type: ignore[union-attr]


_SERVER = (
    "import socket; s = socket.create_server(('', 8123)); print('up', flush=True)\n"
    "while True: c, _ = s.accept(); c.sendall(b'hello ' + c.recv(100)); c.close()"
)


class Sockets:
    """Stands in for the machines' driver of a host: notes what is plugged in, and connects nothing."""

    def __init__(self) -> None:
        self.plugged: dict[str, Card] = {}  # device -> card
        self.broken = False

    async def plug(self, handle: str, device: str, card: Card) -> None:
        self.plugged[device] = card
        if self.broken:
            raise HostUnreachable("broken for a test")

    async def unplug(self, handle: str, device: str, card: Card) -> None:
        self.plugged.pop(device, None)


def new_card(hostname: str = "runner") -> Card:
    network = NetworkPlan("net-contract", "10.213.0.0/24", "10.213.0.1", "p0.test")
    network = replace(network, hosts=(("52:54:0a:d5:00:07", "10.213.0.7", hostname),))
    return Card(InterfacePlan("52:54:0a:d5:00:07", "10.213.0.7", network.handle, ()), network)


class TaskDriverContract:
    """Subclass as `Test…`, with the fixture `stack`."""

    exact_seconds = True  # whether a limit of two seconds ends a run after about two seconds
    limits_memory = True  # whether the stack here can hold a run to its memory
    can_exec = True
    can_dial = True
    server = ("python3", "-c", _SERVER)  # says "up", and answers "hello " and what it is told, on port 8123
    gangs = False  # whether the stack runs arrays and gangs as a whole
    sockets: Sockets | None = None  # what `stack` was opened beside, where its runs can be on networks here

    @pytest.fixture
    def make(self) -> Make:
        """Makes plans of small runs, each with a handle of its own."""

        def make(script: str = "true", **more: Any) -> TaskPlan:
            plan = TaskPlan(
                handle=handle_of(_ids.new("task"), 1),
                project="prj-00000000000000000000000001",
                title="tenant/project/<task> & 'co'",
                command=sh(script),
                cores=0.5,
                memory=128 * MiB,
                grace=2.0,
            )
            return replace(plan, **more)

        return make

    # --- being and not being

    async def test_an_unknown_run_is_absent(self, stack: TaskDriver, make: Make) -> None:
        assert await stack.observe(make().handle) == Absent()

    async def test_stopping_and_removing_what_is_not_there_succeeds(self, stack: TaskDriver, make: Make) -> None:
        handle = make().handle
        await stack.stop(handle, grace=0)
        await stack.remove(handle)
        assert await stack.observe(handle) == Absent()

    async def test_a_run_ends_with_its_exit_code_and_keeps_its_log(self, stack: TaskDriver, make: Make) -> None:
        before = time.time()
        async with begun(stack, make("echo to out; echo to err >&2; exit 7")) as run:
            end = await ended(stack, run.handle)
            assert (end.how, end.code) == (End.EXITED, 7)
            assert before - 5 <= end.since <= end.at <= time.time() + 5
            await until_said(stack, run.handle, "to err")
            lines = await log_of(stack, run.handle)
            assert {(stream, text) for _, stream, text in lines if stream in "oe"} == {
                ("o", "to out"),
                ("e", "to err"),
            }
            assert all(before - 5 <= at / 1000 <= time.time() + 5 for at, _, _ in lines)

    async def test_a_run_is_seen_running_and_survey_tells_the_same(self, stack: TaskDriver, make: Make) -> None:
        async with begun(stack, make("sleep 60")) as one, begun(stack, make("exit 3")) as other:
            await running(stack, one.handle)
            await ended(stack, other.handle)
            survey = await stack.survey()
            assert survey[one.handle] == await stack.observe(one.handle)
            found = survey[other.handle]
            assert isinstance(found, Ended) and found.code == 3

    async def test_starting_twice_runs_once(self, stack: TaskDriver, make: Make) -> None:
        async with begun(stack, make("echo once")) as run:
            await stack.start(run, silent)
            await ended(stack, run.handle)
            await stack.start(run, silent)  # it is over, and stays so
            assert isinstance(await stack.observe(run.handle), Ended)
            await until_said(stack, run.handle, "once")
            assert await said(stack, run.handle, "o") == ["once"]

    async def test_two_starts_at_the_same_time_run_once(self, stack: TaskDriver, make: Make) -> None:
        plan = make("echo once")
        try:
            results = await asyncio.gather(stack.start(plan, silent), stack.start(plan, silent), return_exceptions=True)
            assert not [r for r in results if isinstance(r, BaseException) and not isinstance(r, DriverError)]
            await ended(stack, plan.handle)
            await until_said(stack, plan.handle, "once")
            assert await said(stack, plan.handle, "o") == ["once"]
        finally:
            await stack.remove(plan.handle)

    async def test_remove_leaves_nothing_and_may_be_repeated(self, stack: TaskDriver, make: Make) -> None:
        async with begun(stack, make("sleep 60 & sleep 60")) as run:
            await running(stack, run.handle)
            for _ in range(2):
                await stack.remove(run.handle)
                assert await stack.observe(run.handle) == Absent()
                assert run.handle not in await stack.survey()

    async def test_a_command_that_does_not_exist_is_told_so(self, stack: TaskDriver, make: Make) -> None:
        plan = make(command=("/no/such/command",))
        try:
            try:
                await stack.start(plan, silent)
            except DriverError as error:
                assert error.lasting and "/no/such/command" in error.public
                assert await stack.observe(plan.handle) == Absent()
                return
            end = await ended(stack, plan.handle)
            assert end.how is End.NOT_STARTED or end.code in (126, 127)
        finally:
            await stack.remove(plan.handle)

    # --- its end

    async def test_a_stopped_run_is_told_as_stopped(self, stack: TaskDriver, make: Make) -> None:
        script = "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.1; done"
        async with begun(stack, make(script)) as run:
            await until_said(stack, run.handle, "up")
            for _ in range(2):
                await stack.stop(run.handle, grace=20)
                end = await stack.observe(run.handle)
                assert isinstance(end, Ended) and end.how is End.STOPPED
            await until_said(stack, run.handle, "bye")

    async def test_one_that_will_not_end_is_killed(self, stack: TaskDriver, make: Make) -> None:
        async with begun(stack, make("trap '' TERM; echo up; while :; do sleep 0.1; done")) as run:
            await until_said(stack, run.handle, "up")
            await stack.stop(run.handle, grace=1)
            end = await stack.observe(run.handle)
            assert isinstance(end, Ended) and end.how is End.STOPPED

    async def test_stopping_one_that_has_ended_changes_nothing(self, stack: TaskDriver, make: Make) -> None:
        async with begun(stack, make("exit 4")) as run:
            before = await ended(stack, run.handle)
            await stack.stop(run.handle, grace=1)
            after = await stack.observe(run.handle)
            assert isinstance(after, Ended)
            assert (after.how, after.code) == (before.how, before.code) == (End.EXITED, 4)

    async def test_a_time_limit_ends_it(self, stack: TaskDriver, make: Make) -> None:
        limit = 2.0 if self.exact_seconds else 60.0
        async with begun(stack, make("sleep 600", time_limit=limit)) as run:
            end = await ended(stack, run.handle, PATIENCE + 3 * limit)
            assert end.how is End.TIME_LIMIT, end
            assert limit - 0.5 <= end.at - end.since < limit + PATIENCE

    async def test_a_memory_limit_ends_it(self, stack: TaskDriver, make: Make) -> None:
        if not self.limits_memory:
            return
        script = "head -c 400000000 /dev/zero | tail -c 400000000 > /dev/null"  # tail keeps it all
        async with begun(stack, make(f"{script} & wait $!; exit $?", memory=64 * MiB)) as run:
            end = await ended(stack, run.handle)
            assert end.how is End.MEMORY, end

    async def test_a_killed_command_has_the_code_of_its_signal(self, stack: TaskDriver, make: Make) -> None:
        async with begun(stack, make("sh -c 'kill -9 $$'; exit $?")) as run:
            end = await ended(stack, run.handle)
            assert (end.how, end.code) == (End.EXITED, 137)

    # --- what it is given

    async def test_arguments_and_environment_arrive_as_they_are(self, stack: TaskDriver, make: Make) -> None:
        hostile = "a 'b' \"c\" $HOME `id` \\ ; é ~ * -n"
        plan = make(command=("/bin/sh", "-c", 'printf "%s\\n" "$1" "$VALUE"', "sh", hostile))
        async with begun(stack, replace(plan, environment={"VALUE": hostile + "=x"})) as run:
            await ended(stack, run.handle)
            await until_said(stack, run.handle, "=x")
            assert await said(stack, run.handle, "o") == [hostile, hostile + "=x"]

    async def test_a_shared_file_is_seen_and_stays_as_it_is(
        self, stack: TaskDriver, make: Make, tmp_path: Path
    ) -> None:
        content = b"weights " * 1000
        source = tmp_path / hashlib.sha256(content).hexdigest()
        source.write_bytes(content)
        tmp_path.chmod(0o700)
        files = (FilePlan(str(source), "model/a/x.bin", shared=True), FilePlan(str(source), "copied.bin"))
        script = (
            "cmp model/a/x.bin copied.bin && echo same; echo other >model/a/x.bin; rm -f model/a/x.bin; echo mine >mine"
        )
        for _ in range(2):
            async with begun(stack, make(script, files=files)) as run:
                await ended(stack, run.handle)
                await until_said(stack, run.handle, "same")
        assert source.read_bytes() == content

    async def test_secrets_arrive_and_never_show(self, stack: TaskDriver, make: Make) -> None:
        plan = make(
            'echo "it is $TOKEN."; printf "${#TOKEN}\\n" >&2',
            environment={"TOKEN": "s3cr3t-v4lue"},
            secret=frozenset({"TOKEN"}),
        )
        async with begun(stack, plan) as run:
            await ended(stack, run.handle)
            await until_said(stack, run.handle, "12")
            assert sorted(await said(stack, run.handle)) == ["12", "it is ***."]
            for sight in ((await stack.survey())[run.handle], await stack.observe(run.handle)):
                assert "s3cr3t" not in repr(sight)

    async def test_files_are_there_before_it_starts(self, stack: TaskDriver, make: Make, tmp_path: Path) -> None:
        package = packed(tmp_path, {"run.sh": "#!/bin/sh\ncat data/in.txt", "data/in.txt": "forty-two\n"})
        single = tmp_path / "single"
        single.write_text("one file\n")
        files = (FilePlan(str(package), "", unpack=True), FilePlan(str(single), "more/single.txt"))
        async with begun(stack, make("./run.sh; cat more/single.txt", files=files)) as run:
            end = await ended(stack, run.handle)
            assert end.code == 0, await said(stack, run.handle)
            await until_said(stack, run.handle, "one file")
            assert await said(stack, run.handle, "o") == ["forty-two", "one file"]

    async def test_outputs_that_match_come_back(self, stack: TaskDriver, make: Make) -> None:
        script = (
            "mkdir -p out/deep; echo 1 > out/a.txt; echo 2 > out/deep/b.txt; echo 3 > c.log; ln -s /etc/passwd l.log"
        )
        async with begun(stack, make(script)) as run:
            assert (await ended(stack, run.handle)).code == 0
            assert await unpacked(stack, run.handle, "out", "*.log") == {
                "out/a.txt": b"1\n",
                "out/deep/b.txt": b"2\n",
                "c.log": b"3\n",
            }
            assert await unpacked(stack, run.handle, "nothing-like-it") == {}

    # --- its log

    async def test_a_log_is_read_while_it_grows_and_from_any_position(self, stack: TaskDriver, make: Make) -> None:
        async with begun(stack, make("echo first; sleep 6; echo second; sleep 60")) as run:
            await until_said(stack, run.handle, "first")
            piece = await stack.log(run.handle, 0, 65536)
            await until_said(stack, run.handle, "second")
            assert [text for _, s, text in await log_of(stack, run.handle, piece.end) if s == "o"] == ["second"]
            again = await stack.log(run.handle, 0, 65536)
            assert again.data.startswith(piece.data)

    async def test_a_long_log_is_bounded_or_whole_and_ends_with_its_end(self, stack: TaskDriver, make: Make) -> None:
        async with begun(stack, make("i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done")) as run:
            await ended(stack, run.handle)
            await until_said(stack, run.handle, "line 1999")
            texts = await said(stack, run.handle, "o")
            assert texts[-1] == "line 1999"
            numbers = [int(text.split()[1]) for text in texts]
            assert numbers == list(range(numbers[0], 2000)), "no gap, nothing twice, in order"

    async def test_broken_text_does_not_break_the_log(self, stack: TaskDriver, make: Make) -> None:
        async with begun(stack, make("printf 'a\\377b\\0c\\033[1m\\n'; printf unfinished")) as run:
            await ended(stack, run.handle)
            await until_said(stack, run.handle, "unfinished")
            texts = await said(stack, run.handle, "o")
            assert texts[0].startswith("a\N{REPLACEMENT CHARACTER}b") and texts[1] == "unfinished"

    # --- beside it

    async def test_a_command_runs_beside_it(self, stack: TaskDriver, make: Make) -> None:
        if not self.can_exec:
            return
        async with begun(stack, make("echo here > note; echo up; sleep 60", environment={"NAME": "value"})) as run:
            await until_said(stack, run.handle, "up")
            line = await stack.exec(run.handle, sh('cat note; echo "$NAME"; cat; exit 5'), terminal=False)
            await line.write(b"typed\n")
            await line.write(b"")
            heard = b""
            async with asyncio.timeout(PATIENCE):
                while data := await line.read():
                    heard += data
                assert await line.wait() == 5
            await line.close()
            assert heard.decode().splitlines() == ["here", "value", "typed"]

    async def test_a_terminal_is_one(self, stack: TaskDriver, make: Make) -> None:
        if not self.can_exec:
            return
        async with begun(stack, make("echo up; sleep 60")) as run:
            await until_said(stack, run.handle, "up")
            line = await stack.exec(
                run.handle, sh("test -t 0 && test -t 1 && echo tty; read x; echo got $x"), terminal=True
            )
            heard = b""
            async with asyncio.timeout(PATIENCE):
                while b"tty" not in heard:
                    data = await line.read()
                    assert data, heard
                    heard += data
                await line.resize(40, 100)
                await line.write(b"word\n")
                while b"got word" not in heard:
                    data = await line.read()
                    assert data, heard
                    heard += data
            await line.close()

    async def test_exec_in_what_does_not_run_fails_in_words(self, stack: TaskDriver, make: Make) -> None:
        with pytest.raises(DriverError) as failure:
            await stack.exec(make().handle, sh("true"), terminal=False)
        assert failure.value.public

    async def test_a_port_of_it_is_reached(self, stack: TaskDriver, make: Make) -> None:
        if not self.can_dial:
            return
        plan = make(command=self.server, ports=(8123,))
        async with begun(stack, plan) as run:
            await until_said(stack, run.handle, "up")
            reader, writer = await stack.dial(run.handle, 8123)
            writer.write(b"there\n")
            async with asyncio.timeout(PATIENCE):
                assert (await reader.read()).strip() == b"hello there"
            writer.close()

    async def test_a_port_that_nobody_listens_on_fails_in_words(self, stack: TaskDriver, make: Make) -> None:
        if not self.can_dial:
            return
        async with begun(stack, make("echo up; sleep 60", ports=(8124,))) as run:
            await until_said(stack, run.handle, "up")
            try:
                reader, writer = await stack.dial(run.handle, 8124)
            except (DriverError, OSError):
                return
            async with asyncio.timeout(PATIENCE):  # or it is closed at once
                assert await reader.read() == b""
            writer.close()

    async def test_usage_is_told(self, stack: TaskDriver, make: Make) -> None:
        async with begun(stack, make("i=0; while :; do i=$((i+1)); done")) as run:
            await running(stack, run.handle)
            deadline = time.monotonic() + PATIENCE
            while True:
                usage = await stack.usage(run.handle)
                if usage is None or usage.cpu > 0:
                    break  # nothing is known on this stack, or it is told
                assert time.monotonic() < deadline
                await asyncio.sleep(0.1)

    # --- networks of projects, where the stack can put runs on them

    async def test_a_run_with_a_card_has_an_address_of_its_own(self, stack: TaskDriver, make: Make) -> None:
        if self.sockets is None:
            return
        script = "cat /etc/resolv.conf /etc/hosts /proc/net/route /proc/sys/kernel/hostname"
        plan = make(f"{script}; echo up; sleep 60", network=Network.PROJECT, card=new_card())
        async with begun(stack, plan) as run:
            assert list(self.sockets.plugged.values()) == [plan.card]
            await until_said(stack, run.handle, "up")
            lines = await said(stack, run.handle, "o")
            for wanted in ("nameserver 10.213.0.1", "search p0.test", "runner"):
                assert wanted in lines
            names = {name for line in lines if line.startswith("10.213.0.7") for name in line.split()[1:]}
            assert names == {"runner", "runner.p0.test"}
            assert any(line.split()[:3] == ["eth0", "00000000", "0100D50A"] for line in lines), "no default route"
            assert await stack.leftovers() == []
        assert self.sockets.plugged == {}
        if not self.can_dial:
            return
        async with begun(stack, make(command=self.server, network=Network.PROJECT, card=new_card())) as run:
            await until_said(stack, run.handle, "up")
            reader, writer = await stack.dial(run.handle, 8123)
            writer.write(b"there\n")
            async with asyncio.timeout(PATIENCE):
                assert (await reader.read()).strip() == b"hello there"
            writer.close()

    async def test_a_start_cut_short_is_found_and_cleared(self, stack: TaskDriver, make: Make) -> None:
        if self.sockets is None:
            return
        plan = make("echo here", network=Network.PROJECT, card=new_card())
        self.sockets.broken = True
        try:
            with pytest.raises(HostUnreachable):
                await stack.start(plan, silent)
            assert list(await stack.leftovers()) == [plan.handle]
            assert await stack.observe(plan.handle) == Absent()
            self.sockets.broken = False
            await stack.start(plan, silent)  # as the engine does, and finds it finished
            assert (await ended(stack, plan.handle)).code == 0
        finally:
            self.sockets.broken = False
            await stack.remove(plan.handle)
        assert (list(await stack.leftovers()), self.sockets.plugged) == ([], {})

    # --- arrays and gangs, where the stack has them

    async def test_an_array_is_run_once_for_each_index(self, stack: TaskDriver, make: Make) -> None:
        if not self.gangs:
            return
        async with begun(stack, make("echo at $USINA_INDEX; exit $USINA_INDEX", indices=(0, 2, 5), at_once=2)) as run:
            end = await ended(stack, run.handle)
            assert {(unit.index, unit.code) for unit in end.units} == {(0, 0), (2, 2), (5, 5)}
            assert sorted(await said(stack, run.handle, "o")) == ["[0] at 0", "[2] at 2", "[5] at 5"]

    async def test_a_gang_runs_together(self, stack: TaskDriver, make: Make) -> None:
        if not self.gangs:
            return
        async with begun(stack, make("echo rank $USINA_RANK of $USINA_SIZE", replicas=2)) as run:
            end = await ended(stack, run.handle)
            assert (end.how, end.code) == (End.EXITED, 0)
            texts = {text.rpartition("] ")[2] for text in await said(stack, run.handle, "o")}
            assert texts == {"rank 0 of 2", "rank 1 of 2"}

    # --- volumes, where the stack has none; the others keep `task_volumes`

    async def test_volumes_are_refused_where_there_are_none(self, stack: TaskDriver, make: Make) -> None:
        if FOLDERS in (await stack.inventory()).traits:
            return
        plan = make(volumes=(MountPlan("vol-none", "/data"),))
        for deed in (
            stack.ensure_volume(VolumePlan("vol-none", 64 * MiB)),
            stack.remove_volume("vol-none"),
            stack.start(plan, silent),
        ):
            with pytest.raises(DriverError) as failure:
                await deed
            assert failure.value.lasting and "volume" in failure.value.public
        assert await stack.observe(plan.handle) == Absent()

    # --- what is offered

    async def test_the_inventory_names_the_stack(self, stack: TaskDriver) -> None:
        inventory = await stack.inventory()
        assert inventory.cores > 0 and inventory.memory > 0
        assert any(trait.startswith("task:") for trait in inventory.traits)
