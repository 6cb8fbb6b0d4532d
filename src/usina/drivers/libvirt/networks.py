"""Project networks on a host. Blocking. A network that exists is changed in place: guests on it keep running."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Final

import libvirt

from usina.core.machine import NetworkPlan
from usina.drivers.libvirt import names
from usina.drivers.libvirt.faults import is_missing
from usina.drivers.libvirt.filters import Filters
from usina.drivers.libvirt.network_xml import Book, card_xml, name_xml, network_xml, read_book
from usina.drivers.libvirt.settings import Settings

_DELETE: Final = libvirt.VIR_NETWORK_UPDATE_COMMAND_DELETE
_ADD: Final = libvirt.VIR_NETWORK_UPDATE_COMMAND_ADD_LAST
_CARDS: Final = libvirt.VIR_NETWORK_SECTION_IP_DHCP_HOST
_NAMES: Final = libvirt.VIR_NETWORK_SECTION_DNS_HOST
_TRIES: Final = 3


class Networks:
    """The networks of one factory, seen through one connection. In a session there are none."""

    def __init__(self, conn: libvirt.virConnect, settings: Settings) -> None:
        self._conn = conn
        self._settings = settings

    def ensure(self, plan: NetworkPlan) -> None:
        if self._settings.session:
            return
        network = self._find(plan.handle)
        if network is None:
            network = self._conn.networkDefineXML(network_xml(plan, self._settings.factory))
        if not network.autostart():
            network.setAutostart(1)
        if not network.isActive():
            _bring_up(network)
            Filters(self._conn, self._settings).ensure_shelter()
        _update(network, lambda book: book.with_hosts(plan.hosts))

    def remove(self, handle: str) -> None:
        network = None if self._settings.session else self._find(handle)
        if network is not None:
            if network.isActive():
                network.destroy()
            network.undefine()
            Filters(self._conn, self._settings).ensure_shelter()

    def forget_names(self, cards: Iterable[tuple[str, str]]) -> None:
        """Take the names of cards, each given as network name and MAC address, out of the DNS.

        Their DHCP entries stay: a card has its address to itself, and each change there interrupts the guests of the
        network (`network_xml`).
        """
        for name, mac in cards:
            network = _missing_is_none(partial(self._conn.networkLookupByName, name))
            if network is not None:
                _update(network, partial(Book.without_name, mac=mac))

    def _find(self, handle: str) -> libvirt.virNetwork | None:
        uuid = names.guest_uuid(self._settings.factory, handle)
        return _missing_is_none(lambda: self._conn.networkLookupByUUIDString(uuid))


def _missing_is_none(look_up: Callable[[], libvirt.virNetwork]) -> libvirt.virNetwork | None:
    try:
        return look_up()
    except libvirt.libvirtError as error:
        if is_missing(error):
            return None
        raise


def _bring_up(network: libvirt.virNetwork) -> None:
    try:
        network.create()
    except libvirt.libvirtError:
        if not network.isActive():  # else another control plane was quicker
            raise


def _update(network: libvirt.virNetwork, change: Callable[[Book], Book]) -> None:
    """Change whom the running network knows, and whom it will know when it is started again.

    Another control plane may do the same at this moment: what it did is then seen, and not done again.
    """
    for live in (True, False) if network.isActive() else (False,):
        for left in reversed(range(_TRIES)):
            try:
                _settle(network, change, live)
                break
            except libvirt.libvirtError:
                if not left:
                    raise


def _settle(network: libvirt.virNetwork, change: Callable[[Book], Book], live: bool) -> None:
    """One round. Raises what was refused, when all has been tried."""
    present = read_book(network.XMLDesc(0 if live else libvirt.VIR_NETWORK_XML_INACTIVE))
    wanted = change(present)
    flag = libvirt.VIR_NETWORK_UPDATE_AFFECT_LIVE if live else libvirt.VIR_NETWORK_UPDATE_AFFECT_CONFIG
    refused: libvirt.libvirtError | None = None
    for command, section, text in _differences(present, wanted):
        try:
            network.update(command, section, -1, text, flag)
        except libvirt.libvirtError as error:
            refused = error
    if refused:
        raise refused


def _differences(present: Book, wanted: Book) -> Iterator[tuple[int, int, str]]:
    """Commands, sections and texts. Deleting comes first: no two entries may share a side, not even for a moment."""
    for section, told, table, xml in (
        (_CARDS, present.cards, wanted.cards, card_xml),
        (_NAMES, present.names, wanted.names, name_xml),
    ):
        for command, entries in ((_DELETE, told.items() - table.items()), (_ADD, table.items() - told.items())):
            for key, value in sorted(entries):
                yield command, section, xml(key, value)
