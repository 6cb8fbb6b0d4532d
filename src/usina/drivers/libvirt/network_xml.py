"""A project's network in libvirt's words: a NAT bridge with DHCP and DNS of its own. Pure.

DHCP answers only the cards it was told of. There is no dynamic range on purpose: an address that was given to a
stranger could be one that a machine of the project is about to get. A card's MAC follows from its address, so a network
of the usual size is told of all its cards when it is made: libvirt takes down and puts up a network's whole firewall to
tell it of one more, which takes seconds in which its guests reach nothing. Names may come and go; they are in the DNS,
from where the DHCP server takes them, too.

Bridges run without the spanning tree protocol, which would keep a new card deaf for four seconds. No guest can close a
loop: its packet filter lets no frame out that has another's MAC.

Format: https://libvirt.org/formatnetwork.html
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import Final
from xml.etree.ElementTree import Element

from usina.core.machine import NetworkPlan
from usina.core.network import mac_of
from usina.drivers.libvirt import names
from usina.drivers.libvirt.xml import USINA, add, parse, render, root

_TOLD_WHOLE: Final = 24  # bits of the prefix of the largest network that knows all its cards from the start


@dataclass(frozen=True, slots=True)
class Book:
    """Whom a network knows. Both sides of each table are unique."""

    cards: Mapping[str, str]  # MAC -> address, for DHCP
    names: Mapping[str, str]  # address -> hostname, for DNS

    def with_hosts(self, hosts: Iterable[tuple[str, str, str]]) -> Book:
        """With these (MAC, address, hostname) in it. What has an address or a hostname of theirs has to go."""
        hosts = tuple(hosts)
        return Book(
            _merge(self.cards, {mac.lower(): address for mac, address, _ in hosts}),
            _merge(self.names, {address: name for _, address, name in hosts if name}),
        )

    def without_name(self, mac: str) -> Book:
        """Without the name of the card with that MAC."""
        address = self.cards.get(mac.lower())
        return Book(self.cards, {one: name for one, name in self.names.items() if one != address})


def network_xml(plan: NetworkPlan, factory: str) -> str:
    name, subnet = names.network(factory, plan.handle), IPv4Network(plan.cidr)
    known = Book(_all_cards(subnet), {}).with_hosts(plan.hosts)
    network = root("network")
    add(network, "name", name)
    add(network, "uuid", names.guest_uuid(factory, plan.handle))
    add(add(network, "metadata"), f"{{{USINA}}}network", factory=factory, handle=plan.handle)
    add(network, "forward", mode="nat")
    add(network, "bridge", name=name, stp="off", delay=0)
    add(network, "domain", name=plan.domain, localOnly="yes")
    _names(network, known.names)
    dhcp = add(add(network, "ip", address=plan.gateway, prefix=subnet.prefixlen), "dhcp")
    for mac, address in known.cards.items():
        add(dhcp, "host", mac=mac, ip=address)
    return render(network)


def card_xml(mac: str, address: str) -> str:
    """One DHCP entry, for a live change."""
    return render(root("host", mac=mac, ip=address))


def name_xml(address: str, name: str) -> str:
    """One DNS entry, for a live change."""
    host = root("host", ip=address)
    add(host, "hostname", name)
    return render(host)


def read_book(network: str) -> Book:
    """Whom a network knows, from its XML."""
    tree = parse(network)
    return Book(
        {host.get("mac", "").lower(): host.get("ip", "") for host in tree.iterfind("ip/dhcp/host")},
        {host.get("ip", ""): host.findtext("hostname", "") for host in tree.iterfind("dns/host")},
    )


def read_addresses(network: str) -> list[str]:
    """The host's own addresses on a network: its gateways."""
    return [address.get("address", "") for address in parse(network).iterfind("ip")]


def read_subnets(network: str) -> list[str]:
    """The IPv4 ranges of a network's XML, as CIDRs."""
    return [
        str(IPv4Network(f"{part.get('address')}/{part.get('prefix') or part.get('netmask')}", strict=False))
        for part in parse(network).iterfind("ip")
        if part.get("family", "ipv4") == "ipv4" and (part.get("prefix") or part.get("netmask"))
    ]


def _all_cards(subnet: IPv4Network) -> dict[str, str]:
    """Those of every address a guest may have, where these are few enough; else none."""
    if subnet.prefixlen < _TOLD_WHOLE:
        return {}
    return {mac_of(address): address for address in map(str, list(subnet)[2:-1])}


def _names(network: Element, known: Mapping[str, str]) -> None:
    if known:
        dns = add(network, "dns")
        for address, name in known.items():
            add(add(dns, "host", ip=address), "hostname", name)


def _merge(present: Mapping[str, str], wanted: Mapping[str, str]) -> dict[str, str]:
    taken = set(wanted.values())
    return {key: value for key, value in present.items() if value not in taken} | dict(wanted)
