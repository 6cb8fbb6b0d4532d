"""Snapshots of a guest: internal to its qcow2 disk, with memory when it runs. Blocking.

Restoring brings back the whole definition, marks included, so the marks are written again afterwards. QEMU saves and
restores every disk of a running guest together; a snapshot with volumes attached would later turn back the
volumes too, which are not the machine's own. So that is refused. Of a guest that is off, only the root disk is taken.
"""

from __future__ import annotations

from xml.etree.ElementTree import Element

import libvirt

from usina.drivers.libvirt.faults import is_missing
from usina.drivers.libvirt.guests import Guests, attached_volumes
from usina.drivers.libvirt.xml import add, parse, render, root
from usina.ports.driver import DriverError


def take(domain: libvirt.virDomain, name: str) -> None:
    if _find(domain, name) is not None:
        return
    tree = parse(domain.XMLDesc())
    if tree.find("os/loader[@type='pflash']") is not None or tree.find("os[@firmware='efi']") is not None:
        raise DriverError("a guest with UEFI firmware cannot be snapshotted; use BIOS", lasting=True)
    if domain.isActive() and attached_volumes(tree):
        raise DriverError("a running guest with volumes cannot be snapshotted; stop it or detach them", lasting=True)
    domain.snapshotCreateXML(_snapshot_xml(name, tree))


def restore(guests: Guests, handle: str, name: str, token: int) -> None:
    domain = guests.need(handle)
    snapshot = _find(domain, name)
    if snapshot is None:
        raise DriverError(f"there is no snapshot {name!r}", lasting=True)
    marks = guests.marks(handle)
    domain.revertToSnapshot(snapshot, libvirt.VIR_DOMAIN_SNAPSHOT_REVERT_FORCE)
    guests.mark(handle, **{**marks, "restore": token})


def drop(domain: libvirt.virDomain, name: str) -> None:
    snapshot = _find(domain, name)
    if snapshot is not None:
        snapshot.delete()


def forget_all(domain: libvirt.virDomain) -> None:
    """When the root disk is replaced: the snapshots in it are gone, so libvirt must not list them."""
    for snapshot in domain.listAllSnapshots():
        snapshot.delete(libvirt.VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY)


def _find(domain: libvirt.virDomain, name: str) -> libvirt.virDomainSnapshot | None:
    try:
        return domain.snapshotLookupByName(name)
    except libvirt.libvirtError as error:
        if is_missing(error):
            return None
        raise


def _snapshot_xml(name: str, domain: Element) -> str:
    snapshot = root("domainsnapshot")
    add(snapshot, "name", name)
    disks = add(snapshot, "disks")
    for target in domain.iterfind("devices/disk/target"):
        mode = "internal" if target.get("dev") == "vda" else "no"
        add(disks, "disk", name=target.get("dev", ""), snapshot=mode)
    return render(snapshot)
