"""Security groups as libvirt packet filters. Pure.

A guest's filter works on two layers. Below, frame by frame, a guest sends only ARP and IPv4 with its own MAC and IP, so
that nobody can pretend to be another, and nothing passes to or from another libvirt network of the host. That must be
said here: libvirt's NAT networks do refuse each other, but its packet filters accept first what they let through.

    -600 ARP, a first DHCP request, and IPv4 to and from the own network are allowed
    -550 IPv4 to the host, to and from its other networks, and to link-local addresses, where clouds keep their metadata
         services, is dropped (the shelter filter)
    -500 other IPv4 is allowed
    1000 the rest is dropped

Above, connections are tracked:

    100  DHCP, and DNS of the own gateway, are allowed
    200  other new connections to the gateway are dropped: it is the host
    500  the rules of the security groups, and answers to what they let through
    1000 the rest is dropped

`$MAC`, `$IP`, `$GATEWAY`, `$SUBNET` and `$MASK` are filled in from the interface: a filter's text follows from the
rules alone.

For every rule libvirt calls `ebtables` once, or `iptables` up to three times, before the guest may start, and each call
waits for the kernel. So there are few rules, and no chains but the root: what libvirt ships for the same purpose
(`no-mac-spoofing` and its kin) takes four chains.

Format: https://libvirt.org/formatnwfilter.html
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv4Network, collapse_addresses
from typing import Final
from xml.etree.ElementTree import Element

from usina.core.machine import Rule
from usina.core.network import POOL
from usina.drivers.libvirt import names
from usina.drivers.libvirt.xml import add, parse, render, root

_SIDES: Final = (("out", "dst"), ("in", "src"))
_LINK_LOCAL: Final = "169.254.0.0/16"
_NO_ADDRESS: Final = str(IPv4Address(0))


def filter_xml(factory: str, handle: str, mac: str, rules: Iterable[Rule]) -> str:
    """The filter of one interface. Raises `ValueError` for a rule that is not IPv4."""
    name = names.packet_filter(handle, mac)
    filter_ = _filter(name)
    add(filter_, "filterref", filter=names.shelter_filter(factory))
    _link_layer(filter_)
    _necessities(filter_)
    for rule in rules:
        _rule(filter_, rule)
    _add_rule(filter_, "drop", "inout", 1000, "all")
    return render(filter_)


def shelter_xml(factory: str, addresses: Iterable[str], networks: Iterable[str]) -> str:
    """The filter that keeps guests off the host's own addresses and off each other's networks (CIDRs).

    The pool that networks are cut from is closed as a whole, so that one more of them changes nothing here: a filter
    that changes is put up anew for every guest that refers to it.
    """
    filter_ = _filter(names.shelter_filter(factory))
    closed = list(collapse_addresses(IPv4Network(network) for network in (POOL, *networks)))
    own = [address for address in sorted(set(addresses)) if not any(IPv4Address(address) in one for one in closed)]
    for target in [_LINK_LOCAL, *own]:
        _add_rule(filter_, "drop", "out", -550, "ip", _remote("dst", target))
    for network in closed:
        for direction, side in _SIDES:
            _add_rule(filter_, "drop", direction, -550, "ip", _remote(side, str(network)))
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
    card = {"srcmacaddr": "$MAC"}
    asks = {"srcipaddr": _NO_ADDRESS, "protocol": "udp", "srcportstart": "68", "dstportstart": "67"}
    guest = card | {"srcipaddr": "$IP"}
    _add_rule(filter_, "accept", "out", -600, "arp", card | {"arpsrcmacaddr": "$MAC", "arpsrcipaddr": "$IP"})
    _add_rule(filter_, "accept", "out", -600, "ip", card | asks)
    _add_rule(filter_, "accept", "out", -600, "ip", guest | {"dstipaddr": "$SUBNET", "dstipmask": "$MASK"})
    _add_rule(filter_, "accept", "out", -500, "ip", guest)
    _add_rule(filter_, "accept", "in", -600, "arp")
    _add_rule(filter_, "accept", "in", -600, "ip", {"srcipaddr": "$SUBNET", "srcipmask": "$MASK"})
    _add_rule(filter_, "accept", "in", -500, "ip")
    _add_rule(filter_, "drop", "inout", 1000, "mac")


def _necessities(filter_: Element) -> None:
    """With its states said, a rule is for packets from the guest alone; answers of the host are not filtered."""
    states = {"state": "NEW,ESTABLISHED"}
    _add_rule(filter_, "accept", "out", 100, "udp", {"srcportstart": "68", "dstportstart": "67"} | states)
    for protocol in ("udp", "tcp"):
        _add_rule(filter_, "accept", "out", 100, protocol, {"dstipaddr": "$GATEWAY", "dstportstart": "53"} | states)
    _add_rule(filter_, "drop", "out", 200, "all", {"dstipaddr": "$GATEWAY", "state": "NEW"})


def _rule(filter_: Element, rule: Rule) -> None:
    match = _remote("src" if rule.direction == "in" else "dst", rule.remote)
    first, last = rule.ports
    if rule.protocol in ("tcp", "udp") and last:
        match |= {"dstportstart": str(first), "dstportend": str(last)}
    _add_rule(filter_, "accept", rule.direction, 500, rule.protocol, match)


def _add_rule(
    filter_: Element, action: str, direction: str, priority: int, protocol: str, match: Mapping[str, str] | None = None
) -> None:
    add(add(filter_, "rule", action=action, direction=direction, priority=priority), protocol, **(match or {}))


def _remote(side: str, cidr: str) -> dict[str, str]:
    network = IPv4Network(cidr, strict=False)
    if network.prefixlen == 0:
        return {}
    return {f"{side}ipaddr": str(network.network_address), f"{side}ipmask": str(network.prefixlen)}
