"""Packet filters on a host. Blocking. A filter redefined takes effect in running guests at once."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import libvirt

from usina.core.machine import Rule
from usina.drivers.libvirt import names
from usina.drivers.libvirt.faults import is_missing
from usina.drivers.libvirt.filter_xml import filter_xml, same_filter, shelter_xml
from usina.drivers.libvirt.network_xml import read_addresses, read_subnets
from usina.drivers.libvirt.settings import Settings
from usina.ports.driver import DriverError


class Filters:
    """The filters of one factory on one host. In a session there are none: user-mode networking has no bridges."""

    def __init__(self, conn: libvirt.virConnect, settings: Settings) -> None:
        self._conn = conn
        self._settings = settings

    def ensure(self, handle: str, mac: str, rules: Iterable[Rule]) -> None:
        if self._settings.session:
            return
        self.ensure_shelter()
        try:
            text = filter_xml(self._settings.factory, handle, mac, rules)
        except ValueError as error:
            raise DriverError("a security rule is not IPv4", lasting=True, detail=str(error)) from error
        self._put(names.packet_filter(handle, mac), text)

    def has(self, handle: str, mac: str) -> bool:
        if self._settings.session:
            return False
        try:
            self._conn.nwfilterLookupByName(names.packet_filter(handle, mac))
        except libvirt.libvirtError as error:
            if is_missing(error):
                return False
            raise
        return True

    def ensure_shelter(self) -> None:
        """Bring the filter that hides the host from its guests up to the addresses that the host has now."""
        if not self._settings.session:
            factory = self._settings.factory
            text = shelter_xml(factory, *self._host_addresses())
            self._put(names.shelter_filter(factory), text)

    def remove(self, handle: str, mac: str = "") -> None:
        """One filter of a guest, or all of them."""
        prefix = names.packet_filter(handle, mac) if mac else names.filter_prefix(handle)
        if not self._settings.session:
            for filter_ in self._conn.listAllNWFilters():
                if filter_.name().startswith(prefix):
                    filter_.undefine()

    def remove_shelter_if_unused(self) -> None:
        if not self._settings.session:
            with suppress(libvirt.libvirtError):  # libvirt keeps what is referred to
                self._conn.nwfilterLookupByName(names.shelter_filter(self._settings.factory)).undefine()

    def _put(self, name: str, text: str) -> None:
        try:
            if same_filter(self._conn.nwfilterLookupByName(name).XMLDesc(), text):
                return
        except libvirt.libvirtError as error:
            if not is_missing(error):
                raise
        self._conn.nwfilterDefineXML(text)

    def _host_addresses(self) -> tuple[set[str], set[str]]:
        """The host's own addresses, as far as they can be known from here, and the ranges of its networks."""
        subnets: set[str] = set()
        found = local_addresses() if self._settings.local else set()
        for network in self._conn.listAllNetworks():
            with suppress(libvirt.libvirtError):  # removed since it was listed
                text = network.XMLDesc()
                found.update(read_addresses(text))
                subnets.update(read_subnets(text))
        return {address for address in found if address and ":" not in address}, subnets


def local_addresses() -> set[str]:
    """This machine's IPv4 addresses, from the kernel's routing table; loopback left out."""
    try:
        lines = Path("/proc/net/fib_trie").read_text().splitlines()
    except OSError:
        return set()
    found = {above.split()[-1] for above, below in pairwise(lines) if below.strip() == "/32 host LOCAL"}
    return {address for address in found if not address.startswith("127.")}
