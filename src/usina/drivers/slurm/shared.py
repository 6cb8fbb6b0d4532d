"""Files that many runs of a project have alike, such as weights: kept once for each member, called by their sha256.

    <runs>/shared/<project>/<digest>      read-only; runs have further names (hard links) of the same file

A file that no run has a name of is dropped when there are more bytes than the option ``shared_limit`` allows, the one
used longest ago first. One that a run has is never dropped: it has more than one name. All of it is done as the member,
whose files they are; between members and projects nothing is shared.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from usina.core.task import FilePlan
from usina.drivers.slurm.identity import Person, run
from usina.drivers.slurm.script import Place
from usina.ports.driver import DriverError

_LIMIT = 3600.0  # seconds for one file to be written
_THERE = 'touch -c -- "$1/$2" 2>/dev/null; [ -f "$1/$2" ] && ! [ -L "$1/$2" ]'
_TAKE = """
set -eu; umask 077
mkdir -p -- "$1"
cat >"$1/$2.$$" && chmod 444 -- "$1/$2.$$" && mv -f -- "$1/$2.$$" "$1/$2"
"""
_LINK = """
set -eu; umask 077
cd -- "$3"; mkdir -p -- "$(dirname -- "$4")"
ln -f -- "$1/$2" "$4" 2>/dev/null || { cp -- "$1/$2" "$4.$$" && mv -f -- "$4.$$" "$4"; }
"""
_TRIM = """
cd -- "$1" || exit 0
total=$(find . -type f -printf '%s\\n' | awk '{ s += $1 } END { printf "%d", s }')
if [ "$total" -gt "$2" ]; then
  find . -type f -links 1 -printf '%T@ %s %p\\n' | sort -n | while read -r _ size path; do
    if [ "$total" -le "$2" ]; then break; fi
    rm -f -- "$path"; total=$((total - size))
  done
fi
"""


def folder_of(place: Place, project: str) -> str:
    """Where a project's files are, beside the runs of a member."""
    return f"{PurePosixPath(place.folder).parent}/shared/{project}"


async def link(person: Person, place: Place, folder: str, file: FilePlan, path: str) -> None:
    """Give a run a name for a file, which is brought there if it is not. May be repeated."""
    digest = PurePosixPath(file.source).name
    done = await run(["/bin/sh", "-c", _THERE, "sh", folder, digest], person=person, limit=60)
    if done.code:
        with Path(file.source).open("rb") as source:  # noqa: ASYNC230 - the command reads it, not we
            await _do(person, path, _TAKE, folder, digest, stdin=source)
    await _do(person, path, _LINK, folder, digest, place.absolute_work, path)


async def trim(person: Person, folder: str, limit: int) -> None:
    """Drop what no run uses, until no more than `limit` bytes are left."""
    await run(["/bin/sh", "-c", _TRIM, "sh", folder, str(limit)], person=person, limit=600)


async def _do(person: Person, what: str, script: str, *words: str, stdin: object = None) -> None:
    done = await run(["/bin/sh", "-c", script, "sh", *words], person=person, stdin=stdin, limit=_LIMIT)  # type: ignore[arg-type]
    if done.code:
        reason = done.err.splitlines()[-1] if done.err else "no reason given"
        raise DriverError(f"{what} could not be shared as {person.name}: {reason}", detail=done.err)
