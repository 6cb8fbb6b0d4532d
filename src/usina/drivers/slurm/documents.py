"""Slurm's JSON documents, of slurmrestd and of ``squeue --json``, and what differs between their versions. Pure.

Known versions are v0.0.38 (Slurm 22.05) to v0.0.44. Run for real: v0.0.38 alone. The later ones are read and written
as their OpenAPI documents describe them, and tested against documents written by hand:

- v0.0.39 and later: numbers are ``{"set", "infinite", "number"}``, `job_state` and node states are lists (of nodes from
  v0.0.38 on, in `state` with `state_flags`), exit codes are objects, `environment` is a list of ``NAME=value``;
- v0.0.40 and later: ``script`` lies within ``job``, and a partition's fields in groups (`nodes.configured`);
- devices of a job are `gres` and `gpus_per_task` in v0.0.38, ``tres_per_node`` and ``tres_per_task`` after it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from usina.core.task import Usage
from usina.core.units import MiB
from usina.drivers.slurm.records import Gres, JobRecord, NodeRecord, PartitionRecord, PastRecord, numbers
from usina.drivers.slurm.request import JobRequest, job_name

VERSIONS: Final = tuple(f"v0.0.{number}" for number in range(44, 37, -1))
Document = Mapping[str, Any]
VAGUE: Final = "Unspecified error"  # slurmrestd's word where slurmctld is away, and where it takes no token
_UNKNOWN: Final = 0xFFFFFFFE  # NO_VAL and INFINITE of Slurm are this and one less


def number(value: Any) -> float | None:
    """A plain number, or ``{"set": …, "infinite": …, "number": …}``; None where it is not set or infinite."""
    if isinstance(value, Mapping):
        if not value.get("set", True) or value.get("infinite"):
            return None
        value = value.get("number")
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0 or value in (_UNKNOWN, _UNKNOWN + 1):
        return None
    return value


def is_ours(document: Document, factory: str) -> bool:
    return str(document.get("name") or "").startswith(job_name(factory, ""))


def job_of(document: Document) -> JobRecord:
    array = int(number(document.get("array_job_id")) or 0)
    index = number(document.get("array_task_id"))
    pending = numbers(_text(document.get("array_task_string")))
    return JobRecord(
        id=int(document["job_id"]),
        name=_text(document.get("name")),
        user=_text(document.get("user_name")),
        partition=_text(document.get("partition")),
        states=_states(document.get("job_state")),
        reason=_text(document.get("state_reason")),
        status=_status(document.get("exit_code")),
        submitted=number(document.get("submit_time")) or 0.0,
        start=number(document.get("start_time")) or 0.0,
        end=number(document.get("end_time")) or 0.0,
        nodes=_text(document.get("nodes")),
        batch_host=_text(document.get("batch_host")),
        array=array,
        index=None if index is None or not array else int(index),
        pending=pending if array else (),
        restarts=int(number(document.get("restart_cnt")) or 0),
    )


def past_of(document: Document) -> PastRecord:
    """A job of slurmdb. Of v0.0.38 the exit code cannot be believed: it says 0 of jobs that failed."""
    array = document.get("array") or {}
    times, state = document.get("time") or {}, document.get("state") or {}
    base = int(number(array.get("job_id")) or 0)
    index = number(array.get("task_id")) if base else None
    states = _states(state.get("current"))
    status = _status(document.get("exit_code"))
    job = JobRecord(
        id=int(document["job_id"]),
        name=_text(document.get("name")),
        user=_text(document.get("user")),
        partition=_text(document.get("partition")),
        states=states,
        reason=_text(state.get("reason")),
        status=None if not status and "FAILED" in states else status,
        submitted=number(times.get("submission")) or 0.0,
        start=number(times.get("start")) or 0.0,
        end=number(times.get("end")) or 0.0,
        nodes="" if document.get("nodes") == "None assigned" else _text(document.get("nodes")),
        array=base,
        index=None if index is None else int(index),
        restarts=None,
    )
    return PastRecord(job, _usage(document.get("steps") or [], job.end))


def node_of(document: Document) -> NodeRecord:
    states = _states(document.get("state")) | _states(document.get("state_flags"))
    return NodeRecord(
        name=_text(document.get("name")),
        address=_text(document.get("address")),
        cpus=int(number(document.get("cpus")) or 0),
        memory=int(number(document.get("real_memory")) or 0) * MiB,
        gres=_text(document.get("gres")),
        features=_words(document.get("features")),
        arch=_text(document.get("architecture")),
        states=states,
        version=_text(document.get("version") or document.get("slurmd_version")),
    )


def partition_of(document: Document) -> PartitionRecord:
    """v0.0.38 has it flat; v0.0.39 and later in groups."""
    nodes = document.get("nodes")
    grouped = isinstance(nodes, Mapping)
    maximums = document.get("maximums") or {}
    time = number(maximums.get("time") if grouped else document.get("max_time_limit"))
    most = number(maximums.get("nodes") if grouped else document.get("maximum_nodes_per_job"))
    state = (document.get("partition") or {}).get("state") if grouped else document.get("state")
    qos = (document.get("qos") or {}).get("assigned") if grouped else document.get("qos")
    limits = {
        "MaxTime": f"{int(time)} minutes" if time is not None else "",
        "MaxNodes": str(int(most)) if most is not None else "",
        "QoS": _text(qos),
    }
    name = _text(document.get("name"))
    limits = {key: value for key, value in limits.items() if value}
    return PartitionRecord(name, _text(nodes.get("configured") if grouped else nodes), _states(state), limits)  # type: ignore[union-attr]


def submission(request: JobRequest, version: str) -> dict[str, Any]:
    """The body of a submission."""
    new = _minor(version) >= 39
    job: dict[str, Any] = {
        "name": request.name, "comment": request.name, "partition": request.partition, "tasks": request.tasks,
        "cpus_per_task": request.cpus, "current_working_directory": "/", "standard_output": request.output,
        "standard_error": request.output, "requeue": request.requeue,
        "account": request.account, "qos": request.qos, "reservation": request.reservation,
        "constraints": request.constraint, "dependency": request.dependency, "array": request.array,
        "environment": [f"{k}={v}" for k, v in request.environment.items()] if new else dict(request.environment),
        "open_mode": ["APPEND"] if _minor(version) >= 40 else "append",
        **_devices(request, new),
    }  # fmt: skip
    if request.memory:
        key = "memory_per_node" if request.tasks == 1 else "memory_per_cpu"
        size = request.memory if request.tasks == 1 else request.memory_per_cpu
        job[key] = _number(size, new)
    if request.minutes:
        job["time_limit"] = _number(request.minutes, new)
    if request.nodes:
        job["nodes"] = request.nodes if "-" in request.nodes else f"{request.nodes}-{request.nodes}"
    if not new and not request.requeue:
        job["no_requeue"] = True  # its false of "requeue" means true
    if request.exclusive:
        job["shared" if new else "exclusive"] = ["none"] if _minor(version) >= 40 else "none" if new else "exclusive"
    job = {name: value for name, value in job.items() if value != ""}
    return (
        {"job": {**job, "script": request.script}} if _minor(version) >= 40 else {"script": request.script, "job": job}
    )


def problems(errors: Sequence[Document] | None) -> list[str]:
    """What an answer's `errors` say went wrong, in its own words."""
    return [_problem(error) for error in errors or []]


def _problem(error: Document) -> str:
    words, more = str(error.get("error") or ""), str(error.get("description") or "")
    if words == VAGUE and more:
        return f"{more} ({VAGUE})"
    return words or more or f"error {error.get('error_number') or error.get('error_code')}"


def _devices(request: JobRequest, new: bool) -> dict[str, str]:
    if not request.gres:
        return {}
    if request.tasks == 1:
        return {
            "tres_per_node" if new else "gres": ",".join(written(gres, "gres/" if new else "") for gres in request.gres)
        }
    if new:
        return {"tres_per_task": ",".join(written(gres, "gres/") for gres in request.gres)}
    return {"gpus_per_task": ",".join(written(gres).removeprefix("gpu:") for gres in request.gres)}


def written(gres: Gres, prefix: str = "") -> str:
    return prefix + ":".join(word for word in (gres.name, gres.type, str(gres.count)) if word)


def _number(value: int, new: bool) -> Any:
    return {"set": True, "infinite": False, "number": value} if new else value


def _minor(version: str) -> int:
    return int(version.rpartition(".")[2])


def _text(value: Any) -> str:
    return value if isinstance(value, str) and value not in ("(null)", "N/A") else ""


def _words(value: Any) -> tuple[str, ...]:
    words = value if isinstance(value, list) else str(value or "").split(",")
    return tuple(word for word in words if word and word != "(null)")


def _states(value: Any) -> frozenset[str]:
    words = value if isinstance(value, list) else str(value or "").replace("+", " ").split()
    return frozenset(str(word).upper() for word in words)


def _status(value: Any) -> int | None:
    """An exit code of any version → as `wait` gives it."""
    if not isinstance(value, Mapping):
        plain = number(value)
        return None if plain is None else int(plain)
    if "number" in value:
        plain = number(value)
        return None if plain is None else int(plain)
    code = number(value.get("return_code")) or 0
    signal = value.get("signal") or {}
    signalled = number(signal.get("id", signal.get("signal_id"))) or 0
    return int(code) * 256 + int(signalled)


def _usage(steps: list[Document], at: float) -> Usage | None:
    if not steps:
        return None
    cpu, peak = 0.0, 0
    for step in steps:
        total = (step.get("time") or {}).get("total") or {}
        cpu += (number(total.get("seconds")) or 0) + (number(total.get("microseconds")) or 0) / 1e6
        most = ((step.get("tres") or {}).get("requested") or {}).get("max") or []
        peak = max([peak, *(int(number(tres.get("count")) or 0) for tres in most if tres.get("type") == "mem")])
    return Usage(cpu=cpu, peak=peak, at=at)
