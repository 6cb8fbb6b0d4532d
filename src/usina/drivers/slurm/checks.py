"""What `usina doctor` says of Slurm on this machine. May run Slurm's commands."""

from __future__ import annotations

import shutil

from usina.drivers.slurm.identity import run
from usina.ports.driver import Check, DriverError

_COMMANDS = ("sbatch", "squeue", "scancel", "scontrol", "srun")


async def diagnose() -> list[Check]:
    """Nothing of it is needed where a cluster is reached by slurmrestd."""
    lacks = [name for name in _COMMANDS if not shutil.which(name)]
    if lacks:
        mend = "apt-get install slurm-client, or give the cluster's slurmrestd as url"
        return [Check("slurm commands", False, f"not found: {', '.join(lacks)}", mend, needed=False)]
    return [
        await _answers("slurm commands", ("sbatch", "--version"), "reinstall slurm-client"),
        await _answers("munge", ("munge", "-n"), "start munged with the cluster's key", shown="it signs"),
        await _answers(
            "slurmctld", ("scontrol", "ping"), "see whether /etc/slurm/slurm.conf is the cluster's", word="is UP"
        ),
    ]


async def _answers(name: str, words: tuple[str, ...], mend: str, *, shown: str = "", word: str = "") -> Check:
    try:
        done = await run(words, limit=10)
    except DriverError as error:
        return Check(name, False, error.public, mend, needed=False)
    said = (done.out.decode(errors="replace").strip() or done.err).splitlines()
    well = done.code == 0 and (not word or any(word in line for line in said))
    return Check(
        name, well, shown if well and shown else (said or ["no answer"])[0][:200], "" if well else mend, needed=False
    )
