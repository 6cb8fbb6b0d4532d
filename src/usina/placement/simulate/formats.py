"""Hosts and requests as texts: CSV as clusters publish it, and JSON of our own.

CSV of hosts: ``sn,cpu_milli,memory_mib,gpu,model``. CSV of requests: ``cpu_milli,memory_mib,num_gpu,gpu_milli`` and
optionally ``gpu_spec`` (models, ``A|B``); further columns are ignored. These are the columns of the Alibaba GPU trace
of 2023.

JSON: ``{"hosts": [...]}`` as `usina placement export` writes it, where an entry may carry ``"copies": n`` for n hosts
alike; ``{"requests": [...]}`` with the fields of `Needs` (cores, memory in bytes, devices ...), and ``"copies"``
likewise. Huge pages in use are a list of (node, page size, pages); a window that has no end ends at null.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from usina.core.capacity import Device, DeviceKind, DeviceRequest, HostState, Inventory, Needs, NumaNode, Provider
from usina.core.errors import Invalid
from usina.core.units import MiB
from usina.placement.fleet import MILLI, WHOLE

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")

COPIES = 1_000_000  # hosts or requests at most
CORES = 1 << 16  # of one host
MEMORY = 1 << 56  # bytes of one host
GPUS = 1024  # of one host
RATIO = 1000  # sold per real one
SHOWN = 40  # characters of what was wrong


def hosts_of(text: str, field: str = "hosts") -> list[Provider]:
    """Hosts from CSV or JSON. Raises `Invalid` naming `field` and the line."""
    hosts = _hosts_json(text, field) if _is_json(text) else _hosts_csv(text, field)
    if not hosts:
        raise Invalid(f"{field}: there are no hosts in it", field=field)
    doubled = [id for id, times in Counter(host.id for host in hosts).items() if times > 1]
    if doubled:
        raise Invalid(f"{field}: {doubled[0][:SHOWN]!r} is in it more than once", field=field)
    return hosts


def requests_of(text: str, field: str = "requests") -> list[Needs]:
    """Requests from CSV or JSON, in their order. Raises `Invalid` naming `field` and the line."""
    requests = _requests_json(text, field) if _is_json(text) else _requests_csv(text, field)
    if not requests:
        raise Invalid(f"{field}: there are no requests in it", field=field)
    return requests


def hosts_text(hosts: Iterable[Provider]) -> str:
    """JSON that `hosts_of` reads."""
    return msgspec.json.format(msgspec.json.encode({"hosts": [_host_entry(host) for host in hosts]}).decode())


def _host_entry(host: Provider) -> dict[str, Any]:
    """JSON has no tuples for keys: huge pages in use are a list of (node, page size, pages)."""
    pages = [[*key, number] for key, number in host.used_hugepages.items()]
    return {**msgspec.to_builtins(replace(host, used_hugepages={})), "used_hugepages": pages}


def _is_json(text: str) -> bool:
    return text.lstrip()[:1] in ("{", "[")


# --- CSV


def _hosts_csv(text: str, field: str) -> list[Provider]:
    alike: dict[tuple[int, int, int, str], Inventory] = {}
    hosts = []
    for number, line in _lines(text, ("cpu_milli", "memory_mib", "gpu", "model"), field):
        cpu = _count(line, "cpu_milli", number, field, CORES * MILLI)
        memory = _count(line, "memory_mib", number, field, MEMORY // MiB)
        key = (cpu, memory, _count(line, "gpu", number, field, GPUS), line["model"].strip())
        if key not in alike:
            alike[key] = _inventory(*key)
        name = (line.get("sn") or line.get("name") or f"host-{number}").strip()
        hosts.append(Provider(name, name, "trace", HostState.ENABLED, 1, alike[key]))
    return hosts


def _inventory(cpu_milli: int, memory_mib: int, gpus: int, model: str) -> Inventory:
    node = NumaNode(0, tuple(range(cpu_milli // MILLI)), memory_mib * MiB)
    devices = tuple(Device(f"{slot:04x}:00:00.0", DeviceKind.GPU, model) for slot in range(gpus))
    return Inventory((node,), 0, devices)


def _requests_csv(text: str, field: str) -> list[Needs]:
    alike: dict[tuple[int, int, int, int, str], Needs] = {}
    requests = []
    for number, line in _lines(text, ("cpu_milli", "memory_mib", "num_gpu", "gpu_milli"), field):
        key = (
            _count(line, "cpu_milli", number, field, CORES * MILLI),
            _count(line, "memory_mib", number, field, MEMORY // MiB),
            _count(line, "num_gpu", number, field, GPUS),
            _count(line, "gpu_milli", number, field, WHOLE),
            (line.get("gpu_spec") or "").strip(),
        )
        if key not in alike:
            alike[key] = _needs(*key)
        requests.append(alike[key])
    return requests


def _needs(cpu_milli: int, memory_mib: int, gpus: int, share: int, models: str) -> Needs:
    part = share if gpus == 1 and 0 < share < WHOLE else 0
    devices = (DeviceRequest(DeviceKind.GPU, gpus, models or None, share=part),) if gpus else ()
    return Needs(cpu_milli / MILLI, memory_mib * MiB, 0, devices=devices)


def _lines(text: str, columns: Sequence[str], field: str) -> Iterator[tuple[int, dict[str, str]]]:
    reader = csv.DictReader(io.StringIO(text.removeprefix("\ufeff"), newline=""))
    try:
        missing = [column for column in columns if column not in (reader.fieldnames or ())]
        if missing:
            raise Invalid(f"{field}: the first line lacks the columns {', '.join(missing)}", field=field)
        for line in reader:
            missing = [column for column in columns if line[column] is None]
            if missing:
                raise Invalid(f"{field}: line {reader.line_num}: ends before {missing[0]}", field=field)
            yield reader.line_num, line
    except csv.Error as error:
        raise Invalid(f"{field}: line {reader.reader.line_num}: {error}", field=field) from None


def _count(line: dict[str, str], column: str, number: int, field: str, most: int) -> int:
    text = line[column].strip()
    try:
        value = int(text or 0)
    except ValueError:
        shown = repr(text[:SHOWN])
        raise Invalid(f"{field}: line {number}: {column} is {shown}, not a whole number", field=field) from None
    if not 0 <= value <= most:
        raise Invalid(f"{field}: line {number}: {column} is {text[:SHOWN]}, not 0 to {most}", field=field)
    return value


# --- JSON


def _hosts_json(text: str, field: str) -> list[Provider]:
    hosts: list[Provider] = []
    for number, entry, copies in _entries(text, "hosts", field):
        host = _convert(_with_tuples(entry), Provider, number, field)
        _check(_wrong_host(host), number, field)
        hosts.append(host)
        for copy in range(2, copies + 1):
            hosts.append(replace(host, id=f"{host.id}-{copy}", name=f"{host.name}-{copy}"))
    return hosts


def _requests_json(text: str, field: str) -> list[Needs]:
    requests: list[Needs] = []
    for number, entry, copies in _entries(text, "requests", field):
        needs = _convert({"disk": 0, "memory": 0, **entry}, Needs, number, field)
        _check(_wrong_needs(needs), number, field)
        requests += [needs] * copies
    return requests


def _entries(text: str, name: str, field: str) -> Iterator[tuple[int, dict[str, Any], int]]:
    """Number from 1, entry and copies of it."""
    try:
        document = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Invalid(f"{field}: is not JSON: {error}", field=field) from None
    found = document.get(name) if isinstance(document, dict) else None
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise Invalid(f"{field}: must be an object with a list {name!r} of objects", field=field)
    total = 0
    for number, entry in enumerate(found, start=1):
        copies = entry.pop("copies", 1)
        if type(copies) is not int or copies < 1:
            raise Invalid(f"{field}: entry {number}: copies must be a number above 0", field=field)
        total += copies
        if total > COPIES:
            raise Invalid(f"{field}: entry {number}: more than {COPIES} {name}", field=field)
        yield number, entry, copies


def _with_tuples(entry: dict[str, Any]) -> dict[str, Any]:
    """What `hosts_text` wrote otherwise than it was: huge pages in use, and windows without an end."""
    entry = dict(entry)
    pages, terms = entry.get("used_hugepages"), entry.get("terms")
    if isinstance(pages, list) and all(isinstance(one, list) and len(one) == 3 for one in pages):
        entry["used_hugepages"] = {(node, size): number for node, size, number in pages}
    windows = terms.get("maintenance") if isinstance(terms, dict) else None
    if isinstance(terms, dict) and isinstance(windows, list):
        endless = {"ends": float("inf")}
        open_ended = [{**w, **endless} if isinstance(w, dict) and w.get("ends", 0) is None else w for w in windows]
        entry["terms"] = {**terms, "maintenance": open_ended}
    return entry


def _convert(entry: dict[str, Any], kind: type[T], number: int, field: str) -> T:
    unknown = entry.keys() - {known.name for known in fields(kind)}
    if unknown:
        raise Invalid(f"{field}: entry {number}: there is no field {min(unknown)[:SHOWN]!r}", field=field)
    try:
        return msgspec.convert(entry, kind, strict=False)
    except msgspec.ValidationError as error:
        raise Invalid(f"{field}: entry {number}: {error}", field=field) from None


def _check(wrong: Iterable[str], number: int, field: str) -> None:
    for name in wrong:
        raise Invalid(f"{field}: entry {number}: {name} is out of range", field=field)


def _wrong_host(host: Provider) -> Iterator[str]:
    inventory, terms = host.inventory, host.terms
    numbers = {
        "cores": (inventory.cores, CORES),
        "memory": (inventory.memory, MEMORY),
        "disk": (inventory.disk, MEMORY),
        "devices": (len(inventory.devices), GPUS),
        "used_cores": (host.used_cores, CORES * RATIO),
        "used_memory": (host.used_memory, MEMORY),
        "used_disk": (host.used_disk, MEMORY),
        "cpu_ratio": (host.cpu_ratio, RATIO),
        "memory_ratio": (terms.memory_ratio, RATIO),
    }
    yield from _outside(numbers)
    if any(node.memory < 0 for node in inventory.nodes):
        yield "memory"


def _wrong_needs(needs: Needs) -> Iterator[str]:
    numbers = {
        "cores": (needs.cores, CORES),
        "memory": (needs.memory, MEMORY),
        "disk": (needs.disk, MEMORY),
        "hugepage": (needs.hugepage, MEMORY),
        "numa_nodes": (needs.numa_nodes, CORES),
    }
    yield from _outside(numbers)
    for request in needs.devices:
        yield from _outside({"count": (request.count - 1, GPUS - 1), "share": (request.share, WHOLE - 1)})


def _outside(numbers: Mapping[str, tuple[float, float]]) -> Iterator[str]:
    return (name for name, (value, most) in numbers.items() if not 0 <= value <= most)
