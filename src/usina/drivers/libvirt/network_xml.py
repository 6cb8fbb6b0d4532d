"""A project's network in libvirt's words: a NAT bridge with DHCP and DNS of its own. Pure.

DHCP answers only the cards it was told of. There is no dynamic range on purpose: an address that was given to a
stranger could be one that a machine of the project is about to get.

Format: https://libvirt.org/formatnetwork.html
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import IPv4Network
from typing import Final
from xml.etree.ElementTree import Element

from usina.core.machine import NetworkPlan
from usina.drivers.libvirt import names
from usina.drivers.libvirt.xml import USINA, add, parse, render, root

_LEASE: Final = 2  # minutes, libvirt's least; an address freed is soon free for its next machine

HostEntry = tuple[str, str, str]  # mac, address, hostname


def network_xml(plan: NetworkPlan, factory: str) -> str:
    name = names.network(factory, plan.handle)
    network = root("network")
    add(network, "name", name)
    add(network, "uuid", names.guest_uuid(factory, plan.handle))
    add(add(network, "metadata"), f"{{{USINA}}}network", factory=factory, handle=plan.handle)
    add(network, "forward", mode="nat")
    add(network, "bridge", name=name, stp="on", delay=0)
    add(network, "domain", name=plan.domain, localOnly="yes")
    address = add(network, "ip", address=plan.gateway, prefix=IPv4Network(plan.cidr).prefixlen)
    dhcp = add(address, "dhcp")
    for entry in sorted(plan.hosts):
        _host(dhcp, entry)
    return render(network)


def host_xml(entry: HostEntry) -> str:
    """One DHCP entry, for a live change."""
    return render(_host(root("dhcp"), entry))


def read_hosts(network: str) -> dict[str, HostEntry]:
    """The DHCP entries of a network's XML by MAC address."""
    entries = (
        (host.get("mac", "").lower(), host.get("ip", ""), host.get("name", ""))
        for host in parse(network).iterfind("ip/dhcp/host")
    )
    return {entry[0]: entry for entry in entries}


def merge_hosts(present: Mapping[str, HostEntry], wanted: Iterable[HostEntry]) -> dict[str, HostEntry]:
    """`present` with the `wanted` entries in it. What shares an address or a name with one of them has to go."""
    merged = dict(present)
    for mac, address, name in wanted:
        clashing = [m for m, (_, a, n) in merged.items() if a == address or (name and n == name)]
        for other in clashing:
            del merged[other]
        merged[mac.lower()] = (mac.lower(), address, name)
    return merged


def without_host(present: Mapping[str, HostEntry], mac: str) -> dict[str, HostEntry]:
    return {one: entry for one, entry in present.items() if one != mac.lower()}


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


def _host(dhcp: Element, entry: HostEntry) -> Element:
    mac, address, hostname = entry
    host = add(dhcp, "host", mac=mac, **({"name": hostname} if hostname else {}), ip=address)
    add(host, "lease", expiry=_LEASE, unit="minutes")
    return host
