"""Where downloads may go: not into the house's own network.

Every address that a name stands for must be public, unless the operator allows private ones; the connection is made to
the address that was checked, so that a name cannot change its mind in between.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import httpx2

from usina.core.errors import Invalid

_NAT64 = ipaddress.ip_network("64:ff9b::/96")

Resolve = Callable[[str, int], Awaitable[list[str]]]
"""Host and port → the addresses it stands for."""


async def resolve(host: str, port: int) -> list[str]:
    """By the system's resolver, which also reads ``0x7f.1`` and ``2130706433`` as addresses."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


@dataclass(frozen=True, slots=True)
class Reach:
    """Where downloads may go."""

    allow_private: bool = False
    resolve: Resolve = resolve

    async def check(self, url: str) -> None:
        """Raises `Invalid` (field "url") for what may not be reached."""
        await self.of_url(url)

    async def of_url(self, url: str) -> str:
        """As `address`, for a URL as it is written."""
        try:
            return await self.address(httpx2.URL(url))
        except httpx2.InvalidURL as error:
            raise Invalid(f"url: {error}", field="url") from None

    async def address(self, url: httpx2.URL) -> str:
        """The checked address to connect to for `url`.

        Raises `Invalid` (field "url") for what may not be reached.
        """
        if url.scheme not in ("http", "https"):
            raise bad_url(f"{url.scheme or 'this'!r} is not http or https")
        if url.userinfo:
            raise bad_url("user names and passwords do not belong into it")
        if not url.host:
            raise bad_url("it names no host")
        try:
            addresses = await self.resolve(url.host, url.port or (443 if url.scheme == "https" else 80))
        except (OSError, UnicodeError):
            raise bad_url(f"there is no host {url.host!r}") from None
        if not addresses:
            raise bad_url(f"there is no host {url.host!r}")
        if not self.allow_private and not all(is_public(address) for address in addresses):
            raise bad_url(f"{url.host!r} is not on the public internet")
        return addresses[0]


def is_public(address: str) -> bool:
    """Whether everybody can reach `address`; IPv6 that carries an IPv4 address is judged by that one."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour
        if ip in _NAT64 or int(ip) >> 32 == 0:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if ip.teredo or (inner is not None and not is_public(str(inner))):
            return False
        if inner is not None:
            return True
    return ip.is_global and not ip.is_multicast


def bad_url(reason: str) -> Invalid:
    return Invalid(f"url: {reason}", field="url")
