"""Files into a run's working directory, and out of it: always as the login user, who can reach what is theirs anyway.

Nothing here is done as root in a folder that the user controls, where a link could lead anywhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path, PurePosixPath

import asyncssh

from usina.core.task import FilePlan
from usina.drivers.ssh import scripts
from usina.drivers.ssh.link import Link, Process
from usina.drivers.ssh.request import inner
from usina.ports.driver import DriverError, HostUnreachable

CHUNK = 1 << 18
_SILENT = 120.0  # seconds in which not a chunk goes through


async def put(link: Link, work: str, file: FilePlan) -> None:
    """One file or package."""
    target = file.path if file.path.startswith("/") else inner(file.path)
    script, more = (scripts.UNPACK, ()) if file.unpack else (scripts.PUT, (f"{file.mode & 0o777:04o}",))
    async with link.process(script, work, target or ".", *more, root=False) as process:
        try:
            await _feed(process, Path(file.source))
            said = bytes(await process.stderr.read()).decode(errors="replace").strip()
            await process.wait_closed()
        except (asyncssh.Error, OSError, TimeoutError) as error:
            raise HostUnreachable("SSH in the machine broke off", detail=str(error)) from error
        if process.exit_status is None:
            raise HostUnreachable("SSH in the machine broke off")
        if process.exit_status:
            reason = said.splitlines()[-1][:300] if said else "no reason given"
            raise DriverError(f"{file.path or 'its files'} cannot be written in the machine: {reason}", lasting=True)


async def _feed(process: Process, source: Path) -> None:
    with source.open("rb") as file:
        while chunk := await asyncio.to_thread(file.read, CHUNK):
            if process.exit_status is not None:
                return
            process.stdin.write(chunk)
            async with asyncio.timeout(_SILENT):
                await process.stdin.drain()
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write_eof()


async def pack(link: Link, work: str, patterns: tuple[str, ...]) -> AsyncIterator[bytes]:
    """A tar of the plain files in the working directory that match."""
    listed = await link.run(scripts.LIST, work, root=False, limit=_SILENT)
    if listed.code:
        raise DriverError("its working directory cannot be read", detail=listed.err)
    names = sorted(raw.removeprefix(b"./") for raw in listed.out.split(b"\0") if raw)
    wanted = [name for name in names if matches(name.decode(errors="surrogateescape"), patterns)]
    if not wanted:
        yield bytes(2 * tarfile.BLOCKSIZE * 10)
        return
    async with link.process(scripts.PACK, work, root=False) as process:
        feed = asyncio.create_task(_names(process, b"".join(name + b"\0" for name in wanted)))
        try:
            while True:
                async with asyncio.timeout(_SILENT):
                    chunk = await process.stdout.read(CHUNK)
                if not chunk:
                    break
                yield bytes(chunk)
            await process.wait_closed()
        except (asyncssh.Error, OSError, TimeoutError) as error:
            raise HostUnreachable("SSH in the machine broke off", detail=str(error)) from error
        finally:
            feed.cancel()
        if process.exit_status is None:
            raise HostUnreachable("SSH in the machine broke off")


async def _names(process: Process, names: bytes) -> None:
    with contextlib.suppress(asyncssh.Error, OSError):
        process.stdin.write(names)
        await process.stdin.drain()
        process.stdin.write_eof()


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether a file below the working directory, or a folder that it is in, is meant by one of the patterns."""
    path = PurePosixPath(name)
    return any(_meant(part, pattern) for part in (path, *path.parents) if part.name for pattern in patterns)


def _meant(path: PurePosixPath, pattern: str) -> bool:
    with contextlib.suppress(ValueError):  # an empty pattern means nothing
        return path.match(pattern.rstrip("/"))
    return False
