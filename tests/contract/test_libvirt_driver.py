"""The driver contract on a real libvirt with real guests, and what only real guests can show."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import libvirt
import pytest
import pytest_asyncio

from usina.core.machine import Card, ImageFiles, NetworkPlan, Power, Rule
from usina.core.network import mac_of
from usina.drivers.libvirt import PLUGIN, cards, names
from usina.drivers.libvirt.daemon import ensure_local_daemon
from usina.drivers.libvirt.driver import LibvirtDriver
from usina.drivers.libvirt.network_xml import Book, read_book
from usina.ports.driver import Driver, DriverError, HostSettings
from usina.services.images.cache import built, default_cache
from usina.services.images.catalogue import recipe_named
from usina.testing.driver_contract import (
    Booted,
    DriverContract,
    PlanMaker,
    made,
    new_network,
    present,
    until,
)

pytestmark = [
    pytest.mark.real,
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(os.geteuid() != 0, reason="qemu:///system wants root"),
]

_READY = b"usina-tiny ready: guest"  # its name is in the seed, so the seed was read
KEPT = libvirt.VIR_NETWORK_XML_INACTIVE
_BOOT_PATIENCE = 90.0  # emulation on a busy machine


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def image() -> ImageFiles:
    return await built(recipe_named("tiny"), default_cache())


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> HostSettings:
    state = tmp_path_factory.mktemp("state")
    return HostSettings("hst-contract", "contract", f"t{secrets.token_hex(4)}", state)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def driver(host: HostSettings, image: ImageFiles) -> AsyncIterator[Driver]:
    ensure_local_daemon()
    before = left_on_the_host()
    opened = PLUGIN.open(host)
    yield opened
    await opened.remove_image(image.digest)
    await opened.close()
    assert left_on_the_host() - before == set(), "the driver left things behind"


def left_on_the_host() -> set[str]:
    """All that a driver could forget: names in libvirt, and files."""
    conn = libvirt.open("qemu:///system")
    things = {
        *(f"domain {domain.name()}" for domain in conn.listAllDomains()),
        *(f"network {network.name()}" for network in conn.listAllNetworks()),
        *(f"pool {pool.name()}" for pool in conn.listAllStoragePools()),
        *(f"filter {filter_.name()}" for filter_ in conn.listAllNWFilters()),
        *(f"binding {binding.portDev()}" for binding in conn.listAllNWFilterBindings()),
    }
    conn.close()
    things |= {str(path) for path in Path("/var/lib/usina").glob("**/*")}
    things |= {str(path) for path in Path("/var/lib/libvirt/qemu").glob("**/*.*")}
    return things


def book(host: HostSettings, plan: NetworkPlan, flags: int = 0) -> Book:
    """Whom a network knows: the running one, or the one kept on disk."""
    conn = libvirt.open("qemu:///system")
    text = conn.networkLookupByName(names.network(host.factory, plan.handle)).XMLDesc(flags)
    conn.close()
    return read_book(text)


def leases(host: HostSettings, plan: NetworkPlan) -> list[str]:
    """The addresses that a network's DHCP has given out."""
    conn = libvirt.open("qemu:///system")
    given = [
        lease["ipaddr"] for lease in conn.networkLookupByName(names.network(host.factory, plan.handle)).DHCPLeases()
    ]
    conn.close()
    return given


def delete_link(name: str) -> None:
    """A network device, if it is there."""
    subprocess.run(["ip", "link", "delete", name], stderr=subprocess.DEVNULL, check=False)


def lladdr(address: str) -> str:
    """What this machine has heard an IPv4 address to be by ARP; nothing if nobody answered."""
    for line in Path("/proc/net/arp").read_text().splitlines()[1:]:
        ip, _, flags, mac, *_ = line.split()
        if ip == address and int(flags, 16):
            return mac
    return ""


async def opens(driver: Driver, handle: str, address: str, port: int) -> bool:
    try:
        _, writer = await driver.dial(handle, address, port)
    except DriverError:
        return False
    writer.close()
    return True


class TestLibvirtDriver(DriverContract):
    @pytest.fixture
    def booted(self) -> Booted:
        async def ready(driver: Driver, handle: str) -> None:
            async def said() -> bool:
                return _READY in await driver.console_log(handle)

            await until(said, "booting", _BOOT_PATIENCE)

        return ready

    async def test_a_guest_that_dies_is_told_from_one_that_went_off(
        self, driver: LibvirtDriver, plan: PlanMaker, booted: Booted
    ) -> None:
        async with made(driver, plan(), running=True) as guest:
            pid = int(Path(f"/run/libvirt/qemu/{guest.handle}.pid").read_text())
            os.kill(pid, signal.SIGKILL)

            async def off() -> bool:
                return (await present(driver, guest.handle)).power is Power.OFF

            await until(off, "noticing the death")
            assert (await present(driver, guest.handle)).crashed
            await driver.start(guest.handle)
            await booted(driver, guest.handle)
            await self.say(driver, guest.handle, "poweroff -f")
            await until(off, "going off")
            assert not (await present(driver, guest.handle)).crashed

    async def test_security_groups_open_and_close_ports_live(
        self, driver: Driver, plan: PlanMaker, booted: Booted
    ) -> None:
        guest = plan()
        card = replace(guest.interfaces[0], rules=(Rule("in", "tcp", (22, 22)), Rule("out", "all")))
        async with made(driver, replace(guest, interfaces=(card,)), running=True) as guest:
            await booted(driver, guest.handle)

            async def ssh() -> bool:
                return await opens(driver, guest.handle, card.address, 22)

            await until(ssh, "SSH answering", _BOOT_PATIENCE)
            await driver.set_rules(guest.handle, card.mac, (Rule("in", "tcp", (23, 23)),))
            assert not await ssh()
            await driver.set_rules(guest.handle, card.mac, (Rule("in", "tcp", (22, 22)),))
            assert await ssh()

    async def test_a_guest_cannot_take_an_address_that_is_not_its_own(
        self, driver: Driver, plan: PlanMaker, booted: Booted
    ) -> None:
        async with made(driver, plan(), running=True) as guest:
            card, gateway = guest.interfaces[0], guest.networks[0].gateway
            thief = f"{gateway.rpartition('.')[0]}.99"
            await booted(driver, guest.handle)

            async def ssh() -> bool:
                return await opens(driver, guest.handle, card.address, 22)

            await until(ssh, "SSH answering", _BOOT_PATIENCE)
            await self.say(driver, guest.handle, f"ip addr add {thief}/24 dev eth0")
            assert await ssh()
            assert not await opens(driver, guest.handle, thief, 22)
            assert (lladdr(card.address), lladdr(thief)) == (card.mac, "")  # its answers to ARP went no further
            await self.say(
                driver,
                guest.handle,
                f"ip link set eth0 down; ip link set eth0 address 52:54:00:00:00:99; ip link set eth0 up; "
                f"ip addr add {card.address}/24 dev eth0; echo changed-$((40+2))",
            )
            assert not await ssh()

    async def test_a_guest_reaches_neither_the_host_nor_another_network(
        self, driver: Driver, plan: PlanMaker, booted: Booted
    ) -> None:
        """A server on the host's wildcard address is the bait; the guest's rules allow all."""
        bait = await asyncio.start_server(lambda _reader, writer: writer.write(b"bait-taken\n"), "0.0.0.0", 0)
        port = bait.sockets[0].getsockname()[1]
        async with bait, made(driver, plan(), running=True) as one, made(driver, plan(), running=True) as other:
            for guest in (one, other):
                await booted(driver, guest.handle)

            async def other_answers() -> bool:
                return await opens(driver, other.handle, other.interfaces[0].address, 22)

            await until(other_answers, "SSH answering", _BOOT_PATIENCE)
            targets = [
                (one.networks[0].gateway, port),
                (other.networks[0].gateway, port),
                (other.interfaces[0].address, 22),
            ]
            for address, target_port in targets:
                await self.say(driver, one.handle, f"nc -w 3 {address} {target_port} < /dev/null")
            later = mac_of("10.213.255.7"), f"{one.networks[0].gateway.rpartition('.')[0]}.7", "later"
            await driver.ensure_network(replace(one.networks[0], hosts=(later,)))
            for name in ("guest", "later", later[1]):
                await self.say(driver, one.handle, f"nslookup {name} {one.networks[0].gateway}", patience=20)
            log = await driver.console_log(one.handle)
            assert b"bait-taken" not in log
            assert b"SSH-2.0" not in log
            domain = one.networks[0].domain  # DNS of its own gateway does answer
            for address, name in ((one.interfaces[0].address, "guest"), later[1:]):
                assert re.search(rf"Name:\s+{name}(.{domain})?\s+Address[^\n]*{address}", log.decode())
            assert f"name = later.{domain}" in log.decode()

    @pytest.fixture
    def device(self) -> Iterator[str]:
        """The near end of a veth pair, as a driver of tasks makes it."""
        name = f"ut-{secrets.token_hex(5)}"
        subprocess.run(["ip", "link", "add", name, "type", "veth", "peer", "name", f"uf{name[2:]}"], check=True)
        yield name
        delete_link(name)

    async def test_what_is_plugged_in_is_known_and_filtered_until_it_is_unplugged(
        self, driver: Driver, device: str, host: HostSettings
    ) -> None:
        network, card = new_network("task")
        bridge, handle = names.network(host.factory, network.handle), "tsk-plugged.1"
        await driver.plug(handle, device, Card(card, network))
        try:
            assert Path(f"/sys/class/net/{bridge}/brif/{device}").exists()
            assert f"binding {device}" in left_on_the_host()
            for flags in (0, KEPT):
                assert book(host, network, flags).names == {card.address: "task"}
            # Whoever has its address after it keeps the name.
            heir = replace(network, hosts=((card.mac, card.address, "heir"),))
            await driver.plug("tsk-heir.1", f"uf{device[2:]}", Card(card, heir))
            await driver.unplug(handle, device, Card(card, network))
            assert book(host, network).names == {card.address: "heir"}
            # One whose device has gone by itself, as it does with its namespace, is cleared all the same.
            delete_link(device)
            await driver.unplug("tsk-heir.1", f"uf{device[2:]}", Card(card, heir))
            assert book(host, network).names == {}
            assert not any(handle in one or "tsk-heir" in one for one in left_on_the_host())
        finally:
            await driver.unplug(handle, device, Card(card, network))
            await driver.unplug("tsk-heir.1", f"uf{device[2:]}", Card(card, network))
            await driver.remove_network(network.handle)

    async def test_a_killed_definition_is_finished_by_the_next(self, driver: LibvirtDriver, plan: PlanMaker) -> None:
        """As if the control plane had died after the disk was made: no guest yet, and no second disk later."""
        guest = plan()
        await driver.ensure_image(guest.image)
        await driver._do("make half a guest", lambda conn: driver._storage(conn).ensure_root_disk(guest))
        async with made(driver, guest):
            assert (await present(driver, guest.handle)).power is Power.OFF

    async def test_a_start_broken_off_lets_nothing_through_and_is_finished_by_the_next(
        self, driver: Driver, plan: PlanMaker, booted: Booted, host: HostSettings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As if the control plane had died when the guest ran and its packet filter did not stand yet."""
        async with made(driver, plan()) as guest:
            handle, address = guest.handle, guest.interfaces[0].address
            with monkeypatch.context() as broken:
                broken.setattr(cards, "connect", lambda domain, definition: None)
                await driver.start(handle)
            await booted(driver, handle)
            seen = await present(driver, handle)
            assert (seen.power, seen.dark) == (Power.ON, True)
            assert not await opens(driver, handle, address, 22)
            assert (lladdr(address), leases(host, guest.networks[0])) == ("", [])
            await driver.start(handle)
            seen = await present(driver, handle)
            assert (seen.power, seen.dark) == (Power.ON, False)

            async def ssh() -> bool:
                return await opens(driver, handle, address, 22)

            await until(ssh, "SSH answering", _BOOT_PATIENCE)
            assert await opens(driver, handle, address, 22)

    async def test_names_of_a_shared_network_come_and_go_and_cards_stay(
        self, driver: Driver, plan: PlanMaker, host: HostSettings
    ) -> None:
        one, other = plan(), plan()
        network, prefix = one.networks[0], one.networks[0].gateway.rpartition(".")[0]
        address = f"{prefix}.11"
        mac, first = mac_of(address), network.hosts[0]
        card = replace(other.interfaces[0], mac=mac, address=address, network=network.handle)
        other = replace(other, interfaces=(card,), networks=(replace(network, hosts=((mac, address, "other"),)),))
        async with made(driver, one):
            cards = book(host, network).cards
            assert cards[mac] == address  # before there is such a guest
            async with made(driver, other):
                for flags in (0, KEPT):
                    assert book(host, network, flags) == Book(cards, {first[1]: first[2], address: "other"})
            await driver.ensure_network(network)
            await driver.remove(other.handle)
            for flags in (0, KEPT):
                assert book(host, network, flags).names == {first[1]: first[2]}
            stranger = "52:54:00:12:34:56", first[1], "next"  # an address has one owner, and so has a name
            await driver.ensure_network(replace(network, hosts=(stranger,)))
            for flags in (0, KEPT):
                now = book(host, network, flags)
                assert now.names == {first[1]: "next"}
                assert [mac for mac, address in now.cards.items() if address == first[1]] == [stranger[0]]

    async def test_two_control_planes_tell_a_network_at_once(self, driver: Driver, host: HostSettings) -> None:
        network, _ = new_network()
        prefix = network.gateway.rpartition(".")[0]
        addresses = [f"{prefix}.{number}" for number in range(20, 40)]
        told = replace(network, hosts=tuple((mac_of(one), one, f"m{one[-2:]}") for one in addresses))
        second = PLUGIN.open(host)
        try:
            await driver.ensure_network(network)
            await asyncio.gather(driver.ensure_network(told), second.ensure_network(told))
            for flags in (0, KEPT):
                assert {address for address, name in book(host, network, flags).names.items() if name[0] == "m"} == set(
                    addresses
                )
        finally:
            await driver.remove_network(network.handle)
            await second.close()

    async def test_what_is_not_ours_is_neither_seen_nor_touched(
        self, driver: Driver, plan: PlanMaker, host: HostSettings
    ) -> None:
        stranger = PLUGIN.open(replace(host, factory=f"s{secrets.token_hex(4)}", id="hst-stranger"))
        try:
            async with made(driver, plan()) as guest:
                assert guest.handle not in await stranger.survey()
                await stranger.remove(guest.handle)
                await present(driver, guest.handle)
        finally:
            await stranger.close()

    async def say(self, driver: Driver, handle: str, line: str, patience: float = 15) -> None:
        """Type a line at the guest's shell, and wait until the shell is done with it."""
        mark = secrets.token_hex(4)
        console = await driver.console(handle)
        try:
            await console.write(f"{line}; echo done-{mark[:4]}''{mark[4:]}\r".encode())
            if "poweroff" in line:
                while await asyncio.wait_for(console.read(), patience):
                    pass  # the line is closed when the guest is off
                return

            async def done() -> bool:
                return f"done-{mark}".encode() in await driver.console_log(handle)

            await until(done, f"{line!r}", patience)
        finally:
            await console.close()
