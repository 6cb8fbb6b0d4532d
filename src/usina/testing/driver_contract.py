"""The contract of every machine driver, as tests. A driver's own tests subclass `DriverContract`.

A subclass gives fixtures: `driver` (an open driver), `image` (files of a small guest that obeys the power button) and,
where guests need time, `booted`. Every test makes what it needs under handles of its own and removes it again, so that
one open driver can serve them all. Nothing here knows which driver it is.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import pytest

from usina.core.ids import Ids
from usina.core.machine import (
    Absent,
    Card,
    ImageFiles,
    InterfacePlan,
    MachinePlan,
    NetworkPlan,
    Power,
    Present,
    Rule,
    Seen,
    VolumePlan,
)
from usina.core.units import GiB, MiB
from usina.ports.driver import Driver, DriverError

PATIENCE = 60.0  # seconds for anything that a guest does by itself
OPEN = (Rule("in", "all"), Rule("out", "all"))

Booted = Callable[[Driver, str], Awaitable[None]]
PlanMaker = Callable[[], MachinePlan]

_ids = Ids(time.time)
_ranges = itertools.count(1)


async def until(condition: Callable[[], Awaitable[bool]], what: str, patience: float = PATIENCE) -> None:
    """Look again and again until `condition` holds; fail naming `what` when it never does."""
    deadline = time.monotonic() + patience
    while not await condition():
        assert time.monotonic() < deadline, f"{what} did not happen in {patience:g} s"
        await asyncio.sleep(0.1)


async def present(driver: Driver, handle: str) -> Present:
    seen: Seen = await driver.observe(handle)
    assert isinstance(seen, Present), f"{handle} is {seen}"
    return seen


@asynccontextmanager
async def made(driver: Driver, plan: MachinePlan, *, running: bool = False) -> AsyncIterator[MachinePlan]:
    """The guest of a plan, removed in the end with all that the plan names."""
    try:
        for volume in plan.volumes:
            await driver.ensure_volume(VolumePlan(volume, 64 * MiB))
        await driver.ensure_image(plan.image)
        for network in plan.networks:
            await driver.ensure_network(network)
        await driver.define(plan)
        if running:
            await driver.start(plan.handle)
        yield plan
    finally:
        await driver.remove(plan.handle)
        for volume in plan.volumes:
            await driver.remove_volume(volume)
        for network in plan.networks:
            await driver.remove_network(network.handle)


def new_network(hostname: str = "guest") -> tuple[NetworkPlan, InterfacePlan]:
    """A network nobody else has, and one card on it."""
    number = next(_ranges)
    prefix, mac = f"10.213.{number % 256}", f"52:54:00:d5:{number // 256:02x}:{number % 256:02x}"
    handle, address = _ids.new("network"), f"{prefix}.10"
    network = NetworkPlan(handle, f"{prefix}.0/24", f"{prefix}.1", f"p{number}.test", ((mac, address, hostname),))
    return network, InterfacePlan(mac, address, handle, OPEN)


class DriverContract:
    """Subclass as `Test…`, with the fixtures `driver` and `image`."""

    @pytest.fixture
    def booted(self) -> Booted:
        """Wait until the guest listens to its power button. At once, for drivers without real guests."""

        async def at_once(driver: Driver, handle: str) -> None:
            return None

        return at_once

    @pytest.fixture
    def plan(self, image: ImageFiles) -> PlanMaker:
        """Makes plans of small guests, each with a handle and a network of its own."""

        def make() -> MachinePlan:
            handle = _ids.new("machine")
            network, card = new_network()
            return MachinePlan(
                handle=handle,
                hostname="guest",
                cores=1,
                memory=192 * MiB,
                disk=GiB,
                image=image,
                meta_data=f"instance-id: {handle}\nlocal-hostname: guest\n",
                user_data="#cloud-config\n",
                network_config="",
                interfaces=(card,),
                networks=(network,),
                title="tenant/project/<guest> & 'co'",
            )

        return make

    @pytest.fixture
    def device(self) -> str | Iterator[str]:
        """A network device of the host that can be plugged in; only a name, for drivers that pretend."""
        return "ut-contract"

    # --- being and not being

    async def test_an_unknown_guest_is_absent(self, driver: Driver) -> None:
        assert await driver.observe(_ids.new("machine")) == Absent()

    async def test_removing_what_is_not_there_succeeds(self, driver: Driver) -> None:
        await driver.remove(_ids.new("machine"))
        await driver.remove_network(_ids.new("network"))
        await driver.remove_volume(_ids.new("volume"))
        await driver.remove_image("0" * 64)

    async def test_a_defined_guest_is_off_and_as_planned(self, driver: Driver, plan: PlanMaker) -> None:
        async with made(driver, plan()) as guest:
            seen = await present(driver, guest.handle)
            assert seen.power is Power.OFF
            assert not seen.crashed
            assert (seen.cores, seen.memory) == (guest.cores, guest.memory)
            assert seen.macs == {guest.interfaces[0].mac}
            assert not seen.volumes
            assert not seen.snapshots

    async def test_defining_again_brings_a_guest_to_the_plan(self, driver: Driver, plan: PlanMaker) -> None:
        async with made(driver, plan()) as guest:
            await driver.define(guest)
            await driver.define(replace(guest, cores=2, memory=256 * MiB))
            seen = await present(driver, guest.handle)
            assert (seen.cores, seen.memory) == (2, 256 * MiB)

    async def test_remove_leaves_nothing_and_may_be_repeated(self, driver: Driver, plan: PlanMaker) -> None:
        async with made(driver, plan(), running=True) as guest:
            for _ in range(2):
                await driver.remove(guest.handle)
                assert await driver.observe(guest.handle) == Absent()
                assert guest.handle not in await driver.survey()

    async def test_survey_tells_the_same_as_observe(self, driver: Driver, plan: PlanMaker) -> None:
        async with made(driver, plan()) as one, made(driver, plan()) as other:
            survey = await driver.survey()
            for handle in (one.handle, other.handle):
                assert survey[handle] == await driver.observe(handle)

    # --- power

    async def test_start_and_stop_may_be_repeated(self, driver: Driver, plan: PlanMaker, booted: Booted) -> None:
        async with made(driver, plan()) as guest:
            for _ in range(2):
                await driver.start(guest.handle)
                assert (await present(driver, guest.handle)).power is Power.ON
            await booted(driver, guest.handle)
            for grace in (30.0, 30.0, 0.0):
                await driver.stop(guest.handle, grace=grace)
                seen = await present(driver, guest.handle)
                assert seen.power is Power.OFF
                assert not seen.crashed

    async def test_the_plug_is_pulled_when_grace_is_over(self, driver: Driver, plan: PlanMaker) -> None:
        async with made(driver, plan(), running=True) as guest:
            await driver.stop(guest.handle, grace=0)
            seen = await present(driver, guest.handle)
            assert seen.power is Power.OFF
            assert not seen.crashed

    async def test_suspend_and_resume_may_be_repeated(self, driver: Driver, plan: PlanMaker) -> None:
        async with made(driver, plan(), running=True) as guest:
            for _ in range(2):
                await driver.suspend(guest.handle)
                assert (await present(driver, guest.handle)).power is Power.SUSPENDED
            for _ in range(2):
                await driver.resume(guest.handle)
                assert (await present(driver, guest.handle)).power is Power.ON

    async def test_a_reboot_is_done_once_per_token(self, driver: Driver, plan: PlanMaker, booted: Booted) -> None:
        async with made(driver, plan(), running=True) as guest:
            await booted(driver, guest.handle)
            await driver.reboot(guest.handle, 1)
            seen = await present(driver, guest.handle)
            assert (seen.power, seen.marks["reboots"]) == (Power.ON, 1)
            await driver.stop(guest.handle, grace=0)
            await driver.reboot(guest.handle, 1)  # done already: the guest is left as it is
            assert (await present(driver, guest.handle)).power is Power.OFF

    async def test_starting_an_unknown_guest_fails_in_words(self, driver: Driver) -> None:
        with pytest.raises(DriverError) as failure:
            await driver.start(_ids.new("machine"))
        assert failure.value.public

    # --- the disk's past

    async def test_a_rebuild_is_done_once_per_token_and_leaves_the_guest_off(
        self, driver: Driver, plan: PlanMaker
    ) -> None:
        async with made(driver, plan(), running=True) as guest:
            await driver.rebuild(guest, 1)
            seen = await present(driver, guest.handle)
            assert (seen.power, seen.marks["rebuilds"]) == (Power.OFF, 1)
            await driver.start(guest.handle)
            await driver.rebuild(guest, 1)
            assert (await present(driver, guest.handle)).power is Power.ON

    async def test_snapshots_are_taken_restored_and_dropped(self, driver: Driver, plan: PlanMaker) -> None:
        async with made(driver, plan()) as guest:
            for _ in range(2):
                await driver.snapshot(guest.handle, "clean")
                assert (await present(driver, guest.handle)).snapshots == {"clean"}
            for _ in range(2):
                await driver.restore(guest.handle, "clean", 1)
                assert (await present(driver, guest.handle)).marks["restore"] == 1
            for _ in range(2):
                await driver.drop_snapshot(guest.handle, "clean")
                assert not (await present(driver, guest.handle)).snapshots

    async def test_a_running_guest_is_restored_without_forgetting_its_marks(
        self, driver: Driver, plan: PlanMaker, booted: Booted
    ) -> None:
        async with made(driver, plan(), running=True) as guest:
            await booted(driver, guest.handle)
            await driver.snapshot(guest.handle, "early")
            await driver.reboot(guest.handle, 3)
            await driver.restore(guest.handle, "early", 1)
            seen = await present(driver, guest.handle)
            assert seen.power is Power.ON
            assert dict(seen.marks) == {"reboots": 3, "restore": 1}

    async def test_restoring_an_unknown_snapshot_lasts(self, driver: Driver, plan: PlanMaker) -> None:
        async with made(driver, plan()) as guest:
            with pytest.raises(DriverError) as failure:
                await driver.restore(guest.handle, "never-taken", 1)
            assert failure.value.lasting

    # --- volumes

    async def test_volumes_are_attached_and_detached_while_off(self, driver: Driver, plan: PlanMaker) -> None:
        volume = _ids.new("volume")
        async with made(driver, plan()) as guest:
            try:
                for size in (64 * MiB, 64 * MiB, 128 * MiB, 64 * MiB):  # made, again, grown, never shrunk
                    await driver.ensure_volume(VolumePlan(volume, size))
                for _ in range(2):
                    await driver.attach_volume(guest.handle, volume)
                    assert (await present(driver, guest.handle)).volumes == {volume}
                for _ in range(2):
                    await driver.detach_volume(guest.handle, volume)
                    assert not (await present(driver, guest.handle)).volumes
            finally:
                await driver.detach_volume(guest.handle, volume)
                await driver.remove_volume(volume)

    async def test_volumes_come_and_go_while_the_guest_runs(
        self, driver: Driver, plan: PlanMaker, booted: Booted
    ) -> None:
        volumes = [_ids.new("volume") for _ in range(3)]
        async with made(driver, plan(), running=True) as guest:
            await booted(driver, guest.handle)
            try:
                for volume in volumes:
                    await driver.ensure_volume(VolumePlan(volume, 64 * MiB))
                    await driver.attach_volume(guest.handle, volume)
                assert (await present(driver, guest.handle)).volumes == set(volumes)
                await driver.ensure_volume(VolumePlan(volumes[0], 128 * MiB))  # grown under the guest
                for volume in volumes[:2]:
                    await driver.detach_volume(guest.handle, volume)
                assert (await present(driver, guest.handle)).volumes == {volumes[2]}
                await driver.stop(guest.handle, grace=0)
                assert (await present(driver, guest.handle)).volumes == {volumes[2]}
            finally:
                await driver.remove(guest.handle)
                for volume in volumes:
                    await driver.remove_volume(volume)

    async def test_a_planned_volume_is_there_from_the_start(self, driver: Driver, plan: PlanMaker) -> None:
        volume = _ids.new("volume")
        async with made(driver, replace(plan(), volumes=(volume,)), running=True) as guest:
            assert (await present(driver, guest.handle)).volumes == {volume}

    # --- networks

    async def test_a_network_may_be_made_twice_and_changed(self, driver: Driver) -> None:
        network, _ = new_network()
        mac, address, _ = network.hosts[0]
        try:
            await driver.ensure_network(replace(network, hosts=()))
            await driver.ensure_network(network)
            await driver.ensure_network(network)
            await driver.ensure_network(replace(network, hosts=((mac, address, "renamed"),)))
            await driver.ensure_network(replace(network, hosts=()))
        finally:
            await driver.remove_network(network.handle)
            await driver.remove_network(network.handle)

    async def test_interfaces_come_and_go_while_the_guest_runs(
        self, driver: Driver, plan: PlanMaker, booted: Booted
    ) -> None:
        network, card = new_network()
        async with made(driver, plan(), running=True) as guest:
            first = guest.interfaces[0].mac
            await booted(driver, guest.handle)
            wider = replace(guest, interfaces=(*guest.interfaces, card), networks=(*guest.networks, network))
            try:
                await driver.ensure_network(network)
                for _ in range(2):
                    await driver.attach_interface(wider, card.mac)
                    assert (await present(driver, guest.handle)).macs == {first, card.mac}
                for _ in range(2):
                    await driver.detach_interface(guest.handle, card.mac)
                    assert (await present(driver, guest.handle)).macs == {first}
            finally:
                await driver.remove(guest.handle)
                await driver.remove_network(network.handle)

    async def test_rules_are_set_on_a_guest_on_and_off(self, driver: Driver, plan: PlanMaker) -> None:
        async with made(driver, plan()) as guest:
            mac = guest.interfaces[0].mac
            await driver.set_rules(guest.handle, mac, (Rule("in", "tcp", (22, 22), "192.0.2.0/24"),))
            await driver.start(guest.handle)
            await driver.set_rules(guest.handle, mac, (Rule("in", "icmp"), Rule("out", "udp", (53, 60))))
            await driver.set_rules(guest.handle, mac, ())

    # --- what is no guest

    async def test_what_is_no_guest_is_plugged_in(self, driver: Driver, device: str) -> None:
        if "task:network" not in (await driver.inventory()).traits:
            pytest.skip("this host cannot")
        network, interface = new_network("task")
        handle, card = f"{_ids.new('task')}.1", Card(interface, network)
        await driver.set_rules(handle, interface.mac, OPEN)  # not yet there: nothing to replace
        try:
            await driver.plug(handle, device, card)
            await driver.plug(handle, device, card)
            await driver.set_rules(handle, interface.mac, (Rule("in", "icmp"),))
        finally:
            await driver.unplug(handle, device, card)
            await driver.unplug(handle, device, card)
            await driver.remove_network(network.handle)
        await driver.unplug(handle, device, card)

    # --- hearing and seeing

    async def test_watch_tells_of_a_guest_that_changed(self, driver: Driver, plan: PlanMaker) -> None:
        async with made(driver, plan()) as guest:
            heard: list[str] = []

            async def listen() -> None:
                async for handle in driver.watch():
                    heard.append(handle)

            listener = asyncio.create_task(listen())
            try:
                await asyncio.sleep(0)  # the listener has its first turn before anything changes

                async def told() -> bool:
                    return guest.handle in heard

                await driver.start(guest.handle)
                await until(told, "being told of the start", 10)
                heard.clear()
                await driver.stop(guest.handle, grace=0)
                await until(told, "being told of the stop", 10)
            finally:
                listener.cancel()
                with suppress(asyncio.CancelledError):
                    await listener

    async def test_the_console_log_holds_what_the_guest_said(self, driver: Driver, plan: PlanMaker) -> None:
        async with made(driver, plan(), running=True) as guest:

            async def said() -> bool:
                return bool((await driver.console_log(guest.handle)).strip())

            await until(said, "the guest's first word")

    async def test_the_console_goes_both_ways(self, driver: Driver, plan: PlanMaker, booted: Booted) -> None:
        async with made(driver, plan(), running=True) as guest:
            await booted(driver, guest.handle)
            console = await driver.console(guest.handle)
            try:
                await console.write(b"echo usina-$((40+2))\r")
                answer = b""
                while b"echo usina-" not in answer:
                    answer += await asyncio.wait_for(console.read(), 20)
            finally:
                await console.close()

    async def test_the_inventory_is_plausible(self, driver: Driver) -> None:
        inventory = await driver.inventory()
        assert inventory.cores > 0
        assert inventory.memory > 0
        assert inventory.disk > 0
        assert inventory.facts["accelerator"]
        assert inventory.facts["accelerator_reason"]
