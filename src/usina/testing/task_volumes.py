"""The contract of task drivers whose runs can be given volumes, as tests. Subclass `TaskVolumesContract` with the
fixtures `stack` (an open task driver) and `make` (as `TaskDriverContract` has it)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from usina.core.capacity import FOLDERS
from usina.core.ids import Ids
from usina.core.machine import Absent, VolumePlan
from usina.core.mounts import MOST
from usina.core.task import End, MountPlan
from usina.core.units import MiB
from usina.ports.driver import DriverError
from usina.ports.tasks import TaskDriver
from usina.testing.task_contract import Make, begun, ended, said, silent, unpacked, until_said
from usina.testing.waiting import eventually

_ids = Ids(time.time)

MINE = '[ "$(stat -c %u "$f")" = "$(id -u)" ] && echo mine'
"""Says so if the file ``$f`` is the run's own."""


@asynccontextmanager
async def volume(stack: TaskDriver, size: int = 32 * MiB) -> AsyncIterator[str]:
    """The handle of a volume, removed in the end, of which nothing is left then."""
    handle = _ids.new("volume")
    try:
        await stack.ensure_volume(VolumePlan(handle, size))
        yield handle
    finally:
        await stack.remove_volume(handle)
        assert not loops_of(handle)


def loops_of(handle: str) -> list[str]:
    """Loop devices that have a volume."""
    found = []
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            found += [path.parts[3]] if handle in path.read_text() else []
        except OSError:
            continue
    return found


async def outcome(stack: TaskDriver, make: Make, script: str, *mounts: MountPlan) -> tuple[int | None, list[str]]:
    """The exit code of a run, and what it said."""
    both = f"exec 2>&1; {script}"  # in the order in which it said them: two streams have none between them
    async with begun(stack, make(both, volumes=mounts)) as run:
        assert run.handle not in Path("/proc/self/mountinfo").read_text(), "what is mounted is the run's alone"
        end = await ended(stack, run.handle)
        return end.code, await said(stack, run.handle)


class TaskVolumesContract:
    """Subclass as `Test…`."""

    async def test_it_is_offered(self, stack: TaskDriver) -> None:
        assert FOLDERS in (await stack.inventory()).traits

    async def test_what_one_run_writes_the_next_one_reads_and_owns(self, stack: TaskDriver, make: Make) -> None:
        async with volume(stack) as handle:
            script = f"umask 077; mkdir /data/d; echo one > /data/d/a; f=/data/d/a; {MINE}"
            assert await outcome(stack, make, script, MountPlan(handle, "/data")) == (0, ["mine"])
            script = f"cat data/d/a; echo two >> data/d/a; f=data/d/a; {MINE}; cat data/d/a; rm -r data/d; ls -A data"
            there = MountPlan(handle, "/work/data")
            assert await outcome(stack, make, script, there) == (0, ["one", "mine", "one", "two"])

    async def test_runs_share_it_at_the_same_time(self, stack: TaskDriver, make: Make) -> None:
        async with volume(stack) as handle:
            mount = MountPlan(handle, "/srv/shared")
            waits = make("while ! [ -s /srv/shared/note ]; do sleep 0.1; done; cat /srv/shared/note", volumes=(mount,))
            async with begun(stack, waits) as reader:
                await outcome(stack, make, "echo hello > /srv/shared/.n; mv /srv/shared/.n /srv/shared/note", mount)
                assert (await ended(stack, reader.handle)).code == 0
                assert await said(stack, reader.handle) == ["hello"]

    async def test_as_many_as_there_can_be_and_a_command_that_begins_on_one(
        self, stack: TaskDriver, make: Make
    ) -> None:
        async with volume(stack) as handle:
            mounts = tuple(MountPlan(handle, f"/srv/{n}" if n % 2 else f"/work/{n}/deep") for n in range(MOST))
            plan = make("echo x > a; cat /srv/*/a /work/*/deep/a | wc -l; pwd", volumes=mounts, workdir="/srv/1")
            async with begun(stack, plan):
                assert (await ended(stack, plan.handle)).code == 0
                assert [line.strip() for line in await said(stack, plan.handle)] == [str(MOST), "/srv/1"]

    async def test_read_only_is_read_only(self, stack: TaskDriver, make: Make) -> None:
        async with volume(stack) as handle:
            await outcome(stack, make, "echo kept > /data/a", MountPlan(handle, "/data"))
            script = "cat /data/a; touch /data/b || echo refused; rm -f /data/a || echo refused; chmod 777 /data/a"
            _, lines = await outcome(stack, make, script, MountPlan(handle, "/data", read_only=True))
            assert lines[0] == "kept" and lines.count("refused") == 2
            both = (MountPlan(handle, "/data", read_only=True), MountPlan(handle, "/work/out"))
            assert await outcome(stack, make, "echo x > out/c; cat /data/c", *both) == (0, ["x"])

    async def test_its_size_holds_and_what_is_deleted_is_free_again(self, stack: TaskDriver, make: Make) -> None:
        fill = "dd if=/dev/zero of=/data/big bs=65536 2>&1 | grep -c 'No space left'; wc -c < /data/big; rm /data/big"
        async with volume(stack, 16 * MiB) as handle:
            for _ in range(2):
                code, lines = await outcome(stack, make, fill, MountPlan(handle, "/data"))
                assert (code, lines[0]) == (0, "1") and 8 * MiB < int(lines[1]) < 16 * MiB

    async def test_nothing_on_it_gives_rights(self, stack: TaskDriver, make: Make) -> None:
        async with volume(stack) as handle:
            script = (
                "mknod /data/null c 1 3; cp /bin/sh /data/sh; chmod 4755 /data/sh; grep ' /data ' /proc/self/mountinfo"
            )
            _, lines = await outcome(stack, make, script, MountPlan(handle, "/data"))
            assert "nosuid" in lines[-1] and "nodev" in lines[-1]
            script = "/data/sh -c 'grep -E \"^(Uid|CapEff)\" /proc/self/status'; ls -A /data; chown 12345678 /data/sh"
            code, lines = await outcome(stack, make, script, MountPlan(handle, "/data"))
            _, plain = await outcome(stack, make, "grep -E '^(Uid|CapEff)' /proc/self/status")
            assert lines[:2] == plain and "null" not in lines and code != 0

    async def test_who_was_not_given_it_does_not_see_it(self, stack: TaskDriver, make: Make) -> None:
        async with volume(stack) as one, volume(stack) as other:
            holder = make("echo secret > /data/a; echo up; sleep 60", volumes=(MountPlan(one, "/data"),))
            async with begun(stack, holder):
                await until_said(stack, holder.handle, "up")
                look = "ls -A /data; cat /data/a; grep -c loop /proc/self/mountinfo"
                _, lines = await outcome(stack, make, look)
                assert "secret" not in lines and lines[-1] == "0"
                code, lines = await outcome(stack, make, "ls -A /data", MountPlan(other, "/data"))
                assert (code, lines) == (0, [])

    async def test_what_runs_beside_it_sees_it_too(self, stack: TaskDriver, make: Make) -> None:
        async with volume(stack) as handle:
            plan = make("echo here > /data/a; echo up; sleep 60", volumes=(MountPlan(handle, "/data"),))
            async with begun(stack, plan):
                await until_said(stack, plan.handle, "up")
                line = await stack.exec(plan.handle, ("cat", "/data/a"), terminal=False)
                await line.write(b"")
                assert (await line.read(), await line.wait()) == (b"here\n", 0)
                await line.close()

    async def test_outputs_leave_volumes_out(self, stack: TaskDriver, make: Make) -> None:
        async with volume(stack) as handle:
            plan = make("echo x > data/deep.txt; echo y > own.txt", volumes=(MountPlan(handle, "/work/data"),))
            async with begun(stack, plan):
                await ended(stack, plan.handle)
                assert await unpacked(stack, plan.handle, "*.txt", "data") == {"own.txt": b"y\n"}

    async def test_links_on_it_lead_nowhere_else(self, stack: TaskDriver, make: Make) -> None:
        async with volume(stack) as handle:
            mount = MountPlan(handle, "/data")
            await outcome(stack, make, "ln -s / /data/root; ln -s /proc/1/root /data/init; ln -s .. /data/up", mount)
            script = "ls /data/root/work /data/init/work /data/up/work; cat /data/root/etc/shadow /data/up/etc/shadow"
            _, lines = await outcome(stack, make, script, mount)
            assert not [line for line in lines if line.startswith("root:")]
            deep = MountPlan(handle, "/srv/x")
            assert (await outcome(stack, make, "readlink /srv/x/root", deep)) == (0, ["/"])

    async def test_one_in_use_is_not_removed_and_does_not_grow(self, stack: TaskDriver, make: Make) -> None:
        async with volume(stack) as handle:
            plan = make("echo up; while ! [ -e /data/end ]; do sleep 0.1; done", volumes=(MountPlan(handle, "/data"),))
            async with begun(stack, plan):
                await until_said(stack, plan.handle, "up")
                await stack.ensure_volume(VolumePlan(handle, 32 * MiB))
                for deed in (stack.remove_volume(handle), stack.ensure_volume(VolumePlan(handle, 64 * MiB))):
                    with pytest.raises(DriverError) as failure:
                        await deed
                    assert "in use" in failure.value.public and not failure.value.lasting
                await outcome(stack, make, "touch /data/end", MountPlan(handle, "/data"))
                assert (await ended(stack, plan.handle)).code == 0

    async def test_it_is_made_once_grows_and_never_shrinks(self, stack: TaskDriver, make: Make) -> None:
        async with volume(stack, 16 * MiB) as handle:
            mount = MountPlan(handle, "/data")
            await outcome(stack, make, "echo kept > /data/a", mount)
            await asyncio.gather(*(stack.ensure_volume(VolumePlan(handle, size * MiB)) for size in (16, 64, 64, 16)))
            script = "cat /data/a; ls -A /data; df -k /data | tail -1 | awk '{print $2}'"
            code, lines = await outcome(stack, make, script, mount)
            assert (code, lines[:2]) == (0, ["kept", "a"]) and int(lines[2]) * 1024 > 48 * MiB

    async def test_one_that_is_not_there(self, stack: TaskDriver, make: Make) -> None:
        await stack.remove_volume(_ids.new("volume"))
        plan = make("true", volumes=(MountPlan(_ids.new("volume"), "/data"),))
        with pytest.raises(DriverError) as failure:
            await stack.start(plan, silent)
        assert failure.value.lasting and "not on this host" in failure.value.public
        assert await stack.observe(plan.handle) == Absent()
        assert plan.handle not in list(await stack.leftovers())
        with pytest.raises(DriverError):
            await stack.ensure_volume(VolumePlan("../out", 16 * MiB))

    async def test_a_stopped_run_lets_go_of_it(self, stack: TaskDriver, make: Make) -> None:
        async with volume(stack) as handle:
            plan = make("echo up; sleep 60", volumes=(MountPlan(handle, "/data"),))
            async with begun(stack, plan):
                await until_said(stack, plan.handle, "up")
                assert loops_of(handle)
                await stack.stop(plan.handle, grace=0)
                assert (await ended(stack, plan.handle)).how is End.STOPPED

                async def attached() -> list[str]:
                    return loops_of(handle)

                await eventually(attached, lambda found: not found)
