"""Security groups as libvirt packet filters. Pure.

A guest's filter works on two layers. Below, frame by frame, only ARP and IPv4 with the guest's own MAC and IP pass, so
that nobody can pretend to be another, and nothing passes to or from another libvirt network of the host. That must be
said here: libvirt's NAT networks do refuse each other, but its packet filters accept first what they let through.

    -600 IPv4 to and from the own network is allowed
    -550 IPv4 to and from every other network of the host is dropped (the shelter filter)
    -500 other IPv4, and ARP, are allowed

Above, connections are tracked:

    100  DHCP, and DNS of the own gateway, are allowed
    200  new connections to the host itself are dropped (the shelter filter), as are link-local addresses,
         where clouds keep their metadata services
    500  the rules of the security groups, and answers to what they let through
    1000 the rest is dropped

`$IP`, `$GATEWAY`, `$SUBNET` and `$MASK` are filled in from the interface: a filter's text follows from the rules alone.

Format: https://libvirt.org/formatnwfilter.html
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Network
from typing import Final
from xml.etree.ElementTree import Element

from usina.core.machine import Rule
from usina.drivers.libvirt import names
from usina.drivers.libvirt.xml import add, parse, render, root

_SIDES: Final = (("out", "dst"), ("in", "src"))
_LINK_LOCAL: Final = "169.254.0.0/16"
_CLEAN: Final = ("no-mac-spoofing", "no-ip-spoofing", "no-arp-mac-spoofing", "no-arp-ip-spoofing")


def filter_xml(factory: str, handle: str, mac: str, rules: Iterable[Rule]) -> str:
    """The filter of one interface. Raises `ValueError` for a rule that is not IPv4."""
    name = names.packet_filter(handle, mac)
    filter_ = _filter(name)
    for clean in (*_CLEAN, names.shelter_filter(factory)):
        add(filter_, "filterref", filter=clean)
    _link_layer(filter_)
    _necessities(filter_)
    for rule in rules:
        _rule(filter_, rule)
    add(add(filter_, "rule", action="drop", direction="inout", priority=1000), "all")
    return render(filter_)


def shelter_xml(factory: str, addresses: Iterable[str], networks: Iterable[str]) -> str:
    """The filter that keeps guests off the host's own addresses and off each other's networks (CIDRs)."""
    filter_ = _filter(names.shelter_filter(factory))
    for network in sorted(set(networks)):
        for direction, side in _SIDES:
            drop = add(filter_, "rule", action="drop", direction=direction, priority=-550)
            add(drop, "ip", **_remote(side, network))
    for target in [_LINK_LOCAL, *sorted(set(addresses))]:
        drop = add(filter_, "rule", action="drop", direction="out", priority=200)
        add(drop, "all", **_remote("dst", target), state="NEW")
    return render(filter_)


def same_filter(one: str, other: str) -> bool:
    """Whether two filters say the same, however they are written."""
    return _essence(one) == _essence(other)


def _essence(text: str) -> list[tuple[str, tuple[tuple[str, str], ...]]]:
    return [(part.tag, tuple(sorted(part.items()))) for part in parse(text).iter() if part.tag != "uuid"]


def _filter(name: str) -> Element:
    filter_ = root("filter", name=name, chain="root")
    add(filter_, "uuid", names.named_uuid("filter", name))
    return filter_


def _link_layer(filter_: Element) -> None:
    for direction, side in _SIDES:
        own = add(filter_, "rule", action="accept", direction=direction, priority=-600)
        add(own, "ip", **{f"{side}ipaddr": "$SUBNET", f"{side}ipmask": "$MASK"})
    for protocol in ("arp", "ipv4"):
        add(
            add(filter_, "rule", action="accept", direction="inout", priority=-500),
            "mac",
            protocolid=protocol,
        )
    add(add(filter_, "rule", action="drop", direction="inout", priority=1000), "mac")


def _necessities(filter_: Element) -> None:
    dhcp = add(filter_, "rule", action="accept", direction="out", priority=100)
    add(dhcp, "udp", srcportstart=68, dstportstart=67)
    for protocol in ("udp", "tcp"):
        dns = add(filter_, "rule", action="accept", direction="out", priority=100)
        add(dns, protocol, dstipaddr="$GATEWAY", dstportstart=53)


def _rule(filter_: Element, rule: Rule) -> None:
    accept = add(filter_, "rule", action="accept", direction=rule.direction, priority=500)
    match = _remote("src" if rule.direction == "in" else "dst", rule.remote)
    first, last = rule.ports
    if rule.protocol in ("tcp", "udp") and last:
        match |= {"dstportstart": str(first), "dstportend": str(last)}
    add(accept, rule.protocol, **match)


def _remote(side: str, cidr: str) -> dict[str, str]:
    network = IPv4Network(cidr, strict=False)
    if network.prefixlen == 0:
        return {}
    return {f"{side}ipaddr": str(network.network_address), f"{side}ipmask": str(network.prefixlen)}
