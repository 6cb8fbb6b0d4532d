"""Hosts and requests as texts: CSV as clusters publish it, and JSON of our own.

CSV of hosts: ``sn,cpu_milli,memory_mib,gpu,model``. CSV of requests: ``cpu_milli,memory_mib,num_gpu,gpu_milli`` and
optionally ``gpu_spec`` (models, ``A|B``); further columns are ignored. These are the columns of the Alibaba GPU trace
of 2023.

JSON: ``{"hosts": [...]}`` as `usina placement export` writes it, where an entry may carry ``"copies": n`` for n hosts
alike; ``{"requests": [...]}`` with the fields of `Needs` (cores, memory in bytes, devices ...), and ``"copies"``
likewise.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import msgspec

from usina.core.capacity import Device, DeviceKind, DeviceRequest, HostState, Inventory, Needs, NumaNode, Provider
from usina.core.errors import Invalid
from usina.core.units import MiB

T = TypeVar("T")

COPIES = 1_000_000  # hosts or requests at most


def hosts_of(text: str, field: str = "hosts") -> list[Provider]:
    """Hosts from CSV or JSON. Raises `Invalid` naming `field` and the line."""
    hosts = _hosts_json(text, field) if _is_json(text) else _hosts_csv(text, field)
    if not hosts:
        raise Invalid(f"{field}: there are no hosts in it", field=field)
    return hosts


def requests_of(text: str, field: str = "requests") -> list[Needs]:
    """Requests from CSV or JSON, in their order. Raises `Invalid` naming `field` and the line."""
    requests = _requests_json(text, field) if _is_json(text) else _requests_csv(text, field)
    if not requests:
        raise Invalid(f"{field}: there are no requests in it", field=field)
    return requests


def hosts_text(hosts: Iterable[Provider]) -> str:
    """JSON that `hosts_of` reads."""
    return msgspec.json.format(msgspec.json.encode({"hosts": list(hosts)}).decode())


def _is_json(text: str) -> bool:
    return text.lstrip()[:1] in ("{", "[")


# --- CSV


def _hosts_csv(text: str, field: str) -> list[Provider]:
    alike: dict[tuple[int, int, int, str], Inventory] = {}
    hosts = []
    for number, line in _lines(text, ("cpu_milli", "memory_mib", "gpu", "model"), field):
        cpu, memory = _count(line, "cpu_milli", number, field), _count(line, "memory_mib", number, field)
        key = (cpu, memory, _count(line, "gpu", number, field, 64), line["model"].strip())
        if key not in alike:
            alike[key] = _inventory(*key)
        name = (line.get("sn") or line.get("name") or f"host-{number}").strip()
        hosts.append(Provider(name, name, "trace", HostState.ENABLED, 1, alike[key]))
    return hosts


def _inventory(cpu_milli: int, memory_mib: int, gpus: int, model: str) -> Inventory:
    node = NumaNode(0, tuple(range(cpu_milli // 1000)), memory_mib * MiB)
    devices = tuple(Device(f"{slot:04x}:00:00.0", DeviceKind.GPU, model) for slot in range(gpus))
    return Inventory((node,), 0, devices)


def _requests_csv(text: str, field: str) -> list[Needs]:
    alike: dict[tuple[int, int, int, int, str], Needs] = {}
    requests = []
    for number, line in _lines(text, ("cpu_milli", "memory_mib", "num_gpu", "gpu_milli"), field):
        key = (
            _count(line, "cpu_milli", number, field),
            _count(line, "memory_mib", number, field),
            _count(line, "num_gpu", number, field, 1024),
            _count(line, "gpu_milli", number, field, 1000),
            (line.get("gpu_spec") or "").strip(),
        )
        if key not in alike:
            alike[key] = _needs(*key)
        requests.append(alike[key])
    return requests


def _needs(cpu_milli: int, memory_mib: int, gpus: int, share: int, models: str) -> Needs:
    part = share if gpus == 1 and 0 < share < 1000 else 0
    devices = (DeviceRequest(DeviceKind.GPU, gpus, models or None, share=part),) if gpus else ()
    return Needs(cpu_milli / 1000, memory_mib * MiB, 0, devices=devices)


def _lines(text: str, columns: Sequence[str], field: str) -> Iterable[tuple[int, dict[str, str]]]:
    reader = csv.DictReader(io.StringIO(text))
    missing = [column for column in columns if column not in (reader.fieldnames or ())]
    if missing:
        raise Invalid(f"{field}: the first line lacks the columns {', '.join(missing)}", field=field)
    return enumerate(reader, start=2)


def _count(line: dict[str, str], column: str, number: int, field: str, most: int = 1 << 50) -> int:
    try:
        value = int(line[column] or 0)
    except (TypeError, ValueError):
        raise Invalid(f"{field}: line {number}: {column} is {line[column]!r}, not a number", field=field) from None
    if not 0 <= value <= most:
        raise Invalid(f"{field}: line {number}: {column} is {value}, not 0 to {most}", field=field)
    return value


# --- JSON


def _hosts_json(text: str, field: str) -> list[Provider]:
    hosts: list[Provider] = []
    for entry, copies in _entries(text, "hosts", field):
        host = _convert(entry, Provider, field)
        hosts.append(host)
        for copy in range(2, copies + 1):
            hosts.append(replace(host, id=f"{host.id}-{copy}", name=f"{host.name}-{copy}"))
    return hosts


def _requests_json(text: str, field: str) -> list[Needs]:
    requests: list[Needs] = []
    for entry, copies in _entries(text, "requests", field):
        requests += [_convert({"disk": 0, "memory": 0, **entry}, Needs, field)] * copies
    return requests


def _entries(text: str, name: str, field: str) -> list[tuple[dict[str, Any], int]]:
    try:
        document = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise Invalid(f"{field}: is not JSON: {error}", field=field) from None
    found = document.get(name) if isinstance(document, dict) else None
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise Invalid(f"{field}: must be an object with a list {name!r} of objects", field=field)
    entries = [({k: v for k, v in entry.items() if k != "copies"}, entry.get("copies", 1)) for entry in found]
    if not all(isinstance(copies, int) and copies > 0 for _, copies in entries):
        raise Invalid(f"{field}: copies must be a number above 0", field=field)
    if sum(copies for _, copies in entries) > COPIES:
        raise Invalid(f"{field}: more than {COPIES} {name}", field=field)
    return entries


def _convert(entry: dict[str, Any], kind: type[T], field: str) -> T:
    try:
        return msgspec.convert(entry, kind, strict=False)
    except msgspec.ValidationError as error:
        raise Invalid(f"{field}: {error}", field=field) from None
