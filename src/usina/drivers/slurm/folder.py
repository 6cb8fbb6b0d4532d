"""A run's folder on the shared file system, handled as the member. Every function is one small command run as them.

Nothing here is ever done as root: the folder is the member's, who may have put links and pipes where files were. The
member can read and destroy only what is theirs anyway.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import shlex
import tarfile
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from usina.core.task import FilePlan
from usina.core.units import Instant
from usina.drivers.slurm import shared
from usina.drivers.slurm.identity import Person, becoming, put_away, run
from usina.drivers.slurm.script import ENVIRONMENT, Place
from usina.ports.driver import DriverError

CHUNK = 1 << 20  # bytes read of one file at a time
_AT_ONCE = 16 << 20  # bytes read of all files of a run at a time
_MOST = 64 << 20  # bytes of one file that are worth reading: what lies further back would be dropped at once

_MAKE = """
set -eu; umask 077
mkdir -p -- "$1/say" "$1/exit" "$2"
cd -- "$1"; [ -O . ] || { echo "$1 belongs to somebody else" >&2; exit 9; }
exec cat >"$3"
"""
_PUT = 'umask 077; cd -- "$1" && mkdir -p -- "$(dirname -- "$2")" && cat >"$2" && chmod -- "$3" "$2"'
_UNPACK = 'umask 022; cd -- "$1" && mkdir -p -- "$2" && exec tar -xzf - --no-same-owner -C "$2"'
_READ = f"""
cd -- "$1" || exit 3
shift
left={_AT_ONCE}
for f in say/* exit/*; do
  case $f in *"*"*|*.new|*.code|exit/gang) continue ;; esac
  if [ -f "$f" ] && ! [ -L "$f" ]; then
    from=0
    for known; do case $known in "$f="*) from=${{known#*=}} ;; esac; done
    size=$(stat -c %s -- "$f"); at=$(stat -c %.3Y -- "$f")
    if [ $((size - from)) -gt {_MOST} ]; then from=$((size - {_MOST})); fi
    n=$((size - from))
    if [ "$n" -lt 0 ]; then n=0; fi
    if [ "$n" -gt {CHUNK} ]; then n={CHUNK}; fi
    if [ "$n" -gt "$left" ]; then n=$left; fi
    left=$((left - n))
    printf '%s %s %s %s\\n' "$f" "$from" "$n" "$at"
    if [ "$n" -gt 0 ]; then tail -c "+$((from + 1))" -- "$f" | head -c "$n"; fi
  fi
done
"""
_LIST = 'cd -- "$1" && exec find . -type f -print0'
_PACK = 'cd -- "$1" && exec tar -cf - --no-recursion --null --verbatim-files-from -T -'
_DROP = 'if [ -d "$1" ]; then chmod -R u+rwX -- "$1" 2>/dev/null; rm -rf -- "$1"; fi'


@dataclass(frozen=True, slots=True)
class Read:
    """New bytes of one file."""

    name: str  # "say/o.3"
    start: int
    data: bytes
    at: Instant  # when it was last written


def place_for(workdir: str, factory: str, person: Person, handle: str, wanted: str) -> Place:
    """Where a run goes. `wanted` is the working directory of its plan."""
    if workdir:
        root = workdir.replace("%u", person.name) if "%u" in workdir else f"{workdir}/{person.name}"
    else:
        root = f"{person.home or '~'}/.usina"
    work = wanted if wanted.startswith("/") else f"work/{inside(wanted)}".rstrip("/")
    return Place(f"{root}/{factory}/{handle}", work)


def inside(path: str) -> str:
    """A path below the working directory, made plain. Raises a lasting `DriverError` where it leads out of it."""
    parts = [part for part in PurePosixPath(path).parts if part != "."]
    if path.startswith("/") or ".." in parts or "\0" in path or "\n" in path:
        raise DriverError(
            f"{path[:200]!r} does not lie in the working directory, which Slurm tasks keep to", lasting=True
        )
    return "/".join(parts)


async def make(
    person: Person, place: Place, environment: str, files: tuple[FilePlan, ...], project: str, limit: int
) -> None:
    """Make the folder with all that is in it before the run begins. May be repeated. `limit`: bytes of files that are
    shared by the runs of a project."""
    paths = place.folder, place.absolute_work, ENVIRONMENT
    await _do(person, "the run's folder", _MAKE, *paths, stdin=environment.encode())
    together = shared.folder_of(place, project)
    for file in files:
        path = inside(file.path)
        if file.shared and not file.unpack:
            await shared.link(person, place, together, file, path)
            continue
        with Path(file.source).open("rb") as source:  # noqa: ASYNC230 - the command reads it, not we
            if file.unpack:
                await _do(person, path or "its files", _UNPACK, place.absolute_work, path or ".", stdin=source)
            else:
                await _do(person, path, _PUT, place.absolute_work, path, f"{file.mode & 0o777:04o}", stdin=source)

    if any(file.shared for file in files):
        await shared.trim(person, together, limit)


async def read(person: Person, place: Place, known: Mapping[str, int]) -> list[Read]:
    """What the files of ``say`` and ``exit`` have past the positions that are `known`."""
    words = [f"{name}={position}" for name, position in known.items()]
    done = await run(["/bin/sh", "-c", _READ, "sh", place.folder, *words], person=person, limit=30)
    return _reads(done.out) if done.code == 0 else []


async def secrets(person: Person, place: Place, names: tuple[str, ...]) -> tuple[str, ...]:
    """The values of variables, from the run's own environment, the longest first; () where it is gone or altered."""
    done = await run(["cat", "--", f"{place.folder}/{ENVIRONMENT}"], person=person, limit=30)
    try:
        words = [word.partition("=") for word in shlex.split(done.out.decode())]
    except ValueError:
        return ()
    values = {value for name, is_one, value in words if is_one and name in names and value}
    return tuple(sorted(values, key=len, reverse=True))


async def drop(person: Person, place: Place) -> None:
    await _do(person, "the run's folder", _DROP, place.folder)


async def pack(person: Person, place: Place, patterns: tuple[str, ...]) -> AsyncIterator[bytes]:
    """A tar of the plain files in the working directory that match."""
    listed = await run(["/bin/sh", "-c", _LIST, "sh", place.absolute_work], person=person, limit=120)
    names = sorted(name for raw in listed.out.split(b"\0") if raw and matches(name := _text(raw), patterns))
    if not names:
        yield bytes(2 * tarfile.BLOCKSIZE * 10)
        return
    async for chunk in _stream(person, place.absolute_work, b"".join(_bytes(name) + b"\0" for name in names)):
        yield chunk


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether a file below the working directory, or a folder that it is in, is meant by one of the patterns."""
    path = PurePosixPath(name)
    return any(_meant(part, pattern) for part in (path, *path.parents) if part.name for pattern in patterns)


def _meant(path: PurePosixPath, pattern: str) -> bool:
    with contextlib.suppress(ValueError):  # an empty pattern means nothing
        return path.match(pattern.rstrip("/"))
    return False


async def _stream(person: Person, folder: str, names: bytes) -> AsyncIterator[bytes]:
    process = await asyncio.create_subprocess_exec(
        *becoming(person), "/bin/sh", "-c", _PACK, "sh", folder, stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL, env=person.environment, cwd="/",
    )  # fmt: skip
    assert process.stdin and process.stdout
    feed = asyncio.ensure_future(_feed(process.stdin, names))
    try:
        while chunk := await process.stdout.read(CHUNK):
            yield chunk
        await process.wait()
    finally:
        feed.cancel()
        await put_away(process)


async def _feed(stdin: object, names: bytes) -> None:
    with contextlib.suppress(OSError):
        stdin.write(names)  # type: ignore[attr-defined]
        await stdin.drain()  # type: ignore[attr-defined]
        stdin.close()  # type: ignore[attr-defined]


async def _do(person: Person, what: str, script: str, *words: str, stdin: object = None) -> None:
    done = await run(["/bin/sh", "-c", script, "sh", *words], person=person, stdin=stdin, limit=600)  # type: ignore[arg-type]
    if done.code:
        reason = done.err.splitlines()[-1] if done.err else "no reason given"
        raise DriverError(f"{what} could not be written as {person.name}: {reason}", lasting=True, detail=done.err)


def _reads(data: bytes) -> list[Read]:
    """The answer of `_READ`. A file that shrank while it was read spoils the rest, which the next look gets."""
    found: list[Read] = []
    while data:
        header, _, rest = data.partition(b"\n")
        match = re.fullmatch(r"(\S+) (\d+) (\d+) ([\d.]+)", _text(header))
        if not match or len(rest) < int(match[3]):
            break
        found.append(Read(match[1], int(match[2]), rest[: int(match[3])], float(match[4])))
        data = rest[int(match[3]) :]
    return found


def _text(raw: bytes) -> str:
    return raw.decode(errors="surrogateescape").removeprefix("./")


def _bytes(name: str) -> bytes:
    return name.encode(errors="surrogateescape")
