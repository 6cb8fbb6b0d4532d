"""What Slurm's commands print as text: ``scontrol show -o``, ``sacct --parsable2``, ``sstat``. Pure.

These forms have been the same for many years, where their JSON differs with each version (and ``sacct --json`` of 22.05
says 0 for the exit codes of jobs that failed).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from usina.core.task import Usage
from usina.core.units import MiB
from usina.drivers.slurm.records import JobRecord, NodeRecord, PartitionRecord, PastRecord

PAST_FIELDS: Final = (
    "JobID", "JobIDRaw", "JobName", "User", "Partition", "State", "ExitCode", "Submit", "Start", "End", "NodeList",
    "TotalCPU", "MaxRSS", "Reason",
)  # fmt: skip
_LIMITS: Final = (
    "MaxTime", "DefaultTime", "MaxNodes", "MinNodes", "MaxCPUsPerNode", "MaxMemPerNode", "QoS", "AllowAccounts",
    "AllowGroups", "AllowQos", "PreemptMode",
)  # fmt: skip
_NO_LIMIT: Final = {"UNLIMITED", "ALL", "N/A", "0", "NONE", "OFF", "(null)", ""}
_SCALE: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def fields(line: str) -> dict[str, str]:
    """``Name=value Name=value``; values may have spaces in them."""
    found = re.split(r"(?:^|\s+)([A-Z][A-Za-z_:/]*)=", line.strip())
    return {name: value.strip() for name, value in zip(found[1::2], found[2::2], strict=False)}


def nodes(text: str) -> list[NodeRecord]:
    return [_node(fields(line)) for line in text.splitlines() if line.startswith("NodeName=")]


def partitions(text: str) -> list[PartitionRecord]:
    return [_partition(fields(line)) for line in text.splitlines() if line.startswith("PartitionName=")]


def past(text: str) -> list[PastRecord]:
    """Lines of sacct with `PAST_FIELDS`: jobs, each followed by its steps, whose use is added up."""
    found: dict[str, tuple[JobRecord, list[dict[str, str]]]] = {}
    for line in text.splitlines():
        row = dict(zip(PAST_FIELDS, line.split("|"), strict=False))
        if len(row) < len(PAST_FIELDS):
            continue
        job, _, step = row["JobID"].partition(".")
        if step and job in found:
            found[job][1].append(row)
        elif not step:
            found[job] = _job(row), []
    return [PastRecord(job, _usage(steps, job.end)) for job, steps in found.values()]


def used(text: str) -> Usage | None:
    """Lines of ``sstat -P -n -o AveCPU,MaxRSS,NTasks``."""
    rows = [line.split("|") for line in text.splitlines() if line.count("|") == 2]
    if not rows:
        return None
    cpu = sum(spent(row[0]) * int(row[2] or 1) for row in rows if row[2].isdecimal())
    memory = sum(size(row[1]) for row in rows)
    return Usage(cpu=cpu, memory=memory, peak=memory)


def switches(text: str) -> str:
    """``scontrol show topology`` → "leaf1: n[1-2]; spine: leaf1,leaf2"."""
    rows = [fields(line) for line in text.splitlines() if "SwitchName=" in line]
    return "; ".join(f"{row['SwitchName']}: {row.get('Switches') or row.get('Nodes', '')}" for row in rows)


def spent(text: str) -> float:
    """``1-02:03:04``, ``02:03.045`` → seconds."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+(?:\.\d+)?)", text.strip())
    if not match:
        return 0.0
    days, hours, minutes, seconds = (float(word or 0) for word in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def size(text: str) -> int:
    """``11896K`` → bytes."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)", text.strip())
    return int(float(match[1]) * _SCALE[match[2]]) if match else 0


def _node(row: dict[str, str]) -> NodeRecord:
    return NodeRecord(
        name=row["NodeName"],
        address=row.get("NodeAddr", row["NodeName"]),
        cpus=int(row.get("CPUTot", "0") or 0),
        memory=int(row.get("RealMemory", "0") or 0) * MiB,
        gres=_real(row.get("Gres")),
        features=_listed(row.get("AvailableFeatures")),
        arch=_real(row.get("Arch")),
        states=_states(row.get("State", "")),
        version=_real(row.get("Version")),
    )


def _states(said: str) -> frozenset[str]:
    """``IDLE+DRAIN*`` → its words; the star means that it does not respond."""
    words = {word for word in re.split(r"[^A-Z_]+", said.upper()) if word}
    return frozenset(words | ({"NOT_RESPONDING"} if "*" in said else set()))


def _partition(row: dict[str, str]) -> PartitionRecord:
    limits = {name: row[name] for name in _LIMITS if row.get(name, "") not in _NO_LIMIT}
    return PartitionRecord(row["PartitionName"], _real(row.get("Nodes")), frozenset({row.get("State", "")}), limits)


def _job(row: dict[str, str]) -> JobRecord:
    array, index = 0, None
    if match := re.fullmatch(r"(\d+)_(\d+)", row["JobID"]):
        array, index = int(match[1]), int(match[2])
    elif match := re.match(r"(\d+)_\[", row["JobID"]):
        array = int(match[1])
    code, _, signal = row["ExitCode"].partition(":")
    return JobRecord(
        id=int(row["JobIDRaw"].partition("_")[0] or 0),
        name=row["JobName"],
        user=row["User"],
        partition=row["Partition"],
        states=frozenset(row["State"].split()[:1]),
        reason=_real(row["Reason"]),
        status=int(code or 0) * 256 + int(signal or 0),
        submitted=_when(row["Submit"]),
        start=_when(row["Start"]),
        end=_when(row["End"]),
        nodes="" if row["NodeList"] == "None assigned" else row["NodeList"],
        array=array,
        index=index,
        restarts=None,
    )


def _usage(steps: Iterable[dict[str, str]], at: float) -> Usage | None:
    rows = list(steps)
    if not rows:
        return None
    return Usage(cpu=sum(spent(row["TotalCPU"]) for row in rows), peak=max(size(row["MaxRSS"]) for row in rows), at=at)


def _when(text: str) -> float:
    return float(text) if text.isdecimal() else 0.0


def _real(text: str | None) -> str:
    return "" if text in (None, "(null)", "N/A", "None") else str(text)


def _listed(text: str | None) -> tuple[str, ...]:
    return tuple(word for word in _real(text).split(",") if word)
