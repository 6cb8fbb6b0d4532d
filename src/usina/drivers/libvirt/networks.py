"""Project networks on a host. Blocking. A network that exists is changed in place: guests on it keep running."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial

import libvirt

from usina.core.machine import NetworkPlan
from usina.drivers.libvirt import names
from usina.drivers.libvirt.faults import is_missing
from usina.drivers.libvirt.filters import Filters
from usina.drivers.libvirt.network_xml import HostEntry, host_xml, merge_hosts, network_xml, read_hosts, without_host
from usina.drivers.libvirt.settings import Settings


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
        for live in (True, False):
            _update_hosts(network, lambda present: merge_hosts(present, plan.hosts), live=live)
        Filters(self._conn, self._settings).ensure_shelter()

    def remove(self, handle: str) -> None:
        network = None if self._settings.session else self._find(handle)
        if network is not None:
            if network.isActive():
                network.destroy()
            network.undefine()
            Filters(self._conn, self._settings).ensure_shelter()

    def forget_hosts(self, cards: Iterable[tuple[str, str]]) -> None:
        """Drop the DHCP entries of cards, each given as network name and MAC address, from what is kept on disk.

        A running network keeps them until their address or name is given to another card: any change to it makes
        libvirt take down and put up all its firewall rules, seconds in which its guests reach nothing.
        """
        for name, mac in cards:
            network = _missing_is_none(partial(self._conn.networkLookupByName, name))
            if network is not None:
                _update_hosts(network, partial(without_host, mac=mac), live=False)

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


def _update_hosts(
    network: libvirt.virNetwork, change: Callable[[Mapping[str, HostEntry]], Mapping[str, HostEntry]], *, live: bool
) -> None:
    """Delete before adding: two entries may not share an address or a name, not even for a moment."""
    present = read_hosts(network.XMLDesc(0 if live else libvirt.VIR_NETWORK_XML_INACTIVE))
    wanted = change(present)
    for mac, entry in present.items():
        if wanted.get(mac) != entry:
            _change(network, libvirt.VIR_NETWORK_UPDATE_COMMAND_DELETE, entry, live)
    for mac, entry in wanted.items():
        if present.get(mac) != entry:
            _change(network, libvirt.VIR_NETWORK_UPDATE_COMMAND_ADD_LAST, entry, live)


def _change(network: libvirt.virNetwork, command: int, entry: HostEntry, live: bool) -> None:
    flags = libvirt.VIR_NETWORK_UPDATE_AFFECT_LIVE if live else libvirt.VIR_NETWORK_UPDATE_AFFECT_CONFIG
    network.update(command, libvirt.VIR_NETWORK_SECTION_IP_DHCP_HOST, -1, host_xml(entry), flags)
