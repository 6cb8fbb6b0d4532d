"""What a factory has left on this machine's libvirt, and in libvirt's folders. Empty when all was deleted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import libvirt

_FOLDERS = ("/var/lib/libvirt", "/run/libvirt", "/etc/libvirt", "/var/lib/usina")


def traces(factory: str, ids: Iterable[str] = ()) -> set[str]:
    """Everything in libvirt that names `factory`, and every file named after it or after one of `ids`."""
    conn = libvirt.open("qemu:///system")
    try:
        found = {f"{kind} {name}" for kind, name, text in _things(conn) if factory in text}
    finally:
        conn.close()
    marks = (factory, *ids)
    for folder in _FOLDERS:
        found |= {str(path) for path in Path(folder).glob("**/*") if any(mark in path.name for mark in marks)}
    return found


def kinds(factory: str, kind: str) -> list[str]:
    """The names of this factory's things of one kind: domain, network, pool or filter."""
    return sorted(one.partition(" ")[2] for one in traces(factory) if one.startswith(f"{kind} "))


def _things(conn: libvirt.virConnect) -> Iterator[tuple[str, str, str]]:
    """Kind, name and XML."""
    for kind, all_ in (
        ("domain", conn.listAllDomains),
        ("network", conn.listAllNetworks),
        ("pool", conn.listAllStoragePools),
        ("filter", conn.listAllNWFilters),
    ):
        for thing in all_():
            with suppress(libvirt.libvirtError):  # gone since it was listed
                yield kind, thing.name(), thing.XMLDesc()
