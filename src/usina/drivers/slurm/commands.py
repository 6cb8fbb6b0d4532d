"""Slurm by its commands: ``sbatch``, ``squeue --json``, ``scontrol``, ``sacct``, ``scancel``. May run programs here.

Each command runs for the one it concerns: submitting and cancelling as the member (see `identity`), listing as
ourselves. Environment is clean, words are passed as such, and nothing goes through a shell.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec

from usina.drivers.slurm import documents, text
from usina.drivers.slurm.identity import Done, Person, person_for, run
from usina.drivers.slurm.records import JobRecord, NodeRecord, PartitionRecord, PastRecord
from usina.drivers.slurm.request import JobRequest
from usina.drivers.slurm.settings import Settings
from usina.drivers.slurm.wire import failure, is_over
from usina.ports.driver import DriverError, HostUnreachable

_ENDED = "all"


class Commands:
    name = "commands"

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.environment = {"SLURM_TIME_FORMAT": "%s", **({"SLURM_CONF": settings.conf} if settings.conf else {})}

    async def version(self) -> str:
        return (await self._ask("sinfo", "--version")).removeprefix("slurm-wlm ").removeprefix("slurm ").strip()

    async def jobs(self) -> Sequence[JobRecord]:
        """22.05 gives all jobs whatever is asked; later versions only those of the partition, also ended ones."""
        said = await self._ask(
            "squeue", "--json", "--all", f"--states={_ENDED}", f"--partition={self._settings.partition}"
        )
        return await asyncio.to_thread(_jobs, said, self._settings.factory)

    async def past(self, jobs: Sequence[int], name: str = "") -> Sequence[PastRecord]:
        which = [f"--jobs={','.join(map(str, jobs))}"] if jobs else [f"--name={name}", "--starttime=now-7days"]
        fields = ",".join(text.PAST_FIELDS)
        done = await self._run(
            "sacct", "--allusers", "--parsable2", "--noheader", "--noconvert", f"--format={fields}", *which
        )
        return text.past(done.out.decode(errors="replace")) if done.code == 0 else ()

    async def nodes(self) -> Sequence[NodeRecord]:
        return text.nodes(await self._ask("scontrol", "--all", "--oneliner", "show", "node"))

    async def partitions(self) -> Sequence[PartitionRecord]:
        return text.partitions(await self._ask("scontrol", "--all", "--oneliner", "show", "partition"))

    async def topology(self) -> str:
        done = await self._run("scontrol", "--oneliner", "show", "topology")
        return text.switches(done.out.decode(errors="replace")) if done.code == 0 else ""

    async def submit(self, person: Person, request: JobRequest) -> int:
        done = await self._run(
            "sbatch",
            "--parsable",
            *_options(request),
            person=person,
            stdin=request.script.encode(),
            more=request.environment,
        )
        if done.code:
            raise failure(done.err, "the job")
        return int(done.out.split(b";")[0])

    async def cancel(self, person: str, jobs: Sequence[str], signal: str = "") -> None:
        words = (f"--signal={signal}", "--full") if signal else ()
        done = await self._run("scancel", *words, *jobs, person=person_for(self._settings, person))
        if done.code and not is_over(done.err):
            raise failure(done.err, "to cancel it")

    async def usage(self, job: str) -> str:
        """The words of `sstat` on all steps of a running job."""
        done = await self._run(
            "sstat", "--allsteps", "--parsable2", "--noheader", "--noconvert", "-o", "AveCPU,MaxRSS,NTasks", "-j", job
        )
        return done.out.decode(errors="replace") if done.code == 0 else ""

    async def close(self) -> None:
        pass

    async def _ask(self, *words: str) -> str:
        done = await self._run(*words)
        if done.code:
            raise failure(done.err, words[0])
        return done.out.decode(errors="replace")

    async def _run(
        self, *words: str, person: Person | None = None, stdin: bytes | None = None, more: object = None
    ) -> Done:
        environment = {**self.environment, **(more if isinstance(more, dict) else {})}
        try:
            return await run(words, person=person, stdin=stdin, environment=environment, limit=60)
        except DriverError as error:
            raise HostUnreachable(f"Slurm does not answer: {error.public}", detail=error.detail) from error


def _jobs(said: str, factory: str) -> list[JobRecord]:
    """Where the controller is away, squeue succeeds and says so within: an empty list must not pass for no jobs."""
    document = msgspec.json.decode(said)
    problems = documents.problems(document.get("errors"))
    if problems or "jobs" not in document:
        raise HostUnreachable(f"Slurm does not answer: {'; '.join(problems) or 'no list of jobs'}")
    return [documents.job_of(job) for job in document["jobs"] if documents.is_ours(job, factory)]


def _options(request: JobRequest) -> list[str]:
    """The words of sbatch. Each value is in the word of its option, so that none can be taken for another."""
    given = {
        "job-name": request.name, "comment": request.name, "partition": request.partition, "ntasks": str(request.tasks),
        "cpus-per-task": str(request.cpus), "nodes": request.nodes, "chdir": "/", "output": request.output,
        "error": request.output, "open-mode": "append", "time": str(request.minutes or ""), "array": request.array,
        "account": request.account, "qos": request.qos, "reservation": request.reservation,
        "constraint": request.constraint, "dependency": request.dependency, "export": "ALL",
    }  # fmt: skip
    if request.memory:
        given["mem" if request.tasks == 1 else "mem-per-cpu"] = (
            f"{request.memory if request.tasks == 1 else request.memory_per_cpu}M"
        )
    if request.gres and request.tasks == 1:
        given["gres"] = ",".join(documents.written(gres) for gres in request.gres)
    elif request.gres:
        given["gpus-per-task"] = ",".join(documents.written(gres).removeprefix("gpu:") for gres in request.gres)
    words = [f"--{name}={value}" for name, value in given.items() if value]
    words.append("--requeue" if request.requeue else "--no-requeue")
    return [*words, "--exclusive"] if request.exclusive else words
