"""Project networks on a host. Blocking. A network that exists is changed in place: guests on it keep running."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import Final

import libvirt

from usina.core.machine import NetworkPlan
from usina.drivers.libvirt import names
from usina.drivers.libvirt.faults import is_missing
from usina.drivers.libvirt.filters import Filters
from usina.drivers.libvirt.network_xml import Book, card_xml, is_told_whole, name_xml, network_xml, read_book, read_subnets
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
        _update(network, lambda book, live: book.with_hosts(plan.hosts))

    def remove(self, handle: str) -> None:
        network = None if self._settings.session else self._find(handle)
        if network is not None:
            if network.isActive():
                network.destroy()
            network.undefine()
            Filters(self._conn, self._settings).ensure_shelter()

    def forget_cards(self, cards: Iterable[tuple[str, str]]) -> None:
        """Take cards, each given as network name and MAC address, out of the DNS.

        A network that is told of its cards one by one forgets them as well, but not while it runs: that would
        interrupt its guests (`network_xml`), and an entry does no harm until its address is given to another card.
        """
        for name, mac in cards:
            network = _missing_is_none(partial(self._conn.networkLookupByName, name))
            if network is not None:
                _update(network, partial(_without, mac=mac))

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


def _without(book: Book, live: bool, mac: str) -> Book:
    whole = mac == mac_of(book.cards.get(mac, ""))
    return book.without_name(mac) if live or whole else book.without_card(mac)


def _update(network: libvirt.virNetwork, change: Callable[[Book, bool], Book]) -> None:
    """Change whom the running network knows, and whom it will know when it runs again."""
    for live in (True, False):
        if network.isActive() or not live:
            _settle(network, partial(change, live=live), live)


def _settle(network: libvirt.virNetwork, change: Callable[[Book], Book], live: bool) -> None:
    """Another control plane may do the same at this moment: what it did first is looked at, and not done again."""
    for _ in range(_TRIES - 1):
        with suppress(libvirt.libvirtError):
            return _change(network, change, live)
    _change(network, change, live)


def _change(network: libvirt.virNetwork, change: Callable[[Book], Book], live: bool) -> None:
    present = read_book(network.XMLDesc(0 if live else libvirt.VIR_NETWORK_XML_INACTIVE))
    wanted = change(present)
    tell = partial(_tell, network, libvirt.VIR_NETWORK_UPDATE_AFFECT_LIVE if live else libvirt.VIR_NETWORK_UPDATE_AFFECT_CONFIG)
    _move(present.cards, wanted.cards, partial(tell, _CARDS, card_xml)
    _move(present.names, wanted.names, _NAMES, name_xml)
