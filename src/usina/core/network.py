"""Addresses of a project's networks: subnets cut from a pool, addresses cut from a subnet, MACs derived from them."""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Collection, Iterator
from functools import lru_cache

from usina.core.errors import Invalid

POOL = "10.64.0.0/12"
"""Where networks without a range of their own are cut from, a /24 each (4,096 of them)."""


@lru_cache(maxsize=4096)
def gateway_of(cidr: str) -> str:
    """The first address of the range: the host's side, DHCP and DNS."""
    return str(ipaddress.IPv4Network(cidr)[1])


def parse_range(cidr: str, field: str = "cidr") -> str:
    """A private IPv4 range of /16 to /29, normalised. Raises `Invalid` naming `field`."""
    try:
        network = ipaddress.IPv4Network(cidr)
    except ValueError:
        raise Invalid(f"{field}: {cidr!r} is not an IPv4 range such as 10.80.1.0/24", field=field) from None
    private = any(
        network.subnet_of(ipaddress.IPv4Network(p)) for p in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")
    )
    if not private or not 16 <= network.prefixlen <= 29:
        raise Invalid(f"{field}: must be a private range of /16 to /29", field=field)
    return str(network)


def parse_remote(cidr: str, field: str = "remote") -> str:
    """Any IPv4 range, normalised. Raises `Invalid` naming `field`."""
    try:
        return str(ipaddress.IPv4Network(cidr))
    except ValueError:
        raise Invalid(f"{field}: {cidr!r} is not an IPv4 range such as 0.0.0.0/0", field=field) from None


def blocks(cidr: str) -> list[str]:
    """The /24 blocks that a range covers or lies in: what it takes, so that no two ranges can overlap."""
    network = ipaddress.IPv4Network(cidr)
    if network.prefixlen > 24:
        return [str(network.supernet(new_prefix=24))]
    return [str(block) for block in network.subnets(new_prefix=24)]


def free_range(taken: Collection[str], seed: str) -> str | None:
    """A /24 of the pool that is none of the blocks `taken`; where the search begins depends on `seed`, so that
    parallel orders seldom collide."""
    pool = ipaddress.IPv4Network(POOL)
    count = 1 << (24 - pool.prefixlen)
    start = _number(seed) % count
    for step in range(count):
        candidate = str(ipaddress.IPv4Network((int(pool.network_address) + ((start + step) % count << 8), 24)))
        if candidate not in taken:
            return candidate
    return None


def candidates(cidr: str, seed: str) -> Iterator[str]:
    """Every address a guest may have, once; the order depends on `seed`, so that parallel orders seldom collide."""
    network = ipaddress.IPv4Network(cidr)
    count = network.num_addresses - 3  # network, gateway, broadcast
    start = _number(seed) % count
    first = int(network.network_address) + 2
    for step in range(count):
        yield str(ipaddress.IPv4Address(first + (start + step) % count))


def mac_of(address: str) -> str:
    """The MAC of the card with an IPv4 address: ``10.80.1.5`` is on ``52:54:0a:50:01:05``.

    Locally administered and unicast. Ranges never overlap, so MACs are as unique as addresses, and a network knows its
    cards before there are any.
    """
    return "52:54:" + ipaddress.IPv4Address(address).packed.hex(":")


def _number(seed: str) -> int:
    return int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "big")
