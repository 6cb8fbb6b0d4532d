"""Asking a running task how it is: a command beside it, a port of it, or a page behind that port."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from usina.core.task import Health
from usina.ports.driver import DriverError, HostUnreachable
from usina.ports.tasks import TaskDriver


async def is_well(driver: TaskDriver, handle: str, health: Health) -> bool:
    """One answer, within the limit. Raises `HostUnreachable`, which says nothing about the task."""
    try:
        async with asyncio.timeout(health.limit):
            if health.command:
                return await _exits_well(driver, handle, health.command)
            return await _answers(driver, handle, health)
    except HostUnreachable:
        raise
    except (TimeoutError, DriverError, OSError):
        return False


async def _exits_well(driver: TaskDriver, handle: str, command: tuple[str, ...]) -> bool:
    line = await driver.exec(handle, command, terminal=False)
    try:
        await line.write(b"")
        while await line.read():
            pass
        return await line.wait() == 0
    finally:
        with suppress(DriverError):
            await line.close()


async def _answers(driver: TaskDriver, handle: str, health: Health) -> bool:
    reader, writer = await driver.dial(handle, health.port)
    try:
        if not health.path:
            return await _stays_open(reader)
        writer.write(f"GET {health.path} HTTP/1.0\r\nHost: localhost\r\nUser-Agent: usina\r\n\r\n".encode())
        await writer.drain()
        words = (await reader.readline()).split()
        return len(words) > 1 and words[0].startswith(b"HTTP/") and words[1][:1] in (b"2", b"3")
    finally:
        writer.close()


async def _stays_open(reader: asyncio.StreamReader) -> bool:
    """Some stacks carry a connection that nobody took, and close it at once."""
    try:
        async with asyncio.timeout(0.2):
            return bool(await reader.read(1))
    except TimeoutError:
        return True
