"""Domains: finding ours, reading them, and the verbs that take no waiting. Blocking.

A domain is named by its handle. It is ours when its UUID is the one that factory and handle give (`names`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final
from xml.etree.ElementTree import Element

import libvirt

from usina.core.machine import Absent, Power, Present, Seen
from usina.core.units import KiB
from usina.drivers.libvirt import cards, metadata, names
from usina.drivers.libvirt.faults import is_missing
from usina.drivers.libvirt.xml import USINA, parse
from usina.ports.driver import DriverError

_OFF: Final = {libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_CRASHED}
_PAUSED: Final = {libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PMSUSPENDED}
_PASSING_PAUSES: Final = {  # libvirt's own, over in a moment
    libvirt.VIR_DOMAIN_PAUSED_STARTING_UP,
    libvirt.VIR_DOMAIN_PAUSED_SNAPSHOT,
    libvirt.VIR_DOMAIN_PAUSED_MIGRATION,
    libvirt.VIR_DOMAIN_PAUSED_FROM_SNAPSHOT,
}
_DIED: Final = {libvirt.VIR_DOMAIN_SHUTOFF_CRASHED, libvirt.VIR_DOMAIN_SHUTOFF_FAILED}
_UNDEFINE: Final = (
    libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
)


class Guests:
    """The domains of one factory, seen through one connection."""

    def __init__(self, conn: libvirt.virConnect, factory: str) -> None:
        self._conn = conn
        self._factory = factory

    def find(self, handle: str) -> libvirt.virDomain | None:
        try:
            return self._conn.lookupByUUIDString(names.guest_uuid(self._factory, handle))
        except libvirt.libvirtError as error:
            if is_missing(error):
                return None
            raise

    def need(self, handle: str) -> libvirt.virDomain:
        domain = self.find(handle)
        if domain is None:
            raise DriverError("the guest is not on this host")
        return domain

    def all(self) -> Iterator[libvirt.virDomain]:
        for domain in self._conn.listAllDomains():
            if domain.UUIDString() == names.guest_uuid(self._factory, domain.name()):
                yield domain

    def observe(self, handle: str) -> Seen:
        domain = self.find(handle)
        return Absent() if domain is None else see(domain)

    def survey(self) -> dict[str, Present]:
        seen: dict[str, Present] = {}
        for domain in self.all():
            with suppress_missing():  # removed since it was listed
                seen[domain.name()] = see(domain)
        return seen

    # --- power

    def start(self, handle: str) -> None:
        """Start a guest, or go on with the start of one whose cards still wait."""
        domain = self.need(handle)
        definition = config_xml(domain)
        if not domain.isActive():
            try:
                cards.start_dark(self._conn, domain, definition)
            except libvirt.libvirtError:
                if not domain.isActive():  # else another call was quicker
                    raise
        cards.connect(domain, definition)

    def ask_to_power_off(self, handle: str) -> bool:
        """Press the power button. False when the guest is off already."""
        domain = self.find(handle)
        if domain is None or not domain.isActive():
            return False
        try:
            if domain.state()[0] in _PAUSED:
                domain.resume()  # a paused guest hears nothing
            domain.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN)
        except libvirt.libvirtError:
            if domain.isActive():
                raise
            return False  # it went off just now
        return True

    def is_off(self, handle: str) -> bool:
        domain = self.find(handle)
        return domain is None or not domain.isActive()

    def pull_plug(self, handle: str) -> None:
        domain = self.find(handle)
        if domain is not None:
            pull_plug(domain)

    def suspend(self, handle: str) -> None:
        domain = self.need(handle)
        if domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING:
            domain.suspend()

    def resume(self, handle: str) -> None:
        domain = self.need(handle)
        match domain.state()[0]:
            case libvirt.VIR_DOMAIN_PAUSED:
                domain.resume()
            case libvirt.VIR_DOMAIN_PMSUSPENDED:
                domain.pMWakeup()

    def undefine(self, handle: str) -> None:
        domain = self.find(handle)
        if domain is not None:
            pull_plug(domain)
            with suppress_missing():
                domain.undefineFlags(_UNDEFINE)

    def cards(self, handle: str) -> list[tuple[str, str]]:
        """Network name and MAC address of every card that the guest's definition has on a network."""
        domain = self.find(handle)
        macs = attached_macs(parse(config_xml(domain))) if domain is not None else {}
        sources = {mac: card.find("source") for mac, card in macs.items()}
        return [(source.get("network", ""), mac) for mac, source in sources.items() if source is not None]

    # --- marks

    def marks(self, handle: str) -> dict[str, int]:
        domain = self.find(handle)
        return {} if domain is None else metadata.read_marks(parse(config_xml(domain)))

    def mark(self, handle: str, **marks: int) -> None:
        """Write marks into the guest's definition, and into the running guest."""
        domain = self.need(handle)
        text = domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, USINA, libvirt.VIR_DOMAIN_AFFECT_CONFIG)
        for name, token in marks.items():
            text = metadata.with_mark(text, name, token)
        domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, text, metadata.KEY, USINA, everywhere(domain))


@contextmanager
def suppress_missing() -> Iterator[None]:
    """Let pass that something is not there (any more)."""
    try:
        yield
    except libvirt.libvirtError as error:
        if not is_missing(error):
            raise


def pull_plug(domain: libvirt.virDomain) -> None:
    try:
        if domain.isActive():
            domain.destroy()
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_OPERATION_INVALID and not is_missing(error):
            raise  # those two: it went off by itself just now


def grow_while_paused(domain: libvirt.virDomain, size: int) -> None:
    """Grow the root disk of a guest that is off by its own process, which runs no instruction of the guest."""
    domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)
    try:
        domain.blockResize("vda", size, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)
    finally:
        pull_plug(domain)


def config_xml(domain: libvirt.virDomain) -> str:
    """The definition that the next start uses."""
    return str(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))


def everywhere(domain: libvirt.virDomain) -> int:
    """The flags to change the definition and, when it runs, the running guest."""
    live = libvirt.VIR_DOMAIN_AFFECT_LIVE if domain.isActive() else 0
    return int(libvirt.VIR_DOMAIN_AFFECT_CONFIG | live)


def see(domain: libvirt.virDomain) -> Present:
    state, reason = domain.state()
    tree = parse(domain.XMLDesc())
    return Present(
        power=power_of(state, reason),
        cores=int(tree.findtext("vcpu", "0")),
        memory=int(tree.findtext("memory", "0")) * KiB,
        volumes=frozenset(attached_volumes(tree)),
        macs=frozenset(attached_macs(tree)),
        snapshots=frozenset(domain.snapshotListNames()),
        marks=metadata.read_marks(tree),
        crashed=state == libvirt.VIR_DOMAIN_CRASHED or (state == libvirt.VIR_DOMAIN_SHUTOFF and reason in _DIED),
        accelerator="kvm" if tree.get("type") == "kvm" else "tcg",
        dark=state not in _OFF and bool(cards.waiting(tree)),
    )


def power_of(state: int, reason: int) -> Power:
    if state in _OFF:
        return Power.OFF
    if state in _PAUSED and reason not in _PASSING_PAUSES:
        return Power.SUSPENDED
    return Power.ON


def attached_volumes(domain: Element) -> dict[str, Element]:
    """Volume handle → its disk element."""
    found = {}
    for disk in domain.iterfind("devices/disk"):
        source = disk.find("source")
        handle = names.volume_handle(source.get("file", "")) if source is not None else None
        if handle:
            found[handle] = disk
    return found


def attached_macs(domain: Element) -> dict[str, Element]:
    """MAC address → its interface element."""
    found = {}
    for interface in domain.iterfind("devices/interface"):
        mac = interface.find("mac")
        if mac is not None:
            found[mac.get("address", "")] = interface
    return found
