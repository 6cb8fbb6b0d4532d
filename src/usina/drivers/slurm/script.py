"""The batch script of a run, and the small files around it. Pure text.

Everything from outside passes `shlex.quote`; nothing is ever pasted. In the run's folder on the cluster:

    work/           the working directory
    environment     its variables, as a shell reads them; only its owner may read it
    say/o say/e     what it says; of unit 3 of an array or gang say/o.3; say/s is what Slurm says
    exit/0          how a unit ended: "<how> <code> <began> <ended> <restarts>", then CPU time as `times` does
    first           a link that names the job which runs this: another job under the same handle does nothing

*Secrecy.* Variables go into `environment`, which nobody but the member and root can read, and never into the job's own
environment, which some sites keep in accounting. Where files are shared, the control plane writes it as the member, and
nothing of it is in the script. Where they are not, it and all other files are within the script, which Slurm shows to
the job's owner and to its operators only.

*Seconds.* Slurm limits time in minutes. The script ends a unit after its seconds by SIGTERM, and SIGKILL after `grace`;
Slurm's own limit stands behind that. A SIGTERM to the script is passed on to the command's process group, a SIGUSR2
kills it at once: Slurm itself sends no SIGKILL before its KillWait is over, half a minute at most sites.
"""

from __future__ import annotations

import base64
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from usina.core.task import TaskPlan
from usina.ports.driver import DriverError

ENVIRONMENT = "environment"
EMBEDDED = 3 << 20  # bytes of files, as base64, that a script may carry; Slurm refuses scripts of more than 4 MiB
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z", re.ASCII)

# What runs one unit. Arguments: folder, working directory, limit, grace, "array" | "gang" | "", then the command.
# Its own messages (bash tells of killed jobs) are nobody's, so they go nowhere. An exit code comes by way of a file:
# `wait` loses it when a signal comes between (bash 5.2 then says -1), while the shell around the command waits for it
# in the foreground, where signals wait as well. One that was killed together with its shell has 137. In a gang, Slurm
# tells every process of the step by itself.
_UNIT = r"""
_folder=$1 _work=$2 _limit=$3 _grace=$4 _kind=$5; shift 5
case $_kind in
  array) _unit=$SLURM_ARRAY_TASK_ID _tail=.$_unit; export USINA_INDEX=$_unit ;;
  gang) _unit=$SLURM_PROCID _tail=.$_unit; export USINA_RANK=$_unit USINA_SIZE=$SLURM_NTASKS USINA_INDEX=$_unit ;;
  *) _unit=0 _tail= ;;
esac
cd -- "$_folder" || exit 1
if [ -e "exit/$_unit" ] || [ -e "exit/$_unit.code" ]; then rm -f -- "exit/$_unit" "exit/$_unit.code"; fi
exec >>"say/o$_tail" 2>>"say/e$_tail" </dev/null
_began=${EPOCHREALTIME:-$(date +%s.%N)}
_told() {
  {
    printf '%s %s %s %s %s\n' "$1" "$2" "$_began" "${EPOCHREALTIME:-$(date +%s.%N)}" "${SLURM_RESTART_COUNT:-0}"; times
  } >"$_folder/exit/$_unit.new"
  mv -f -- "$_folder/exit/$_unit.new" "$_folder/exit/$_unit"
  exit "$2"
}
cd -- "$_work" || { echo "usina: no such working directory: $_work" >&2; _told not-started 126; }
set -m
_child= _asked= _late= _code=
_tell() { if [ -n "$_child" ]; then kill "-$1" -- "-$_child"; fi; }
trap '_asked=1; if [ "$_kind" != gang ]; then _tell TERM; fi' TERM
trap '_late=1; _tell TERM' USR1
trap '_asked=1; _tell KILL' USR2
exec 3>&2 2>/dev/null
(
  set +m
  trap : TERM USR1 USR2
  (
    trap - TERM USR1 USR2
    if [ -f "$_folder/environment" ]; then . "$_folder/environment"; fi
    umask 022
    type -P -- "$1" >/dev/null || { echo none >"$_folder/exit/$_unit.code"; exit 127; }
    exec -- "$@" 2>&3 3>&-
  )
  _code=$?
  [ -e "$_folder/exit/$_unit.code" ] || printf '%s\n' "$_code" >"$_folder/exit/$_unit.code"
) &
_child=$!
if [ -n "$_asked" ]; then _tell TERM; fi
_guard=
if [ "$_limit" != 0 ]; then
  (
    trap '' TERM USR1 USR2; exec >/dev/null 3>&-
    sleep "$_limit"; kill -USR1 $$; sleep "$_grace"; kill -KILL -- "-$_child"
  ) &
  _guard=$!
fi
while kill -0 "$_child"; do wait "$_child"; done
read -r _code <"$_folder/exit/$_unit.code" || _code=137
kill -KILL -- "-$_child"
if [ -n "$_guard" ]; then kill -KILL -- "-$_guard"; fi
if [ "$_code" = none ]; then echo "usina: no such command: $1" >&3; _told not-started 127; fi
if [ -n "$_late" ]; then _told late "$_code"; fi
if [ -n "$_asked" ]; then _told asked "$_code"; fi
_told exited "$_code"
"""

# Only the first job that comes here runs: a submission whose answer was lost may have been repeated. An array is one
# job; a job that was queued again is the same one.
_BEGIN = r"""
umask 077
_job=${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}
cd -- "$_folder" || { echo "usina: the run's folder is gone, so it was removed" >&2; exit 1; }
ln -s -- "$_job" first 2>/dev/null || [ "$(readlink first)" = "$_job" ] ||
  { echo "usina: job $(readlink first) runs this already" >&2; exit 1; }
"""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run is on the cluster. `folder` may begin with ``~/`` where this machine does not know the home."""

    folder: str
    work: str  # absolute, or relative to `folder`

    @property
    def absolute_work(self) -> str:
        return self.work if self.work.startswith("/") else f"{self.folder}/{self.work}"


def batch_script(plan: TaskPlan, place: Place, embedded: str = "") -> str:
    """The whole script. `embedded` comes before the run and makes its folder, where files are not shared."""
    kind = "array" if plan.indices else "gang" if plan.replicas > 1 else ""
    words = " ".join((
        '"$_folder"', '"$_work"', seconds(plan.time_limit), seconds(plan.grace), shlex.quote(kind),
        *(shlex.quote(word) for word in plan.command),
    ))  # fmt: skip
    return "\n".join((
        "#!/bin/bash",
        f"_folder={path_word(place.folder)}",
        f"_work={path_word(place.absolute_work)}",
        f"_unit={shlex.quote(_UNIT)}",
        embedded + _BEGIN,
        _gang(plan, f'/bin/bash -c "$_unit" usina {words}') if kind == "gang" else f'set -- {words}\neval "$_unit"',
        "",
    ))  # fmt: skip


def _gang(plan: TaskPlan, unit: str) -> str:
    """All ranks as one step. A signal to the batch script does not reach it, so the script passes it on."""
    srun = (
        f"srun --ntasks={plan.replicas} --cpus-per-task={whole_cores(plan)} --kill-on-bad-exit=1 --unbuffered "
        "--input=none --export=ALL"
    )
    return "\n".join((
        "command -v srun >/dev/null || . /etc/profile",
        "set -m",
        """trap 'scancel --signal=TERM "$SLURM_JOB_ID.0"' TERM""",
        """trap 'scancel --signal=USR2 "$SLURM_JOB_ID.0"' USR2""",
        f'( set +m; trap : TERM USR2; {srun} {unit}; printf "%s\\n" "$?" >exit/gang ) &',
        "_child=$!",
        'while kill -0 "$_child" 2>/dev/null; do wait "$_child"; done',
        'read -r _code <exit/gang && exit "$_code"; exit 1',
    ))  # fmt: skip


def environment_file(environment: Mapping[str, str]) -> str:
    """What a shell reads to have the variables, and nothing else."""
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in checked(environment).items())


def checked(environment: Mapping[str, str]) -> Mapping[str, str]:
    """The variables, if a process can have them. Raises a lasting `DriverError` naming the one at fault."""
    for name, value in environment.items():
        if not _NAME.match(name) or name.startswith("_usina"):
            raise DriverError(f"{name[:80]!r} cannot be the name of a variable on Slurm", lasting=True)
        if "\0" in value:
            raise DriverError(f"the variable {name} has a NUL character in it", lasting=True)
    return environment


def embed(environment: str, files: list[tuple[str, bytes, int, bool]]) -> str:
    """Shell that makes the run's folder and writes files: (path below the working directory, content, mode, unpack).

    Elements of an array may begin at the same time: the first one writes, and the others wait for it.
    """
    lines = [
        "umask 077", 'mkdir -p -- "$_folder"/say "$_folder"/exit "$_work" || exit 1', 'exec 9>"$_folder"/lock',
        "flock 9", 'if ! [ -e "$_folder"/whole ]; then',
        *_written(f'"$_folder"/{ENVIRONMENT}', environment.encode(), 0o600),
    ]  # fmt: skip
    for path, content, mode, unpack in files:
        target = f'"$_work"/{shlex.quote(path)}' if path else '"$_work"'
        lines += _unpacked(target, content) if unpack else _written(target, content, mode)
    text = "\n".join((*lines, 'touch -- "$_folder"/whole', "fi", "exec 9>&-", ""))
    if len(text) > EMBEDDED:
        raise DriverError(
            f"its files are {len(text) >> 20} MiB in a script; a Slurm cluster without shared files takes "
            f"{EMBEDDED >> 20} MiB",
            lasting=True,
        )
    return text


def _written(target: str, content: bytes, mode: int) -> list[str]:
    return [
        f'mkdir -p -- "$(dirname -- {target})"', f"base64 -d >{target} <<'USINA' || exit 1", _text(content),
        f"chmod {mode & 0o777:o} -- {target}",
    ]  # fmt: skip


def _unpacked(target: str, content: bytes) -> list[str]:
    return [f"mkdir -p -- {target} && base64 -d <<'USINA' | tar -xzf - -C {target} || exit 1", _text(content)]


def _text(content: bytes) -> str:
    return base64.encodebytes(content).decode() + "USINA"


def path_word(path: str) -> str:
    """A path as a shell word; a leading ``~/`` stays the home."""
    if path.startswith("~/"):
        return f'"${{HOME:-$(getent passwd "$(id -u)" | cut -d: -f6)}}"/{shlex.quote(path[2:])}'
    return shlex.quote(path)


def whole_cores(plan: TaskPlan) -> int:
    return max(1, -int(-plan.cores // 1))


def seconds(value: float) -> str:
    return f"{max(0.0, value):.3f}".rstrip("0").rstrip(".")
