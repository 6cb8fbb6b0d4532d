"""A TCP stream to a guest, from where its host can reach it. Does one thing: connects.

A guest of this machine is dialled straight; a guest of a host behind SSH through that host (`ssh -W`), with no shell
in between.
"""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Address
from typing import Final

from usina.drivers.libvirt.settings import Settings
from usina.ports.driver import DriverError

_PATIENCE: Final = 5.0

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def dial(settings: Settings, address: str, port: int) -> Streams:
    if settings.session:
        raise DriverError("a guest of a session host has no address to dial; use qemu:///system", lasting=True)
    try:
        target = IPv4Address(address)
    except ValueError as error:
        raise DriverError("not an IPv4 address", lasting=True) from error
    if settings.local:
        return await _dial_here(str(target), port)
    if settings.ssh_host:
        return await _dial_through(settings.ssh_host, settings.ssh_key, str(target), port)
    raise DriverError("a guest can be dialled on this machine and over SSH, but not over TLS", lasting=True)


async def _dial_here(address: str, port: int) -> Streams:
    try:
        return await asyncio.wait_for(asyncio.open_connection(address, port), _PATIENCE)
    except TimeoutError as error:
        raise DriverError(f"the guest does not answer on port {port}") from error
    except OSError as error:
        raise DriverError(f"the guest refuses port {port}", detail=str(error)) from error


async def _dial_through(host: str, key: str | None, address: str, port: int) -> Streams:
    """The standard streams of `ssh -W`. They end with the process, which ends when its input is closed."""
    identity = ("-i", key) if key else ()
    process = await asyncio.create_subprocess_exec(
        *("ssh", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={_PATIENCE:.0f}", *identity),
        *("-W", f"{address}:{port}", "--", f"ssh://{host}"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    return process.stdout, process.stdin
