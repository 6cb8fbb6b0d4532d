"""Files that many runs in a machine have alike, such as weights: brought there once, called by their sha256.

    /var/lib/usina/shared/<digest>     root's, for everybody to read; runs have symbolic links to it
    <run>/shared                       the digests that a run has, one a line; root's

A file that no run has is dropped when there are more bytes than the option ``shared_limit`` allows, the one used
longest ago first. A machine is one project's, so that nothing is shared between projects.
"""

from __future__ import annotations

import asyncio
from pathlib import Path, PurePosixPath
from typing import Final

import asyncssh

from usina.core.task import FilePlan
from usina.drivers.ssh.link import Link
from usina.drivers.ssh.scripts import RUNS
from usina.ports.driver import DriverError, HostUnreachable

SHARED: Final = "/var/lib/usina/shared"
CHUNK: Final = 1 << 18
_SILENT = 120.0  # seconds in which not a chunk goes through

# As root. Arguments: folder of the run, digest. The note is written first: from then on the file stays.
_NOTE: Final = f"""
set -eu; umask 022
mkdir -p -- {SHARED}; chmod 711 {SHARED}
grep -qxF -- "$2" "$1/shared" 2>/dev/null || printf '%s\\n' "$2" >>"$1/shared"
touch -c -- "{SHARED}/$2"; [ -f "{SHARED}/$2" ] || exit 7
"""
_TAKE: Final = f"""
set -eu; umask 022
cat >"{SHARED}/$1.$$" && chmod 444 "{SHARED}/$1.$$" && mv -f -- "{SHARED}/$1.$$" "{SHARED}/$1"
"""
# As the login user, in its own folder.
_LINK: Final = f"""
umask 077; cd -- "$1" && mkdir -p -- "$(dirname -- "$3")" && ln -sfn -- "{SHARED}/$2" "$3"
"""
_TRIM: Final = f"""
cd {SHARED} 2>/dev/null || exit 0
total=0
for f in *; do [ -f "$f" ] && total=$((total + $(stat -c %s -- "$f"))); done
[ "$total" -gt "$1" ] || exit 0
cat {RUNS}/*/shared 2>/dev/null | sort -u >"/run/usina-shared.$$"
ls -1tr | while read -r f; do
  if [ "$total" -le "$1" ]; then break; fi
  if grep -qxF -- "$f" "/run/usina-shared.$$"; then continue; fi
  size=$(stat -c %s -- "$f"); rm -f -- "./$f"; total=$((total - size))
done
rm -f "/run/usina-shared.$$"
"""


async def link_to(link: Link, folder: str, work: str, file: FilePlan, path: str) -> None:
    """Give a run a link to a file, which is brought into the machine if it is not there. May be repeated."""
    digest = PurePosixPath(file.source).name
    noted = await link.run(_NOTE, folder, digest)
    if noted.code == 7:
        await _take(link, digest, Path(file.source))
    elif noted.code:
        raise DriverError(f"{path} cannot be shared in the machine: {noted.err[-300:]}")
    made = await link.run(_LINK, work, digest, path, root=False)
    if made.code:
        raise DriverError(f"{path} cannot be written in the machine: {made.err[-300:]}", lasting=True)


async def trim(link: Link, limit: int) -> None:
    """Drop what no run has, until no more than `limit` bytes are left."""
    await link.run(_TRIM, str(limit))


async def _take(link: Link, digest: str, source: Path) -> None:
    async with link.process(_TAKE, digest) as process:
        try:
            with source.open("rb") as file:
                while chunk := await asyncio.to_thread(file.read, CHUNK):
                    process.stdin.write(chunk)
                    async with asyncio.timeout(_SILENT):
                        await process.stdin.drain()
            process.stdin.write_eof()
            said = bytes(await process.stderr.read()).decode(errors="replace").strip()
            await process.wait_closed()
        except (asyncssh.Error, OSError, TimeoutError) as error:
            raise HostUnreachable("SSH in the machine broke off", detail=str(error)) from error
        if process.exit_status is None:
            raise HostUnreachable("SSH in the machine broke off")
        if process.exit_status:
            raise DriverError(f"a shared file cannot be written in the machine: {said[-300:]}")
